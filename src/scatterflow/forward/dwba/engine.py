"""Engine `dwba`: expected counts of rough multilayers as BornAgain 25 computes them, in batches, with gradients.

The waves in the stack depend on the exit angle only, so they are solved once per row of pixels (mode `fast`, see
`detector`); what is left per pixel is a coherent sum of spectra, smooth along the row, and linear maps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.sample import SampleConfig
from scatterflow.errors import ConfigError, SimulationError
from scatterflow.forward.dwba import detector, roughness
from scatterflow.forward.dwba.faddeeva import POINTS
from scatterflow.forward.dwba.fresnel import Interfaces, contrast, interfaces, vertical_wavenumber, waves
from scatterflow.forward.dwba.fused import compiler, fused
from scatterflow.forward.dwba.pairs import Complex
from scatterflow.forward.layers import LAYER_PARAMETERS, check_theta

Mode = Literal["fast", "reference"]
BATCH_BYTES = 2**30
_CACHE_BYTES = {"cpu": 2**25, "cuda": 2**33}  # small batches stay in a core's cache, large ones fill a GPU
_ANGLE_BYTES = 8 * 70  # per simulation, interface and exit angle: so many doubles live at once (measured: 35 to 60)
_NODE_BYTES = 8 * 12  # per simulation and node
_FAST_POINTS = 8  # the Faddeeva function to 2e-10: deep minima between waves cost up to 4,000 times
_BLOCK = 64  # rows of a view's bins that are summed from pixels at once: the map is banded


@dataclass(frozen=True)
class _Maps:
    """A patch as tensors; `index` and `along` (block, ...) are the banded map from rows of pixels to bins."""

    angles: Tensor
    lagrange: Tensor | None
    q2: Tensor
    factor: Tensor
    across: Tensor | None
    visible: Tensor | None
    columns: Tensor
    index: Tensor
    along: Tensor
    background: Tensor


def expected_counts(
    sample: SampleConfig, instrument: InstrumentConfig, theta: NDArray[np.float64], view_names: tuple[str, ...], *,
    mode: Mode = "fast", device: str = "cpu", compiled: bool = False, batch_bytes: int = BATCH_BYTES,
) -> dict[str, NDArray[np.floating]]:  # fmt: skip
    """Noise-free expected counts of each view, (simulation, z, y), for parameters `theta` (simulation, parameter).

    As `bornagain.expected_counts`, for both geometries. `mode` `reference` computes every pixel in float64; `fast` agrees
    with it within 1e-5 of the counts (1e-4 in geometry flat) and returns float32. `compiled` fuses the arithmetic (the
    first call takes a minute, the others a half to a third). `batch_bytes` [byte] bounds the memory beside input and
    result. On one machine a row's counts are the same to the last bit whatever the other rows, as long as all lie in the
    prior's box and `compiled` is off. Raises SimulationError naming row and parameter, or if not even one row of bins of
    one simulation fits.
    """
    check_theta(sample, theta)
    setting = _Setting(sample, instrument, sample.model_dump_json() + instrument.model_dump_json())
    engine = _engine(setting, view_names, limits(sample, theta), mode, device, compiled, batch_bytes)
    dtype = np.float32 if mode == "fast" else np.float64
    shapes = {name: geometry.view(instrument, name).bins for name in view_names}
    result = {name: np.empty((len(theta), *shape), dtype) for name, shape in shapes.items()}
    with torch.no_grad():
        for start in range(0, len(theta), engine.batch):
            some = theta[start : start + engine.batch]
            full = np.resize(some, (engine.batch, theta.shape[1])) if engine.compiled else some  # compile one shape
            for name, part in engine(torch.tensor(full, dtype=torch.float64, device=device)).items():
                result[name][start : start + len(some)] = part[: len(some)].cpu().numpy()
    for name, counts in result.items():
        finite = np.isfinite(counts).all(axis=(1, 2))
        if not finite.all():
            raise SimulationError(f"view {name} of row {int(np.argmin(finite))}", "must be finite", "NaN or infinity")
    return result


@dataclass(frozen=True)
class _Setting:
    """Configurations that can be looked up: `key` is their text."""

    sample: SampleConfig = field(compare=False)
    instrument: InstrumentConfig = field(compare=False)
    key: str


@functools.lru_cache(maxsize=4)
def _engine(setting: _Setting, *options: Any) -> Engine:
    """The engine of a setting, kept: planning one takes as long as some simulations."""
    return Engine(setting.sample, setting.instrument, *options)


def limits(sample: SampleConfig, theta: NDArray[np.float64] | None = None) -> detector.Limits:
    """What mode `fast` must resolve: the whole prior and, beyond it, `theta` (simulation, parameter)."""
    known = (*sample.fixed, sample.substrate)
    ranges = [sample.materials[name] for name in sample.layers]
    low = np.array([[getattr(r, name)[0] for name in LAYER_PARAMETERS] for r in ranges])
    high = np.array([[getattr(r, name)[1] for name in LAYER_PARAMETERS] for r in ranges])
    thickness = sum(r.thickness_nm[1] for r in ranges)
    if theta is not None and theta.size:
        layers = theta.reshape(len(theta), len(sample.layers), len(LAYER_PARAMETERS))
        low, high = np.minimum(low, layers.min(axis=0)), np.maximum(high, layers.max(axis=0))
        thickness = max(thickness, float(layers[..., 2].sum(axis=1).max()))
    fixed = np.array([[getattr(layer, name) for name in LAYER_PARAMETERS] for layer in known])
    low, high = (np.vstack([bound.reshape(-1, len(LAYER_PARAMETERS)), fixed]) for bound in (low, high))
    delta, beta, _, _, _, length = range(len(LAYER_PARAMETERS))
    return detector.Limits(
        float(high[:, length].max()), thickness + sum(layer.thickness_nm for layer in sample.fixed),
        (float(low[:, delta].min()), float(high[:, delta].max())), float(low[:, beta].min()),
    )  # fmt: skip


class Engine:
    """Expected counts of the views of a study as a function of parameters, differentiable in both modes of autograd.

    Call it with `theta` (simulation, parameter), float64. Returns {view: (simulation, z, y)}, float32 in mode `fast`,
    float64 in mode `reference`. Without gradients, `compiled` holds and up to `batch` simulations stay within `batch_bytes`
    [byte] beside the result and the plan (five maps of float64 between the rows of a view); what gradients keep grows
    with the number of simulations.
    """

    def __init__(
        self, sample: SampleConfig, instrument: InstrumentConfig, view_names: tuple[str, ...], limits: detector.Limits,
        mode: Mode = "fast", device: str = "cpu", compiled: bool = False,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:  # fmt: skip
        if mode not in ("fast", "reference"):
            raise ConfigError("mode of engine dwba", "must be fast or reference", repr(mode))
        self.sample, self.view_names = sample, view_names
        self.dtype = torch.float32 if mode == "fast" else torch.float64
        self.device = torch.device(device)
        self.compiled = compiled and compiler(self.device.type) is not None
        self._points = _FAST_POINTS if mode == "fast" else POINTS
        self._options = sample.max_spatial_frequency_per_nm, sample.transient
        self._cross = sample.cross_correlation_length_nm
        self.k = geometry.wavenumber(instrument)
        self.sin_incidence = math.sin(math.radians(instrument.incidence_deg))
        self._layers = len(sample.layers) + len(sample.fixed) + 1
        plan = functools.partial(
            detector.patches, instrument, max_frequency=sample.max_spatial_frequency_per_nm,
            limits=limits if mode == "fast" else None,
        )  # fmt: skip
        patches = {name: list(plan(name=name)) for name in view_names}
        needed = sum(self._bytes(patch) for parts in patches.values() for patch in parts)
        if needed > batch_bytes:  # view by view, each in parts that are joined at the end
            joined = sum(math.prod(geometry.view(instrument, name).bins) for name in view_names) * self.dtype.itemsize
            patches = {name: self._split(plan, name, batch_bytes, joined) for name in view_names}
            needed = max(self._bytes(patch) for parts in patches.values() for patch in parts) + joined
            self._groups = [[(name, self._maps(patch))] for name, parts in patches.items() for patch in parts]
        else:
            self._groups = [[(name, self._maps(patch)) for name, parts in patches.items() for patch in parts]]
        self.batch = max(1, min(batch_bytes, _CACHE_BYTES[self.device.type]) // max(1, needed))

    def __call__(self, theta: Tensor) -> dict[str, Tensor]:
        """Expected counts of each view, (simulation, z, y)."""
        layers = self._stack(theta)
        counts: dict[str, list[Tensor]] = {name: [] for name in self.view_names}
        for group in self._groups:
            sin_alpha = torch.cat([torch.sin(maps.angles).reshape(-1) for _, maps in group])
            # the last angle is that of the incoming wave, which solves the same equations
            sin_alpha = torch.cat([sin_alpha, sin_alpha.new_tensor([self.sin_incidence])])
            kz, contrasts, rms, solvable = self._run(interfaces_of)(layers, sin_alpha, self.k, *self._options)
            # the recursion stays uncompiled: torch's compiler does not come to an end on it
            amplitude = self._run(roughness.amplitudes)(waves(solvable), kz, contrasts, rms, self._points)
            done = 0
            for name, maps in group:
                some = slice(done, done + maps.angles.numel())
                done = some.stop
                nodes = self._run(_scattered)(
                    amplitude[..., some], maps.angles.shape, maps.lagrange, maps.q2, maps.factor, layers, self._cross
                )
                counts[name].append(_detected(nodes.to(self.dtype), maps))
        return {name: parts[0] if len(parts) == 1 else torch.cat(parts, 1) for name, parts in counts.items()}

    def _run(self, function: Any) -> Any:
        # gradients stay uncompiled: torch 2.13's compiler fails on some of them
        return fused(function) if self.compiled and not torch.is_grad_enabled() else function

    def _stack(self, theta: Tensor) -> Tensor:
        """Parameters of all layers below the vacuum, (simulation, layer, parameter)."""
        free = theta.reshape(len(theta), len(self.sample.layers), len(LAYER_PARAMETERS))
        known = [
            [getattr(layer, name) for name in LAYER_PARAMETERS] for layer in (*self.sample.fixed, self.sample.substrate)
        ]
        return torch.cat([free, free.new_tensor(known).expand(len(free), -1, -1)], 1)

    def _bytes(self, patch: detector.Patch) -> int:
        """Memory [byte] that a patch of one simulation takes."""
        rows, nodes = patch.q2.shape
        bins = max(len(patch.background), rows) * patch.columns.shape[1]
        pixels = 0 if patch.across is None else rows * patch.across.shape[1]
        per_node = _NODE_BYTES if patch.lagrange is None else _NODE_BYTES + 3 * 8 * self._layers
        return int(
            _ANGLE_BYTES * patch.angles.size * self._layers
            + per_node * rows * nodes
            + 3 * self.dtype.itemsize * (bins + pixels)
        )

    def _split(
        self, plan: Callable[..., Iterator[detector.Patch]], name: str, batch_bytes: int, joined: int
    ) -> list[detector.Patch]:
        """The view in patches that each fit beside the `joined` ones [byte]."""
        rows = 4096
        while True:
            patches = list(plan(name=name, rows_at_once=rows))
            largest = max(patches, key=self._bytes)
            needed = self._bytes(largest) + joined
            if needed <= batch_bytes:
                return patches
            if len(largest.background) == 1:
                raise SimulationError(
                    f"batch of engine dwba: one row of bins of view {name} of one simulation",
                    f"must fit into batch_bytes={batch_bytes}", f"{needed} bytes", f"allow at least {needed}",
                )  # fmt: skip
            rows = max(1, int(rows * 0.8 * (batch_bytes - joined) / self._bytes(largest)))

    def _maps(self, patch: detector.Patch) -> _Maps:
        """A patch as tensors on the device."""
        index, along = _banded(patch.along)

        def tensor(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), device=self.device).to(dtype)

        def optional(array: NDArray[Any] | None, dtype: torch.dtype) -> Tensor | None:
            return None if array is None else tensor(array, dtype)

        return _Maps(
            tensor(patch.angles, torch.float64), optional(patch.lagrange, torch.float64), tensor(patch.q2, torch.float64),
            tensor(patch.factor, torch.float64), optional(patch.across, self.dtype), optional(patch.visible, self.dtype),
            tensor(patch.columns, self.dtype), tensor(index, torch.long), tensor(along, self.dtype),
            tensor(patch.background, self.dtype),
        )  # fmt: skip


def interfaces_of(
    layers: Tensor, sin_alpha: Tensor, k: float, max_frequency: float, transient: str
) -> tuple[Complex, Complex, Tensor, Interfaces]:
    """Vertical wavenumbers, contrasts, effective rms and interfaces of a stack."""
    delta, beta, thickness, sigma, hurst, length = layers.unbind(-1)
    contrasts = contrast(delta, beta)
    rms = roughness.effective_rms(sigma, hurst, length, max_frequency)
    kz = vertical_wavenumber(k, sin_alpha, contrasts)
    return kz, contrasts, rms, interfaces(kz, rms, thickness, transient)


def _scattered(
    amplitude: Complex, angles: torch.Size, lagrange: Tensor | None, q2: Tensor, factor: Tensor, layers: Tensor,
    cross_length: float | None,
) -> Tensor:  # fmt: skip
    """Scattered counts at the nodes, (simulation, row, node), of amplitudes (simulation, interface, angle).

    `angles` is the shape (row, angle per row) of the last axis.
    """
    _, _, thickness, sigma, hurst, length = layers.unbind(-1)
    shape = (*amplitude.re.shape[:2], *angles)
    amplitude = Complex(amplitude.re.reshape(shape), amplitude.im.reshape(shape))
    if lagrange is not None:
        amplitude = Complex(_interpolated(amplitude.re, lagrange), _interpolated(amplitude.im, lagrange))
    damping = None if cross_length is None else torch.exp(-thickness / cross_length)
    return roughness.intensity(amplitude, q2, sigma, hurst, length, damping) * factor


def _interpolated(values: Tensor, lagrange: Tensor) -> Tensor:
    """Values (..., row, angle) at the nodes (..., row, node)."""
    result = values[..., 0, None] * lagrange[0]
    for n in range(1, len(lagrange)):
        result = torch.addcmul(result, values[..., n, None], lagrange[n])
    return result


def _detected(nodes: Tensor, maps: _Maps) -> Tensor:
    """Counts per bin (simulation, z, y) of scattered counts at the nodes (simulation, row, node)."""
    count, bins = len(nodes), maps.background.shape
    if maps.across is not None:
        nodes = _product(nodes, maps.across.expand(count, -1, -1))
    columns = maps.columns.expand(count, -1, -1)
    if maps.visible is not None:
        nodes = _product(nodes * maps.visible, columns)
    windows = nodes[:, maps.index]
    along = maps.along.expand(count, -1, -1, -1)
    rows = _product(along.flatten(0, 1), windows.flatten(0, 1)).reshape(count, -1, nodes.shape[-1])[:, : bins[0]]
    if maps.visible is None:
        rows = _product(rows, columns)
    return rows + maps.background


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products, one per simulation: `@` has another kernel for one simulation, and the products of a matrix and a
    vector depend on where in memory they lie, both in the last bit only.
    """
    rows, columns = left.shape[1], right.shape[2]
    left = left.expand(-1, 2, -1) if rows == 1 else left
    right = right.expand(-1, -1, 2) if columns == 1 else right
    return torch.bmm(left, right)[:, :rows, :columns]


def _banded(along: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """A banded matrix (bin, row) as rows (block, width) and weights (block, bin, width) of blocks of bins."""
    bins, rows = along.shape
    if rows == 0:
        return np.zeros((1, 0), dtype=np.intp), np.zeros((1, bins, 0))
    blocks = [along[start : start + _BLOCK] for start in range(0, bins, _BLOCK)]
    spans = [np.flatnonzero(block.any(axis=0)) for block in blocks]
    width = max(int(span[-1] - span[0]) + 1 if len(span) else 1 for span in spans)
    first = [min(int(span[0]) if len(span) else 0, rows - width) for span in spans]
    index = np.array(first)[:, None] + np.arange(width)
    weights = np.zeros((len(blocks), min(_BLOCK, bins), width))
    for block, values in enumerate(blocks):
        weights[block, : len(values)] = values[:, index[block]]
    return index, weights
