"""Engine `kinematic`: the frame of a thin crystalline film in a focused beam, batched and differentiable.

Every direction within the zone plate's ring (o_x, o_y) throws a displaced Bragg peak on the detector (x, y), and the
intensities add up (DONUT, arXiv 2507.14038, Methods):

    I(y, x) = sum over the ring of  t sinc^2(t q_z / 2 pi)  exp(-q_x^2 / w^2)  exp(-q_y^2 / w^2)

q_x and q_z depend on x and o_x only, q_y on y and o_y: the sum is a product of three matrices, exactly. The published
sum takes the ring at 2 points per pixel, coarser than the peak (0.1 pixel) is wide: its frames change with the tilt in
jerks. The default is the integral over the ring instead, a disc less a smaller one: along o_y in closed form, and
o_x = R sin(a) is taken at equal steps of a, for which the sum over smooth functions converges fastest.

NanobeamNN (Sci. Rep. 15, 21736), the supervised predecessor, has a box for each Gaussian: 1 where |q| < w. As an
integral it is piecewise linear in the tilts, since the part of a node's cell that lies within the box is taken exactly;
on a grid of points frames are step functions, of which `slopes` are refused.

The published x runs along the exit angle: it is the row z of the project's frames, and y is the column. torch in, torch
out; angles in degrees as everywhere at the border, radians inside, wave vectors in 1/nm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import asin, ceil, cos, pi, sin, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig

PARAMETERS = ("strain", "omega_deg", "chi_deg", "film_thickness_nm")
PUBLISHED = 2  # points of the ring per pixel
NODES = 5  # of the default, per pixel of the ring's edges
THINNED = 3  # one of so many is left by `thinned`
_REACH = {torch.float32: 4.5, torch.float64: 7.8}  # widths beyond which a Gaussian and 1 - erf are nothing: 2e-9, 4e-27
_NARROW = 1 / 3  # of the rows, and of the columns, that a peak may take for the way of narrow ones


@dataclass(frozen=True)
class Kinematics:
    """What does not depend on the film's state: differences of wave vectors at zero strain [1/nm], and the ring.

    They are formed in double precision and rounded once: what varies later is small, so float32 loses nothing there.
    """

    qx: Tensor  # (z, node)
    qz: Tensor  # (z, node)
    qy: Tensor  # (y, o_y), or (y, 1) at o_y = 0
    ring: Tensor  # (o_y, node): 0 or 1; or (node,): half the length of a node's chord, over w
    weight: Tensor  # (node,)
    cell: Tensor | None  # (node,), half of a node's part of q_x [1/nm] where the peak is a box; none: it is a Gaussian
    points: bool
    g: float  # the reflection's wave vector [1/nm]
    width: float  # w [1/nm]
    thickness_nm: float


def kinematics(
    beam: NanobeamConfig,
    film: FilmConfig,
    upsampling: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    nodes: float = NODES,
) -> Kinematics:
    """Prepare `intensities`: the integral over the ring, or the sum over `upsampling` points per pixel and direction.

    upsampling 2 is the published sum; all others weigh as much as its 4 points per pixel.
    """
    k = 2 * pi / beam.wavelength_nm
    incidence = asin(beam.wavelength_nm * film.order / (2 * film.lattice_nm))  # and exit angle of the detector's centre
    pixel = beam.pixel_mm / beam.distance_mm
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in beam.shape)  # z, y
    turn = np.arctan if beam.exit_angle_rule == "tangent" else np.arcsin
    half_turn = turn(rows * pixel)[:, None] / 2  # half of exit angle minus incidence: no digits are lost below
    inner, outer = beam.ring_px
    box = film.peak_shape == "box"
    if upsampling is not None:
        half = int(np.floor(outer * upsampling + 0.5))
        o_x = o_y = (np.arange(-half, half) + 0.5) / upsampling  # of the detector's whole grid, what the ring needs
        radius = np.hypot(o_y[:, None], o_x)
        ring = ((radius > inner) & (radius < outer)).astype(float)
        weight = np.full(len(o_x), (PUBLISHED / upsampling) ** 2)
        cell = np.zeros(len(o_x))
    else:
        discs = [_disc(radius, nodes) for radius in (outer, inner) if radius > 0]
        o_x, o_y = np.concatenate([disc[0] for disc in discs]), np.zeros(1)
        ring = np.concatenate([disc[1] for disc in discs]) / film.peak_width
        area = np.concatenate([sign * disc[2] for sign, disc in zip((1, -1), discs, strict=False)])
        weight = PUBLISHED**2 * film.peak_width * area * (1 if box else sqrt(pi) / 2)
        cell = np.concatenate([disc[3] for disc in discs])
    arrays = (
        k * (2 * np.sin(incidence + half_turn) * np.sin(half_turn) + o_x * pixel * sin(incidence)),
        k * (2 * np.cos(incidence + half_turn) * np.sin(half_turn) - o_x * pixel * cos(incidence)),
        k * pixel * (columns[:, None] - o_y),
        ring,
        weight,
        k * pixel * sin(incidence) * cell,
    )
    qx, qz, qy, ring_, weight_, cell_ = (torch.as_tensor(array, dtype=dtype, device=device) for array in arrays)
    g = 2 * pi * film.order / film.lattice_nm
    width = film.peak_width * k * pixel
    return Kinematics(
        qx, qz, qy, ring_, weight_, cell_ if box else None, upsampling is not None, g, width, film.thickness_nm
    )


def _disc(radius: float, nodes: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Nodes along o_x, half of their chords, shares of the integral and half of their cells, for a disc [pixel]."""
    number = THINNED * ceil(pi * radius * nodes / THINNED)
    angle = (np.arange(number) + 0.5) * pi / number - pi / 2
    half = radius * np.cos(angle)
    return radius * np.sin(angle), half, half * pi / number, half * sin(pi / number / 2)


def thinned(at: Kinematics) -> Kinematics:
    """The same integral over a third of the nodes, the middle ones of three: for peaks a third of a pixel wide, or wider.

    It is off by 1e-3 of the maximum at 0.3 pixel and 1e-5 at 0.8 pixel. A ring of points stays as it is.
    """
    if at.points:
        return at
    kept = slice(THINNED // 2, None, THINNED)
    cell = None if at.cell is None else at.cell[kept] * THINNED
    qx, qz = at.qx[:, kept].contiguous(), at.qz[:, kept].contiguous()
    return replace(at, qx=qx, qz=qz, ring=at.ring[kept], weight=at.weight[kept] * THINNED, cell=cell)


def intensities(at: Kinematics, theta: Tensor) -> Tensor:
    """Frames (frame, z, y) of films `theta` (frame, parameter): strain, omega [deg], chi [deg] and maybe thickness [nm].

    In the unit of the published sum; differentiable in every parameter. In float32 it takes about 30 bytes of memory per
    frame, row or column, and node: 2.5 MB per frame of the defaults.
    """
    along, across = factors(at, theta)
    return along @ across.transpose(1, 2)


def patterns(at: Kinematics, theta: NDArray[np.float64]) -> NDArray[np.float32]:
    """`intensities` (frame, z, y) of `theta` (frame, parameter) as an array, never negative, 16 frames at a time.

    By one thread: the same bits everywhere, and those who want more cores start processes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = np.empty((len(theta), at.qx.shape[0], at.qy.shape[0]), dtype=np.float32)
        for first in range(0, len(theta), 16):
            part = slice(first, first + 16)
            # in the ring's shadow the difference of two discs is zero up to the quadrature's error
            result[part] = intensities(at, torch.as_tensor(theta[part])).clamp_min(0).cpu().numpy()
    finally:
        torch.set_num_threads(threads)
    return result


def factors(at: Kinematics, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors (frame, z, node) and (frame, y, node) whose product over the nodes is `intensities(at, theta)`.

    The first depends on strain, omega and thickness only, the second on strain and chi. Where the peak is narrow, most
    elements are zero, or the whole chord: unless somebody differentiates, only the others are computed.
    """
    every = theta.requires_grad
    rows = None if every else near_rows(at, theta)
    x, u = arguments(at, theta, rows)
    along = at.weight * films(at, theta)[2] * torch.sinc(x) ** 2 * peak(at, u)
    if rows is not None:
        along = along.new_zeros(len(theta), *at.qx.shape).scatter_(1, rows, along)
    v = columns(at, theta)
    if at.points:
        return along, (bell(v) if at.cell is None else inside(v)) @ at.ring
    edges = None if every else near_edges(at, v)
    if edges is None:
        integral = torch.erf if at.cell is None else clamped
        return along, integral(v + at.ring) - integral(v - at.ring)
    near, there = edges
    across = (v.abs() < at.ring).to(v.dtype) * 2
    return along, across.scatter_(1, near, torch.erf(there + at.ring) - torch.erf(there - at.ring))


def peak(at: Kinematics, u: Tensor) -> Tensor:
    """The peak at q_x / w, or the part of each node's cell that lies within the box."""
    if at.cell is None:
        return bell(u)
    if at.points:
        return inside(u)
    half = at.cell / at.width
    return (clamped(u + half) - clamped(u - half)) / (2 * half)


def clamped(x: Tensor) -> Tensor:
    """The integral of the box, as erf is the Gaussian's."""
    return x.clamp(-1, 1)


def inside(x: Tensor) -> Tensor:
    """The box."""
    return (x.abs() < 1).to(x.dtype)


def bell(x: Tensor) -> Tensor:
    """exp(-x^2), no smaller than 1e-26: where it underflows, it takes five times as long."""
    return torch.exp(-(x**2).clamp_max(60))


def films(at: Kinematics, theta: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    """1 + strain, reflection [1/nm] and thickness [nm] of films `theta` (frame, parameter), each (frame, 1, 1)."""
    stretched = 1 + theta[:, 0, None, None].to(at.qx.dtype)
    thickness = theta[:, 3, None, None].to(at.qx.dtype) if theta.shape[1] > 3 else at.thickness_nm
    return stretched, at.g / stretched, thickness


def arguments(at: Kinematics, theta: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Thickness q_z / 2 pi and q_x / w, (frame, z, node), or in the `rows` (frame, near, node) of every node only."""
    stretched, g, thickness = films(at, theta)
    strain, omega = (theta[:, number, None, None].to(at.qx.dtype) for number in range(2))
    qx, qz = at.qx, at.qz
    if rows is not None:
        node = torch.arange(qx.shape[1], device=rows.device)
        qx, qz = qx[rows, node], qz[rows, node]
    return (
        thickness * (qz + at.g * strain / stretched) / (2 * pi),
        (qx + g * torch.deg2rad(omega)) / at.width,
    )


def columns(at: Kinematics, theta: Tensor) -> Tensor:
    """q_y / w, (frame, y, o_y), or (frame, y, 1) at o_y = 0."""
    chi = theta[:, 2, None, None].to(at.qy.dtype)
    return (at.qy + films(at, theta)[1] * torch.deg2rad(chi)) / at.width


def near_rows(at: Kinematics, theta: Tensor) -> Tensor | None:
    """Rows (frame, near, node) within reach of each node's peak; None if they are too many, or the peak is no Gaussian."""
    if at.cell is not None or at.points:
        return None
    rows, nodes = at.qx.shape
    reach = _REACH[at.qx.dtype]
    number = ceil(2 * reach * at.width / float(at.qx[:, 0].diff().min())) + 1
    if number > _NARROW * rows:
        return None
    shift = films(at, theta)[1][:, 0] * torch.deg2rad(
        theta[:, 1, None].to(at.qx.dtype)
    )  # (frame, 1): it lies at -shift
    wanted = (-shift.T - reach * at.width).expand(nodes, -1).contiguous()  # (node, frame)
    first = torch.searchsorted(at.qx.T.contiguous(), wanted).T
    # the same row twice at the border gets the same value twice
    return (first[:, None] + torch.arange(number, device=first.device)[:, None]).clamp(max=rows - 1)


def near_edges(at: Kinematics, v: Tensor) -> tuple[Tensor, Tensor] | None:
    """Columns within reach of the ends of each node's chord, and `v` (frame, y, 1) there, (frame, near, node) both.

    None if they are too many, or the peak is no Gaussian. Elsewhere the factor of columns is 2 within the chord, or 0.
    """
    if at.cell is not None or at.points:
        return None
    number_of_columns, reach = v.shape[1], _REACH[v.dtype]
    step = float(at.qy[1, 0] - at.qy[0, 0]) / at.width
    number = ceil(2 * reach / step) + 1
    if 2 * number > _NARROW * number_of_columns:
        return None
    ends = torch.stack([-at.ring, at.ring])  # (2, node)
    first = ((ends - reach - v[:, :1]) / step).ceil().long()  # (frame, 2, node)
    near = first[:, :, None] + torch.arange(number, device=v.device)[:, None]
    near = near.clamp(0, number_of_columns - 1).flatten(1, 2)
    return near, v[..., 0].gather(1, near.flatten(1)).reshape(near.shape)
