"""Stage train: one model from the features, with the thresholds of its verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scatterflow import verdict
from scatterflow.progress import duration, say
from scatterflow.stages import preprocess
from scatterflow.study import Study


def run(study: Study, model: str, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Train `model` and write its bundle `models/<model>/` below `folder`; returns the path of `bundle.json`.

    Continues from the last checkpoint of the same configuration and data. Held-back simulations are never read.
    """
    from scatterflow import models  # torch is only needed here

    features = preprocess.load(study, folder)
    rows = preprocess.rows(features, "train", "validation").load()
    trained = models.train(study, model, rows, folder / "models", tell)
    tell("setting the thresholds of the verdict on validation simulations")
    start = time.monotonic()
    limited = preprocess.rows(rows, "validation")
    references = limited.isel(simulation=slice(0, study.config.inference.predictive_references))
    feature_score = verdict.fit_features(preprocess.rows(rows, "train"), study.seed)
    draws = verdict.predictive_draws(
        study, trained.posterior(references), study.config.inference.predictive_draws, study.seed
    )
    scores = {
        "features": feature_score.score(limited),
        "predictive": np.asarray(verdict.predictive_score(references, draws)),
    }
    limits = verdict.thresholds(scores, study.config.inference.false_alarm_rate)
    path = models.save(folder / "models" / model, trained, feature_score, limits)
    tell(f"thresholds in {duration(time.monotonic() - start)}; bundle in {path.parent}")
    return path
