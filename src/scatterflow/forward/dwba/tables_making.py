"""Tables of form factors, made once for all sizes of a study: which pixels are needed, and how the others follow.

Source of the interpolation: see `tables_nodes`. What the tables hold and how images are made of them: see `tables`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import ConfigError, SimulationError
from scatterflow.forward.dwba import detector
from scatterflow.forward.dwba import tables_incidence as incidence
from scatterflow.forward.dwba.formfactors import formfactor, volume
from scatterflow.forward.dwba.tables_nodes import decomposed
from scatterflow.forward.particles import Particles

Array = NDArray[np.float64]
Array32 = NDArray[np.float32]
TOLERANCE = 1e-6  # of interpolating along rows and columns, over Porod's law
PAIRS = tuple(combinations_with_replacement(range(4), 2))
_TESTED_ROWS = 12
_PANEL = 128  # rows that share their nodes
_SHARE = 0.5  # of the tolerance, where it is tested: few rows and pairs of sizes, rows and columns apart
_LEVELS = 12  # exit angles at which the structure factor is computed: good to 1e-4 but within two pixels of the beam


@dataclass(frozen=True, eq=False)
class Tables:
    """Form factors of `particles` in the pixels of an instrument, of all sizes.

    squares (size x tilt, panel, pair, node, column node), means (size x tilt, panel, x, node, column node): moments of x
    over Porod's envelope, per [nm^4]; float32. along (panel, node, row): interpolation to the rows of a panel, times the
    envelope and what a row's pixels have in common: counts per particle per [nm^2]. across (node, column): interpolation to
    the columns in the same way; where the beam is in the middle, `mirrored`, to those of the upper half only. tilts (tilt,):
    errors of the incidence [deg]. sines (tilt, row + 1): of the exit angles and, last, of the incidence. q (tilt, level,
    column) and levels (tilt, row, level): in-plane wave numbers [1/nm] at few exit angles, and the interpolation from there.
    """

    particles: Particles
    instrument: InstrumentConfig
    rows: Array
    columns: Array
    squares: Array32
    means: Array32
    along: Array32
    across: Array32
    mirrored: bool
    tilts: Array
    sines: Array
    q: Array
    levels: Array32

    @property
    def nbytes(self) -> int:
        """Memory that the tables take [byte]."""
        return sum(each.nbytes for each in (self.squares, self.means, self.along, self.across))


def tables(
    particles: Particles, instrument: InstrumentConfig, rows: Array, columns: Array, tolerance: float = TOLERANCE,
    incidence_error_deg: float = 0.0,
) -> Tables:  # fmt: skip
    """Table the form factors in pixels with edges `rows`, `columns` (pixel, 2), good to `tolerance` of Porod's envelope.

    For errors of the incidence up to `incidence_error_deg` to either side, as `tables_incidence` says. Raises ConfigError
    for geometry flat, whose exit angles change along a row (resample the frame), and for rows at or below the horizon;
    SimulationError for particles inside a layer.
    """
    if instrument.geometry != "bornagain":
        must, remedy = "must be bornagain for tables of form factors", "resample flat frames to it"
        raise ConfigError("instrument.geometry", must, instrument.geometry, remedy)
    if particles.layer:
        remedy = "use the reference engine: waves there are damped, and every stack has a table of its own"
        raise SimulationError("layer of the particles", "must be 0, the surface, for tables", particles.layer, remedy)
    extreme = (incidence.tilted(instrument, sign * incidence_error_deg) for sign in (-1, 1))
    lowest = np.minimum(*(detector.directions(each, rows, columns)[0] for each in extreme))
    if (lowest <= 0).any():
        below = int((lowest <= 0).any(axis=1).sum())
        raise ConfigError("rows of a table", "must lie above the horizon", f"{below} at or below it", "crop the view")
    _, foot = geometry.foot_px(instrument)
    beside_px = columns.mean(axis=1) - foot
    mirrored = len(columns) > 1 and bool(np.allclose(beside_px, -beside_px[::-1], atol=1e-9))
    some = slice(len(columns) // 2 if mirrored else 0, None)
    alpha, _, solid = detector.directions(instrument, rows, columns[some])
    tilts = incidence.tilts(instrument, float(particles.height.max()), incidence_error_deg, tolerance)
    geometries = _Geometries.of(instrument, tilts, rows, columns[some])
    scale = _Envelope(particles, instrument, np.sin(alpha[:, 0]), np.abs(beside_px[some]), len(tilts))
    nodes, across = _column_nodes(scale, particles, geometries, rows, beside_px[some], tolerance)
    moments = _moments_at(particles, geometries, rows, beside_px[some][nodes]) / np.sqrt(scale.common[:, nodes])
    lines, along = _row_nodes(scale.of_sizes[:, :, nodes] / scale.common[:, nodes], moments, tolerance)
    values = moments[:, :, lines].transpose(1, 2, 0, 3, 4)  # (size, panel, x, node, column node)
    k = geometry.wavenumber(instrument)
    index = (1 - particles.delta + 1j * particles.beta) ** 2 - 1
    strength = abs(k**2 / (4 * np.pi) * index) ** 2 * instrument.beam_intensity
    # the solid angle is a product of a row's and a column's up to the fourth power of the azimuth
    common = strength * solid[:, 0] / math.sin(math.radians(instrument.incidence_deg))
    beside = solid[0] / solid[0, 0]
    along *= (common * scale.upwards)[panels(len(rows))][:, None]
    q, levels = _levels(geometries, rows, columns[some])
    one, other = np.array(PAIRS).T
    return Tables(
        particles, instrument, rows, columns,
        (values[:, :, one] * values[:, :, other]).astype(np.float32), np.ascontiguousarray(values, dtype=np.float32),
        along.astype(np.float32), (across * beside * scale.beside).astype(np.float32),
        mirrored, tilts, geometries.sines, q, np.ascontiguousarray(levels, dtype=np.float32),
    )  # fmt: skip


def middle(particles: Particles) -> float:
    """Half the height of the tallest particle [nm]."""
    return float(particles.height.max()) / 2


def panels(rows: int) -> NDArray[np.intp]:
    """Rows (panel, row) that share their nodes: panels of equal width, of which the last one may overlap the one before."""
    number = math.ceil(rows / _PANEL)
    width = math.ceil(rows / number)
    return np.minimum(np.arange(number) * width, rows - width)[:, None] + np.arange(width)


@dataclass(frozen=True)
class _Geometries:
    """An instrument at all tilts: `sines` (tilt, row + 1) of exit angles and incidence, `factor` (tilt, row): the root of
    what a row's counts have in common, over that of the instrument as it is.
    """

    instruments: tuple[InstrumentConfig, ...]
    sines: Array
    factor: Array

    @staticmethod
    def of(instrument: InstrumentConfig, tilts: Array, rows: Array, columns: Array) -> _Geometries:
        """Of the rows and columns of pixels with edges (pixel, 2), the first of which is next to the beam."""
        instruments = instrument, *(incidence.tilted(instrument, tilt) for tilt in tilts.tolist())
        sines, common = [], []
        for each in instruments:
            alpha, _, solid = detector.directions(each, rows, columns[:1])
            sines.append(np.append(np.sin(alpha[:, 0]), math.sin(math.radians(each.incidence_deg))))
            common.append(solid[:, 0] / sines[-1][-1])
        return _Geometries(instruments[1:], np.stack(sines[1:]), np.sqrt(np.stack(common[1:]) / common[0]))


def _moments_at(
    particles: Particles, geometries: _Geometries, rows: Array, places: Array, chosen: slice | NDArray[np.intp] = slice(None)
) -> Array:  # fmt: skip
    """x (k, size x tilt, row, place) at columns that are `places` pixels beside the beam; phases are those half up.

    In the `chosen` ones of `rows`.
    """
    found = []
    for instrument, factor in zip(geometries.instruments, geometries.factor, strict=True):
        _, foot = geometry.foot_px(instrument)
        columns = foot + np.column_stack([places - 0.5, places + 0.5])
        alpha, phi, _ = detector.directions(instrument, rows[chosen], columns)
        qx, qy, _ = geometry.scattering_vector(instrument, alpha, phi)
        k = geometry.wavenumber(instrument)
        kf, ki = k * np.sin(alpha), k * math.sin(math.radians(instrument.incidence_deg))
        shape = particles.shape, particles.radius, particles.height, qx, qy
        half = middle(particles)
        plus, minus = (formfactor(*shape, qz.astype(complex)) * np.exp(-1j * qz * half) for qz in (kf + ki, kf - ki))
        found.append(np.stack([plus.real, plus.imag, minus.real, minus.imag]) * factor[chosen][:, None])
    x = np.stack(found, axis=2)  # (k, size, tilt, row, place)
    return x.reshape(4, -1, *x.shape[3:])


class _Envelope:
    """Porod's law, rounded off below 1 / radius, along rows, and the root of a facet's upwards: no form factor falls slower.

    of_sizes (size x tilt, row, column) [nm^6]; of the middle size, and without its volume: upwards (row,), beside (column,)
    and their product `common` (row, column).
    """

    def __init__(
        self, particles: Particles, instrument: InstrumentConfig, sines: Array, places_px: Array, tilts: int
    ) -> None:
        k = geometry.wavenumber(instrument)
        in_plane = k * instrument.pixel_mm / instrument.distance_mm * places_px
        upwards = k * (sines - math.sin(math.radians(instrument.incidence_deg)))
        radius, half = particles.radius[:, None], particles.height[:, None] / 2
        middle, middle_half = (float(np.exp(np.log(each).mean())) for each in (radius, half))
        size = volume(particles.shape, particles.radius, particles.height)[:, None, None]
        of_sizes = size**2 * (_facet(half * upwards)[:, :, None] * _porod(radius * in_plane)[:, None])
        self.of_sizes = np.repeat(of_sizes, tilts, axis=0)
        self.upwards, self.beside = _facet(middle_half * upwards), _porod(middle * in_plane)
        self.common = self.upwards[:, None] * self.beside


def _facet(x: Array) -> Array:
    return np.asarray((1 + x * x) ** -0.5)


def _porod(x: Array) -> Array:
    return np.asarray((1 + x * x) ** -2)


def _column_nodes(
    scale: _Envelope, particles: Particles, geometries: _Geometries, rows: Array, places: Array, tolerance: float
) -> tuple[NDArray[np.intp], Array]:
    """Nodes among the columns, `places` pixels beside the beam, and the interpolation, both over the envelope."""
    some = np.unique(np.linspace(0, len(rows) - 1, _TESTED_ROWS).astype(int))
    common = scale.common[some]
    x = _moments_at(particles, geometries, rows, places, some) / np.sqrt(common)
    family, allowed = _family(x, scale.of_sizes[:, some] / common)
    return decomposed(family.reshape(-1, len(places)), tolerance * _SHARE * allowed.reshape(-1, len(places)))


def _row_nodes(scale: Array, x: Array, tolerance: float) -> tuple[NDArray[np.intp], Array]:
    """Nodes (panel, node) among the rows and the interpolation (panel, node, row), both over the envelope."""
    parts = panels(x.shape[2])
    found: list[tuple[NDArray[np.intp], Array]] = []
    most = 1
    while not found or any(len(nodes) < most for nodes, _ in found):
        found = []
        for panel in parts:
            family, allowed = (
                each.swapaxes(2, 3).reshape(-1, len(panel)) for each in _family(x[:, :, panel], scale[:, panel])
            )
            found.append(decomposed(family, tolerance * _SHARE * allowed, most))
        most = max(len(nodes) for nodes, _ in found)
    lines = np.stack([panel[nodes] for panel, (nodes, _) in zip(parts, found, strict=True)])
    return lines, np.stack([between for _, between in found])


def _family(x: Array, scale: Array) -> tuple[Array, Array]:
    """Products of two x (k, size, row, column), and what they follow: of one size and of two, as in <|A|^2> and |<A>|^2."""
    others = np.random.default_rng(0).permutation(x.shape[1])
    products, scales = [], []
    for one, other in PAIRS:
        products += [x[one] * x[other], x[one] * x[other][others]]
        scales += [scale, np.sqrt(scale * scale[others])]
    return np.stack(products), np.stack(scales)


def _levels(geometries: _Geometries, rows: Array, columns: Array) -> tuple[Array, Array]:
    """In-plane wave numbers (tilt, level, column) of a few rows [1/nm], and the interpolation (tilt, row, level) to all."""
    count = min(_LEVELS, len(rows))
    places = (1 - np.cos(np.pi * (np.arange(count) + 0.5) / count)) / 2
    q, levels = [], []
    for instrument in geometries.instruments:
        alpha, phi, _ = detector.directions(instrument, rows, columns)
        square = (alpha.mean(axis=1)) ** 2  # the wave number is nearly linear in it
        points = square.min() + (square.max() - square.min()) * places
        qx, qy, _ = geometry.scattering_vector(instrument, np.sqrt(points)[:, None], phi[:1])
        q.append(np.hypot(qx, qy))
        levels.append(detector.lagrange(points, square).T)
    return np.stack(q), np.stack(levels)
