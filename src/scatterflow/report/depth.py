"""The dispersion of a layer stack against depth, as BornAgain grades its interfaces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from scatterflow.config.sample import SampleConfig

Array = NDArray[np.float64]
_COLUMNS = ("delta", "thickness_nm", "roughness_nm", "hurst", "correlation_length_nm")


def effective_rms(roughness_nm: Array, hurst: Array, length_nm: Array, max_frequency_per_nm: float) -> Array:
    """rms roughness [nm] up to the cut-off of the spectrum: the width by which BornAgain grades an interface."""
    cut = (2 * np.pi * max_frequency_per_nm * length_nm) ** 2
    return np.asarray(roughness_nm * np.sqrt(1 - (1 + cut) ** -hurst))


def depth_profile(sample: SampleConfig, theta: Array, names: list[str], depth_nm: Array) -> Array:
    """delta (draw, depth) below the mean surface of samples `theta` (draw, parameter) with parameter `names`.

    Each interface is a step of the error function or of tanh whose rms width is the effective roughness of the layer
    below it; steps add up, as in BornAgain's `materialProfile`.
    """
    layers = [name.rsplit(".", 1)[0] for name in names if name.endswith(".delta")]
    free = np.stack([theta[:, [names.index(f"{layer}.{key}") for layer in layers]] for key in _COLUMNS])
    fixed = np.array([[getattr(layer, key) for layer in (*sample.fixed, sample.substrate)] for key in _COLUMNS])
    below = np.broadcast_to(fixed[:, None, :], (len(_COLUMNS), len(theta), fixed.shape[1]))
    delta, thickness, roughness, hurst, length = np.concatenate([free, below], axis=2)
    width = effective_rms(roughness, hurst, length, sample.max_spatial_frequency_per_nm)
    step = np.diff(delta, axis=1, prepend=0.0)
    place = np.cumsum(thickness, axis=1) - thickness
    result = np.zeros((len(theta), len(depth_nm)))
    for j in range(delta.shape[1]):  # over interfaces, not over draws
        x = (depth_nm - place[:, j : j + 1]) / np.maximum(width[:, j : j + 1], 1e-6)  # a smooth interface is a step
        grade = np.tanh(np.pi / (2 * np.sqrt(3)) * x) if sample.transient == "tanh" else erf(x / np.sqrt(2))
        result += step[:, j : j + 1] * (1 + grade) / 2
    return result
