"""What rough interfaces scatter, along whole rows of pixels: for images of particles made by tables.

Along a row the amplitudes do not change (geometry bornagain), and the spectra of the roughness are smooth functions of the
in-plane wave number q: the logarithm of their sum is interpolated from few q. `dwba.particles` computes every pixel.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.forward.dwba import detector, roughness
from scatterflow.forward.dwba.engine import interfaces_of
from scatterflow.forward.dwba.faddeeva import POINTS
from scatterflow.forward.dwba.fresnel import waves
from scatterflow.forward.particles import Stack

Array = NDArray[np.float64]
_NODES = 12  # q at which spectra are computed: good to 1e-5 for Hurst exponents and lengths of real films
_LENGTH_NM = 30.0  # 1 / q at which the nodes begin to thin out


def diffuse_counts(stack: Stack, instrument: InstrumentConfig, rows: Array, columns: Array) -> NDArray[np.float32]:
    """Counts (simulation, row, column) that the interfaces of `stack` scatter into pixels with edges (pixel, 2).

    For rows above the horizon in geometry bornagain. Beyond the spectrum's cut-off nothing scatters. Memory beside the
    result is a few times as much.
    """
    alpha, phi, solid = detector.directions(instrument, rows, columns)
    k, incidence = geometry.wavenumber(instrument), math.radians(instrument.incidence_deg)
    qx, qy, _ = geometry.scattering_vector(instrument, alpha, phi)
    q = np.hypot(qx, qy)
    middle = int(np.argmin(np.abs(columns.mean(axis=1) - geometry.foot_px(instrument)[1])))
    scaled = np.arcsinh(_LENGTH_NM * q)
    low, high = scaled.min(), scaled.max()
    places = (low + high) / 2 - (high - low) / 2 * np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    between = detector.lagrange(places, scaled.ravel()).reshape(_NODES, *q.shape)
    layers = torch.as_tensor(stack.layers, dtype=torch.float64)
    with torch.no_grad():
        sines = torch.as_tensor(np.append(np.sin(alpha[:, middle]), math.sin(incidence)))
        options = stack.max_spatial_frequency_per_nm, stack.transient
        kz, contrasts, rms, solvable = interfaces_of(layers, sines, k, *options)
        amplitude = roughness.amplitudes(waves(solvable), kz, contrasts, rms, POINTS)
        amplitude = amplitude[..., None]
        _, _, thickness, sigma, hurst, length = layers.unbind(-1)
        cross = stack.cross_correlation_length_nm
        damping = None if cross is None else torch.exp(-thickness / cross)
        q2 = torch.as_tensor((np.sinh(places) / _LENGTH_NM) ** 2).expand(len(rows), -1)
        at_nodes = roughness.intensity(amplitude, q2, sigma, hurst, length, damping)
        logarithm = at_nodes.clamp_min(torch.finfo(torch.float64).tiny).log().float()
        found = torch.einsum("srn,nrc->src", logarithm, torch.as_tensor(between, dtype=torch.float32)).exp()
    seen = q <= 2 * math.pi * stack.max_spatial_frequency_per_nm
    factor = instrument.beam_intensity * solid / math.sin(incidence) * k**4 / (16 * math.pi**2)
    counts: NDArray[np.float32] = (found * torch.as_tensor(np.where(seen, factor, 0.0), dtype=torch.float32)).numpy()
    return counts
