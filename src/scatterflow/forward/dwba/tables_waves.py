"""Reflection of stacks of rough layers, and nothing else, as fast as numpy can: what images from tables need.

Of a graded interface (see `fresnel`) only the ratio of its two amplitudes is needed, in which all square roots cancel: with
D = 1 - exp(-2 s kz) above and below, s = sqrt(3) rms,

    m- / m+ = (tanh s kz_above - tanh s kz_below) / (their sum) = (D_above - D_below) / (D_above + D_below - D_above D_below)

for a tanh profile, and exp(-2 rms^2 kz_above kz_below) (kz_above - kz_below) / (kz_above + kz_below) for an erf one. D has
all its digits in single precision, too; phases across layers, which are large, are reduced in double precision first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow.forward.particles import Stack

Array = NDArray[np.float64]
Array32 = NDArray[np.float32]
ComplexArray = NDArray[np.complex64]
_SMOOTH = 1e-4  # nm; rms below this reflects as this does, to 1e-7, and the ratio is not 0 / 0
_OFTEN = 4  # interfaces after which amplitudes are brought back to 1


def reflected(stack: Stack, layers: Array, k: float, sines: Array) -> ComplexArray:
    """Amplitude (simulation, angle) of the wave reflected by `layers` (simulation, layer, parameter) of the kind of `stack`.

    `sines` ((simulation,) angle) of the glancing angles, positive; `k` in 1/nm. Good to 1e-6, of its median to 1e-8.
    """
    delta, beta, thickness, sigma, hurst, length = np.moveaxis(layers, 2, 0)[..., None]
    reach = (2 * math.pi * stack.max_spatial_frequency_per_nm * length) ** 2
    rms = np.maximum(sigma * np.sqrt(-np.expm1(-hurst * np.log1p(reach))), _SMOOTH)
    # contrast of n = 1 - delta + i beta to the vacuum
    real, imaginary = delta * (delta - 2) - beta * beta, 2 * beta * (1 - delta)
    count = layers.shape[1]
    shape = len(layers), sines.shape[-1]
    top, bottom = np.zeros(shape, dtype=np.complex64), np.ones(shape, dtype=np.complex64)
    below = _wavenumber(k, sines, real[:, -1], imaginary[:, -1])
    for n in range(count - 1, -1, -1):
        if n < count - 1:
            top *= _turned(below, thickness[:, n])
        above = _wavenumber(k, sines, real[:, n - 1], imaginary[:, n - 1]) if n else None
        minus, plus = _amplitudes(stack.transient, above or (k * sines, None), below, rms[:, n])
        # without dividing by plus, which top and bottom share
        top, bottom = minus * bottom + plus * top, minus * top + plus * bottom
        if n and n % _OFTEN == 0:  # products of many small numbers
            top /= bottom
            bottom[:] = 1
        below = above or below
    top /= bottom
    return top


def _wavenumber(k: float, sines: Array, real: Array, imaginary: Array) -> tuple[Array, Array]:
    """kz = k sqrt(sin^2 alpha + contrast) [1/nm], both parts, without cancellation on either side of the critical angle."""
    squares = sines * sines
    square = squares + real
    size = square * square
    size += imaginary * imaginary
    np.sqrt(size, out=size)
    size += np.abs(square)
    size *= 0.5 * k * k
    np.sqrt(size, out=size)
    smaller = (0.5 * k * k) * imaginary / size
    # few angles are below any of the critical ones
    some = np.flatnonzero((squares + real.min() < 0).reshape(-1, squares.shape[-1]).any(axis=0))
    below = square[:, some] < 0
    one, other = size[:, some], smaller[:, some]
    size[:, some], smaller[:, some] = np.where(below, other, one), np.where(below, one, other)
    return size, smaller


def _amplitudes(
    transient: str, above: tuple[Array, Array | None], below: tuple[Array, Array], rms: Array
) -> tuple[ComplexArray, ComplexArray]:
    """m- and m+ of an interface between layers of wave numbers `above` and `below`, times the same number.

    `above` is real in the vacuum.
    """
    if transient == "erf":
        a = above[0] if above[1] is None else above[0] + 1j * above[1]
        b = below[0] + 1j * below[1]
        minus = np.exp(-2 * rms**2 * a * b) * (a - b)
        return minus.astype(np.complex64), (a + b).astype(np.complex64)
    one, other = _decayed(above, rms), _decayed(below, rms)
    difference = one - other
    product = one * other
    other += other
    other += difference
    other -= product
    return difference, other


def _decayed(wavenumber: tuple[Array, Array | None], rms: Array) -> NDArray[Any]:
    """1 - exp(-2 sqrt(3) rms kz), real where kz is."""
    scale = math.sqrt(3) * rms
    less = np.expm1((wavenumber[0] * (-2 * scale)).astype(np.float32))
    if wavenumber[1] is None:
        return np.negative(less, out=less)
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
