"""Engine `kinematic` with its derivatives: as separable as the frame itself, so they cost as much again, not more.

Where the peak is narrow, most elements of both factors are zero, or the whole chord: only those near the peak and near the
ring's edges are computed, and put in their places. Both ways give the same to 1e-7.
"""

from __future__ import annotations

from math import pi, radians, sqrt

import torch
from torch import Tensor

from scatterflow.errors import ConfigError
from scatterflow.forward.nanodiffraction import (
    Kinematics,
    arguments,
    bell,
    clamped,
    columns,
    films,
    inside,
    near_edges,
    near_rows,
    peak,
)

_SMALL = 0.02  # below, (cos(pi x) - sinc(x)) / x cancels; two terms of its series are exact to 1e-8


def slopes(at: Kinematics, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Frames (frame, z, y) as `intensities` gives them, and their derivatives (frame, parameter, z, y).

    By strain, omega [1/deg], chi [1/deg] and, where `theta` (frame, parameter) has a fourth column, thickness [1/nm].
    Takes 60 bytes of memory per frame, row or column, and node (float32): 4 MB per frame of the defaults. Where the peak
    is a box, the slopes are those of a piecewise linear function. Raises ConfigError for a box on a ring of points.
    """
    if at.cell is not None and at.points:
        must, remedy = "must have slopes", "leave forward.ring_upsampling out, or set film.peak_shape to gaussian"
        raise ConfigError("film.peak_shape", must, "box on a ring of points: frames are steps of the tilts", remedy)
    stretched, g, thickness = films(at, theta)
    omega, chi = (torch.deg2rad(theta[:, number, None, None].to(at.qx.dtype)) for number in (1, 2))
    near = near_rows(at, theta)
    x, u = arguments(at, theta, near)
    along = _along(at, stretched, g, thickness, omega, x, u, theta.shape[1] > 3)
    if near is not None:
        dense = along.new_zeros(*along.shape[:2], *at.qx.shape)
        along = dense.scatter_(2, near[:, None].expand(-1, along.shape[1], -1, -1), along)
    across, edge = _across(at, columns(at, theta))
    rows, frames = at.qx.shape[0], len(theta)
    products = (along.flatten(1, 2) @ across.transpose(1, 2)).reshape(frames, along.shape[1], rows, -1)
    by_chi = along[:, 0] @ edge.transpose(1, 2) * (g / at.width)
    degree = radians(1)
    found = [products[:, 1] - by_chi * chi / stretched, products[:, 2] * degree, by_chi * degree]
    return products[:, 0], torch.stack([*found, *products[:, 3:].unbind(1)], dim=1)


def _along(
    at: Kinematics,
    stretched: Tensor,
    g: Tensor,
    thickness: Tensor | float,
    omega: Tensor,
    x: Tensor,
    u: Tensor,
    by_thickness: bool,
) -> Tensor:
    """The factor of rows, and its derivatives by strain, omega [1/rad] and maybe thickness: (frame, 3 or 4, as `x`)."""
    sinc, cosine = torch.sinc(x), torch.cos(pi * x)
    tail = torch.where(x.abs() < _SMALL, -(pi**2) / 3 * x * (1 - (pi * x) ** 2 / 10), (cosine - sinc) / x)
    lit = at.weight * peak(at, u) * sinc
    along = thickness * lit * sinc
    if at.cell is None:
        by_omega = along * u * (-2 * g / at.width)
    else:
        half = at.cell / at.width
        by_omega = at.weight * thickness * sinc**2 * (inside(u + half) - inside(u - half)) / (2 * half) * (g / at.width)
    by_strain = (lit * tail * (thickness**2 / pi * g) - by_omega * omega) / stretched
    parts = [along, by_strain, by_omega]
    if by_thickness:
        parts.append(lit * (2 * cosine - sinc))
    return torch.stack(parts, dim=1)


def _across(at: Kinematics, v: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of columns and its derivative by v, (frame, y, node), of v (frame, y, 1), or (frame, y, o_y) of points."""
    if at.points:
        peaks = bell(v)
        return peaks @ at.ring, (-2 * v * peaks) @ at.ring
    if at.cell is not None:
        upper, lower = v + at.ring, v - at.ring
        return clamped(upper) - clamped(lower), inside(upper) - inside(lower)
    near_ends = near_edges(at, v)
    if near_ends is None:
        upper, lower = v + at.ring, v - at.ring
        return torch.erf(upper) - torch.erf(lower), 2 / sqrt(pi) * (bell(upper) - bell(lower))
    near, there = near_ends
    across = (v.abs() < at.ring).to(v.dtype) * 2
    upper, lower = there + at.ring, there - at.ring
    edge = torch.zeros_like(across).scatter_(1, near, 2 / sqrt(pi) * (bell(upper) - bell(lower)))
    return across.scatter_(1, near, torch.erf(upper) - torch.erf(lower)), edge
