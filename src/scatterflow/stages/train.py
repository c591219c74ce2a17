"""Stage train: one model from the features, with the thresholds of its verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from scatterflow import verdict
from scatterflow.multilayer import MultilayerStudy
from scatterflow.progress import Tracker, duration, say, track
from scatterflow.stages import preprocess

_SCORE_ROWS = 5000  # training rows that the feature score is fitted to: more change nothing and cost memory
_LIMIT_ROWS = 2000  # validation rows that set the thresholds


def run(
    study: MultilayerStudy,
    model: str,
    folder: Path,
    tell: Callable[[str], None] = say,
    tracker: Tracker = track,
    target: Path | None = None,
) -> Path:
    """Train `model` and write its bundle `models/<model>/` below `folder`; returns the path of `bundle.json`.

    `target` takes the place of `models/`. Continues from the last checkpoint of the same configuration and data, at its
    step; a signal that ends the training raises `fanout.Stopped` after a checkpoint. Held-back simulations are never
    read.
    """
    from scatterflow import models  # torch is only needed here

    rows = preprocess.rows(preprocess.load(study, folder), "train", "validation")
    data = study.config.models[model].training.data if model in study.config.models else "resident"
    if data == "resident":
        rows = rows.load()
    counts = _counts(study, folder) if data == "fresh_noise" else None
    target = target or folder / "models"
    trained = models.train(study, model, rows, target, tell, tracker, counts)
    tell("setting the thresholds of the verdict on validation simulations")
    start = time.monotonic()
    limited = preprocess.rows(rows, "validation").isel(simulation=slice(0, _LIMIT_ROWS)).load()
    references = limited.isel(simulation=slice(0, study.config.inference.predictive_references))
    known = preprocess.rows(rows, "train").isel(simulation=slice(0, _SCORE_ROWS)).load()
    feature_score = verdict.fit_features(known, study.seed)
    draws = verdict.predictive_draws(
        study, trained.posterior(references), study.config.inference.predictive_draws, study.seed
    )
    scores = {
        "features": feature_score.score(limited),
        "predictive": np.asarray(verdict.predictive_score(references, draws)),
    }
    limits = verdict.thresholds(scores, study.config.inference.false_alarm_rate)
    path = models.save(target / model, trained, feature_score, limits)
    tell(f"thresholds in {duration(time.monotonic() - start)}; bundle in {path.parent}")
    return path


def _counts(study: MultilayerStudy, folder: Path) -> xr.Dataset:
    """Expected counts and parameters of the training rows in the store, lazy."""
    counts = preprocess.simulations(study, folder)
    return counts.isel(simulation=np.flatnonzero(preprocess.splits(study) == preprocess.SPLITS.index("train")))
