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


def amplitudes(waves: Waves, kz: Complex, contrasts: Complex, rms: Tensor, points: int) -> Complex:
    """Amplitude A (simulation, interface, angle) of each interface: the eight terms, spectrum aside.

    The last angle of `waves` and `kz` is that of the incoming wave and left out of the result; `rms` is the effective one;
    `points` sets the precision of the Faddeeva function.
    """
    width = rms[..., None] * math.sqrt(0.5)
    above = _four_terms(kz[:, :-1], waves.t_above, waves.r_above, width, points)
    # below an interface its transient has the opposite sign: R and T change places
    below = _four_terms(kz[:, 1:], waves.r_below, waves.t_below, width, points)
    step = (contrasts[:, :-1] - contrasts[:, 1:])[..., None].times(0.5)
    return (above + below) * step


def _four_terms(kz: Complex, t: Complex, r: Complex, width: Tensor, points: int) -> Complex:
    """Sum over the directions of both waves on one side of the interfaces, each weighted with w(q width)."""
    incoming, outgoing = (..., slice(-1, None)), (..., slice(-1))
    ki, kf = kz[incoming], kz[outgoing]
    same, same_reversed = faddeeva_pair((kf + ki).times(width), points, first_quadrant=True)
    cross, cross_reversed = faddeeva_pair((kf - ki).times(width), points)
    tf, rf = t[outgoing], r[outgoing]
    return t[incoming] * (tf * same_reversed + rf * cross) + r[incoming] * (tf * cross_reversed + rf * same)


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
        root = scale[:, i] * torch.exp(power[:, i] * torch.log1p(q2 * length2[:, i]))
        wave = amplitude[:, i].times(root)
        if above is None:
            total = total + wave.abs2()
        else:  # |wave|^2 + 2 Re(wave conj above)
            total = torch.addcmul(total, wave.re, torch.add(wave.re, above.re, alpha=2))
            total = torch.addcmul(total, wave.im, torch.add(wave.im, above.im, alpha=2))
        if decay is not None:
            above = (wave if above is None else wave + above).times(decay[:, i])
    return total
