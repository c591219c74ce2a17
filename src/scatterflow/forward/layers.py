"""The parameters of a rough layer, the same for every engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scatterflow.config.sample import SampleConfig
from scatterflow.errors import SimulationError

LAYER_PARAMETERS = ("delta", "beta", "thickness_nm", "roughness_nm", "hurst", "correlation_length_nm")


def check_theta(sample: SampleConfig, theta: NDArray[np.float64]) -> None:
    """Raise SimulationError, naming row and parameter, if a parameter is unphysical."""
    width = len(LAYER_PARAMETERS)
    if theta.ndim != 2 or theta.shape[1] != width * len(sample.layers):
        raise SimulationError("parameters", f"must have shape (n, {width * len(sample.layers)})", theta.shape)
    layers = theta.reshape(len(theta), len(sample.layers), width)
    limits = {"delta": (0, 0.1), "beta": (-1e-300, 0.1), "thickness_nm": (0, np.inf), "roughness_nm": (0, np.inf)}
    limits |= {"hurst": (0, 1), "correlation_length_nm": (0, np.inf)}
    for index, name in enumerate(LAYER_PARAMETERS):
        low, high = limits[name]
        bad = ~((layers[..., index] > low) & (layers[..., index] < high))
        if bad.any():
            row, layer = (int(i) for i in np.argwhere(bad)[0])
            raise SimulationError(
                f"row {row}: layer{layer + 1:02d}_{sample.layers[layer]}.{name}",
                f"must lie between {max(low, 0):g} and {high:g}",
                float(layers[row, layer, index]),
            )
