"""Posteriors of the held-back observations on disk: the same for flows and baselines, so that they compare fairly."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from scatterflow.exports import write_posterior
from scatterflow.products import write_json
from scatterflow.progress import duration
from scatterflow.study import Study

_BATCH = 100  # observations at once: bounds memory whatever their number


class Posterior(Protocol):
    """What flows and baselines have in common."""

    def sample(self, n: int, seed: int = 0) -> xr.DataArray:
        """(observation, sample, parameter), physical units."""

    def log_prob(self, theta: Any) -> xr.DataArray:
        """(observation,) or (observation, sample), natural log over box-scaled parameters."""


def write_result(
    study: Study,
    path: Path,
    posterior_of: Callable[[slice], Posterior],
    observations: xr.Dataset,
    extra: dict[str, Any],
    tell: Callable[[str], None],
) -> None:
    """Sample every observation, score its truth, and write `path` (NetCDF) with a JSON of the scores beside it.

    `posterior_of` gives the posterior of a slice of `observations` (which hold `parameters`, the truth). The log density
    of every sample is stored too: coverage by highest density and the MAP need it.
    """
    n = study.config.inference.samples
    count = len(observations["simulation"])
    truth = study.prior.values(observations["parameters"])
    samples, densities, scores = [], [], []
    seconds = 0.0
    for start in range(0, count, _BATCH):
        rows = slice(start, min(start + _BATCH, count))
        began = time.monotonic()
        posterior = posterior_of(rows)
        drawn = posterior.sample(n, seed=study.seed + start)
        seconds += time.monotonic() - began
        samples.append(drawn.values)
        densities.append(posterior.log_prob(drawn).values)
        scores.append(posterior.log_prob(truth[rows]).values)
    log_prob = np.concatenate(scores)
    stacked = xr.DataArray(
        np.concatenate(samples),
        dims=("observation", "sample", "parameter"),
        coords={
            "observation": observations["simulation"].values,
            "parameter": list(study.prior.names),
            "unit": ("parameter", list(study.prior.units)),
        },
    )
    attrs = {"study": study.name, "estimator": path.stem, "log_prob_of": "box-scaled parameters, natural log"}
    write_posterior(
        path, stacked, xr.DataArray(np.concatenate(densities), dims=("observation", "sample")), observations, attrs
    )
    tell(f"{path.stem}: {n} samples for each of {count} observations in {duration(seconds)}")
    gain = log_prob - study.prior.log_prob_box(truth)
    write_json(
        path.with_suffix(".json"),
        {
            **extra,
            "estimator": path.stem,
            "n": count,
            "samples": n,
            "seconds_per_observation": seconds / count,
            "log_prob": [float(value) for value in log_prob],
            "information_gain": [float(value) for value in gain],
        },
    )
