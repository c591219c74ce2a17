"""Particles on a stack of layers or inside one: what every engine is told of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from scatterflow.errors import SimulationError
from scatterflow.forward.dwba import structure
from scatterflow.forward.dwba.formfactors import Shape, check
from scatterflow.forward.layers import LAYER_PARAMETERS

Array = NDArray[np.float64]
Interference = Literal["none", "paracrystal", "hard-disks"]
Transient = Literal["tanh", "erf"]


@dataclass(frozen=True)
class Particles:
    """Particles of one shape and one material, of the sizes `radius` and `height` [nm] (size,), all in one plane.

    n = 1 - `delta` + i `beta`. `layer` 0: they stand on the surface; n: on the bottom of the nth layer below the vacuum.
    Raises SimulationError for sizes that the shape cannot have.
    """

    shape: Shape
    radius: Array
    height: Array
    delta: float
    beta: float
    layer: int = 0
    interference: Interference = "none"
    damping_nm: float = 1e4  # of the paracrystal

    def __post_init__(self) -> None:
        if self.radius.shape != self.height.shape or self.radius.ndim != 1 or not len(self.radius):
            raise SimulationError("sizes of particles", "must be a radius and a height each", self.radius.shape)
        check(self.shape, self.radius, self.height)
        if not (0 < self.delta < 0.1 and 0 <= self.beta < 0.1):
            raise SimulationError("delta, beta of particles", "must lie between 0 and 0.1", (self.delta, self.beta))
        if self.interference not in get_args(Interference):
            raise SimulationError("interference of particles", "is not known", repr(self.interference))


@dataclass(frozen=True)
class Arrangement:
    """How particles are mixed and lie, one row per simulation.

    `shares` (simulation, size) of their number, sum 1; `distance_nm` (simulation,) of neighbours, which sets the density
    of every interference: that of a hexagonal lattice; `disorder` (simulation,) = w / D of the paracrystal.
    Raises SimulationError naming the row.
    """

    shares: Array
    distance_nm: Array
    disorder: Array

    def __post_init__(self) -> None:
        wrong = ~(np.isfinite(self.shares).all(1) & (self.shares >= 0).all(1) & np.isclose(self.shares.sum(1), 1))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise SimulationError(f"shares of sizes of row {row}", "must be 0 or more, sum 1", self.shares[row].sum())
        for name in ("distance_nm", "disorder"):
            values = getattr(self, name)
            wrong = ~(np.isfinite(values) & (values > 0))
            if values.shape != self.shares.shape[:1] or wrong.any():
                row = int(np.argmax(wrong)) if wrong.any() else len(values)
                raise SimulationError(f"{name} of row {row}", "must be one positive number per row")

    @property
    def density(self) -> Array:
        """Particles per area [1/nm^2] (simulation,)."""
        return structure.paracrystal_density(self.distance_nm)


@dataclass(frozen=True)
class Stack:
    """Layers below the vacuum: `layers` (simulation, layer, parameter), the last one the substrate.

    The parameters are `LAYER_PARAMETERS`; the rest is as in a sample's configuration.
    """

    layers: Array
    transient: Transient = "tanh"
    max_spatial_frequency_per_nm: float = 0.5
    cross_correlation_length_nm: float | None = None

    def __post_init__(self) -> None:
        if self.layers.ndim != 3 or self.layers.shape[2] != len(LAYER_PARAMETERS) or not self.layers.shape[1]:
            raise SimulationError("layers", f"must be (simulation, layer, {len(LAYER_PARAMETERS)})", self.layers.shape)


def disk_radius(particles: Particles, shares: Array) -> Array:
    """Radius [nm] (simulation,) of the equal hard disks that stand for a mixture: they cover the same area.

    For one size it is BornAgain's: the radius of a round particle, and that of the sphere around a box.
    """
    square = particles.radius**2
    if particles.shape == "box":
        square = 2 * square + particles.height**2 / 4
    return np.asarray(np.sqrt(shares @ square))


def structure_factor(particles: Particles, arrangement: Arrangement, q: Array) -> Array:
    """S (simulation, ...) at in-plane wave numbers `q` (...) [1/nm]. Raises SimulationError."""
    shape = (len(arrangement.shares), *(1,) * q.ndim)
    if particles.interference == "none":
        return np.ones((len(arrangement.shares), *q.shape))
    distance = arrangement.distance_nm.reshape(shape)
    if particles.interference == "paracrystal":
        return structure.paracrystal(q, distance, arrangement.disorder.reshape(shape) * distance, particles.damping_nm)
    radius = disk_radius(particles, arrangement.shares).reshape(shape)
    return structure.hard_disks(q, radius, arrangement.density.reshape(shape))
