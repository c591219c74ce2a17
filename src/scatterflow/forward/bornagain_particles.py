"""Expected counts of particles by BornAgain 25 (the reference engine)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import ConfigError, SimulationError
from scatterflow.forward import bornagain
from scatterflow.forward.particles import Arrangement, Particles, Stack

Array = NDArray[np.float64]


def expected_counts(
    particles: Particles, arrangement: Arrangement, stack: Stack, instrument: InstrumentConfig, rows: Array, columns: Array
) -> Array:  # fmt: skip
    """Scattered counts (simulation, row, column) of uniform pixels with edges `rows` (row + 1,) and `columns` (column + 1,).

    Without resolution and background; 0 at and below the horizon. Raises ConfigError for geometry flat and for hard disks
    of several sizes, which BornAgain 25 refuses, SimulationError for what it cannot compute.
    """
    bornagain.check(instrument)
    if particles.interference == "hard-disks" and (np.count_nonzero(arrangement.shares, axis=1) > 1).any():
        remedy = "use engine dwba, or another interference"
        raise ConfigError("hard disks of engine bornagain", "must be of one size", "several", remedy)
    ba = bornagain.library()
    bare = instrument.model_copy(update={"resolution_mm": 0.0})
    above = (rows[:-1] + rows[1:]) / 2 > geometry.horizon_px(instrument)
    result = np.zeros((len(stack.layers), len(above), len(columns) - 1))
    first = int(np.argmax(above)) if above.any() else len(above)
    for number in range(len(result)) if above.any() else ():
        sample = _sample(ba, particles, arrangement, stack, number)
        result[number, first:] = bornagain.simulated(sample, bare, rows[first:], columns)
    if not np.isfinite(result).all():
        number = int(np.argmin(np.isfinite(result).all(axis=(1, 2))))
        raise SimulationError(f"counts of row {number}", "must be finite", "NaN or infinity")
    return result


def _sample(ba: Any, particles: Particles, arrangement: Arrangement, stack: Stack, number: int) -> Any:
    options = stack.transient, stack.max_spatial_frequency_per_nm, stack.cross_correlation_length_nm
    layers = [ba.Layer(ba.Vacuum())]
    layers += [bornagain.layer(ba, tuple(map(float, values)), *options) for values in stack.layers[number]]
    layers[particles.layer].deposit2D(_structure(ba, particles, arrangement, number))
    sample = ba.Sample()
    for layer in layers:
        sample.addLayer(layer)
    return sample


def _structure(ba: Any, particles: Particles, arrangement: Arrangement, number: int) -> Any:
    """The particles of one simulation as they lie."""
    material = ba.RefractiveMaterial("particle", bornagain.GREY, particles.delta, particles.beta)
    sizes = [
        (float(share), ba.Particle(material, form(ba, particles, float(radius), float(height))))
        for share, radius, height in zip(arrangement.shares[number], particles.radius, particles.height, strict=True)
        if share > 0
    ]
    if len(sizes) == 1:
        mixed = sizes[0][1]
    else:
        mixed = ba.Mixture()
        for share, particle in sizes:
            mixed.addParticle(particle, share)
    distance, density = float(arrangement.distance_nm[number]), float(arrangement.density[number])
    if particles.interference == "none":
        return ba.Dilute2D(density, mixed)
    if particles.interference == "hard-disks":
        return ba.Dense2D(density, mixed)
    lattice = ba.RadialParacrystal(mixed, distance, particles.damping_nm)
    lattice.setProbabilityDistribution(ba.Profile1DGauss(float(arrangement.disorder[number]) * distance))
    return lattice


def form(ba: Any, particles: Particles, radius: float, height: float) -> Any:
    """BornAgain's form of a particle of `radius` and `height` [nm]."""
    if particles.shape == "box":
        return ba.Box(2 * radius, 2 * radius, height)
    if particles.shape == "cylinder":
        return ba.Cylinder(radius, height)
    if particles.shape == "hemi-ellipsoid":
        return ba.SpheroidalSegment(radius, height, 0.0, height)
    if particles.shape == "truncated-sphere" and height < 2 * radius:
        return ba.SphericalSegment(radius, 0.0, 2 * radius - height)
    return ba.Spheroid(radius, height / 2)
