"""Reflection of stacks of rough layers, and nothing else, as fast as numpy can: what images from tables need.

Of a graded interface (see `fresnel`) only the ratio of its two amplitudes is needed, in which all square roots cancel: with
D = 1 - exp(-2 s kz) above and below, s = sqrt(3) rms,

    m- / m+ = (tanh s kz_above - tanh s kz_below) / (their sum) = (D_above - D_below) / (D_above + D_below - D_above D_below)

for a tanh profile, and exp(-2 rms^2 kz_above kz_below) (kz_above - kz_below) / (kz_above + kz_below) for an erf one. D has
all its digits in single precision, too; phases across layers, which are large, are reduced in double precision first.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scatterflow.forward.particles import Stack

Array = NDArray[np.float64]
Array32 = NDArray[np.float32]
ComplexArray = NDArray[np.complex64]
_SMOOTH = 1e-5  # nm; rms below this reflects as this does, and the ratio is not 0 / 0


def reflected(stack: Stack, layers: Array, k: float, sines: Array) -> ComplexArray:
    """Amplitude (simulation, angle) of the wave reflected by `layers` (simulation, layer, parameter) of the kind of `stack`.

    `sines` (angle,) of the glancing angles, positive; `k` in 1/nm. Good to 1e-6, of its median to 1e-8.
    """
    delta, beta, thickness, sigma, hurst, length = np.moveaxis(layers, 2, 0)[..., None]
    reach = (2 * math.pi * stack.max_spatial_frequency_per_nm * length) ** 2
    rms = np.maximum(sigma * np.sqrt(-np.expm1(-hurst * np.log1p(reach))), _SMOOTH)
    # contrast of n = 1 - delta + i beta to the vacuum
    real, imaginary = delta * (delta - 2) - beta * beta, 2 * beta * (1 - delta)
    count = layers.shape[1]
    top = np.zeros((len(layers), len(sines)), dtype=np.complex64)
    bottom = np.ones_like(top)
    below = _wavenumber(k, sines, real[:, -1], imaginary[:, -1])
    for n in range(count - 1, -1, -1):
        zero = np.zeros((len(layers), 1))
        above = _wavenumber(k, sines, *((real[:, n - 1], imaginary[:, n - 1]) if n else (zero, zero)))
        ratio = _ratio(stack.transient, above, below, rms[:, n])
        if n < count - 1:
            top *= _turned(below, thickness[:, n])
        top, bottom = ratio * bottom + top, ratio * top + bottom
        below = above
    return np.asarray(top / bottom)


def _wavenumber(k: float, sines: Array, real: Array, imaginary: Array) -> tuple[Array, Array]:
    """kz = k sqrt(sin^2 alpha + contrast) [1/nm], both parts, without cancellation on either side of the critical angle."""
    square = sines * sines + real
    size = square * square
    size += imaginary * imaginary
    np.sqrt(size, out=size)
    size += np.abs(square)
    size *= 0.5 * k * k
    np.sqrt(size, out=size)
    smaller = (0.5 * k * k) * imaginary / size
    propagates = square >= 0
    return np.where(propagates, size, smaller), np.where(propagates, smaller, size)


def _ratio(transient: str, above: tuple[Array, Array], below: tuple[Array, Array], rms: Array) -> ComplexArray:
    """m- / m+ of an interface between layers of wave numbers `above` and `below`."""
    if transient == "erf":
        a, b = above[0] + 1j * above[1], below[0] + 1j * below[1]
        return np.asarray(np.exp(-2 * rms**2 * a * b) * (a - b) / (a + b), dtype=np.complex64)
    one, other = _decayed(above, rms), _decayed(below, rms)
    difference = one - other
    one *= other
    other += other
    other += difference
    other -= one
    difference /= other
    return difference


def _decayed(wavenumber: tuple[Array, Array], rms: Array) -> ComplexArray:
    """1 - exp(-2 sqrt(3) rms kz)."""
    scale = math.sqrt(3) * rms
    less = np.expm1((wavenumber[0] * (-2 * scale)).astype(np.float32))
    half = (wavenumber[1] * scale).astype(np.float32)
    sine = np.sin(half)
    twice = less + np.float32(1)
    twice *= sine
    twice += twice
    result = np.empty(less.shape, dtype=np.complex64)
    np.multiply(twice, np.cos(half, out=half), out=result.imag)
    twice *= sine
    np.subtract(twice, less, out=result.real)
    return result


def _turned(wavenumber: tuple[Array, Array], thickness: Array) -> ComplexArray:
    """exp(2 i kz thickness)."""
    turns = wavenumber[0] * (thickness / math.pi)
    turns -= np.rint(turns)
    turns *= 2 * math.pi
    phase = turns.astype(np.float32)
    size = (wavenumber[1] * (-2 * thickness)).astype(np.float32)
    np.exp(size, out=size)
    result = np.empty(phase.shape, dtype=np.complex64)
    np.multiply(size, np.cos(phase), out=result.real)
    np.multiply(size, np.sin(phase), out=result.imag)
    return result
