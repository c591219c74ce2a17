"""Stage train of kind particles: one dual-branch model, with the thresholds of its verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from scatterflow import imagecheck, seeds, verdict
from scatterflow.particles import VIEW, ParticlesStudy
from scatterflow.progress import Tracker, say, track
from scatterflow.stages import preprocess

_SCORE_ROWS = 3000  # training rows that the feature score is fitted to


def run(
    study: ParticlesStudy,
    model: str,
    folder: Path,
    tell: Callable[[str], None] = say,
    tracker: Tracker = track,
    target: Path | None = None,
) -> Path:
    """Train `model` and write its bundle `models/<model>/` below `folder`; returns the path of `bundle.json`.

    `target` takes the place of `models/`. It learns from stored expected counts, recorded anew with other artefacts as it
    goes on; the validation images, which end the training and fix intervals and verdict, are recorded in the same way: for
    a model without artefacts, without. Continues from the last checkpoint of the same configuration and data; a signal
    that ends the training raises `fanout.Stopped` after a checkpoint. Held-back simulations are never read.
    """
    from scatterflow.models.dualbranch_training import Labelled, train_dual_branch  # torch is only needed here
    from scatterflow.models.particlebundle import load_particle_model, with_verdict

    counts, roles = preprocess.simulations(study, folder), preprocess.splits(study)
    part = counts.isel(simulation=np.flatnonzero(roles == preprocess.SPLITS.index("train"))).load()
    train = Labelled(part[VIEW].values, part["parameters"].values, part["simulation"].values)
    features = _features(study, model, folder, counts)
    validation = preprocess.rows(features, "validation").load()
    path = train_dual_branch(
        study, model, train, validation, (target or folder / "models") / model, tell=tell, tracker=tracker
    )
    tell("setting the thresholds of the verdict on validation simulations")
    known = preprocess.rows(features, "train").isel(simulation=slice(0, _SCORE_ROWS)).load()
    score = verdict.fit_features(imagecheck.coarse(known), study.seed)
    settings = study.config.inference
    references = validation.isel(simulation=slice(0, settings.predictive_references))
    trained = load_particle_model(path.parent)
    seed = seeds.integer(study.seed, "references")
    samples = trained.samples(references, settings.samples, seed)
    found = {
        **imagecheck.scores(study, score, samples, references),
        "features": score.score(imagecheck.coarse(validation)),
    }
    limits = verdict.thresholds(found, settings.false_alarm_rate)
    if "border" in found:  # where most of the posterior is at the end of the prior, the interval is open, too
        beyond = float((found["border"] > imagecheck.MOST).mean())
        limits["border"] |= {"threshold": imagecheck.MOST, "false_alarm_rate": beyond}
    return with_verdict(path.parent, score, limits)


def _features(study: ParticlesStudy, model: str, folder: Path, counts: xr.Dataset) -> xr.Dataset:
    """Features with coordinate `split`, lazy: the study's, or, for a model without artefacts, made of `counts` without."""
    from scatterflow.models.dualbranch_training import recording  # torch is only needed here

    features, config = preprocess.load(study, folder), study.config.models.get(model)
    if config is None or config.artefacts:
        return features
    bare = study.preprocess(study.observe(counts, config=recording(study, config)))
    return bare.assign(parameters=counts["parameters"]).assign_coords(split=features["split"])
