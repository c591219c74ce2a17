"""Forward models: parameters of samples to noise-free expected counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scatterflow.errors import ConfigError
from scatterflow.forward import bornagain

if TYPE_CHECKING:
    from scatterflow.config.study import StudyConfig

ENGINES = ("bornagain",)


def expected_counts(
    config: StudyConfig, theta: NDArray[np.float64], views: tuple[str, ...], engine: str
) -> dict[str, NDArray[np.float32]]:
    """Expected counts per view, (simulation, z, y), of parameters `theta` (simulation, parameter) by `engine`.

    Raises ConfigError for an unknown engine and SimulationError for parameters that it cannot compute.
    """
    if engine == "bornagain":
        return bornagain.expected_counts(config.sample, config.instrument, theta, views)
    raise ConfigError("engine", f"must be one of {list(ENGINES)}", repr(engine))
