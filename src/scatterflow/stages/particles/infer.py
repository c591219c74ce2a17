"""Stage infer of kind particles: every model on the sets of simulated images, and on real frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scatterflow import estimates, imagecheck, provenance, seeds
from scatterflow.config.instrument_file import read_instrument
from scatterflow.errors import BundleError
from scatterflow.exports import write_tree
from scatterflow.frames import short_name
from scatterflow.models.particlebundle import load_particle_model
from scatterflow.models.particlemodel import ParticleModel
from scatterflow.particleframes import infer_frames, line, result_dataset
from scatterflow.particles import VIEW, ParticlesStudy
from scatterflow.products import write_json
from scatterflow.progress import duration, say
from scatterflow.stages.infer import data_folder
from scatterflow.stages.particles import sets

EXAMPLES = 3  # test images that the report shows


def run(study: ParticlesStudy, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Write `infer/<model>.nc` (a group for each set of images), `infer/frames.nc`, `infer/frames.json` and the manifest.

    Returns the manifest's path. Frames that are not there are listed as missing. Raises BundleError for a model that was
    trained on other features.
    """
    images = sets.simulated(study, folder)
    models = {name: trained(study, folder, name) for name in study.config.models}
    facts: dict[str, Any] = {}
    for name, model in models.items():
        refines = bool(model.config.refine_steps)
        for estimator, refined in ((name, refines), (f"{name}.network", False))[: 1 + refines]:
            groups, seconds, number = {}, 0.0, 0
            for each, rows in images.items():
                found, samples, spent = _answered(study, model, rows, refined)
                groups[f"/{each}"] = _judged(study, model, rows, found, samples) if refined == refines else found
                seconds, number = seconds + spent, number + rows.sizes["simulation"]
            write_tree(folder / "infer" / f"{estimator}.nc", groups)
            tell(f"{estimator}: {number} images in {duration(seconds)}")
            label = f"{name}, refined by {model.config.refine_steps} steps" if refined else name
            label += ", network alone" if refines and not refined else ""
            facts[estimator] = {"label": label, "model": name, "seconds_per_image": seconds / number, **model.facts()}
    lead = next(iter(models.values()))
    write_tree(folder / "infer" / "examples.nc", {"/": _examples(study, lead, images[sets.TEST])})
    frames = _frames(study, lead, folder, tell)
    return write_json(
        folder / "infer" / "manifest.json",
        {
            "format": 1,
            "models": facts,
            "sets": {
                name: {"n": rows.sizes["simulation"], "total_counts": rows.attrs["total_counts"]}
                for name, rows in images.items()
            },
            "frames": frames,
            "versions": provenance.versions(("numpy", "torch", "nflows", "bornagain")),
        },
    )


def trained(study: ParticlesStudy, folder: Path, name: str) -> ParticleModel:
    """Model `name` of the run. Raises BundleError if it was trained on other features than the study's now."""
    bundle = folder / "models" / name
    model = load_particle_model(bundle)
    if model.training.get("features") != study.features_identity():
        got = f"those of {str(model.training.get('features'))[:12]}"
        must = "must be trained on this configuration's features"
        raise BundleError(f"bundle {bundle}", must, got, "run `scatterflow train`")
    return model


def _answered(
    study: ParticlesStudy, model: ParticleModel, rows: xr.Dataset, refined: bool
) -> tuple[xr.Dataset, xr.DataArray, float]:
    """Answers on recorded images beside the truth, their samples, and the seconds that both took."""
    features, number, seed = study.preprocess(rows), study.config.inference.samples, seeds.integer(study.seed, "infer")
    began = time.monotonic()
    samples = model.samples(features, number, seed, refined)
    answer = model.predict(features, number, seed, refined, samples)
    spent = time.monotonic() - began
    return estimates.beside_truth(study, answer, rows["parameters"].values), samples, spent


def _judged(
    study: ParticlesStudy, model: ParticleModel, rows: xr.Dataset, found: xr.Dataset, samples: xr.DataArray
) -> xr.Dataset:
    """The answers with the verdict's scores, and the information gain of the network's posterior."""
    features, truth = study.preprocess(rows), rows["parameters"].values
    if study.prior.inside(truth).all():
        gain = model.posterior(features).log_prob(truth).values - study.prior.log_prob_box(truth)
        found["information_gain"] = ("simulation", gain, {"units": "nat"})
    outside = np.zeros(len(truth), dtype=bool)
    for name, values in imagecheck.scores(study, model.feature_score, samples, features).items():
        found[f"score_{name}"] = ("simulation", values, {"units": "1"})
        outside |= ~(values <= model.verdict[name]["threshold"])
    found["outside"] = ("simulation", outside)
    return found


def _examples(study: ParticlesStudy, model: ParticleModel, rows: xr.Dataset) -> xr.Dataset:
    """The first test images with their expected and rebuilt ones, and the answers."""
    few = rows.isel(simulation=slice(0, EXAMPLES))
    features, seed = study.preprocess(few), seeds.integer(study.seed, "infer")
    number = study.config.inference.samples
    samples = model.samples(features, number, seed)
    answer = model.predict(features, number, seed, samples=samples)
    result = estimates.beside_truth(study, answer, few["parameters"].values)
    best = np.median(samples.values, axis=1)
    counts, valid = few[VIEW].values, few[f"mask_{VIEW}"].values
    dims = ("simulation", "z", "y")
    result["recorded"], result["valid"] = (dims, counts), (dims, valid)
    result["rebuilt"] = (dims, imagecheck.fitted(study.expected(best), counts, valid).image.astype(np.float32))
    for axis, name in (("z", "qz"), ("y", "qy")):
        result[name] = (axis, study.coordinates(VIEW)[f"{name}_{VIEW}"][1], {"units": "nm^-1"})
    return result.assign_attrs(model=model.name)


def _frames(
    study: ParticlesStudy, model: ParticleModel, folder: Path, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Infer the configured real frames; those that are not there are listed as missing."""
    found: list[dict[str, Any]] = []
    groups: dict[str, xr.Dataset] = {"/": xr.Dataset()}
    for frames in study.config.inference.frames:
        facts = {"set": frames.name, "source": frames.source}
        instrument = read_instrument(study.folder / frames.instrument)
        for file in frames.files:
            path = data_folder() / file
            if not path.exists():
                found.append(facts | {"file": path.name, "status": "missing", "why": "get it by `make data`"})
                continue
            for each in infer_frames([path], model, instrument, study.seed):
                summary = facts | each.summary() | {"file": short_name(each.file)}
                if each.answer is not None and each.shown is not None:
                    groups[f"/{len(found)}"] = xr.merge(
                        [result_dataset(each).drop_vars("samples"), each.shown], combine_attrs="drop_conflicts"
                    )
                found.append(summary)
                tell(line(summary))
    write_tree(folder / "infer" / "frames.nc", groups)
    write_json(folder / "infer" / "frames.json", found)
    return found
