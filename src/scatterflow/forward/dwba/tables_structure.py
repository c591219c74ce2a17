"""Structure factors for images from tables: as `structure`, in single precision where that does not cost digits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scatterflow.forward.particles import Arrangement, Particles, structure_factor

Array = NDArray[np.float64]


def excess(particles: Particles, arrangement: Arrangement, q: Array) -> NDArray[np.float32]:
    """S - 1 (simulation, ...) at in-plane wave numbers `q` (...) [1/nm]. Raises SimulationError.

    Of a paracrystal 2 s (1 - s - 2 t) / ((1 - s)^2 + 4 s t), with the s = |p| of `structure.paracrystal` and
    t = sin^2(q D / 2): no difference of large numbers.
    """
    if particles.interference != "paracrystal":
        return (structure_factor(particles, arrangement, q) - 1).astype(np.float32)
    shape = (-1, *(1,) * q.ndim)
    distance, disorder = arrangement.distance_nm.reshape(shape), arrangement.disorder.reshape(shape)
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
