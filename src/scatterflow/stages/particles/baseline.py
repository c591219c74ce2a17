"""Stage baseline of kind particles: what people do today, on the images that the models are judged on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scatterflow import estimates, imagecheck, seeds
from scatterflow.baselines import abc
from scatterflow.baselines.cutfit import cut_fit
from scatterflow.baselines.cuts import peak_distance, uniform_sizes
from scatterflow.config.baselines import BaselinesConfig
from scatterflow.exports import write_tree
from scatterflow.particles import VIEW, ParticlesStudy
from scatterflow.products import write_json
from scatterflow.progress import duration, say
from scatterflow.stages import preprocess
from scatterflow.stages.particles import sets

LABELS = {
    "cut-fit": "least-squares fit of two cuts",
    "abc": "ABC: nearest stored simulations",
    "peak": "2\N{GREEK SMALL LETTER PI} over the peak's position",
    "uniform": "uniform p(R): no measurement",
}
Method = Callable[[xr.Dataset], xr.Dataset]


def run(study: ParticlesStudy, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Write `baseline/<method>.nc` (a group for each set of images) and `baseline/manifest.json`; returns its path."""
    images = sets.simulated(study, folder)
    facts = {}
    left_out = [method for method in study.config.baselines.methods if method not in study.config.methods]
    if left_out:
        tell(f"left out, for they know nothing of particles inside a layer: {', '.join(left_out)}")
    for method in study.config.methods:
        answer = _method(study, folder, method)
        groups, seconds, number = {}, 0.0, 0
        for name, rows in images.items():
            if method == "cut-fit":  # takes most of a second each
                if name != sets.TEST:
                    continue
                rows = rows.isel(simulation=slice(0, study.config.baselines.fitted))
            began = time.monotonic()
            found = answer(rows)
            seconds, number = seconds + time.monotonic() - began, number + rows.sizes["simulation"]
            groups[f"/{name}"] = estimates.beside_truth(study, found, rows["parameters"].values)
        write_tree(folder / "baseline" / f"{method}.nc", groups)
        tell(f"{method}: {number} images in {duration(seconds)}")
        facts[method] = {"label": LABELS[method], "seconds_per_image": seconds / number}
    return write_json(folder / "baseline" / "manifest.json", {"format": 1, "methods": facts})


def _method(study: ParticlesStudy, folder: Path, method: str) -> Method:
    """What a method makes of recorded images."""
    if method == "uniform":
        return lambda rows: uniform_sizes(study.config.sample, rows.sizes["simulation"]).to_dataset()
    if method == "abc":
        return _abc(study, folder)
    of = study.cuts
    if method == "peak":
        return lambda rows: peak_distance(*_arrays(rows), of)[["distance_nm"]]
    starts = study.config.baselines.starts

    def fitted(rows: xr.Dataset) -> xr.Dataset:
        found = cut_fit(*_arrays(rows), of, study.seed, kept=starts)
        theta = found["parameters"]
        return intervals(estimates.with_modes(found, theta["parameter"].values.tolist(), theta.values), study)

    return fitted


def _arrays(rows: xr.Dataset) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return rows[VIEW].values, rows[f"mask_{VIEW}"].values


def intervals(found: xr.Dataset, study: ParticlesStudy) -> xr.Dataset:
    """Central intervals of a least-squares fit, from its standard deviations, within the prior."""
    from scipy.stats import norm

    half = float(norm.ppf((1 + study.config.inference.interval) / 2))
    sample = study.config.sample
    first, last = sample.radius_nm
    ends = {"distance_nm": sample.distance_nm, "disorder": sample.disorder, "mean_radius_nm": (first, last)}
    result = found.drop_vars(["parameters"], errors="ignore")
    for name in (str(each)[:-3] for each in found.data_vars if str(each).endswith("_sd")):
        low, high = ends.get(name, (0.0, (last - first) / 2))  # a distribution is as wide as half its grid at most
        reach = half * found[f"{name}_sd"]  # infinite where nothing was fitted: all of the prior
        result[f"{name}_low"] = (found[name] - reach).clip(low, high)
        result[f"{name}_high"] = (found[name] + reach).clip(low, high)
    return result


def _vector(seen: xr.Dataset) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features and mask (simulation, feature) of coarse images."""
    image, mask = (seen[name].values for name in ("image", "mask_image"))
    return image.reshape(len(image), -1), mask.reshape(len(mask), -1)


def _abc(study: ParticlesStudy, folder: Path) -> Method:
    """Approximate Bayesian computation on the features of the training simulations."""
    library = preprocess.rows(preprocess.load(study, folder), "train", "validation").load()
    seen = imagecheck.coarse(library)
    accepted = study.config.baselines.accepted
    config = BaselinesConfig(acceptance=1e-9, min_accepted=accepted)
    vector, mask = _vector(seen)
    index = abc.fit(vector, library["parameters"].values, study.prior, config, mask)

    def answer(rows: xr.Dataset) -> xr.Dataset:
        vector, mask = _vector(imagecheck.coarse(rows))
        posterior = index.posterior(vector, "abc-kde-normal", mask=mask)
        samples = posterior.sample(study.config.inference.samples, seeds.integer(study.seed, "abc"))
        return estimates.of_samples(study, samples, study.config.inference.interval)

    return answer
