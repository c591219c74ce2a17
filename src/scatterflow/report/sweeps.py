"""Section on the sweep of a study: which options were tried, and which did best."""

from __future__ import annotations

from scatterflow.report.gallery import Section
from scatterflow.report.numbers import NONE, plus_minus, seconds
from scatterflow.report.products import Products
from scatterflow.report.tables import Table
from scatterflow.trials import TrialRecord

_SHOWN = 50  # trials, the best first


def section(products: Products) -> Section | None:
    """The trials by their score; None for a study without a sweep."""
    if products.study.config.sweep is None:
        return None
    title, found = "Which options are best?", products.sweep
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
    validation = products.study.config.simulate.validation
    notes = [
        f"Information gain of each model's default mode on validation rows (of {validation:,}), mean ± standard error. "
        "The best of many is better on these rows than on others: what it is worth shows on held-back simulations."
    ]
    if len(ranked) > _SHOWN:
        notes.append(f"The best {_SHOWN} are shown; all are in sweep/results.csv.")
    heads = [*(keys[:1] or ["trial"]), *keys[1:], "seed", "information gain / nats", "time", "state"]
    return Section("sweep", title, lead, tables=[Table("Trials of the sweep", heads, rows, notes)])


def _rank(trial: TrialRecord) -> float:
    return -trial.score if trial.score is not None else float("inf")


def _row(trial: TrialRecord, keys: list[str]) -> list[str]:
    score = plus_minus(trial.score, trial.score_se) if trial.state == "ok" else NONE
    spent = seconds(trial.seconds) if trial.state == "ok" else NONE
    values = [str(trial.settings.get(key, NONE)) for key in keys]
    return [*values, str(trial.seed), score, spent, f"failed: {trial.error}" if trial.error else trial.state]
