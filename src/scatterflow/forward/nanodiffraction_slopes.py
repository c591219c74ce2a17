"""Engine `kinematic` with its derivatives: as separable as the frame itself, so they cost as much again, not more."""

from __future__ import annotations

from math import pi, radians, sqrt

import torch
from torch import Tensor

from scatterflow.forward.nanodiffraction import Kinematics, arguments, bell

_SMALL = 0.02  # below, (cos(pi x) - sinc(x)) / x cancels; two terms of its series are exact to 1e-8


def slopes(at: Kinematics, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Frames (frame, z, y) as `intensities` gives them, and their derivatives (frame, parameter, z, y).

    By strain, omega [1/deg], chi [1/deg] and, where `theta` (frame, parameter) has a fourth column, thickness [1/nm].
    Takes 60 bytes of memory per frame, row or column, and node (float32): 4 MB per frame of the defaults.
    """
    stretched, g, thickness, x, u, v = arguments(at, theta)
    omega, chi = (torch.deg2rad(theta[:, number, None, None].to(at.qx.dtype)) for number in (1, 2))
    sinc, cosine = torch.sinc(x), torch.cos(pi * x)
    tail = torch.where(x.abs() < _SMALL, -(pi**2) / 3 * x * (1 - (pi * x) ** 2 / 10), (cosine - sinc) / x)
    peak = at.weight * bell(u)
    lit = peak * sinc
    along = thickness * lit * sinc
    by_omega = along * u * (-2 * g / at.width)  # per radian, as all below
    by_strain = (lit * tail * (thickness**2 / pi * g) - by_omega * omega) / stretched
    parts = [along, by_strain, by_omega]
    if theta.shape[1] > 3:
        parts.append(lit * (2 * cosine - sinc))
    if at.points:
        peaks = bell(v)
        across, edge = peaks @ at.ring, (-2 * v * peaks) @ at.ring
    else:
        upper, lower = v + at.ring, v - at.ring
        across = torch.erf(upper) - torch.erf(lower)
        edge = 2 / sqrt(pi) * (bell(upper) - bell(lower))
    rows = at.qx.shape[0]
    products = (torch.cat(parts, dim=1) @ across.transpose(1, 2)).reshape(len(theta), len(parts), rows, -1)
    by_chi = along @ edge.transpose(1, 2) * (g / at.width)
    degree = radians(1)
    found = [products[:, 1] - by_chi * chi / stretched, products[:, 2] * degree, by_chi * degree]
    return products[:, 0], torch.stack([*found, *products[:, 3:].unbind(1)], dim=1)
