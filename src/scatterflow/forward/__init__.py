"""Forward models: parameters of samples to noise-free expected counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scatterflow.errors import ConfigError
from scatterflow.forward import bornagain

if TYPE_CHECKING:
    from scatterflow.config.study import MultilayerConfig

ENGINES = ("dwba", "bornagain")


def expected_counts(
    config: MultilayerConfig, theta: NDArray[np.float64], views: tuple[str, ...], engine: str
) -> dict[str, NDArray[np.float32]]:
    """Expected counts per view, (simulation, z, y), of parameters `theta` (simulation, parameter) by `engine`.

    Raises ConfigError for an unknown engine and SimulationError for parameters that it cannot compute.
    """
    counts: Mapping[str, NDArray[np.floating]]
    if engine == "bornagain":
        counts = bornagain.expected_counts(config.sample, config.instrument, theta, views)
    elif engine == "dwba":
        from scatterflow.forward import dwba  # torch is only needed here

        forward = config.forward
        counts = dwba.expected_counts(
            config.sample, config.instrument, theta, views,
            mode=forward.mode, device=device(forward.accelerator), batch_bytes=forward.batch_bytes,
        )  # fmt: skip
    else:
        raise ConfigError("engine", f"must be one of {list(ENGINES)}", repr(engine))
    return {name: array.astype(np.float32, copy=False) for name, array in counts.items()}


def derivatives(
    config: MultilayerConfig, theta: NDArray[np.float64], views: tuple[str, ...]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Expected counts (simulation, z, y) per view and their derivatives (simulation, parameter, z, y) by engine dwba.

    In double precision, every pixel. Raises SimulationError as `expected_counts`.
    """
    from scatterflow.forward.dwba.derivatives import derivatives as by_dwba

    return by_dwba(config.sample, config.instrument, theta, views)


def device(accelerator: str) -> str:
    """torch's name of a processor. Raises ConfigError where it is not there."""
    import torch

    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("forward.accelerator", "must be cpu where torch finds no GPU", "gpu", "set it to cpu")
    return {"cpu": "cpu", "gpu": "cuda"}[accelerator]
