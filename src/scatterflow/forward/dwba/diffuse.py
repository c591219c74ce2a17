"""What rough interfaces scatter, along whole rows of pixels: for images of particles made by tables.

Along a row the amplitudes do not change (geometry bornagain), and the spectra of the roughness are smooth functions of the
in-plane wave number q: the logarithm of what the interfaces scatter one by one is interpolated from few q, and, where their
roughness correlates, how much more or less they scatter together. `dwba.particles` computes every pixel.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.forward.dwba import detector, roughness
from scatterflow.forward.dwba.engine import interfaces_of
from scatterflow.forward.dwba.faddeeva import POINTS
from scatterflow.forward.dwba.fresnel import waves
from scatterflow.forward.particles import Stack

Array = NDArray[np.float64]
_NODES = 24  # q at which spectra are computed: good to 1e-4 for Hurst exponents of 0.2 to 0.95, lengths of 5 to 60 nm
_LENGTH_NM = 30.0  # 1 / q at which the nodes begin to thin out


def diffuse_counts(stack: Stack, instrument: InstrumentConfig, rows: Array, columns: Array) -> NDArray[np.float32]:
    """Counts (simulation, row, column) that the interfaces of `stack` scatter into pixels with edges (pixel, 2).

    For rows above the horizon in geometry bornagain. Beyond the spectrum's cut-off nothing scatters. Memory beside the
    result is a few times as much.
    """
    cut = stack.max_spatial_frequency_per_nm
    edges = (np.ascontiguousarray(each, dtype=np.float64).tobytes() for each in (rows, columns))
    plan = _plan(instrument.model_dump_json(), *edges, cut)
    layers = torch.as_tensor(stack.layers, dtype=torch.float64)
    with torch.no_grad():
        kz, contrasts, rms, solvable = interfaces_of(layers, plan.sines, plan.k, cut, stack.transient)
        amplitude = roughness.amplitudes(waves(solvable), kz, contrasts, rms, POINTS)[..., None]
        _, _, thickness, sigma, hurst, length = layers.unbind(-1)
        spectra = amplitude, plan.q2, sigma, hurst, length
        alone = roughness.intensity(*spectra, None).clamp_min(torch.finfo(torch.float64).tiny)
        # (row, simulation, column), as a matrix product for each row of pixels
        found = torch.bmm(alone.log().float().transpose(0, 1), plan.between).exp()
        if (
            cross := stack.cross_correlation_length_nm
        ) is not None:  # interference may leave nothing: it has no logarithm
            together = roughness.intensity(*spectra, torch.exp(-thickness / cross)) / alone
            found *= torch.bmm(together.float().transpose(0, 1), plan.between).clamp_min(0.0)
        found *= plan.factor[:, None]
    counts: NDArray[np.float32] = found.transpose(0, 1).numpy()
    return counts


class _Plan(NamedTuple):
    """What does not depend on the stack.

    Wave number [1/nm]; `sines` (row + 1,) of the exit angles and of the incidence; squared q of the nodes (row, node)
    [1/nm^2]; the interpolation from there `between` (row, node, column); `factor` (row, column) from [nm^4] to counts.
    """

    k: float
    sines: Tensor
    q2: Tensor
    between: Tensor
    factor: Tensor


@lru_cache(maxsize=4)
def _plan(told: str, row_edges: bytes, column_edges: bytes, cut: float) -> _Plan:
    """The plan of an instrument (JSON) and edges of pixels, which takes as long as some images."""
    instrument = InstrumentConfig.model_validate_json(told)
    rows, columns = (np.frombuffer(edges).reshape(-1, 2) for edges in (row_edges, column_edges))
    alpha, phi, solid = detector.directions(instrument, rows, columns)
    k, incidence = geometry.wavenumber(instrument), math.radians(instrument.incidence_deg)
    qx, qy, _ = geometry.scattering_vector(instrument, alpha, phi)
    q = np.hypot(qx, qy)
    middle = int(np.argmin(np.abs(columns.mean(axis=1) - geometry.foot_px(instrument)[1])))
    scaled = np.arcsinh(_LENGTH_NM * q)
    low, high = scaled.min(), scaled.max()
    places = (low + high) / 2 - (high - low) / 2 * np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    between = detector.lagrange(places, scaled.ravel()).reshape(_NODES, *q.shape)
    factor = instrument.beam_intensity * solid / math.sin(incidence) * k**4 / (16 * math.pi**2)
    return _Plan(
        k,
        torch.as_tensor(np.append(np.sin(alpha[:, middle]), math.sin(incidence))),
        torch.as_tensor((np.sinh(places) / _LENGTH_NM) ** 2).expand(len(rows), -1),
        torch.as_tensor(between, dtype=torch.float32).transpose(0, 1).contiguous(),
        torch.as_tensor(np.where(q <= 2 * math.pi * cut, factor, 0.0), dtype=torch.float32),
    )
