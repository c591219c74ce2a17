"""What a trained trial of a sweep is worth, for kind nanodiffraction: from its bundle and the validation rows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from scatterflow.baselines import likelihood
from scatterflow.models.regressor import load_regressor
from scatterflow.nanodiffraction import NanodiffractionStudy
from scatterflow.stages import preprocess


def score(study: NanodiffractionStudy, folder: Path, bundle: Path) -> dict[str, Any]:
    """Fields of the trial's record from the bundle whose bundle.json is at `bundle`: score, errors over the bound, time.

    The score is the information gain of normal distributions with the stated errors. Raises BundleError, StoreError.
    """
    trained = load_regressor(bundle.parent)
    scores = trained.scores
    counts, roles = preprocess.simulations(study, folder), preprocess.splits(study)
    theta = counts["parameters"].values[roles == preprocess.SPLITS.index("validation")]
    bound = likelihood.bound(theta, study.kinematics, study.config.forward.max_counts)
    sd = np.sqrt(np.maximum(np.square(scores["rms"]) - np.square(scores["bias"]), 0))
    ratio = sd / np.sqrt(np.square(bound).mean(axis=0))
    with (bundle.parent / "history.csv").open(encoding="utf-8", newline="") as handle:
        spent = {row["phase"]: float(row["seconds"]) for row in csv.DictReader(handle)}  # of each phase, its last epoch
    return {
        "score": scores["gain"],
        "score_se": scores["gain_se"],
        "ratio": dict(zip(trained.box.names, ratio.tolist(), strict=True)),
        "seconds": sum(spent.values()),
    }
