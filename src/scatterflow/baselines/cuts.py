"""The two cuts of a GISAXS image that analysts fit: along the Yoneda line, and upwards through the correlation peak.

A cut is a sum over the valid bins of a few rows or columns; the model's is a sum over the same bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import instrument as geometry
from scatterflow import sizes
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.particles import ParticleSampleConfig
from scatterflow.errors import ConfigError, FrameError
from scatterflow.forward.dwba import detector
from scatterflow.forward.dwba.tables import Tables, expected_counts, tables
from scatterflow.units import energy_kev

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

YONEDA = 0.25  # half the width of the in-plane cut over the critical angle
BEAM = 0.5  # of the lowest 2 pi / D: below, the direct beam and its tail outshine the particles
BAND = 1.15  # ratio of the in-plane wave numbers at both ends of an out-of-plane cut
SMOOTH = 1.0  # standard deviation, in bins, of the smoothing before a peak is looked for
LOWEST_PEAK = 0.8  # peak over 2 pi / D at the largest disorder that a study may have


@dataclass(frozen=True)
class Cuts:
    """Where the cuts of a view's bins lie, and the tables of form factors there, each made when it is first asked for.

    `rows`, `columns` (bin, 2): edges of all bins in detector pixels. `yoneda`, `above` (row,), `beside` (column,): flags of
    the rows of the in-plane cut, of those above the horizon and of the columns beside the beam. `q` (column,): in-plane
    wave number there [1/nm]. `ends` (band + 1,): wave numbers between which the out-of-plane cuts lie.
    """

    sample: ParticleSampleConfig
    instrument: InstrumentConfig
    rows: Array
    columns: Array
    sampling: tuple[int, int]
    yoneda: Flags
    above: Flags
    beside: Flags
    q: Array
    ends: Array
    made: dict[int | None, Tables] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of bins (z, y)."""
        return len(self.rows), len(self.columns)

    def band(self, number: int) -> Flags:
        """Columns (column,) of an out-of-plane cut, on both sides of the beam."""
        low, high = self.ends[number : number + 2]
        inside: Flags = (self.q >= low) & (self.q < high) & self.beside
        if not inside.any():
            away = np.where(self.beside, np.abs(self.q - math.sqrt(low * high)), np.inf)
            inside = away <= away.min() * (1 + 1e-9)
        return inside

    def bands_of(self, q_peak: Array) -> NDArray[np.intp]:
        """Number of the out-of-plane cut (simulation,) through wave numbers `q_peak` (simulation,) [1/nm]."""
        return np.clip(np.searchsorted(self.ends, q_peak, side="right") - 1, 0, len(self.ends) - 2)

    def where(self, band: int | None) -> tuple[Flags, Flags]:
        """Rows and columns that a cut sums: the in-plane one (None), or the out-of-plane one of a band."""
        return (self.yoneda, self.beside) if band is None else (self.above, self.band(band))

    def images(self, cuts: tuple[int | None, ...], theta: Array) -> list[NDArray[np.float32]]:
        """Expected counts (simulation, row, column) in the bins of each of `cuts`, as `where` names them.

        Of the particles alone: without resolution, background and rough interfaces' own scattering. Raises ConfigError
        for geometry flat, and SimulationError.
        """
        energy = energy_kev(self.instrument.wavelength_nm)
        described = sizes.arrangement(self.sample, theta), sizes.stack(self.sample, theta, energy)
        found = []
        for cut in cuts:
            rows, columns = self.where(cut)
            if cut not in self.made:
                edges = _divided(self.rows[rows], self.sampling[0]), _divided(self.columns[columns], self.sampling[1])
                self.made[cut] = tables(sizes.particles(self.sample, energy), self.instrument, *edges)
            counts = expected_counts(self.made[cut], *described)
            shape = len(counts), rows.sum(), self.sampling[0], columns.sum(), self.sampling[1]
            found.append(counts if self.sampling == (1, 1) else counts.reshape(shape).sum((2, 4)))
        return found


def cuts(
    sample: ParticleSampleConfig,
    instrument: InstrumentConfig,
    rows: Array,
    columns: Array,
    sampling: tuple[int, int] = (1, 1),
) -> Cuts:
    """Cuts of bins with edges `rows`, `columns` (bin, 2), each of `sampling` (z, y) samples.

    The in-plane cut sums the rows around the substrate's critical angle. Raises ConfigError for views without bins above
    the horizon, at that angle or beside the beam.
    """
    if sample.layer:
        must, remedy = "must be 0, the surface, for a fit of cuts", "leave out the fit for particles inside a layer"
        raise ConfigError("sample.layer", must, sample.layer, remedy)
    delta, _ = sizes.optical_constants(sample.substrate.material, energy_kev(instrument.wavelength_nm))
    critical = math.sqrt(2 * delta)
    low, high = geometry.rows_px(instrument, critical * np.array([1 - YONEDA, 1 + YONEDA]))
    above = rows[:, 0] >= geometry.horizon_px(instrument)
    yoneda = above & (rows[:, 1] > low) & (rows[:, 0] < high)
    if not yoneda.any():
        must = f"must hold the Yoneda line at an exit angle of {math.degrees(critical):.3g} deg"
        got = f"none of rows {low:.1f} to {high:.1f}"
        raise ConfigError("rows of the cuts", must, got, "widen the view")
    _, phi, _ = detector.directions(instrument, rows[:1], columns)
    qx, qy, _ = geometry.scattering_vector(instrument, np.full_like(phi[0], critical), phi[0])
    q = np.hypot(qx, qy)
    low, high = (2 * np.pi / distance for distance in sample.distance_nm[::-1])
    beside = q >= BEAM * low
    if beside.sum() < 3:
        must, got = f"must reach in-plane wave numbers above {BEAM * low:.3g} 1/nm", f"{q.max():.3g} 1/nm"
        raise ConfigError("columns of the cuts", must, got, "widen the view or raise distance_nm")
    low, high = LOWEST_PEAK * low, min(high, float(q.max()) * (1 + 1e-9))
    number = max(1, math.ceil(math.log(max(high / low, 1.0)) / math.log(BAND)))
    ends = low * np.float64(BAND) ** np.arange(number + 1)
    return Cuts(sample, instrument, rows, columns, sampling, yoneda, above, beside, q, ends)


def checked(counts: NDArray[np.floating], valid: Flags, of: Cuts) -> tuple[NDArray[Any], Flags]:
    """Recorded `counts` (simulation, z, y), 0 where not `valid`. Raises FrameError."""
    counts, valid = np.asarray(counts), np.asarray(valid, dtype=bool)
    if counts.ndim != 3 or counts.shape[1:] != of.shape or valid.shape != counts.shape:
        got = f"{counts.shape} and {valid.shape}"
        raise FrameError("counts and mask of frames", f"must be (simulation, {of.shape[0]}, {of.shape[1]})", got)
    seen = np.where(valid, counts, 0)
    if not np.isfinite(seen).all() or (seen < 0).any():
        raise FrameError("counts", "must be finite and not negative", None, "mask the pixels that are not")
    return seen, valid


def peak_distance(counts: NDArray[np.floating], valid: Flags, of: Cuts) -> xr.Dataset:
    """The trivial analysis: `distance_nm` = 2 pi / q_peak (simulation,) of the in-plane cut's highest maximum.

    Smoothed, both sides of the beam added, between neighbours within the prior's range of distances. `success` is False
    where no such maximum is; `distance_nm` is then the middle of its prior. Peaks lie below 2 pi / D the more, the larger
    the disorder is. Raises FrameError.
    """
    seen, valid = checked(counts, valid, of)
    q = of.q[of.beside]
    step = geometry.wavenumber(of.instrument) * of.instrument.pixel_mm / of.instrument.distance_mm
    step *= float(np.diff(of.columns, axis=1).mean())
    place = np.arange(q.min(), q.max() + step / 2, step)
    # the mean count of the valid bins around each wave number, weighted by distance
    weight = np.exp(-0.5 * ((place[:, None] - q) / (SMOOTH * step)) ** 2)
    some = np.ix_(of.yoneda, of.beside)
    amount, share = (each[:, some[0], some[1]].sum(axis=1, dtype=float) @ weight.T for each in (seen, valid))
    smooth = np.where(share > 1e-3, amount / np.maximum(share, 1e-3), 0.0)
    left, here, right = smooth[:, :-2], smooth[:, 1:-1], smooth[:, 2:]
    inside = (place[1:-1] >= of.ends[0]) & (place[1:-1] <= 2 * np.pi / of.sample.distance_nm[0])
    height = np.where((here > left) & (here >= right) & inside, here, 0.0)
    best = height.argmax(axis=1)
    row = np.arange(len(best))
    found = height[row, best] > 0
    low, middle, high = (each[row, best] for each in (left, here, right))
    bend = np.where(found, 2 * middle - low - high, 1.0)  # of the parabola through the three
    peak = place[1:-1][best] + np.where(found, 0.5 * (high - low) / bend, 0.0) * step
    distance = np.where(found, 2 * np.pi / peak, np.mean(of.sample.distance_nm))
    low_nm, high_nm = of.sample.distance_nm
    return xr.Dataset(
        {
            "distance_nm": ("simulation", np.clip(distance, low_nm, high_nm), {"units": "nm"}),
            "success": ("simulation", found),
        }
    )


def uniform_sizes(sample: ParticleSampleConfig, number: int) -> xr.DataArray:
    """The size distribution (simulation, radius) of who knows nothing: all bins of the grid alike, `number` times."""
    edges = sizes.size_edges(sample)
    shares = np.full((number, sample.sizes), 1 / sample.sizes)
    coords = {"radius": ("radius", (edges[1:] + edges[:-1]) / 2, {"units": "nm"})}
    attrs = {"units": "1", "long_name": "share of the particles"}
    return xr.DataArray(shares, dims=("simulation", "radius"), coords=coords, name="size_distribution", attrs=attrs)


def _divided(edges: Array, number: int) -> Array:
    """Edges (number x bin, 2) of equal parts of bins (bin, 2)."""
    fine = np.linspace(edges[:, 0], edges[:, 1], number + 1, axis=1)
    return np.stack([fine[:, :-1], fine[:, 1:]], axis=-1).reshape(-1, 2)
