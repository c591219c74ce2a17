"""Waves inside the stack: graded interfaces and the upward recursion of amplitudes.

Layer 0 is the vacuum, the last one the substrate; interface `i` lies between layers `i` and `i + 1`. Tensors are
(simulation, layer or interface, angle). Sources: Nevot & Croce, Rev. Phys. Appl. 15, 761 (1980); de Boer, Phys. Rev.
B 51, 5297 (1995).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scatterflow.forward.dwba.pairs import Complex, stack, where

_TINY = 1e-28  # |kz / k|^2 at an exact critical angle: keeps k1 / k0 and the gradient finite
_SERIES_BELOW = 1e-5  # |z|^2 from which tanh(z) / z is computed as such; the series' next term is 1e-21


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
    return Complex(torch.where(critical, _TINY, re), im).sqrt() * k


def _tanhc(z: Complex) -> Complex:
    """tanh(z) / z for Re z >= 0."""
    small = z.abs2() < _SERIES_BELOW
    one, zero = torch.ones_like(z.re), torch.zeros_like(z.re)
    safe = where(small, Complex(one, zero), z)
    x = safe.re.clamp(max=20.0)  # tanh is 1 from there
    sinh, cosh, sin, cos = torch.sinh(x), torch.cosh(x), torch.sin(safe.im), torch.cos(safe.im)
    scale = 1 / (sinh * sinh + cos * cos)
    u = where(small, z, Complex(zero, zero)).square()
    series = ((u * (-17 / 315) + 2 / 15) * u - 1 / 3) * u + 1.0
    return where(small, series, Complex(sinh * cosh * scale, sin * cos * scale) / safe)


def interface_matrix(kz: Complex, rms: Tensor, transient: str) -> tuple[Complex, Complex]:
    """(m+, m-) of each interface with effective `rms` [nm] (simulation, interface) and an erf or tanh profile."""
    above, below = kz[:, :-1], kz[:, 1:]
    ratio = below / above
    width = rms[..., None]
    if transient == "erf":
        half = -0.5 * width * width
        plus = ((below - above).square() * half).exp() * (ratio + 1.0)
        minus = ((below + above).square() * half).exp() * (1.0 - ratio)
        return plus * 0.5, minus * 0.5
    scaled = kz[:, :-1] * (math.sqrt(3) * width), kz[:, 1:] * (math.sqrt(3) * width)
    root = (_tanhc(scaled[1]) / _tanhc(scaled[0])).sqrt()
    inverse, product = root.reciprocal(), root * ratio
    return (inverse + product) * 0.5, (inverse - product) * 0.5


class Waves:
    """Amplitudes (simulation, interface, angle) of the down-going T and up-going R wave.

    `above` are those just above each interface, `below` just below it (at the top of the next layer).
    """

    __slots__ = ("kz", "r_above", "r_below", "t_above", "t_below")

    def __init__(self, kz: Complex, t_above: Complex, r_above: Complex, t_below: Complex, r_below: Complex) -> None:
        self.kz, self.t_above, self.r_above, self.t_below, self.r_below = kz, t_above, r_above, t_below, r_below

    def at(self, index: object) -> Waves:
        """The waves of some angles."""
        return Waves(*(getattr(self, name)[index] for name in ("kz", "t_above", "r_above", "t_below", "r_below")))


def waves(kz: Complex, rms: Tensor, thickness: Tensor, transient: str) -> Waves:
    """Solve the stack: effective `rms` and `thickness` [nm] are (simulation, layer below the vacuum)."""
    count = rms.shape[1]
    plus, minus = interface_matrix(kz, rms, transient)
    depth = torch.cat([torch.zeros_like(thickness[:, :1]), thickness[:, :-1]], 1)[..., None]
    phase = (kz[:, :-1] * depth).times_i().exp()  # across the layer above each interface; the vacuum has none
    twice = phase.square()
    # upwards: reflection `r` at the top of the layer below, `reflected` just above the interface
    zero = torch.zeros_like(kz.re[:, 0])
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
    t_above, r_above, t_below, r_below = [], [], [], []
    for i in range(count):
        bottom = t * phase[:, i]
        t_above.append(bottom)
        r_above.append(bottom * reflected[count - 1 - i])
        t = bottom * transmitted[count - 1 - i]
        t_below.append(t)
        r_below.append(t * tops[count - 1 - i])
    return Waves(kz, stack(t_above, 1), stack(r_above, 1), stack(t_below, 1), stack(r_below, 1))
