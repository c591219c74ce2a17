"""Structure factors for images from tables: as `structure`, in single precision where that does not cost digits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scatterflow.forward.dwba import structure
from scatterflow.forward.particles import Arrangement, Particles, disk_radius

Array = NDArray[np.float64]


def excess(particles: Particles, arrangement: Arrangement, q: Array) -> NDArray[np.float32]:
    """S - 1 (simulation, level, column) at in-plane wave numbers `q` ((simulation,) level, column) [1/nm].

    Of a paracrystal 2 s (1 - s - 2 t) / ((1 - s)^2 + 4 s t), with the s = |p| of `structure.paracrystal` and
    t = sin^2(q D / 2): no difference of large numbers. Raises SimulationError.
    """
    shape = (-1, 1, 1)
    distance = arrangement.distance_nm.reshape(shape)
    if particles.interference == "none":
        return np.zeros((len(distance), *q.shape[-2:]), dtype=np.float32)
    if particles.interference == "hard-disks":
        radius = disk_radius(particles, arrangement.shares).reshape(shape)
        density = arrangement.density.reshape(shape)
        return np.asarray(structure.hard_disks(q, radius, density) - 1, dtype=np.float32)
    disorder = arrangement.disorder.reshape(shape)
    turns = q * (distance / (2 * math.pi))
    turns -= np.rint(turns)  # sin^2 has the period pi
    twice = np.sin((turns * math.pi).astype(np.float32))
    twice *= twice
    twice += twice
    half = (-0.5 * (disorder * distance) ** 2).astype(np.float32)
    lost = (q * q).astype(np.float32) * half
    lost -= (distance / particles.damping_nm).astype(np.float32)
    np.expm1(lost, out=lost)
    np.negative(lost, out=lost)
    size = np.float32(1) - lost
    bottom = size * twice
    bottom += bottom
    bottom += lost * lost
    lost -= twice
    lost *= size
    lost += lost
    lost /= bottom
    return np.asarray(lost)
