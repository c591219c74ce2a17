"""Geometry that no file holds, estimated from the mean frame of a scan: the ring of the zone plate, fringes of the film.

What a frame can tell: the ring's outer radius (wavelength x distance / width of the outermost zone), the ratio of its
radii (central stop / zone plate), where ring and fringes lie, how wide the fringes are (thickness of the film) and how
sharp the ring is. What it cannot: energy, distance and outermost zone apart from each other, a lattice parameter apart from
the energy. So strain and tilts of a scan are relative to its mean, and asking for what is degenerate is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, least_squares, nnls

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.errors import ConfigError, FrameError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_LIMITS: dict[str, tuple[float, float, float]] = {  # lowest, highest, and a step that changes a frame visibly
    "strain": (-0.1, 0.1, 1e-3),
    "omega_deg": (-3.0, 3.0, 0.03),
    "chi_deg": (-3.0, 3.0, 0.1),
    "film_thickness_nm": (0.5, 1e4, 3.0),
    "peak_width": (0.02, 50.0, 0.3),
    "outer_zone_nm": (2.0, 200.0, 2.0),
    "stop_um": (0.0, 1e4, 10.0),
}
FREE = tuple(_LIMITS)
_STATE = FREE[:4]  # what `intensities` takes; the others change the kinematics
DEGENERATE = {
    "energy_kev": "outer_zone_nm: only wavelength x distance / outermost zone is seen",
    "distance_mm": "outer_zone_nm: only wavelength x distance / outermost zone is seen",
    "pixel_mm": "outer_zone_nm: only the ring's radius in pixels is seen",
    "zone_plate_um": "stop_um: only the ratio of both is seen",
    "lattice_nm": "strain: only their product is seen, and only relative to the energy",
}
STARTS = {
    "film_thickness_nm": (0.5, 1.0, 2.0),
    "peak_width": (0.1, 1.0, 10.0),
}  # times their values: there are several minima
CORRELATED = 0.95  # a pair of parameters beyond is called degenerate
MAX_STEPS = 50  # of the fit from each first guess
NODES = 2.0  # of the ring, per pixel: 1e-3 of a frame's maximum


class Geometry(NamedTuple):
    """What a mean frame says."""

    values: dict[str, float]  # by parameter
    sd: dict[str, float]  # standard deviation, widened by the root of the misfit where the model does not fit
    misfit: float  # squared deviation over its counting noise, per pixel: 1 where the model is right
    degenerate: list[tuple[str, str, float]]  # pairs that the frame hardly tells apart, with their correlation
    model: Array  # (z, y), what was fitted [counts of the mean frame]


def estimate_geometry(
    mean_frame: Array,
    beam: NanobeamConfig,
    film: FilmConfig,
    mask: Mask,
    free: Sequence[str] = ("strain", "omega_deg", "chi_deg", "film_thickness_nm", "peak_width"),
    frames: int = 1,
    start: Mapping[str, float] | None = None,
) -> Geometry:
    """Fit the film model to a mean frame (z, y), with free amplitude and flat background, by least squares.

    `mask` (z, y) is True where valid; `frames` is the number of frames in the mean, for its counting noise; what is not
    `free` is as in `beam` and `film`, with no strain or tilt. The mean of frames with many tilts shows a ring that is less
    sharp than each: then peak_width is the scan's. Strain and tilts are those of the cut's middle. `start` has values of
    the free parameters near the right ones; without it the fit is begun in several places.

    Raises
    ------
    ConfigError : `free` names what no frame can tell, or nothing that can be fitted.
    FrameError : the frame does not fit the beam's shape, or holds no counts.
    """
    for name in free:
        if name in DEGENERATE:
            raise ConfigError(
                f"free parameter {name}", "must be told by a frame", f"degenerate with {DEGENERATE[name]}"
            )
        if name not in _LIMITS:
            raise ConfigError("free parameter", f"must be one of {', '.join(FREE)}", repr(name))
    if not free or len(set(free)) != len(free):
        raise ConfigError("free parameters", "must be at least one, each once", list(free))
    if mean_frame.shape != beam.shape or mask.shape != beam.shape:
        raise FrameError("mean frame", f"must have the shape {beam.shape} of the beam", mean_frame.shape)
    total = np.asarray(mean_frame, dtype=np.float64)[mask] * frames
    if total.size <= len(free) + 2 or not np.isfinite(total).all() or total.min() < 0 or not total.any():
        raise FrameError("mean frame", "must hold counts in its valid pixels", f"{total.size} pixels without use")
    problem = _Problem(beam, film, mask, tuple(free), np.sqrt(total + 3 / 8), total)
    starts = problem.starts(mean_frame) if start is None else [problem.scaled(start)]
    best = min((problem.fit(first) for first in starts), key=lambda found: float(found.cost))
    misfit = 2 * float(best.cost) / (total.size - len(free) - 2)
    covariance = np.linalg.pinv(best.jac.T @ best.jac) * max(misfit, 1.0)
    spread = np.sqrt(np.diagonal(covariance))
    correlation = covariance / np.maximum(np.outer(spread, spread), np.finfo(float).tiny)
    pairs = [(i, j) for i in range(len(free)) for j in range(i)]
    model = np.zeros(beam.shape)
    model[mask] = problem.expected(best.x) / frames
    return Geometry(
        {name: float(x * _LIMITS[name][2]) for name, x in zip(free, best.x, strict=True)},
        {name: float(x * _LIMITS[name][2]) for name, x in zip(free, spread, strict=True)},
        misfit,
        [(free[j], free[i], float(correlation[i, j])) for i, j in pairs if abs(correlation[i, j]) > CORRELATED],
        model,
    )


class _Problem(NamedTuple):
    """The least-squares problem; parameters in units of their steps."""

    beam: NanobeamConfig
    film: FilmConfig
    mask: Mask
    free: tuple[str, ...]
    root: (
        Array  # of the counts, whose noise is 1/2 whatever their number (Anscombe 1948, doi:10.1093/biomet/35.3-4.246)
    )
    total: Array

    def starts(self, frame: Array) -> list[Array]:
        """First guesses: tilts from the centroid, several thicknesses and widths."""
        weights = np.where(self.mask, np.maximum(frame - np.median(frame[self.mask]), 0), 0)
        row, column = (
            float(weights.sum(1 - axis) @ (np.arange(n) - (n - 1) / 2)) / max(float(weights.sum()), 1e-300)
            for axis, n in enumerate(frame.shape)
        )
        pixel = self.beam.pixel_mm / self.beam.distance_mm
        bragg = self.beam.wavelength_nm * self.film.order / (2 * self.film.lattice_nm)
        guess = self._fixed() | {
            "omega_deg": float(np.degrees(-row * pixel / 2)),
            "chi_deg": float(np.degrees(-column * pixel / (2 * bragg))),
        }
        factors = {name: several for name, several in STARTS.items() if name in self.free}
        guesses = [
            guess | {name: guess[name] * factor for name, factor in zip(factors, chosen, strict=True)}
            for chosen in product(*factors.values())
        ]
        return [self.scaled(each) for each in guesses]

    def scaled(self, values: Mapping[str, float]) -> Array:
        """Free parameters in units of their steps."""
        return np.array([values[name] / _LIMITS[name][2] for name in self.free])

    def _fixed(self) -> dict[str, float]:
        known = {"strain": 0.0, "omega_deg": 0.0, "chi_deg": 0.0, "film_thickness_nm": self.film.thickness_nm}
        known |= {"peak_width": self.film.peak_width, "stop_um": self.beam.stop_um}
        return known | {"outer_zone_nm": self.beam.outer_zone_nm}

    def expected(self, x: Array) -> Array:
        """Counts of the valid pixels, with the best amplitude and background, neither negative."""
        import torch  # late: it takes a second, and reading a scan does without it

        from scatterflow.forward.nanodiffraction import intensities, kinematics

        now = self._fixed() | {name: float(value) * _LIMITS[name][2] for name, value in zip(self.free, x, strict=True)}
        beam = self.beam.model_copy(update={name: now[name] for name in ("outer_zone_nm", "stop_um")})
        film = self.film.model_copy(update={"peak_width": now["peak_width"]})
        at = kinematics(beam, film, dtype=torch.float64, nodes=NODES)
        theta = torch.tensor([[now[name] for name in _STATE]], dtype=torch.float64)
        shape = intensities(at, theta)[0].numpy()[self.mask].clip(0)
        scale = shape.max() or 1.0
        columns = np.stack([shape / scale, np.ones_like(shape)], axis=1) / self.root[:, None]
        amplitudes, _ = nnls(columns, self.total / self.root)
        return np.asarray(columns @ amplitudes * self.root)

    def fit(self, start: Array) -> OptimizeResult:
        """scipy's result from a first guess."""
        top = {name: _LIMITS[name][1] for name in self.free}
        if "stop_um" in top:
            top["stop_um"] = 0.99 * self.beam.zone_plate_um
        low, high = (
            np.array([value / _LIMITS[name][2] for name, value in bounds.items()])
            for bounds in ({name: _LIMITS[name][0] for name in self.free}, top)
        )
        found: OptimizeResult = least_squares(
            lambda x: 2 * (self.root - np.sqrt(self.expected(x) + 3 / 8)),
            start.clip(low, high),
            bounds=(low, high),
            max_nfev=MAX_STEPS,
        )
        return found
