"""Derivatives of the expected counts by every parameter, in forward mode: there are fewer parameters than bins."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.sample import SampleConfig
from scatterflow.forward.dwba.engine import Engine, limits
from scatterflow.forward.layers import check_theta

Array = NDArray[np.float64]


def derivatives(
    sample: SampleConfig, instrument: InstrumentConfig, theta: Array, view_names: tuple[str, ...]
) -> dict[str, tuple[Array, Array]]:
    """Expected counts (simulation, z, y) of each view and their derivatives (simulation, parameter, z, y).

    `theta` is (simulation, parameter); a derivative is in counts per unit of its parameter. Mode `fast`: good to 1e-5.
    Raises SimulationError naming row and parameter.
    """
    check_theta(sample, theta)
    found = {}
    for name in view_names:
        engine = Engine(sample, instrument, (name,), limits(sample, theta))
        parts = []
        for start in range(0, len(theta), engine.batch):
            rows = torch.from_numpy(theta[start : start + engine.batch])
            parts.append(_slopes(engine, rows, name))
        found[name] = (np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
    return found


def _slopes(engine: Engine, theta: Tensor, name: str) -> tuple[Array, Array]:
    """Counts and derivatives of a batch: one pass per parameter moves it in all samples at once."""
    passes = []
    for number in range(theta.shape[1]):
        direction = torch.zeros_like(theta)
        direction[:, number] = 1.0
        with forward_ad.dual_level(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, when it loads its rules
            moved = engine(forward_ad.make_dual(theta, direction))[name]
            value, slope = forward_ad.unpack_dual(moved)
        passes.append(np.zeros(value.shape) if slope is None else slope.double().numpy())
    return value.double().numpy(), np.stack(passes, axis=1)
