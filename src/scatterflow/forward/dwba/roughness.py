"""Distorted-wave Born approximation of rough interfaces: eight terms per interface, and their coherent sum.

Sources: Sinha et al., Phys. Rev. B 38, 2297 (1988); Palasantzas, Phys. Rev. B 48, 14472 (1993); BornAgain 25 for the
spectrum's cut-off, the effective rms and the cross-correlation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scatterflow.forward.dwba.faddeeva import faddeeva_pair
from scatterflow.forward.dwba.fresnel import Waves
from scatterflow.forward.dwba.pairs import Complex


def effective_rms(rms: Tensor, hurst: Tensor, length: Tensor, max_frequency: float) -> Tensor:
    """Rms roughness [nm] within the spectrum's cut-off `max_frequency` [nm^-1]."""
    reach = (2 * math.pi * max_frequency * length) ** 2
    return rms * torch.sqrt(-torch.expm1(-hurst * torch.log1p(reach)))


def amplitudes(incoming: Waves, outgoing: Waves, contrasts: Complex, rms: Tensor) -> Complex:
    """Amplitude A (simulation, interface, angle) of each interface: the eight terms, spectrum aside.

    `incoming` has one angle, `outgoing` any number; `rms` is the effective one.
    """
    width = rms[..., None] * math.sqrt(0.5)
    above = _four_terms(
        incoming.kz[:, :-1], outgoing.kz[:, :-1],
        incoming.t_above, incoming.r_above, outgoing.t_above, outgoing.r_above, width,
    )  # fmt: skip
    # below an interface its transient has the opposite sign: R and T change places
    below = _four_terms(
        incoming.kz[:, 1:], outgoing.kz[:, 1:],
        incoming.r_below, incoming.t_below, outgoing.r_below, outgoing.t_below, width,
    )  # fmt: skip
    step = (contrasts[:, :-1] - contrasts[:, 1:])[..., None] * 0.5
    return (above + below) * step


def _four_terms(ki: Complex, kf: Complex, ti: Complex, ri: Complex, tf: Complex, rf: Complex, width: Tensor) -> Complex:
    """Sum over the directions of both waves on one side of the interfaces, each weighted with w(q width)."""
    same, same_reversed = faddeeva_pair((kf + ki) * width)
    cross, cross_reversed = faddeeva_pair((kf - ki) * width)
    return ti * (tf * same_reversed + rf * cross) + ri * (tf * cross_reversed + rf * same)


def intensity(
    amplitude: Complex, q2: Tensor, strength: Tensor, hurst: Tensor, length: Tensor, damping: Tensor | None
) -> Tensor:
    """Coherent sum over interfaces: sum_ij A_i conj(A_j) S_ij [nm^4], shape of `q2` after the simulations.

    `amplitude` (simulation, interface, ...) broadcasts against `q2` (...) [nm^-2]; `strength` = rms, `hurst` and `length`
    are (simulation, interface). The cross spectrum sqrt(S_i S_j) exp(-depth / length) is semiseparable, so that the
    double sum is a recursion; `damping` (simulation, interface) is that exponential across the layer below, None without
    cross-correlation.
    """
    shape = (*strength.shape, *(1,) * q2.dim())
    scale = (strength * length * torch.sqrt(4 * math.pi * hurst)).reshape(shape)
    power = (-0.5 * (1 + hurst)).reshape(shape)
    length2 = (length * length).reshape(shape)
    decay = None if damping is None else damping.reshape(shape)
    total, above = torch.zeros_like(q2), None
    for i in range(strength.shape[1]):
        root = scale[:, i] * torch.exp(power[:, i] * torch.log(1 + q2 * length2[:, i]))
        wave = amplitude[:, i] * root
        total = total + wave.abs2()
        if decay is None:
            continue
        if above is not None:
            total = total + 2 * (wave.re * above.re + wave.im * above.im)
            wave = wave + above
        above = wave * decay[:, i]
    return total
