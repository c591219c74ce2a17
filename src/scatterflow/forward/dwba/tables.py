"""Images of particles on a surface by matrix products: form factors are tabled once, for all sizes of a study.

In the vacuum the vertical wave numbers k_i and k_f are real, so only P = F(k_i + k_f) and M = F(k_f - k_i) differ and

    A = P* + R_i M* + R_f (M + R_i P) = sum over k of (u_k + R_f v_k) x_k,   x = (Re P, Im P, Re M, Im M),

with complex u, v that depend on the stack only, R_f on stack and row, and real x on size and pixel. So <A> and <|A|^2> are
linear in 4 and 10 real tables of all sizes. With u and v, which are constant over an image, those make four smooth images:
the factors of 1, Re R_f, Im R_f and |R_f|^2. They are needed in few rows and columns of pixels ("nodes") only and
interpolated from there, in rows together with the product with R_f. Along a row they are even functions of the distance
from the beam, so one side will do. Phases are those of a plane at half the height of the tallest particle: with them R_f
takes most of the fringes. The structure factor, which may be sharp, is computed for every column at few exit angles: its
wave number hardly changes along a column. All numpy, whose products of small matrices are the fastest.
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
from scatterflow.forward.dwba.formfactors import formfactor, volume
from scatterflow.forward.dwba.particles import check
from scatterflow.forward.dwba.tables_nodes import decomposed
from scatterflow.forward.dwba.tables_structure import excess
from scatterflow.forward.dwba.tables_waves import reflected
from scatterflow.forward.particles import Arrangement, Particles, Stack

Array = NDArray[np.float64]
Array32 = NDArray[np.float32]
TOLERANCE = 1e-6  # of interpolating along rows and columns, over Porod's law
_PAIRS = tuple(combinations_with_replacement(range(4), 2))
_TESTED_ROWS = 12
_PANEL = 128  # rows that share their nodes
_SHARE = 0.5  # of the tolerance, where it is tested: few rows and pairs of sizes, rows and columns apart
_LEVELS = 12  # exit angles at which the structure factor is computed: good to 1e-4 but within two pixels of the beam
_CHUNK, _BLOCK = 96, 48  # images at once, for their stacks and for their pixels: what is made stays in the caches


@dataclass(frozen=True)
class Tables:
    """Form factors of `particles` in the pixels of an instrument, of all sizes.

    squares (size, panel, pair, node, column node), means (size, panel, x, node, column node): moments of x over Porod's
    envelope, per [nm^4]; float32. along (panel, node, row): interpolation to the rows of a panel, times the envelope and
    what a row's pixels have in common: counts per particle per [nm^2]. across (node, column): interpolation to the columns
    in the same way; where the beam is in the middle, `mirrored`, to those of the upper half only. sin_alpha (row,): of the
    exit angles. q (level, column) and levels (row, level): in-plane wave numbers [1/nm] at few exit angles, and the
    interpolation from there.
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
    sin_alpha: Array
    q: Array
    levels: Array32

    @property
    def nbytes(self) -> int:
        """Memory that the tables take [byte]."""
        return sum(each.nbytes for each in (self.squares, self.means, self.along, self.across))


def tables(
    particles: Particles, instrument: InstrumentConfig, rows: Array, columns: Array, tolerance: float = TOLERANCE
) -> Tables:
    """Table the form factors in pixels with edges `rows`, `columns` (pixel, 2), good to `tolerance` of Porod's envelope.

    Raises ConfigError for geometry flat, whose exit angles change along a row (resample the frame), and for rows at or
    below the horizon; SimulationError for particles inside a layer.
    """
    if instrument.geometry != "bornagain":
        must, remedy = "must be bornagain for tables of form factors", "resample flat frames to it"
        raise ConfigError("instrument.geometry", must, instrument.geometry, remedy)
    if particles.layer:
        remedy = "use the reference engine: waves there are damped, and every stack has a table of its own"
        raise SimulationError("layer of the particles", "must be 0, the surface, for tables", particles.layer, remedy)
    alpha, _, solid = detector.directions(instrument, rows, columns)
    if (alpha <= 0).any():
        below = int((alpha <= 0).any(axis=1).sum())
        raise ConfigError("rows of a table", "must lie above the horizon", f"{below} at or below it", "crop the view")
    _, foot = geometry.foot_px(instrument)
    beside_px = columns.mean(axis=1) - foot
    mirrored = len(columns) > 1 and bool(np.allclose(beside_px, -beside_px[::-1], atol=1e-9))
    some = slice(len(columns) // 2 if mirrored else 0, None)
    sines = np.sin(alpha[:, some][:, 0])
    scale = _Envelope(particles, instrument, sines, np.abs(beside_px[some]))
    nodes, across = _column_nodes(scale, particles, instrument, rows, beside_px[some], tolerance)
    moments = _moments_at(particles, instrument, rows, beside_px[some][nodes]) / np.sqrt(scale.common[:, nodes])
    lines, along = _row_nodes(scale.of_sizes[:, :, nodes] / scale.common[:, nodes], moments, tolerance)
    values = moments[:, :, lines].transpose(1, 2, 0, 3, 4)  # (size, panel, x, node, column node)
    k, incidence = geometry.wavenumber(instrument), math.radians(instrument.incidence_deg)
    index = (1 - particles.delta + 1j * particles.beta) ** 2 - 1
    strength = abs(k**2 / (4 * np.pi) * index) ** 2 * instrument.beam_intensity / math.sin(incidence)
    # the solid angle is a product of a row's and a column's up to the fourth power of the azimuth
    common, beside = strength * solid[:, some][:, 0], solid[0, some] / solid[0, some][0]
    along *= (common * scale.upwards)[_panels(len(rows))][:, None]
    q, levels = _levels(instrument, rows, columns[some])
    one, other = np.array(_PAIRS).T
    return Tables(
        particles, instrument, rows, columns,
        (values[:, :, one] * values[:, :, other]).astype(np.float32), np.ascontiguousarray(values, dtype=np.float32),
        along.astype(np.float32), (across * beside * scale.beside).astype(np.float32),
        mirrored, sines, q, np.ascontiguousarray(levels, dtype=np.float32),
    )  # fmt: skip


def expected_counts(table: Tables, arrangement: Arrangement, stack: Stack) -> NDArray[np.float32]:
    """Counts (simulation, row, column) that particles scatter, as `dwba.particles.expected_counts` without `rough`.

    Holds about 30 MB beside the result and the tables, for 256 x 256 pixels and 30 sizes. Raises SimulationError.
    """
    check(table.particles, arrangement, stack)
    result = np.empty((len(stack.layers), len(table.rows), len(table.columns)), dtype=np.float32)
    work = _Work.of(table, min(_BLOCK, len(result)))
    for start in range(0, len(result), _CHUNK):
        part = slice(start, start + _CHUNK)
        some = Arrangement(arrangement.shares[part], arrangement.distance_nm[part], arrangement.disorder[part])
        shares, others = some.shares.astype(np.float32), excess(table.particles, some, table.q)
        coefficients, weights = _of_the_stack(table, stack, stack.layers[part], some.density)
        for first in range(0, len(shares), _BLOCK):
            block = slice(first, first + _BLOCK)
            at_nodes = _at_the_nodes(table, shares[block], coefficients[block], weights[block], work)
            _fill(result[part][block], table, *at_nodes, others[block])
    return result


@dataclass(frozen=True)
class _Work:
    """Memory that every block of simulations uses again, simulation first: fresh memory costs as much as arithmetic.

    pairs (., panel, pair, place), x (., panel, 4, place), tables (2, ., panel, 4, place): in all nodes of a panel. lines (.,
    panel, 4, node, row): from there to the rows. nodes (2, ., row, column node): <|A|^2> and |<A>|^2, times the density.
    """

    pairs: Array32
    x: Array32
    tables: Array32
    lines: Array32
    nodes: Array32

    @staticmethod
    def of(table: Tables, count: int) -> _Work:
        """For `count` simulations at once."""
        panels, nodes, width = table.along.shape
        places = nodes * len(table.across)
        shapes = (
            (count, panels, len(_PAIRS), places), (count, panels, 4, places), (2, count, panels, 4, places),
            (count, panels, 4, nodes, width), (2, count, len(table.rows), len(table.across)),
        )  # fmt: skip
        work = _Work(*(np.empty(shape, dtype=np.float32) for shape in shapes))
        work.lines[:, :, 0] = table.along  # of which 1 is the factor
        return work


def _of_the_stack(table: Tables, stack: Stack, layers: Array, density: Array) -> tuple[Array32, Array32]:
    """What multiplies the pairs of x (simulation, 4, pair) and, but for a 1, the rows (simulation, 3, row) of `layers`."""
    k, incidence = geometry.wavenumber(table.instrument), math.radians(table.instrument.incidence_deg)
    mirror = reflected(stack, layers, k, np.append(table.sin_alpha, math.sin(incidence)))
    rf = mirror[:, :-1] * np.exp(2j * k * _middle(table.particles) * table.sin_alpha)
    weights = np.empty((len(layers), 3, len(table.sin_alpha)), dtype=np.float32)
    weights[:, 0], weights[:, 1] = rf.real, rf.imag
    weights[:, 2] = rf.real**2 + rf.imag**2
    ri, one = mirror[:, -1], np.ones(len(layers))
    u, v = np.stack([one, -1j * one, ri, -1j * ri]), np.stack([ri, 1j * ri, one, 1j * one])
    a, b = np.array(_PAIRS).T
    twice = (1 + (a != b))[:, None] * density
    mixed = twice * (v[a] * u[b].conj() + u[a].conj() * v[b])
    both = twice * (u[a] * u[b].conj()).real, mixed.real, -mixed.imag, twice * (v[a] * v[b].conj()).real
    return np.stack(both).transpose(2, 0, 1).astype(np.float32), weights


def _at_the_nodes(
    table: Tables, shares: Array32, coefficients: Array32, weights: Array32, work: _Work
) -> tuple[Array32, Array32]:
    """<|A|^2> and |<A>|^2 times the density, in all rows at the nodes of columns (simulation, row, node)."""
    count, sizes = shares.shape
    _, nodes, width = table.along.shape
    pairs, x, lines = work.pairs[:count], work.x[:count], work.lines[:count]
    squares, means = work.tables[:, :count]
    np.matmul(shares, table.squares.reshape(sizes, -1), out=pairs.reshape(count, -1))
    np.matmul(coefficients[:, None], pairs, out=squares)
    np.matmul(shares, table.means.reshape(sizes, -1), out=x.reshape(count, -1))
    for number, (one, other) in enumerate(_PAIRS):
        np.multiply(x[:, :, one], x[:, :, other], out=pairs[:, :, number])
    np.matmul(coefficients[:, None], pairs, out=means)
    for panel, rows in enumerate(_panels(len(table.rows))):
        part = slice(rows[0], rows[0] + width)
        np.multiply(weights[:, :, None, part], table.along[panel], out=lines[:, panel, 1:])
        across = lines[:, panel].reshape(count, 4 * nodes, width).swapaxes(1, 2)
        for number, each in enumerate((squares, means)):
            np.matmul(across, each[:, panel].reshape(count, 4 * nodes, -1), out=work.nodes[number, :count, part])
    return work.nodes[0, :count], work.nodes[1, :count]


def _fill(result: Array32, table: Tables, squares: Array32, means: Array32, others: Array32) -> None:
    """Images (simulation, row, column) from <|A|^2>, |<A>|^2 (simulation, row, node), S - 1 (simulation, level, column)."""
    columns = table.across.shape[1]
    mean, factor = np.empty((2, len(table.rows), columns), dtype=np.float32)
    whole: Array32 = np.empty(result.shape[1:], dtype=np.float32)
    half = whole[:, whole.shape[1] - columns :]
    for number, image in enumerate(result):
        np.matmul(means[number], table.across, out=mean)
        np.matmul(table.levels, others[number], out=factor)
        factor *= mean
        np.matmul(squares[number], table.across, out=mean)
        np.add(mean, factor, out=half)
        if table.mirrored:
            whole[:, :columns] = half[:, ::-1]
        image[:] = whole


def _middle(particles: Particles) -> float:
    """Half the height of the tallest particle [nm]."""
    return float(particles.height.max()) / 2


def _panels(rows: int) -> NDArray[np.intp]:
    """Rows (panel, row) that share their nodes: panels of equal width, of which the last one may overlap the one before."""
    number = math.ceil(rows / _PANEL)
    width = math.ceil(rows / number)
    return np.minimum(np.arange(number) * width, rows - width)[:, None] + np.arange(width)


def _moments_at(particles: Particles, instrument: InstrumentConfig, rows: Array, places: Array) -> Array:
    """x (k, size, row, place) at columns that are `places` pixels beside the beam; phases are those half up."""
    _, foot = geometry.foot_px(instrument)
    columns = foot + np.column_stack([places - 0.5, places + 0.5])
    alpha, phi, _ = detector.directions(instrument, rows, columns)
    qx, qy, _ = geometry.scattering_vector(instrument, alpha, phi)
    k, incidence = geometry.wavenumber(instrument), math.radians(instrument.incidence_deg)
    kf, ki = k * np.sin(alpha), k * math.sin(incidence)
    shape = particles.shape, particles.radius, particles.height, qx, qy
    turn = np.exp(-1j * kf * _middle(particles))
    plus, minus = (formfactor(*shape, qz.astype(complex)) * turn for qz in (kf + ki, kf - ki))
    return np.stack([plus.real, plus.imag, minus.real, minus.imag])


class _Envelope:
    """Porod's law, rounded off below 1 / radius, along rows, and the root of a facet's upwards: no form factor falls slower.

    of_sizes (size, row, column) [nm^6]; of the middle size, and without its volume: upwards (row,), beside (column,) and
    their product `common` (row, column).
    """

    def __init__(self, particles: Particles, instrument: InstrumentConfig, sines: Array, places_px: Array) -> None:
        k = geometry.wavenumber(instrument)
        in_plane = k * instrument.pixel_mm / instrument.distance_mm * places_px
        upwards = k * (sines - math.sin(math.radians(instrument.incidence_deg)))
        radius, half = particles.radius[:, None], particles.height[:, None] / 2
        middle, middle_half = (float(np.exp(np.log(each).mean())) for each in (radius, half))
        size = volume(particles.shape, particles.radius, particles.height)[:, None, None]
        self.of_sizes = size**2 * (_facet(half * upwards)[:, :, None] * _porod(radius * in_plane)[:, None])
        self.upwards, self.beside = _facet(middle_half * upwards), _porod(middle * in_plane)
        self.common = self.upwards[:, None] * self.beside


def _facet(x: Array) -> Array:
    return np.asarray((1 + x * x) ** -0.5)


def _porod(x: Array) -> Array:
    return np.asarray((1 + x * x) ** -2)


def _column_nodes(
    scale: _Envelope, particles: Particles, instrument: InstrumentConfig, rows: Array, places: Array, tolerance: float
) -> tuple[NDArray[np.intp], Array]:
    """Nodes among the columns, `places` pixels beside the beam, and the interpolation, both over the envelope."""
    some = np.unique(np.linspace(0, len(rows) - 1, _TESTED_ROWS).astype(int))
    common = scale.common[some]
    x = _moments_at(particles, instrument, rows[some], places) / np.sqrt(common)
    family, allowed = _family(x, scale.of_sizes[:, some] / common)
    return decomposed(family.reshape(-1, len(places)), tolerance * _SHARE * allowed.reshape(-1, len(places)))


def _row_nodes(scale: Array, x: Array, tolerance: float) -> tuple[NDArray[np.intp], Array]:
    """Nodes (panel, node) among the rows and the interpolation (panel, node, row), both over the envelope."""
    panels = _panels(x.shape[2])
    found: list[tuple[NDArray[np.intp], Array]] = []
    most = 1
    while not found or any(len(nodes) < most for nodes, _ in found):
        found = []
        for panel in panels:
            family, allowed = (
                each.swapaxes(2, 3).reshape(-1, len(panel)) for each in _family(x[:, :, panel], scale[:, panel])
            )
            found.append(decomposed(family, tolerance * _SHARE * allowed, most))
        most = max(len(nodes) for nodes, _ in found)
    lines = np.stack([panel[nodes] for panel, (nodes, _) in zip(panels, found, strict=True)])
    return lines, np.stack([between for _, between in found])


def _family(x: Array, scale: Array) -> tuple[Array, Array]:
    """Products of two x (k, size, row, column), and what they follow: of one size and of two, as in <|A|^2> and |<A>|^2."""
    others = np.random.default_rng(0).permutation(x.shape[1])
    products, scales = [], []
    for one, other in _PAIRS:
        products += [x[one] * x[other], x[one] * x[other][others]]
        scales += [scale, np.sqrt(scale * scale[others])]
    return np.stack(products), np.stack(scales)


def _levels(instrument: InstrumentConfig, rows: Array, columns: Array) -> tuple[Array, Array]:
    """In-plane wave numbers (level, column) of a few rows [1/nm], and the interpolation (row, level) to all."""
    alpha, phi, _ = detector.directions(instrument, rows, columns)
    square = (alpha.mean(axis=1)) ** 2  # the wave number is nearly linear in it
    count = min(_LEVELS, len(rows))
    low, high = square.min(), square.max()
    points = (low + high) / 2 - (high - low) / 2 * np.cos(np.pi * (np.arange(count) + 0.5) / count)
    angles = np.sqrt(points)[:, None]
    qx, qy, _ = geometry.scattering_vector(instrument, angles, phi[:1])
    return np.hypot(qx, qy), detector.lagrange(points, square).T
