"""What rough interfaces scatter, along whole rows of pixels: for images of particles made by tables.

Along a row the amplitudes do not change (geometry bornagain), and the spectra of the roughness are smooth functions of the
in-plane wave number q: the logarithm of what the interfaces scatter one by one is interpolated from few q, and, where their
roughness correlates, how much more or less they scatter together. `dwba.particles` computes every pixel. Errors of the
incidence move q a little: the interpolation is made at a few tilts of the sample and interpolated from there.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.forward.dwba import detector, roughness, tables_incidence
from scatterflow.forward.dwba.engine import interfaces_of
from scatterflow.forward.dwba.faddeeva import POINTS
from scatterflow.forward.dwba.fresnel import waves
from scatterflow.forward.particles import Stack

Array = NDArray[np.float64]
_NODES = 24  # q at which spectra are computed: good to 1e-4 for Hurst exponents of 0.2 to 0.95, lengths of 5 to 60 nm
_LENGTH_NM = 30.0  # 1 / q at which the nodes begin to thin out
_TALLEST_NM, _TOLERANCE = 30.0, 1e-5  # tilts are as close as particles of this height need: more than spectra do


def diffuse_counts(
    stack: Stack, instrument: InstrumentConfig, rows: Array, columns: Array,
    incidence_error_deg: ArrayLike | None = None, largest_error_deg: float = 0.0, device: str = "cpu",
) -> NDArray[np.float32]:  # fmt: skip
    """Counts (simulation, row, column) that the interfaces of `stack` scatter into pixels with edges (pixel, 2).

    For rows above the horizon in geometry bornagain. Beyond the spectrum's cut-off, which is that without errors, nothing
    scatters. `incidence_error_deg` (simulation,) is what the incidence has beyond the instrument's, up to
    `largest_error_deg` to either side. By torch on `device`. Memory beside the result is a few times as much. Raises
    SimulationError.
    """
    cut = stack.max_spatial_frequency_per_nm
    edges = (np.ascontiguousarray(each, dtype=np.float64).tobytes() for each in (rows, columns))
    plan = _plan(instrument.model_dump_json(), *edges, cut, largest_error_deg, device)
    layers = torch.as_tensor(stack.layers, dtype=torch.float64, device=device)
    found = tables_incidence.weights(plan.tilts, incidence_error_deg, len(layers))
    share = layers.new_ones(len(layers), 1) if found is None else torch.as_tensor(found, device=device)
    with torch.no_grad():
        sines = share @ plan.sines
        kz, contrasts, rms, solvable = interfaces_of(layers, sines[:, None], plan.k, cut, stack.transient)
        amplitude = roughness.amplitudes(waves(solvable), kz, contrasts, rms, POINTS)[..., None]
        _, _, thickness, sigma, hurst, length = layers.unbind(-1)
        spectra = amplitude, plan.q2, sigma, hurst, length
        alone = roughness.intensity(*spectra, None).clamp_min(torch.finfo(torch.float64).tiny)
        counts = _between(alone.log(), share, plan).exp()
        if (
            cross := stack.cross_correlation_length_nm
        ) is not None:  # interference may leave nothing: it has no logarithm
            together = roughness.intensity(*spectra, torch.exp(-thickness / cross)) / alone
            counts *= _between(together, share, plan).clamp_min(0.0)
        counts *= plan.factor[:, None]
        counts *= (share @ plan.brightness).T[..., None].float()
    result: NDArray[np.float32] = counts.transpose(0, 1).cpu().numpy()
    return result


class _Plan(NamedTuple):
    """What does not depend on the stack.

    Wave number [1/nm]; `tilts` (tilt,) [deg]; `sines` (tilt, row + 1) of the exit angles and of the incidence; squared q of
    the nodes (row, node) [1/nm^2]; the interpolation from there `between` (row, node x tilt, column); `factor` (row,
    column) from [nm^4] to counts; `brightness` (tilt, row): that of other tilts over it.
    """

    k: float
    tilts: Array
    sines: Tensor
    q2: Tensor
    between: Tensor
    factor: Tensor
    brightness: Tensor


def _between(at_nodes: Tensor, share: Tensor, plan: _Plan) -> Tensor:
    """Values (row, simulation, column) from those (simulation, row, node): a matrix product for each row of pixels."""
    each = (at_nodes[..., None] * share[:, None, None]).flatten(2)
    return torch.bmm(each.float().transpose(0, 1), plan.between)


@lru_cache(maxsize=4)
def _plan(told: str, row_edges: bytes, column_edges: bytes, cut: float, largest_deg: float, device: str) -> _Plan:
    """The plan of an instrument (JSON) and edges of pixels, which takes as long as some images."""
    instrument = InstrumentConfig.model_validate_json(told)
    rows, columns = (np.frombuffer(edges).reshape(-1, 2) for edges in (row_edges, column_edges))
    k = geometry.wavenumber(instrument)
    middle = int(np.argmin(np.abs(columns.mean(axis=1) - geometry.foot_px(instrument)[1])))
    tilts = tables_incidence.tilts(instrument, _TALLEST_NM, largest_deg, _TOLERANCE)
    sines, wavenumbers, factors = [], [], []
    for tilt in (0.0, *tilts.tolist()):
        each = tables_incidence.tilted(instrument, tilt)
        alpha, phi, solid = detector.directions(each, rows, columns)
        qx, qy, _ = geometry.scattering_vector(each, alpha, phi)
        sines.append(np.append(np.sin(alpha[:, middle]), math.sin(math.radians(each.incidence_deg))))
        wavenumbers.append(np.hypot(qx, qy))
        factors.append(each.beam_intensity * solid / sines[-1][-1] * k**4 / (16 * math.pi**2))
    scaled = np.arcsinh(_LENGTH_NM * np.stack(wavenumbers[1:]))
    low, high = scaled.min(), scaled.max()
    places = (low + high) / 2 - (high - low) / 2 * np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    between = detector.lagrange(places, scaled.ravel()).reshape(_NODES, *scaled.shape).transpose(2, 0, 1, 3)

    def there(array: NDArray[np.floating], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.as_tensor(array, device=device).to(dtype)

    return _Plan(
        k,
        tilts,
        there(np.stack(sines[1:])),
        there((np.sinh(places) / _LENGTH_NM) ** 2).expand(len(rows), -1),
        there(np.ascontiguousarray(between.reshape(len(rows), -1, len(columns))), torch.float32),
        there(np.where(wavenumbers[0] <= 2 * math.pi * cut, factors[0], 0.0), torch.float32),
        there(np.stack([each[:, middle] / factors[0][:, middle] for each in factors[1:]])),
    )
