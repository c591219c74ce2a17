"""The simulated images on which every method is judged: held-back simulations, recorded anew.

`test`: all of them, with artefacts, at `evaluation.total_counts`; `counts-<n>`: some, at other counts; `beyond`: some, with
more disorder than the prior knows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from scatterflow import seeds
from scatterflow.particles import VIEW, ParticlesStudy
from scatterflow.stages import preprocess

TEST, BEYOND, SERIES = "test", "beyond", "counts-"


def simulated(study: ParticlesStudy, folder: Path) -> dict[str, xr.Dataset]:
    """Sets by name: recorded `image`, `mask_image` and true `parameters`, with attribute `total_counts`.

    Their artefacts are those of no training: another seed. Raises StoreError for simulations that are missing.
    """
    evaluation = study.config.evaluation
    roles = preprocess.splits(study)
    held = preprocess.simulations(study, folder)[[VIEW, "parameters"]]
    held = held.isel(simulation=np.flatnonzero(roles == preprocess.SPLITS.index("held_back"))).load()
    few = held.isel(simulation=slice(0, evaluation.series_rows))
    found = {TEST: recorded(study, held, evaluation.total_counts)}
    for counts in evaluation.counts_series:
        found[f"{SERIES}{counts:g}"] = recorded(study, few, counts)
    if "disorder" in study.prior.names:
        found[BEYOND] = recorded(study, _beyond(study, few), evaluation.total_counts)
    return found


def recorded(study: ParticlesStudy, counts: xr.Dataset, total_counts: float) -> xr.Dataset:
    """Recorded images of expected `image`s, at `total_counts` of the sample's scattering."""
    seed = seeds.integer(study.seed, "evaluation")
    seen = study.observe(counts[[VIEW]], seed, config=study.artefacts_with(total_counts))
    seen["parameters"] = counts["parameters"]
    return seen.assign_attrs(total_counts=total_counts)


def _beyond(study: ParticlesStudy, few: xr.Dataset) -> xr.Dataset:
    """The same samples with more disorder."""
    low, high = study.config.evaluation.beyond_disorder
    uniform = seeds.uniforms(study.seed, "disorder beyond the prior", 0, few.sizes["simulation"], 1)[:, 0]
    parameters = few["parameters"].copy(deep=True)
    parameters.values[:, study.prior.names.index("disorder")] = low + (high - low) * uniform
    images = study.expected(parameters.values)
    return xr.Dataset({VIEW: (few[VIEW].dims, images), "parameters": parameters}, coords=few.coords)
