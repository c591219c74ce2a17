"""Distorted-wave Born approximation of particles: every pixel, every size, double precision.

The incoming and the outgoing wave each come down and go up in the particles' layer, so a particle scatters with four form
factors. Sizes and positions are independent (decoupling approximation), and rough interfaces scatter besides:

    I = density (<|A|^2> + |<A>|^2 (S - 1)) + I_rough,
    A = (k^2 / 4 pi) (n_p^2 - n_layer^2) sum over both signs of the waves' amplitudes times F(q).

Source: Lazzari, J. Appl. Cryst. 35, 406 (2002), doi:10.1107/S0021889802006088; conventions of BornAgain 25.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import SimulationError
from scatterflow.forward.dwba import detector, roughness
from scatterflow.forward.dwba.engine import interfaces_of
from scatterflow.forward.dwba.faddeeva import POINTS
from scatterflow.forward.dwba.formfactors import formfactor
from scatterflow.forward.dwba.fresnel import waves
from scatterflow.forward.dwba.pairs import Complex
from scatterflow.forward.particles import Arrangement, Particles, Stack, structure_factor

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]


class _Field(NamedTuple):
    """Waves in the particles' layer at its bottom: vertical wave number [1/nm], amplitudes down and up; contrast n^2 - 1.

    Of every simulation, (simulation, ...): the last angle is that of the incoming wave.
    """

    kz: ComplexArray
    down: ComplexArray
    up: ComplexArray
    contrast: ComplexArray


def expected_counts(
    particles: Particles,
    arrangement: Arrangement,
    stack: Stack,
    instrument: InstrumentConfig,
    rows: Array,
    columns: Array,
    rough: bool = True,
) -> Array:
    """Scattered counts (simulation, row, column) of pixels with edges `rows` and `columns` (pixel, 2).

    Without resolution and background; with what `rough` interfaces scatter besides. 0 at and below the horizon. Raises
    SimulationError where numbers of simulations differ, and where the particles lie in no layer or reach beyond theirs.
    """
    check(particles, arrangement, stack)
    alpha, phi, solid = detector.directions(instrument, rows, columns)
    lit = alpha > 0
    k, incidence = geometry.wavenumber(instrument), math.radians(instrument.incidence_deg)
    qx, qy, _ = geometry.scattering_vector(instrument, alpha[lit], phi[lit])
    factor = instrument.beam_intensity * solid[lit] / math.sin(incidence)
    field, diffuse = _waves(particles, stack, k, alpha[lit], incidence, qx**2 + qy**2)
    result = np.zeros((len(stack.layers), *alpha.shape))
    index = (1 - particles.delta + 1j * particles.beta) ** 2 - 1
    structure = structure_factor(particles, arrangement, np.hypot(qx, qy))
    for row in range(len(result)):
        here = _Field(*(part[row] for part in field))
        amplitude = k**2 / (4 * np.pi) * (index - here.contrast) * _four_terms(particles, here, qx, qy)
        shares = arrangement.shares[row]
        mean = np.tensordot(shares, amplitude, 1)
        squared = np.tensordot(shares, np.abs(amplitude) ** 2, 1)
        scattered = arrangement.density[row] * (squared + np.abs(mean) ** 2 * (structure[row] - 1))
        besides = k**4 / (16 * np.pi**2) * diffuse[row] if rough else 0.0
        result[row, lit] = factor * (scattered + besides)
    return result


def check(particles: Particles, arrangement: Arrangement, stack: Stack) -> None:
    """Raise SimulationError where simulations do not fit together, or particles not into their layer."""
    numbers = len(arrangement.shares), len(stack.layers)
    if numbers[0] != numbers[1] or arrangement.shares.shape[1] != len(particles.radius):
        got = f"{arrangement.shares.shape} shares, {numbers[1]} stacks, {len(particles.radius)} sizes"
        raise SimulationError("simulations", "must be as many shares of all sizes as stacks", got)
    if not 0 <= particles.layer < stack.layers.shape[1]:
        must = f"must be 0 (the surface) to {stack.layers.shape[1] - 1} (the lowest layer)"
        raise SimulationError("layer of the particles", must, particles.layer)
    if particles.layer:
        thinnest = float(stack.layers[:, particles.layer - 1, 2].min())
        if particles.height.max() > thinnest:
            must = f"must fit into their layer, {thinnest:g} nm thick"
            raise SimulationError("height of particles [nm]", must, float(particles.height.max()))


def _waves(
    particles: Particles, stack: Stack, k: float, alpha: Array, incidence: float, q2: Array
) -> tuple[_Field, Array]:
    """Waves at exit angles `alpha` (pixel,), and what the interfaces scatter (simulation, pixel) [nm^4]."""
    layers = torch.as_tensor(stack.layers, dtype=torch.float64)
    sines = torch.as_tensor(np.append(np.sin(alpha), math.sin(incidence)))
    options = stack.max_spatial_frequency_per_nm, stack.transient
    with torch.no_grad():
        kz, contrasts, rms, solvable = interfaces_of(layers, sines, k, *options)
        found = waves(solvable)
        amplitude = roughness.amplitudes(found, kz, contrasts, rms, POINTS)
        _, _, thickness, sigma, hurst, length = layers.unbind(-1)
        cross = stack.cross_correlation_length_nm
        damping = None if cross is None else torch.exp(-thickness / cross)
        wanted = torch.as_tensor(q2)
        rough = roughness.intensity(amplitude, wanted, sigma, hurst, length, damping).numpy()
    rough = np.where(q2 <= (2 * math.pi * stack.max_spatial_frequency_per_nm) ** 2, rough, 0.0)
    at = particles.layer
    field = _Field(
        _numbers(kz[:, at]), _numbers(found.t_above[:, at]), _numbers(found.r_above[:, at]), _numbers(contrasts[:, at])
    )
    return field, rough


def _numbers(pair: Complex) -> ComplexArray:
    return np.asarray(pair.re.numpy() + 1j * pair.im.numpy())


def _four_terms(particles: Particles, field: _Field, qx: Array, qy: Array) -> ComplexArray:
    """Sum over the directions of both waves (size, pixel) [nm^3]."""
    kf, ki = field.kz[:-1], field.kz[-1]
    shape = particles.shape, particles.radius, particles.height, qx, qy
    return np.asarray(
        field.down[-1] * field.down[:-1] * formfactor(*shape, -ki - kf)
        + field.up[-1] * field.down[:-1] * formfactor(*shape, ki - kf)
        + field.down[-1] * field.up[:-1] * formfactor(*shape, kf - ki)
        + field.up[-1] * field.up[:-1] * formfactor(*shape, ki + kf)
    )
