"""Waves inside the stack: graded interfaces and the upward recursion of amplitudes.

Layer 0 is the vacuum, the last one the substrate; interface `i` lies between layers `i` and `i + 1`. Tensors are
(simulation, layer or interface, angle). Sources: Nevot & Croce, Rev. Phys. Appl. 15, 761 (1980); de Boer, Phys. Rev.
B 51, 5297 (1995).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scatterflow.forward.dwba.pairs import Complex, stack, where

_TINY = 1e-28  # |kz / k|^2 at an exact critical angle: keeps k1 / k0 and the gradient finite
_SERIES_BELOW = 1e-4  # |z|^2 from which tanh(z) / z is computed as such (rounded to 1e-14); the series is good to 2e-18


def contrast(delta: Tensor, beta: Tensor) -> Complex:
    """n^2 - 1 of n = 1 - delta + i beta, vacuum first: (simulation, layer) to (simulation, 1 + layer)."""
    re, im = delta * (delta - 2) - beta * beta, 2 * beta * (1 - delta)
    vacuum = torch.zeros_like(re[:, :1])
    return Complex(torch.cat([vacuum, re], 1), torch.cat([vacuum, im], 1))


def vertical_wavenumber(k: float, sin_alpha: Tensor, contrasts: Complex) -> Complex:
    """kz = k sqrt(sin^2 alpha + n^2 - 1) [nm^-1], (simulation, layer, angle), of angles `sin_alpha` (angle,).

    Written with the sine: k sqrt(n^2 - cos^2 alpha) cancels near the horizon.
    """
    re = contrasts.re[..., None] + sin_alpha * sin_alpha
    im = contrasts.im[..., None].expand_as(re)
    critical = re.abs() + im < _TINY
    return Complex(torch.where(critical, _TINY, re), im).sqrt().times(k)


def _tanhc(z: Complex) -> Complex:
    """tanh(z) / z for Re z >= 0."""
    small = z.abs2() < _SERIES_BELOW
    one, zero = torch.ones_like(z.re), torch.zeros_like(z.re)
    safe = where(small, Complex(one, zero), z)
    decay = safe.times(-2.0).exp()
    u = where(small, z, Complex(zero, zero)).square()
    series = ((u.times(-17 / 315).plus(2 / 15) * u).plus(-1 / 3) * u).plus(1.0)
    return where(small, series, (-decay).plus(1.0) / (decay.plus(1.0) * safe))


def interface_matrix(kz: Complex, rms: Tensor, transient: str) -> tuple[Complex, Complex]:
    """(m+, m-) of each interface with effective `rms` [nm] (simulation, interface) and an erf or tanh profile."""
    above, below = kz[:, :-1], kz[:, 1:]
    ratio = below / above
    width = rms[..., None]
    if transient == "erf":
        half = -0.5 * width * width
        plus = (below - above).square().times(half).exp() * ratio.plus(1.0)
        minus = (below + above).square().times(half).exp() * (-ratio).plus(1.0)
        return plus.times(0.5), minus.times(0.5)
    scale = math.sqrt(3) * width
    root = (_tanhc(below.times(scale)) / _tanhc(above.times(scale))).sqrt()
    inverse, product = root.reciprocal(), root * ratio
    return (inverse + product).times(0.5), (inverse - product).times(0.5)


class Interfaces(NamedTuple):
    """All that the recursion needs, per interface; `phase` is that across the layer above."""

    plus: Complex
    minus: Complex
    phase: Complex
    twice: Complex


class Waves(NamedTuple):
    """Amplitudes (simulation, interface, angle) of the down-going T and up-going R wave.

    `above` are those just above each interface, `below` just below it (at the top of the next layer).
    """

    t_above: Complex
    r_above: Complex
    t_below: Complex
    r_below: Complex


def interfaces(kz: Complex, rms: Tensor, thickness: Tensor, transient: str) -> Interfaces:
    """Effective `rms` and `thickness` [nm] are (simulation, layer below the vacuum)."""
    plus, minus = interface_matrix(kz, rms, transient)
    depth = torch.cat([torch.zeros_like(thickness[:, :1]), thickness[:, :-1]], 1)[..., None]  # the vacuum has none
    phase = kz[:, :-1].times(depth).times_i().exp()
    return Interfaces(plus, minus, phase, phase.square())


def waves(stack_of: Interfaces) -> Waves:
    """Solve the stack."""
    plus, minus, phase, twice = stack_of
    count = plus.re.shape[1]
    # upwards: reflection `r` at the top of the layer below, `reflected` just above the interface
    zero = torch.zeros_like(plus.re[:, 0])
    r = Complex(zero, zero)
    reflected, transmitted, tops = [], [], []
    for i in range(count - 1, -1, -1):
        tops.append(r)
        inverse = (plus[:, i] + minus[:, i] * r).reciprocal()
        rho = (minus[:, i] + plus[:, i] * r) * inverse
        reflected.append(rho)
        transmitted.append(inverse)
        r = twice[:, i] * rho
    # downwards; R just above an interface is rho T: dividing the top's R by the phase would overflow in thick layers
    t = Complex(zero + 1.0, zero)
    t_above, t_below = [], []
    for i in range(count):
        bottom = t * phase[:, i]
        t_above.append(bottom)
        t = bottom * transmitted[count - 1 - i]
        t_below.append(t)
    above, below = stack(t_above, 1), stack(t_below, 1)
    return Waves(above, above * stack(reflected[::-1], 1), below, below * stack(tops[::-1], 1))


def reflection(stack_of: Interfaces) -> Complex:
    """Amplitude of the reflected wave just above the first interface (simulation, angle), of an incoming one of 1."""
    plus, minus, _, twice = stack_of
    r = minus[:, -1] / plus[:, -1]
    for i in range(plus.re.shape[1] - 2, -1, -1):
        below = twice[:, i + 1] * r
        r = (minus[:, i] + plus[:, i] * below) / (plus[:, i] + minus[:, i] * below)
    return r
