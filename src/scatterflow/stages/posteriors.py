"""Posteriors of the held-back observations on disk: the same for flows and baselines, so that they compare fairly."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from scatterflow.diagnostics import density_credibility
from scatterflow.exports import write_posterior
from scatterflow.multilayer import MultilayerStudy
from scatterflow.products import write_json
from scatterflow.progress import duration

_BATCH = 100  # observations at once: bounds memory whatever their number
SCORED = 200  # samples per observation whose density is compared with the truth's: resolves credibility to 0.5 %


class Posterior(Protocol):
    """What flows and baselines have in common."""

    def sample(self, n: int, seed: int = 0) -> xr.DataArray:
        """(observation, sample, parameter), physical units."""

    def log_prob(self, theta: Any) -> xr.DataArray:
        """(observation,) or (observation, sample), natural log over box-scaled parameters."""


def write_result(
    study: MultilayerStudy,
    path: Path,
    posterior_of: Callable[[slice], Posterior],
    observations: xr.Dataset,
    extra: dict[str, Any],
    tell: Callable[[str], None],
    score: Callable[[Any, Any], xr.DataArray] | None = None,
) -> None:
    """Sample every observation, score its truth, and write `path` (NetCDF) with a JSON of the scores beside it.

    `posterior_of` gives the posterior of a slice of `observations` (which hold `parameters`, the truth). `score` is a
    cheaper stand-in for the log density, the same for truth and samples: credibilities are calibrated for any such
    function, and the sample that it ranks first stands for the maximum a posteriori.
    """
    n = study.config.inference.samples
    count = len(observations["simulation"])
    truth = study.prior.values(observations["parameters"])
    rank = score or (lambda posterior, theta: posterior.log_prob(theta))
    samples, best, scored_truth, scored, log_prob, outside = [], [], [], [], [], []
    seconds = 0.0
    for start in range(0, count, _BATCH):
        rows = slice(start, min(start + _BATCH, count))
        began = time.monotonic()
        posterior = posterior_of(rows)
        drawn = posterior.sample(n, seed=study.seed + start)
        seconds += time.monotonic() - began
        few = drawn.isel(sample=slice(0, SCORED))
        samples.append(drawn.values.astype(np.float32))
        outside.append(1 - study.prior.inside(drawn).mean(axis=1))
        scored.append(rank(posterior, few).values)
        scored_truth.append(rank(posterior, truth[rows]).values)
        best.append(few.values[np.arange(len(few)), scored[-1].argmax(axis=1)])
        log_prob.append(posterior.log_prob(truth[rows]).values)
    stacked = xr.DataArray(
        np.concatenate(samples),
        dims=("observation", "sample", "parameter"),
        coords={
            "observation": observations["simulation"].values,
            "parameter": list(study.prior.names),
            "unit": ("parameter", list(study.prior.units)),
        },
    )
    known = observations[["parameters", "profile", "mask_profile"]]  # the images stay in the features: they are large
    write_posterior(path, stacked, None, known, {"study": study.name, "estimator": path.stem})
    tell(f"{path.stem}: {n} samples for each of {count} observations in {duration(seconds)}")
    density = np.concatenate(log_prob)
    map_error = np.abs(study.prior.to_box(np.concatenate(best)) - study.prior.to_box(truth)).mean(axis=1)
    credibility = density_credibility(np.concatenate(scored_truth), np.concatenate(scored), study.seed)
    per_observation = {
        "log_prob": density,
        "information_gain": density - study.prior.log_prob_box(truth),
        "map_error": map_error,
        "credibility": credibility,
        "outside_support": np.concatenate(outside),  # before rounding to float32
    }
    write_json(
        path.with_suffix(".json"),
        {
            **extra,
            "estimator": path.stem,
            "n": count,
            "samples": n,
            "seconds_per_observation": seconds / count,
            **{name: [_plain(value) for value in values] for name, values in per_observation.items()},
        },
    )


def _plain(value: float) -> float | None:
    """JSON has no infinity: a truth of density 0 is written as null."""
    return float(value) if np.isfinite(value) else None
