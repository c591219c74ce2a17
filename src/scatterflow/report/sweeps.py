"""Sections on the sweep of a study: which options were tried, which did best, and how much luck there is in a seed."""

from __future__ import annotations

import json
from typing import Any

from scatterflow.config.study import StudyConfig
from scatterflow.report.gallery import Section
from scatterflow.report.mapverdict import GOOD
from scatterflow.report.numbers import NONE, plus_minus, seconds
from scatterflow.report.tables import Table
from scatterflow.trials import SweepManifest, TrialRecord

_SHOWN = 50  # trials, the best first


def section(config: StudyConfig, found: SweepManifest | None) -> Section | None:
    """The trials by their score; None for a study without a sweep."""
    if config.sweep is None:
        return None
    title = "Which options are best?"
    if found is None:
        return Section("sweep", title, missing="Nothing to show: run `snakemake sweep`.")
    ranked = sorted(found.trials, key=_rank)
    keys = list(dict.fromkeys(key for trial in ranked for key in trial.settings))
    rows = [_row(trial, keys) for trial in ranked[:_SHOWN]]
    failed = sum(trial.state == "failed" for trial in ranked)
    lead = (
        f"{len(ranked)} trainings of {found.model} with varied options{f', {failed} of which failed' if failed else ''}; "
        "the first is kept as a model of its own."
    )
    notes = [
        f"Information gain {_what(ranked)} on validation rows (of {config.simulate.validation:,}), mean ± standard error. "
        "The best of many is better on these rows than on others: what it is worth shows on held-back simulations."
    ]
    if len(ranked) > _SHOWN:
        notes.append(f"The best {_SHOWN} are shown; all are in sweep/results.csv.")
    heads = [*(keys[:1] or ["trial"]), *keys[1:], "seed", "information gain / nats", "time", "state"]
    return Section("sweep", title, lead, tables=[Table("Trials of the sweep", heads, rows, notes)])


def seeds(found: SweepManifest) -> list[dict[str, Any]]:
    """The trials as the report's table of seeds takes them: success is an error near the Cramer-Rao bound."""
    varied = len({json.dumps(trial.settings) for trial in found.trials}) > 1
    entries = []
    for trial in found.trials:
        settings = ", ".join(f"{key}={value}" for key, value in trial.settings.items()) if varied else ""
        worst = max(trial.ratio.values(), default=None)
        ok = trial.state == "ok" and worst is not None and worst <= GOOD
        entries.append(
            {
                "model": f"{found.model} ({settings})" if settings else found.model,
                "seed": trial.seed,
                "ratio": dict(trial.ratio),
                "seconds": trial.seconds if trial.state == "ok" else None,
                "ok": ok,
                "why": trial.error or ("" if ok else "an error too far above the bound"),
            }
        )
    return entries


def _what(trials: list[TrialRecord]) -> str:
    if any(trial.ratio for trial in trials):
        return "of normal distributions with the stated errors"
    return "of each model's default mode"


def _rank(trial: TrialRecord) -> float:
    return -trial.score if trial.score is not None else float("inf")


def _row(trial: TrialRecord, keys: list[str]) -> list[str]:
    score = plus_minus(trial.score, trial.score_se) if trial.state == "ok" else NONE
    spent = seconds(trial.seconds) if trial.state == "ok" else NONE
    values = [str(trial.settings.get(key, NONE)) for key in keys]
    return [*values, str(trial.seed), score, spent, f"failed: {trial.error}" if trial.error else trial.state]
