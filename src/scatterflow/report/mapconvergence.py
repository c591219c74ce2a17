"""Section on how fast the trainings converge, the losses of one kind beside each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from scatterflow.config.dualbranch import DualBranchConfig
from scatterflow.config.regressor import DonutConfig, LeanConfig, RegressorConfig
from scatterflow.report.figures.convergence import Panel, Run, convergence
from scatterflow.report.gallery import Gallery, Section
from scatterflow.report.mapwords import count, joined
from scatterflow.report.numbers import NONE, seconds, significant
from scatterflow.report.style import estimator_styles
from scatterflow.report.tables import Table

_NEAR = 0.05  # of the way from the first validation loss to the best one
_STOPPED = {"epochs": "all epochs done", "patience": "no better for long", "budget": "time budget spent"}
_FRAMES = "lean-frames"  # the phase in which `lean` goes on with frames without labels
_PHASES = {"lean": "labels", _FRAMES: "frames"}


def section(
    histories: Mapping[str, pd.DataFrame],
    models: Mapping[str, RegressorConfig | DualBranchConfig],
    gallery: Gallery,
    seed: int,
) -> Section:
    """Validation losses of all models against epochs and wall time, a panel per kind of loss, and their table."""
    panels: dict[str, list[Run]] = {}
    rows, words = [], []
    for model, history in histories.items():
        phases = history["phase"].astype(str) if "phase" in history else pd.Series("", index=history.index)
        several = len(set(phases)) > 1
        for phase in dict.fromkeys(phases):
            part = history[phases == phase]
            run = _run(model, part)
            panels.setdefault(loss_of(models[model], phase), []).append(run)
            named = f"{model}, on {_PHASES.get(phase, phase)}" if several else model
            rows.append(_row(run, named, part))
            lowest = significant(float(run.validation[run.best]), 4)
            words.append(f"{named}: {count(len(part), 'epoch')}, lowest validation loss {lowest}")
    said = f"{joined(words)}. Seed {seed}."
    figure = convergence([Panel(loss, runs) for loss, runs in panels.items()], estimator_styles(histories))
    picture = gallery.add(
        "convergence",
        figure,
        f"Validation loss of every model against epochs and wall time, a row of panels per kind of loss. {said}",
        "Validation loss (pale: training loss); marks: the best epoch, whose weights are kept. Losses of different kinds "
        f"do not compare. {said}",
    )
    heads = ["model", "epochs", "wall time", "best epoch", "validation loss", "within 5 % after", "ended"]
    kinds = joined([f"{', '.join(dict.fromkeys(run.model for run in runs))}: {loss}" for loss, runs in panels.items()])
    notes = [
        f"Losses: {kinds}. Wall time of the epochs alone, on the machine of this run. Within 5 %: when no more than that "
        "was left of the way from the first validation loss to the best. Validation losses are of images that train nothing."
    ]
    table = Table("Convergence", heads, rows, notes)
    return Section("training", "How fast do the trainings converge?", pictures=[picture], tables=[table])


def loss_of(config: RegressorConfig | DualBranchConfig, phase: str) -> str:
    """What a model's loss is, with its unit."""
    if isinstance(config, LeanConfig):
        if phase == _FRAMES:
            return "minus lower bound on frames without labels / nats per pixel"
        return "minus log-likelihood of the labels, both networks / nats"
    if isinstance(config, DonutConfig):
        error = "absolute error" if config.recipe == "paper" else "smooth absolute error"
        return f"{error}, decoder x {config.decoder_weight:g}, model x {config.physics_weight:g} / brightest pixel"
    if isinstance(config, DualBranchConfig):
        return "minus log posterior density / nats, and the losses of both branches"
    return "squared error / (half of the prior's range)²"


def _run(model: str, part: pd.DataFrame) -> Run:
    validation = part["val_loss"].to_numpy(float)
    best = int(np.nanargmin(validation)) if np.isfinite(validation).any() else 0
    took = part["seconds"].to_numpy(float) if "seconds" in part else None
    return Run(model, part["epoch"].to_numpy(float) + 1, took, part["train_loss"].to_numpy(float), validation, best)


def _row(run: Run, named: str, part: pd.DataFrame) -> list[str]:
    first, best = float(run.validation[0]), float(run.validation[run.best])
    near = int(np.argmax(run.validation <= best + _NEAR * (first - best)))
    time = f", {seconds(float(run.seconds[near]))}" if run.seconds is not None else ""
    ended = str(part["stopped"].iloc[-1]) if "stopped" in part else ""
    return [
        named, str(len(part)), seconds(float(run.seconds[-1])) if run.seconds is not None else NONE,
        f"{run.epochs[run.best]:.0f}", significant(best, 4), f"epoch {run.epochs[near]:.0f}{time}",
        _STOPPED.get(ended, NONE),
    ]  # fmt: skip
