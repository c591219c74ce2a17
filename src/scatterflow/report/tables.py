"""Tables of the report: plain rows of text; the template escapes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scatterflow.prior import Prior
from scatterflow.progress import size
from scatterflow.report.costs import RULES
from scatterflow.report.headline import label, works
from scatterflow.report.metrics import Cost, CrossCheck, Mean, Sensitivity, StudyMetrics
from scatterflow.report.numbers import NONE, estimate, level, percent, plus_minus, seconds, significant

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Column heads and rows of text; the first cell of a row names it."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def _share(value: Mean | float | None) -> str:
    return percent(value.mean if isinstance(value, Mean) else value)


def estimators(metrics: StudyMetrics) -> Table:
    """Every figure of merit of every estimator on the held-back simulations, the exact prior first."""
    heads = [
        "estimator", "information gain / nats", "trimmed mean", "log-prob", "MAE (median)", "MAE (MAP)", "W to ABC",
        "90 % region holds truth", "outside support", "SBC rejects", "time / observation", "works",
    ]  # fmt: skip
    prior = metrics.prior
    rows = [
        ["exact prior", "0", "0", estimate(prior.get("log_prob")), estimate(prior.get("mae_median")),
         estimate(prior.get("mae_map")), NONE, "90.0 %", "0.0 %", NONE, NONE, NONE]
    ]  # fmt: skip
    for name, estimator in metrics.estimators.items():
        gain, distance, coverage = estimator.information_gain, estimator.wasserstein_to_abc, estimator.coverage
        at = coverage.at(0.9) if coverage else None
        rows.append(
            [
                label(metrics, name),
                estimate(gain),
                significant(gain.truncated_mean) if gain and not gain.impossible else NONE,
                estimate(estimator.log_prob),
                estimate(estimator.mae_median),
                estimate(estimator.mae_map),
                plus_minus(distance.mean, distance.sd or distance.se) if distance else NONE,
                percent(at[0]) if at else NONE,
                _share(estimator.outside_support_share),
                f"{len(estimator.sbc.holm_rejected)} of {len(estimator.sbc.ks_p)}" if estimator.sbc else NONE,
                seconds(estimator.seconds_per_observation),
                "yes" if works(estimator) else "no",
            ]
        )
    count = f"n = {metrics.n_held_back:,} held-back simulations; " if metrics.n_held_back else ""
    notes = [
        f"{count}mean ± standard error (W: ± standard deviation). Log-probabilities are natural logs of the density of "
        "the truth over parameters scaled to [0, 1] by their prior's box; the information gain is that of the exact "
        "prior subtracted. MAE is in units of the prior's range. W: one-dimensional Wasserstein distance of marginals, "
        "in the same units."
    ]
    return Table("All estimators on held-back simulations", heads, rows, notes)


def sensitivity(found: Sensitivity) -> Table:
    """Per parameter, what image and profile leave at least of the prior's standard deviation."""
    views = list(found.views)
    names = next(iter(found.views.values())) if views else {}
    rows = [
        [name, *(f"{part.median:.2f} ({part.low:.2f} to {part.high:.2f})" for part in parts)]
        for name in names
        for parts in [[found.views[view][name] for view in views]]
    ]
    low, high = (level(value) for value in found.levels)
    notes = [
        f"Median ({low} and {high} quantiles) over {found.n:,} held-back samples of the square root of the diagonal of "
        "(F + P)⁻¹ over the prior's standard deviation: F is the Fisher information of the Poisson counts in the valid "
        "bins, P that of the prior. 1: the measurement cannot see the parameter. It is a bound for the counts themselves, "
        "whose absolute scale the features drop."
    ]
    return Table("What the measurement can see at all", ["parameter", *views], rows, notes)


def cross_check(found: CrossCheck) -> Table:
    """Largest deviation between the engines, per view."""
    rows = [
        [name, f"{part.largest:.1e}", f"{part.median:.1e}", f"{found.tolerance:.0e}", str(part.simulation)]
        for name, part in found.views.items()
    ]
    own, other = (found.core_seconds_per_simulation[name] for name in (found.engine, found.reference))
    what = "Stored simulations" if found.stored else f"The same samples in geometry {found.geometry}"
    notes = [
        f"{what} of engine {found.engine} against {found.reference}, {found.simulations:,} random ones: relative "
        f"deviation of the expected counts of a bin. One simulation took {seconds(own)} of a core by {found.engine} and "
        f"{seconds(other)} by {found.reference}."
    ]
    heads = ["view", "largest deviation", "median", "tolerance", "worst simulation"]
    return Table("Cross-check of the engines", heads, rows, notes)


def table_1(metrics: StudyMetrics, simulate_seconds: float | None, parameters: int) -> Table:
    """The paper's Table 1 with this study's figures beside it, on the expert's sample as there."""
    heads = [
        "method", "W to ABC", "log-prob", "information gain", "MAE", "inference", "data set", "amortized"
    ]  # fmt: skip
    rows = []
    for name, row in metrics.paper.items():
        amortized = {True: "yes", False: "no", None: NONE}[row.amortized]
        rows.append(
            [f"{name} (paper)", plus_minus(row.wasserstein, row.wasserstein_sd), significant(row.log_prob), NONE,
             significant(row.mae, 2), seconds(row.inference_s), seconds(row.data_set_s), amortized]
        )  # fmt: skip
    for name, estimator in metrics.estimators.items():
        here = metrics.experiment.get(name)
        distance = estimator.wasserstein_to_abc
        rows.append(
            [
                f"{label(metrics, name)} (here)",
                plus_minus(distance.mean, distance.sd) if distance else NONE,
                significant(here.log_prob) if here else NONE,
                significant(here.information_gain) if here else NONE,
                significant(here.mae_map, 2) if here else NONE,
                seconds(estimator.seconds_per_observation),
                seconds(simulate_seconds),
                "no" if name.startswith("abc") else "yes",
            ]
        )
    notes = [
        f"The paper: 12 layers, 72 parameters, a real measurement. Here: {parameters} parameters, the expert's sample "
        "simulated with parasitic scattering and counting noise. So the figures compare in kind, not digit by digit. "
        "Log-prob and MAE (of the MAP) refer to the expert's parameters (for log-prob, moved inside by 1 % of the prior's "
        "quantiles where they lie on its border), W is the mean over the held-back simulations. "
        "Data set: core time of all simulations."
    ]
    return Table("Table 1 of the paper beside this run", heads, rows, notes)


def intervals(
    prior: Prior, prior_draws: Array, samples: Mapping[str, Array], labels: Mapping[str, str], truth: Array | None
) -> Table:
    """Per parameter: truth, the prior's and each estimator's median with its central 90 % interval."""
    heads = [
        "parameter",
        "unit",
        *(["truth"] if truth is not None else []),
        "prior",
        *(labels[name] for name in samples),
    ]
    every = [prior_draws, *samples.values()]
    rows = []
    for index, name in enumerate(prior.names):
        cells = [name, prior.units[index] if prior.units[index] != "1" else ""]
        if truth is not None:
            cells.append(significant(float(truth[index])))
        for values in every:
            column = values[:, index]
            low, middle, high = np.quantile(column[np.isfinite(column)], [0.05, 0.5, 0.95])
            cells.append(f"{significant(float(middle))} [{significant(float(low))}, {significant(float(high))}]")
        rows.append(cells)
    return Table("Parameters: median [central 90 % interval]", heads, rows)


def ranks(metrics: StudyMetrics) -> Table | None:
    """p-values of uniform ranks per parameter and estimator; rejected ones are marked."""
    tested = {name: e.sbc for name, e in metrics.estimators.items() if e.sbc is not None and e.sbc.ks_p}
    if not tested:
        return None
    parameters = list(next(iter(tested.values())).ks_p)
    rows = []
    for parameter in parameters:
        cells = [parameter]
        for sbc in tested.values():
            mark = " (rejected)" if parameter in sbc.holm_rejected else ""
            cells.append(significant(sbc.ks_p.get(parameter), 2) + mark)
        rows.append(cells)
    notes = ["Kolmogorov-Smirnov test of uniform ranks; rejected after Holm's correction over the parameters."]
    return Table("Simulation-based calibration", ["parameter", *(label(metrics, name) for name in tested)], rows, notes)


def coverage(metrics: StudyMetrics) -> Table | None:
    """Coverage of joint credible regions at the tested levels."""
    tested = {
        name: e.coverage for name, e in metrics.estimators.items() if e.coverage is not None and e.coverage.levels
    }
    if not tested:
        return None
    rows = []
    levels = next(iter(tested.values())).levels
    for nominal in levels:
        cells = [level(nominal)]
        low_high = ""
        for entry in tested.values():
            at = entry.at(nominal)
            cells.append(percent(at[0]) if at else NONE)
            low_high = f"{percent(at[1])} to {percent(at[2])}" if at else low_high
        rows.append([*cells, low_high])
    return Table("Coverage", ["level", *(label(metrics, name) for name in tested), "expected"], rows)


def in_order(metrics: StudyMetrics) -> list[tuple[str, Cost]]:
    """The cost of the jobs in the order of the stages."""
    rank = {rule: place for place, rule in enumerate(RULES)}
    return sorted(metrics.cost.items(), key=lambda item: rank.get(item[0].partition(".")[0], len(rank)))


def cost(metrics: StudyMetrics, expected: Sequence[str]) -> Table:
    """Jobs, wall time, core time, memory and disk space of each rule; `expected` rules that were not run say so."""
    jobs: dict[str, list[Cost]] = {rule: [] for rule in expected}
    for name, entry in in_order(metrics):
        jobs.setdefault(name.partition(".")[0], []).append(entry)
    rows = []
    for rule, entries in jobs.items():
        if not entries:
            rows.append([rule.replace("_", " "), "not run here", *[NONE] * 6])
            continue
        shards = _total([entry.shards for entry in entries])
        rows.append([rule.replace("_", " "), str(len(entries)), f"{shards:,.0f}" if shards else NONE, *_spent(entries)])
    every = [entry for entries in jobs.values() for entry in entries]
    rows.append(["all rules", str(len(every)), NONE, *_spent(every)])
    notes = [
        "Jobs: of Snakemake. Core time: of all processes, for shards (wherever they were made, array tasks of Slurm "
        "included) as their records say; jobs of a few seconds are not measured. Peak memory: of the largest job; tasks of "
        "Slurm are not in it. On disk: what the rule's folder holds now."
    ]
    heads = ["rule", "jobs", "shards", "wall time", "core time", "core-hours", "peak memory", "on disk"]
    return Table("Cost per rule", heads, rows, notes)


def _spent(entries: Sequence[Cost]) -> list[str]:
    core = _total([entry.core_seconds for entry in entries])
    memory = [entry.max_rss_mb for entry in entries if entry.max_rss_mb is not None]
    disk = _total([entry.disk_mb for entry in entries])
    return [
        seconds(_total([entry.seconds for entry in entries])),
        seconds(core),
        NONE if core is None else significant(core / 3600, 2),
        f"{max(memory):,.0f} MB" if memory else NONE,
        NONE if disk is None else size(1e6 * disk),
    ]


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
