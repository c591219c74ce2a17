"""Images of particles on a surface by matrix products: form factors are tabled once, for all sizes of a study.

In the vacuum the vertical wave numbers k_i and k_f are real, so only P = F(k_i + k_f) and M = F(k_f - k_i) differ and

    A = P* + R_i M* + R_f M + R_i R_f P = sum over k of g_k x_k,   x = (Re P, Im P, Re M, Im M),

with complex g that depend on the stack and the row of pixels only, and real x that depend on size and pixel only. So <A>
and <|A|^2> are linear in 4 and 10 real tables: a row of pixels is the product of (g, shares) with its table. Along a row
both are even, smooth functions of the distance from the beam: they are tabled in few virtual columns ("nodes"), over
the envelope of Porod's law, and interpolated. The structure factor, which may be sharp, is computed for every column at
few exit angles: its wave number hardly changes along a column. numpy makes the tables, torch the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import ConfigError, SimulationError
from scatterflow.forward.dwba import detector
from scatterflow.forward.dwba.engine import interfaces_of
from scatterflow.forward.dwba.formfactors import formfactor, volume
from scatterflow.forward.dwba.fresnel import reflection
from scatterflow.forward.dwba.particles import check
from scatterflow.forward.particles import Arrangement, Particles, Stack, structure_factor

Array = NDArray[np.float64]
TOLERANCE = 1e-6  # of interpolating along a row, over Porod's law
_PAIRS = tuple(combinations_with_replacement(range(4), 2))
_FIRST_NODES = 12
_TESTED_ROWS, _TESTED_PLACES = 9, 1024
_LEVELS = 12  # exit angles at which the structure factor is computed: good to 1e-4 but within two pixels of the beam
_CHUNK, _BLOCK = 32, 32  # images and rows at once: what is made of them stays in the processor's caches


@dataclass(frozen=True)
class Tables:
    """Form factors of `particles` in the pixels of an instrument, of all sizes.

    squares (row, 10 x size, node), means (row, size, 4 x node): moments of x over Porod's envelope, times what every column
    of pixels has in common: counts per [nm^4] and particle per [nm^2]; float32. across (node, column): interpolation to the
    columns, times the envelope and what is left of the factor; where the beam is in the middle, `mirrored`, to those of the
    upper half only. sin_alpha (row,): of the exit angles. q (level, column) and levels (row, level): in-plane wave numbers
    [1/nm] at few exit angles, and the interpolation from there.
    """

    particles: Particles
    instrument: InstrumentConfig
    rows: Array
    columns: Array
    squares: Tensor
    means: Tensor
    across: Tensor
    mirrored: bool
    sin_alpha: Array
    q: Array
    levels: Tensor

    @property
    def nbytes(self) -> int:
        """Memory that the tables take [byte]."""
        return sum(each.nbytes for each in (self.squares, self.means, self.across))


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
    places = np.abs(beside_px[some])
    nodes, across, envelope = _nodes(particles, instrument, rows, places, tolerance)
    values = _moments_at(particles, instrument, rows, nodes)
    k, incidence = geometry.wavenumber(instrument), math.radians(instrument.incidence_deg)
    index = (1 - particles.delta + 1j * particles.beta) ** 2 - 1
    strength = abs(k**2 / (4 * np.pi) * index) ** 2 * instrument.beam_intensity / math.sin(incidence)
    # the solid angle is a product of a row's and a column's up to the fourth power of the azimuth
    along, beside = solid[:, some][:, 0], solid[0, some] / solid[0, some][0]
    values *= np.sqrt(strength * along)[:, None]
    squares = np.empty((len(rows), len(_PAIRS), len(particles.radius), len(nodes)), dtype=np.float32)
    for number, (one, other) in enumerate(_PAIRS):
        squares[:, number] = (values[one] * values[other] / envelope).transpose(1, 0, 2) * (1 + (one != other))
    means = (values / np.sqrt(envelope)).transpose(2, 1, 0, 3).astype(np.float32)
    q, levels = _levels(instrument, rows, columns[some])
    return Tables(
        particles, instrument, rows, columns,
        torch.from_numpy(squares.reshape(len(rows), -1, len(nodes))),
        torch.from_numpy(means.reshape(*means.shape[:2], -1)),
        torch.from_numpy((across * beside).astype(np.float32)),
        mirrored, np.sin(alpha[:, some][:, 0]), q, torch.from_numpy(levels.astype(np.float32)),
    )  # fmt: skip


def expected_counts(table: Tables, arrangement: Arrangement, stack: Stack) -> NDArray[np.float32]:
    """Counts (simulation, row, column) that particles scatter, as `dwba.particles.expected_counts` without `rough`.

    Holds about 15 MB beside the result and the tables, for 256 x 256 pixels and 30 sizes. Raises SimulationError.
    """
    check(table.particles, arrangement, stack)
    result = np.empty((len(stack.layers), len(table.rows), len(table.columns)), dtype=np.float32)
    columns = table.across.shape[1]
    with torch.no_grad():
        for start in range(0, len(result), _CHUNK):
            part = slice(start, start + _CHUNK)
            some = Arrangement(arrangement.shares[part], arrangement.distance_nm[part], arrangement.disorder[part])
            g = _of_the_stack(table, stack, stack.layers[part])
            excess = torch.as_tensor(structure_factor(table.particles, some, table.q) - 1, dtype=torch.float32)
            excess = excess.transpose(0, 1).flatten(1)  # (level, simulation x column)
            for first in range(0, len(table.rows), _BLOCK):
                rows = slice(first, first + _BLOCK)
                images = _block(table, some, g[:, rows], excess, rows).transpose(0, 1).numpy()
                result[part, rows, result.shape[2] - columns :] = images
                if table.mirrored:
                    result[part, rows, :columns] = images[..., ::-1]
    return result


def _of_the_stack(table: Tables, stack: Stack, layers: Array) -> Tensor:
    """g (4, row, simulation), complex, of `layers` (simulation, layer, parameter)."""
    k, incidence = geometry.wavenumber(table.instrument), math.radians(table.instrument.incidence_deg)
    sines = torch.as_tensor(np.append(table.sin_alpha, math.sin(incidence)))
    options = stack.max_spatial_frequency_per_nm, stack.transient
    *_, solvable = interfaces_of(torch.as_tensor(layers, dtype=torch.float64), sines, k, *options)
    mirror = reflection(solvable)
    r = torch.complex(mirror.re, mirror.im).T.to(torch.complex64)
    rf, ri = r[:-1], r[-1:]
    both = ri * rf
    return torch.stack([1 + both, -1j * (1 - both), ri + rf, 1j * (rf - ri)])


def _block(table: Tables, arrangement: Arrangement, g: Tensor, excess: Tensor, rows: slice) -> Tensor:
    """Some rows of images (row, simulation, column)."""
    shares = torch.as_tensor(arrangement.shares, dtype=torch.float32)
    density = torch.as_tensor(arrangement.density, dtype=torch.float32)[:, None]
    weights = torch.stack([(g[one] * g[other].conj()).real for one, other in _PAIRS], dim=-1) * density
    joined = weights[..., None] * shares[:, None]  # (row, simulation, pair, size)
    squared = torch.bmm(joined.flatten(2), table.squares[rows])
    x = torch.matmul(shares, table.means[rows]).view(len(g[0]), len(shares), 4, -1).movedim(2, 0)
    re = sum(each * part[..., None] for each, part in zip(x, g.real, strict=True))
    im = sum(each * part[..., None] for each, part in zip(x, g.imag, strict=True))
    mean = (re * re + im * im) * density
    factor = (table.levels[rows] @ excess).view(len(g[0]), len(shares), -1)
    return torch.addcmul(squared @ table.across, mean @ table.across, factor)


def _moments_at(particles: Particles, instrument: InstrumentConfig, rows: Array, places: Array) -> Array:
    """x (k, size, row, place) at columns that are `places` pixels beside the beam."""
    _, foot = geometry.foot_px(instrument)
    columns = foot + np.column_stack([places - 0.5, places + 0.5])
    alpha, phi, _ = detector.directions(instrument, rows, columns)
    qx, qy, _ = geometry.scattering_vector(instrument, alpha, phi)
    k, incidence = geometry.wavenumber(instrument), math.radians(instrument.incidence_deg)
    kf, ki = k * np.sin(alpha), k * math.sin(incidence)
    shape = particles.shape, particles.radius, particles.height, qx, qy
    plus, minus = (formfactor(*shape, qz.astype(complex)) for qz in (kf + ki, kf - ki))
    return np.stack([plus.real, plus.imag, minus.real, minus.imag])


def _envelope(instrument: InstrumentConfig, places: Array, length: Array | float) -> Array:
    """Porod's law, rounded off below 1 / `length` [nm]: what form factors squared follow, (length, place)."""
    q = geometry.wavenumber(instrument) * instrument.pixel_mm / instrument.distance_mm * places
    return np.asarray((1 + (np.asarray(length)[..., None] * q) ** 2) ** -2)


def _nodes(
    particles: Particles, instrument: InstrumentConfig, rows: Array, places: Array, tolerance: float
) -> tuple[Array, Array, Array]:
    """Nodes, the interpolation (node, column) from there to columns `places` pixels beside the beam, and the envelope.

    Chebyshev nodes over both sides of the beam, of which one side is enough for an even function; the columns themselves
    where as many nodes would not do.
    """
    some = rows[np.unique(np.linspace(0, len(rows) - 1, _TESTED_ROWS).astype(int))]
    tested = np.unique(np.linspace(places.min(), places.max(), _TESTED_PLACES))
    length = float(np.exp(np.log(particles.radius).mean()))
    size = volume(particles.shape, particles.radius, particles.height)[:, None, None]
    scale = size**2 * _envelope(instrument, tested, particles.radius)[:, None]
    true = (_moments_at(particles, instrument, some, tested) ** 2).sum(0) / scale
    count = _FIRST_NODES
    while count < len(places):
        nodes = places.max() * np.cos(np.pi * (np.arange(count) + 0.5) / (2 * count))
        values = (_moments_at(particles, instrument, some, nodes) ** 2).sum(0) / _envelope(instrument, nodes, length)
        found = values @ _between(instrument, nodes, tested, length) / scale
        if np.abs(found - true).max() < tolerance:
            return nodes, _between(instrument, nodes, places, length), _envelope(instrument, nodes, length)
        count = math.ceil(1.2 * count)
    envelope = _envelope(instrument, places, length)
    return places, np.diag(envelope), envelope


def _between(instrument: InstrumentConfig, nodes: Array, places: Array, length: float) -> Array:
    """Interpolation (node, place) of even functions over the envelope, times the envelope."""
    return np.asarray(detector.lagrange(nodes**2, places**2) * _envelope(instrument, places, length))


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
