"""Stage train of kind nanodiffraction: one estimator from simulated frames, and maybe from the frames of the scans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from scatterflow import observe
from scatterflow.baselines import likelihood
from scatterflow.maps import FALSE_ALARM
from scatterflow.models.nanophysics import Box
from scatterflow.models.regressor import load_regressor
from scatterflow.models.regressor_training import Labelled, train_regressor
from scatterflow.nanodiffraction import VIEW, NanodiffractionStudy
from scatterflow.progress import Tracker, say, track
from scatterflow.stages import preprocess
from scatterflow.stages.nanodiffraction import scans

_REFERENCES = 1000  # validation rows that set the threshold


def run(
    study: NanodiffractionStudy,
    model: str,
    folder: Path,
    tell: Callable[[str], None] = say,
    tracker: Tracker = track,
    target: Path | None = None,
) -> Path:
    """Train estimator `model` and write its bundle `models/<model>/` below `folder`; returns the path of `bundle.json`.

    `target` takes the place of `models/`.
    It learns from stored expected counts, with noise of its own, and from the whole frames of the measured scans, if there
    are any. Continues from the last checkpoint of the same configuration and data, at its step; a signal that ends the
    training raises `fanout.Stopped` after a checkpoint. Held-back simulations are never read.
    """
    counts, roles = preprocess.simulations(study, folder), preprocess.splits(study)
    rows = {}
    for role in ("train", "validation"):
        part = counts.isel(simulation=np.flatnonzero(roles == preprocess.SPLITS.index(role))).load()
        rows[role] = Labelled(part[VIEW].values, part["parameters"].values)
    prior, config = study.prior, study.config
    measured = [scan.frames[scan.usable] for scan in scans.measured(study, tell)]
    path = train_regressor(
        config.models[model],
        config.beam,
        config.film,
        Box(prior.names, tuple(prior.lower.tolist()), tuple(prior.upper.tolist())),
        rows["train"],
        rows["validation"],
        config.forward.max_counts,
        (target or folder / "models") / model,
        seed=study.seed,
        frames=np.concatenate(measured) if measured else None,
        log=tell,
        tracker=tracker,
    )
    return _with_study(study, path, rows["validation"])


def _with_study(study: NanodiffractionStudy, path: Path, validation: Labelled) -> Path:
    """Add to the bundle at `path` its study and the deviance that tells frames which are no such film.

    The threshold is that of simulated frames at their true parameters: an estimator that is far off does not raise it, but
    has its own answers called wrong more often, at `false_alarms`.
    """
    trained = load_regressor(path.parent)
    number = min(_REFERENCES, len(validation.theta))
    theta, background = validation.theta[:number], bool(study.config.scans)  # measured frames have one
    counts = observe.poisson(validation.frames[:number], np.arange(number), study.seed, "threshold")
    _, deviance = likelihood.rebuild(counts, study.kinematics, theta, background=background)
    threshold = float(np.quantile(deviance, 1 - FALSE_ALARM))
    _, own = likelihood.rebuild(counts, study.kinematics, trained.predict(counts)[0], background=background)
    meta = {
        "study": {
            "name": study.name,
            "run": study.run,
            "seed": study.seed,
            "config": study.config.model_dump(mode="json"),
        },
        "features": study.features_identity(),
        "threshold": threshold,
        "threshold_rows": number,
        "false_alarm_rate": FALSE_ALARM,
        "false_alarms": float(np.mean(own > threshold)),
    }
    history = (path.parent / "history.csv").read_text(encoding="utf-8")
    return replace(trained, meta=meta).save(path.parent, {"history.csv": history})
