"""Structure factors of particles that lie in a plane without preferred direction, by the in-plane wave number q [1/nm].

Sources: radial paracrystal, Hosemann & Bagchi (1962), as BornAgain 25's RadialParacrystal with a Gaussian distribution
of distances; hard disks by Percus and Yevick, Guo & Riebel, J. Chem. Phys. 125, 144504 (2006), doi:10.1063/1.2357734, as
its Dense2D.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import j0

from scatterflow.errors import SimulationError

Array = NDArray[np.float64]
_ORDERS = 7 / 3 - 4 * np.sqrt(3) / np.pi  # Guo & Riebel's fit of the direct correlation at contact
_MOST_COVERED = 0.7  # by hard disks: beyond, the fluid of which the equation tells has frozen
_NODES = 24  # of the integral over a disk, at least; its integrand has 2 q radius / pi periods


def paracrystal(q: Array, distance: Array, width: Array, damping: Array | float = 1e4) -> Array:
    """S(q) of a radial paracrystal; `distance` D, its `width` w (standard deviation) and `damping` length in nm.

    All broadcast against each other. S = Re (1 + p) / (1 - p) with p = exp(-q^2 w^2 / 2 + i q D - D / damping). Its first
    peak lies below 2 pi / D the more, the larger w / D is. Raises SimulationError for lengths that are not positive.
    """
    for name, value in (("distance", distance), ("width", width), ("damping length", damping)):
        _positive(f"{name} of a paracrystal [nm]", value)
    size = np.exp(-((q * np.asarray(width)) ** 2) / 2 - np.asarray(distance) / damping)
    # Re (1 + p) / (1 - p), of which the denominator would cancel near q = 0
    turn = np.sin(q * np.asarray(distance) / 2) ** 2
    return np.asarray((1 - size) * (1 + size) / ((1 - size) ** 2 + 4 * size * turn))


def paracrystal_density(distance: Array) -> Array:
    """Particles per area [1/nm^2] of a paracrystal of `distance` [nm]: that of a hexagonal lattice."""
    _positive("distance of a paracrystal [nm]", distance)
    return np.asarray(2 / (np.sqrt(3) * np.asarray(distance) ** 2))


def hard_disks(q: Array, radius: Array | float, density: Array | float) -> Array:
    """S(q) of hard disks of `radius` [nm] and `density` [1/nm^2]; all broadcast against each other.

    Raises SimulationError where they cover more than a fluid can.
    """
    _positive("radius of a hard disk [nm]", radius)
    _positive("density of hard disks [1/nm^2]", density)
    covered = np.pi * np.asarray(radius, dtype=float) ** 2 * density
    if (covered > _MOST_COVERED).any():
        must = f"must be at most {_MOST_COVERED}"
        raise SimulationError("share of the plane under hard disks", must, float(covered.max()))
    bulk = 1 + covered + 3 * _ORDERS * covered**2 - _ORDERS * covered**3
    at_zero = -bulk / (1 - covered) ** 3
    slope = 8 * (1 - 2 * _ORDERS) + (25 - 9 * _ORDERS) * _ORDERS * covered - (7 - 3 * _ORDERS) * _ORDERS * covered**2
    slope *= 3 * covered**2 / 8 / bulk
    reach = 2 * np.asarray(q, dtype=float) * radius
    number = _NODES + int(np.ceil(0.6 * np.max(np.abs(reach), initial=0)))
    x, weight = np.polynomial.legendre.leggauss(number)
    x, weight = (x + 1) / 2, weight / 2
    overlap = 2 * (np.arccos(x / 2) - x / 2 * np.sqrt(1 - (x / 2) ** 2)) / np.pi
    total = np.zeros(np.broadcast_shapes(reach.shape, covered.shape))
    for node, lens, share in zip(x.tolist(), overlap.tolist(), (weight * x).tolist(), strict=True):
        total += share * at_zero * (1 + 4 * covered * (lens - 1) + slope * node) * j0(reach * node)
    return np.asarray(1 / (1 - 8 * covered * total))


def _positive(what: str, value: Array | float) -> None:
    values = np.asarray(value, dtype=float)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise SimulationError(what, "must be positive", float(values[bad].flat[0]))
