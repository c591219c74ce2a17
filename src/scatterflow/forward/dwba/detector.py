"""What the detector asks of the engine: directions of its pixels, and the linear maps from there to a view's bins.

All numpy, double precision, once per study. In mode `fast` the counts of a row of pixels are a smooth function of the
squared distance from the beam, so they are computed in a few virtual columns ("nodes") of the same pixel size and
interpolated; the exit angle, which drifts a little along a row, takes a few values per row. In mode `reference` every
pixel is its own node.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.special import ndtr

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig, View
from scatterflow.errors import ConfigError

Array = NDArray[np.float64]
MARGIN_SIGMAS = 4.0  # the convolution pads with zeros: rows and columns this many sigma around a view are computed too
_NO_SHARE = 1e-17  # of a pixel's counts: nothing beside rounding, and the map becomes banded
_PANEL_WIDTH = 2.0  # of log(1 + (q xi)^2): the spectra's poles stay pi away from it
_PANEL_NODES = 12  # per panel: interpolation is good to 1e-9 of the counts there
_PHASE_TOLERANCE = 5e-6  # relative error of interpolating fringes in the exit angle
_KINK_TOLERANCE = {"bornagain": 5e-6, "flat": 1e-4}  # the same near critical angles, by geometry
_KINK = 0.1  # part of a wave that is singular (0.01 was seen on the paper's prior, all layers absorbing as little as it has)
_LEAST_BETA = 1e-9  # kinks of layers that absorb even less are resolved only as far as this


@dataclass(frozen=True)
class Patch:
    """Some bins of a view (z, y), and all that is known of them before the sample is. Angles in rad, q in nm^-1.

    angles (row, angle): the exit angles at which the waves are solved. lagrange (angle, row, node): weights from there to
    the nodes; None if a row has one angle, or one per node. q2 (row, node): squared in-plane scattering vector. factor (row,
    node): counts per coherent intensity [nm^-4]. across (node, column): interpolation to the columns of pixels; None if
    these are the nodes. visible (row, column): False beyond the spectra's cut-off; None if nowhere. columns (column,
    bin): resolution and binning in y. along (z, row): the same in z. background (z, y).
    """

    angles: Array
    lagrange: Array | None
    q2: Array
    factor: Array
    across: Array | None
    visible: NDArray[np.bool_] | None
    columns: Array
    along: Array
    background: Array


@dataclass(frozen=True)
class Limits:
    """What sample the interpolation must resolve: longest correlation length and whole thickness of the stack [nm], and
    the dispersions (from, to) and smallest absorption that place its critical angles and resonances.
    """

    length_nm: float
    thickness_nm: float
    delta: tuple[float, float]
    beta: float


def patches(
    instrument: InstrumentConfig,
    name: str,
    max_frequency: float,
    limits: Limits | None,
    rows_at_once: int | None = None,
) -> Iterator[Patch]:
    """The patches of a view, upwards; `limits` None asks for every pixel (mode `reference`).

    One patch by default; `rows_at_once` splits it so that none computes many more rows of pixels than that (but at least
    one bin).
    """
    config = geometry.view(instrument, name)
    background = instrument.background * geometry.axes(config).pixels
    columns, collect = _columns(instrument, config)
    parts = [
        _rows(instrument, start, stop, number, config.sampling[0])
        for start, stop, number in geometry.row_ranges(config)
    ]
    rows, along = np.concatenate([part[0] for part in parts]), block_diag(*(part[1] for part in parts))
    step = len(along) if rows_at_once is None else max(1, len(along) * rows_at_once // max(1, along.shape[1]))
    for first in range(0, len(along), step):
        bins = slice(first, first + step)
        used = along[bins].any(axis=0)
        yield _patch(
            instrument, max_frequency, limits, rows[used], columns, collect, along[bins, used], background[bins]
        )


def _patch(
    instrument: InstrumentConfig, max_frequency: float, limits: Limits | None, rows: Array, columns: Array,
    collect: Array, along: Array, background: Array,
) -> Patch:  # fmt: skip
    """One patch of pixels with edges `rows` (row, 2) and `columns` (column, 2)."""
    _, foot = geometry.foot_px(instrument)
    nodes, across, least = columns, None, 1
    if limits is not None:  # exit angles are smallest in the outer columns, largest at the foot
        middle = int(np.argmin(np.abs(columns.mean(axis=1) - foot)))
        alpha, _, _ = directions(instrument, rows, columns[np.array([0, middle, -1])])
        least = _kink_points(alpha, limits, _KINK_TOLERANCE[instrument.geometry])
        nodes, across = _nodes(instrument, columns, limits, least)
    alpha, phi, solid = directions(instrument, rows, nodes)
    k, incidence = geometry.wavenumber(instrument), math.radians(instrument.incidence_deg)
    q2 = _q2(instrument, alpha, phi)
    cut = (2 * math.pi * max_frequency) ** 2
    visible = None
    if across is None:
        solid = np.where(q2 <= cut, solid, 0.0)
    elif q2.max(initial=0) > 0.9 * cut:  # pixels may reach a little further than nodes
        pixel_alpha, pixel_phi, _ = directions(instrument, rows, columns)
        visible = _q2(instrument, pixel_alpha, pixel_phi) <= cut
    factor = instrument.beam_intensity * solid / math.sin(incidence) * k**4 / (16 * math.pi**2)
    angles, lagrange = alpha, None
    if limits is not None:
        angles, lagrange = _few_angles(alpha, k, limits, least)
    if across is not None and visible is None:
        collect, across = np.asarray(across @ collect), None
    return Patch(angles, lagrange, q2, factor, across, visible, collect, along, background)


def directions(instrument: InstrumentConfig, rows: Array, columns: Array) -> tuple[Array, Array, Array]:
    """Exit angle, azimuth [rad] and solid angle [sr], (row, column), of pixels with edges `rows`, `columns` (pixel, 2)."""
    if instrument.geometry == "flat":
        z, y = rows.mean(axis=1)[:, None], columns.mean(axis=1)[None, :]
        alpha, phi = geometry.angles(instrument, z, y)
        v, u = geometry.tangents(instrument, z, y)
        size = (instrument.pixel_mm / instrument.distance_mm) ** 2 * np.outer(
            np.diff(rows, axis=1), np.diff(columns, axis=1)
        )
        return alpha, phi, size / (1 + u**2 + v**2) ** 1.5
    # BornAgain 25: edges of equal tangent, stretched by the column's centre; the direction is the mean of the edges'
    v, u = geometry.tangents(instrument, rows, columns)
    stretch = np.sqrt(1 + u.mean(axis=1) ** 4)
    low, high = np.arctan(v[:, :1] / stretch), np.arctan(v[:, 1:] / stretch)
    left, right = np.arctan(u[:, 0]), np.arctan(u[:, 1])
    solid = (np.sin(high) - np.sin(low)) * (right - left)
    return (low + high) / 2, np.broadcast_to((left + right) / 2, solid.shape), solid


def _q2(instrument: InstrumentConfig, alpha: Array, phi: Array) -> Array:
    """Squared in-plane scattering vector [nm^-2], without the cancellation of its components near the specular beam."""
    incidence = math.radians(instrument.incidence_deg)
    radial = 2 * np.sin((alpha + incidence) / 2) * np.sin((alpha - incidence) / 2)
    turn = 4 * math.cos(incidence) * np.cos(alpha) * np.sin(phi / 2) ** 2
    return np.asarray(geometry.wavenumber(instrument) ** 2 * (radial**2 + turn))


def _kink_points(alpha: Array, limits: Limits, tolerance: float) -> int:
    """Chebyshev points that a function with poles beside a row's exit angles (row, any) needs.

    Waves are singular at critical angles and at resonances between them, beta / alpha beside the real angle. Polynomials
    converge as rho^-points, rho being the sum of the half-axes of the largest ellipse without poles around the interval.
    """
    low, high = alpha.min(axis=1), alpha.max(axis=1)
    first, last = (math.sqrt(2 * delta) for delta in limits.delta)
    critical = (high >= 0.9 * first) & (low <= 1.1 * last) & (high > low)
    if not critical.any():
        return 1
    offset = 4 * max(limits.beta, _LEAST_BETA) / (high**2 - low**2)[critical].max()
    rho = offset + math.sqrt(1 + offset**2)
    return max(1, math.ceil(math.log(_KINK / tolerance) / math.log(rho)))


def _nodes(instrument: InstrumentConfig, columns: Array, limits: Limits, least: int) -> tuple[Array, Array | None]:
    """Virtual columns (node, 2) and the interpolation (node, column) from them; or the columns, if those are as few.

    Piecewise polynomials in log(1 + (k u xi)^2), u being the tangent of the column: the spectra are smooth there, and
    panels keep the error relative to the counts nearby rather than to the specular ridge. A panel has `least` nodes.
    """
    count = max(_PANEL_NODES, least)
    _, foot = geometry.foot_px(instrument)
    scale = geometry.wavenumber(instrument) * limits.length_nm * instrument.pixel_mm / instrument.distance_mm
    centres = columns.mean(axis=1)
    coordinate = np.log1p(((centres - foot) * scale) ** 2)
    low, high = coordinate.min(), coordinate.max()
    panels = max(1, math.ceil((high - low) / _PANEL_WIDTH))
    if panels * count >= len(columns):
        return columns, None
    width = (high - low) / panels
    panel = np.minimum(((coordinate - low) / width).astype(int), panels - 1)
    points = -np.cos(np.pi * (np.arange(count) + 0.5) / count)
    starts = low + width * np.arange(panels)
    across = np.zeros((panels, count, len(columns)))
    local = lagrange(points, 2 * (coordinate - starts[panel]) / width - 1)
    across[panel, :, np.arange(len(columns))] = local.T
    nodes = foot + np.sqrt(np.expm1((starts[:, None] + width * (points + 1) / 2).ravel())) / scale
    half = (columns[0, 1] - columns[0, 0]) / 2
    return np.column_stack([nodes - half, nodes + half]), across.reshape(-1, len(columns))


def _few_angles(alpha: Array, k: float, limits: Limits, least: int) -> tuple[Array, Array | None]:
    """Exit angles (row, angle) that stand for those of a row's nodes (row, node), and the weights (angle, row, node).

    As many as a wave across the whole stack, down and up, needs by the error of interpolation at Chebyshev points, but at
    least `least`.
    """
    low, high = alpha.min(axis=1, keepdims=True), alpha.max(axis=1, keepdims=True)
    phase = 2 * k * limits.thickness_nm * float((high - low).max(initial=0))
    count = least
    while count < alpha.shape[1] and 2 * math.prod(phase / 4 / n for n in range(1, count + 1)) > _PHASE_TOLERANCE:
        count += 1
    if count >= alpha.shape[1]:
        return alpha, None
    if count == 1:
        return (low + high) / 2, None
    points = -np.cos(np.pi * (np.arange(count) + 0.5) / count)
    half = np.maximum((high - low) / 2, np.finfo(float).tiny)
    middle = (low + high) / 2
    return middle + half * points, lagrange(points, (alpha - middle) / half)


def lagrange(points: Array, x: Array) -> Array:
    """Lagrange polynomials of `points` (n,) at `x` (...): (n, ...)."""
    others = [np.delete(points, n) for n in range(len(points))]
    return np.stack(
        [
            np.prod((x[..., None] - other) / (point - other), axis=-1)
            for point, other in zip(points, others, strict=True)
        ]
    )


def _rows(instrument: InstrumentConfig, start: int, stop: int, number: int, sampling: int) -> tuple[Array, Array]:
    """Edges (row, 2) of the rows of pixels above the horizon that `number` bins need, and the map (bin, row)."""
    edges = np.linspace(start, stop, number * sampling + 1)
    horizon = geometry.horizon_px(instrument)
    above = (edges[:-1] + edges[1:]) / 2 > horizon
    first = int(np.argmax(above)) if above.any() else len(above)
    if first == len(above):
        return np.zeros((0, 2)), np.zeros((number, 0))
    margin = _margin(instrument, edges[1] - edges[0])
    wide = _extended(edges[first:], margin)
    blur = np.zeros((len(above), len(wide)))
    blur[first:] = _blur(instrument, wide)[margin : len(wide) - margin]
    lit = wide.mean(axis=1) > horizon
    return wide[lit], blur.reshape(number, sampling, -1).sum(axis=1)[:, lit]


def _columns(instrument: InstrumentConfig, config: View) -> tuple[Array, Array]:
    """Edges (column, 2) of the columns of pixels that a view needs, and the map (column, bin)."""
    start, stop = (float(column) for column in config.columns)
    sampling = config.sampling[1]
    if sampling == "gauss3":
        _, beam = geometry.foot_px(instrument)
        if np.isclose(start + stop, 2 * beam):
            start = beam  # symmetric around the beam: one half is enough, and 64 times more precise
        step = geometry.GAUSS3_STEP * (stop - start) / 2
        if instrument.resolution_mm / instrument.pixel_mm * MARGIN_SIGMAS > step / 2:
            raise ConfigError(
                "sampling gauss3", "needs a view wide against the resolution", f"{stop - start:g} columns",
                "use an integer",
            )  # fmt: skip
        edges = (start + stop) / 2 + step * np.array([-1.5, -0.5, 0.5, 1.5])
        # the three bins are narrower than the view: weigh their densities, not their counts
        collect = geometry.GAUSS3_WEIGHTS[:, None] / step * (config.columns[1] - config.columns[0]) / 2
    else:
        edges = np.linspace(start, stop, config.bins[1] * sampling + 1)
        collect = np.repeat(np.eye(config.bins[1]), sampling, axis=0)
    margin = _margin(instrument, edges[1] - edges[0])
    wide = _extended(edges, margin)
    return wide, _blur(instrument, wide)[:, margin : len(wide) - margin] @ collect


def _margin(instrument: InstrumentConfig, step: float) -> int:
    """Number of pixels of size `step` (in detector pixels) that the resolution reaches."""
    return math.ceil(MARGIN_SIGMAS * instrument.resolution_mm / instrument.pixel_mm / step)


def _extended(edges: Array, margin: int) -> Array:
    """Edges (pixel, 2) of uniform pixels with `margin` more on both sides."""
    step = edges[1] - edges[0]
    outside = step * np.arange(1, margin + 1)
    wide = np.concatenate([edges[0] - outside[::-1], edges, edges[-1] + outside])
    return np.column_stack([wide[:-1], wide[1:]])


def _blur(instrument: InstrumentConfig, pixels: Array) -> Array:
    """Share of the counts of each pixel that the resolution puts into each other, (from, to); the identity without it."""
    sigma = instrument.resolution_mm / instrument.pixel_mm / (pixels[0, 1] - pixels[0, 0])
    index = np.arange(len(pixels))
    distance = np.abs(index[:, None] - index)
    if sigma == 0:
        return np.asarray((distance == 0).astype(float))
    share = ndtr((0.5 - distance) / sigma) - ndtr((-0.5 - distance) / sigma)
    return np.where(share > _NO_SHARE, share, 0.0)
