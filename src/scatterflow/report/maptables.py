"""Tables on maps of strain and tilt, from the figures of merit of `maps.evaluation`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scatterflow import maps
from scatterflow.report.figures.maps import Score, symbol
from scatterflow.report.figures.posterior import axis_label
from scatterflow.report.mapverdict import GOOD
from scatterflow.report.mapwords import exponent, joined, upper
from scatterflow.report.numbers import NONE, minus, percent, significant
from scatterflow.report.tables import Table

Found = Mapping[str, Any]


def estimated(merit: Found, parameter: str) -> bool:
    """Whether any estimator knows the parameter."""
    return any(parameter in entry["parameters"] for entry in merit["estimators"].values())


def scores(merit: Found) -> dict[str, dict[str, Score]]:
    """What the figure against the bound shows."""
    result: dict[str, dict[str, Score]] = {}
    for name, entry in merit["estimators"].items():
        result[name] = {}
        for parameter, part in entry["parameters"].items():
            share = part["coverage"][f"{maps.LEVELS[0]:g}"] if part["coverage"] else None
            bias = abs(part["mean"]) / part["bound"] if part["bound"] and part["mean"] is not None else None
            coverage = (share["share"], share["low"], share["high"]) if share and share["n"] else None
            result[name][parameter] = Score(part["ratio"], part["ratio_se"] or 0.0, bias, coverage)
    return result


def published_ratios(merit: Found, published: Found) -> dict[str, dict[str, float]]:
    """Published standard deviations over this scan's Cramer-Rao bound."""
    bounds = {
        parameter: part["bound"]
        for entry in merit["estimators"].values()
        for parameter, part in entry["parameters"].items()
        if part["bound"]
    }
    return {
        f"{name} (published)": {
            parameter: sd / bounds[parameter] for parameter, (_, sd) in row.items() if parameter in bounds
        }
        for name, row in published["estimators"].items()
    }


def ratio_words(merit: Found) -> str:
    """Errors over the bound in words."""
    words = []
    for name, entry in merit["estimators"].items():
        parts = [
            f"{symbol(p)} {part['ratio']:.2f}" for p, part in entry["parameters"].items() if part["ratio"] is not None
        ]
        words.append(f"{name}: {', '.join(parts) or 'none'}")
    return f"{joined(words)}."


def merit(scan: Found, units: Mapping[str, str], published: Found) -> list[Table]:
    """Every figure of merit of every estimator, a table per parameter, the published ones beside them."""
    confidence = f"{100 * maps.CONFIDENCE:g} %"
    notes = [
        f"n = {scan['merit']['points']:,} simulated frames. Mean and sd are of estimate minus truth, over all answers; "
        "stated: root mean square of the estimator's own errors. The figure has the "
        f"{confidence} binomial intervals of the coverage. Failures: no finite answer, or more than {maps.LOST:g} bounds "
        "off in any parameter.",
    ]
    if published["estimators"]:
        notes.append(
            f"Published: {published['source']}; its test scan, whose model takes the ring at 2 points per pixel."
        )
    first = next(iter(units), None)
    return [_of_parameter(scan, name, unit, published, notes if name == first else []) for name, unit in units.items()]


def _of_parameter(scan: Found, parameter: str, unit: str, published: Found, notes: list[str]) -> Table:
    estimators = scan["merit"]["estimators"]
    entries = {name: e["parameters"][parameter] for name, e in estimators.items() if parameter in e["parameters"]}
    bound = next((part["bound"] for part in entries.values() if part["bound"]), None)
    power = exponent(bound) if bound else 0
    size = 10.0**power
    rows = [
        [name, _number(part["mean"], size), _number(part["sd"], size), _number(part["stated_sd"], size), _ratio(part),
         *(_covered(part["coverage"], level) for level in maps.LEVELS), percent(estimators[name]["failures"]["share"])]
        for name, part in entries.items()
    ]  # fmt: skip
    for name, row in published["estimators"].items():
        if parameter in row:
            mean, sd = row[parameter]
            ratio = f"{sd / bound:.2f}" if bound else NONE
            rows.append([f"{name} (published)", _number(mean, size), _number(sd, size), NONE, ratio, NONE, NONE, NONE])
    rows.append(["Cramér\N{EN DASH}Rao bound", NONE, _number(bound, size), NONE, "1", NONE, NONE, NONE])
    heads = ["estimator", "mean error", "sd of the error", "stated sd", "sd / bound",
             *(f"{100 * level:g} % hold" for level in maps.LEVELS), "failures"]  # fmt: skip
    return Table(f"{axis_label(symbol(parameter), unit, power)}: {scan['title']}", heads, rows, notes)


def _number(value: float | None, size: float) -> str:
    return NONE if value is None else minus(f"{value / size:,.2f}")


def _ratio(part: Found) -> str:
    return NONE if part["ratio"] is None else f"{part['ratio']:.2f} ± {part['ratio_se']:.2f}"


def _covered(coverage: Found | None, level: float) -> str:
    share = coverage[f"{level:g}"] if coverage else None
    if not share or share["share"] is None:
        return NONE
    return percent(share["share"])


def agreement(found: Found) -> Table:
    """Pearson r and rms difference over the stated errors, of every pair of estimators, per parameter."""
    rows, estimators = [], found["estimators"]
    for i, first in enumerate(estimators):
        for j in range(i + 1, len(estimators)):
            cells = []
            for matrices in found["parameters"].values():
                r, rms = matrices["pearson"][i][j], matrices["rms_in_sd"][i][j]
                cells += [NONE if r is None else minus(f"{r:.3f}"), NONE if rms is None else significant(rms)]
            rows.append([f"{first} and {estimators[j]}", *cells])
    heads = [
        "estimators",
        *(h for p in found["parameters"] for h in (f"{symbol(p)}: r", f"{symbol(p)}: difference / sd")),
    ]
    notes = [
        f"Over {found['points']:,} points with signal. Difference: rms, over the errors that both state, added in squares. "
        "Estimators that see the same counts share their noise: two good ones agree better than 1."
    ]
    return Table("Agreement of the estimators", heads, rows, notes)


def agreement_lead(found: Found, reference: str) -> str:
    """The best agreement with the reference, per parameter."""
    place = found["estimators"].index(reference)
    words = []
    for parameter, matrices in found["parameters"].items():
        row = {e: r for e, r in zip(found["estimators"], matrices["pearson"][place], strict=True)
               if e != reference and r is not None}  # fmt: skip
        if row:
            other = max(row, key=lambda name: row[name])
            words.append(f"{symbol(parameter)} with {other} (r = {minus(f'{row[other]:.2f}')})")
    if not words:
        return "There is nothing to compare."
    return f"No truth is known here. {upper(reference)}, compared with the others, agrees best in {joined(words)}."


def goodness(judged: Found) -> Table:
    """How well every estimator's reconstructions fit, on every scan."""
    rows = [
        [f"{scan['title']}, {name}", f"{part['n']:,}",
         *((significant(part["quantiles"][q]) for q in ("5", "50", "95")) if part["quantiles"] else [NONE] * 3),
         significant(part["threshold"]), percent(part["above"]["share"]) if part["above"] else NONE]
        for scan in judged.values()
        for name, part in scan["goodness"]["estimators"].items()
    ]  # fmt: skip
    notes = [
        f"Deviance of a frame over the one that counting noise explains. Threshold: {100 * maps.FALSE_ALARM:g} % of "
        f"simulated frames lie above it. A scan of which more than {100 * maps.TOLERATED:g} % lie above it is outside."
    ]
    heads = ["scan, estimator", "points", "5 % quantile", "median", "95 % quantile", "threshold", "above it"]
    return Table("Goodness of fit", heads, rows, notes)


def seeds(found: Sequence[Found]) -> Table | None:
    """Errors over the bound of trainings that differ in their seed only."""
    if not found:
        return None
    parameters = list(dict.fromkeys(p for entry in found for p in entry.get("ratio", {})))
    worst = [max((e for e in found if e["model"] == model), key=_worst_ratio) for model in
             dict.fromkeys(entry["model"] for entry in found)]  # fmt: skip
    rows = [
        [f"{entry['model']}, seed {entry['seed']}{' (worst)' if any(entry is each for each in worst) else ''}",
         *(_ratio_of(entry, p) for p in parameters),
         _seconds(entry.get("seconds")), "succeeded" if entry["ok"] else f"failed: {entry.get('why', '')}"]
        for entry in found
    ]  # fmt: skip
    rows.append(["limit", *[f"{GOOD:g}"] * len(parameters), NONE, NONE])
    notes = [
        f"Sd of the error over the Cramér\N{EN DASH}Rao bound; success: at most {GOOD:g} for every parameter. Worst: the "
        "seed of each model whose largest ratio is largest, or that has none."
    ]
    return Table("Seeds", ["model, seed", *(symbol(p) for p in parameters), "training", "outcome"], rows, notes)


def _worst_ratio(entry: Found) -> float:
    known = [value for value in entry.get("ratio", {}).values() if value is not None]
    return max(known, default=math.inf)


def _ratio_of(entry: Found, parameter: str) -> str:
    value = entry.get("ratio", {}).get(parameter)
    return NONE if value is None else significant(value)


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{significant(value, 2)} s"


def latency(found: Sequence[Found]) -> Table | None:
    """Time per frame, the published ones below."""
    if not found:
        return None
    rows = [
        [str(entry["estimator"]), str(entry["device"]), str(entry.get("batch", NONE)), significant(entry["ms"]),
         f"{1e3 / entry['ms']:,.0f}" if entry["ms"] else NONE, significant(entry.get("p99_ms"))]
        for entry in found
    ]  # fmt: skip
    rows += [
        [f"{name} (published)", device, NONE, significant(ms), f"{1e3 / ms:,.0f}", NONE]
        for name, device, ms in maps.PUBLISHED_MS
    ]
    heads = ["estimator", "device", "batch", "ms per frame", "frames per second", "99 % within / ms"]
    return Table("Time per frame", heads, rows, [f"Published: {maps.PUBLISHED['source'].split(',')[0]}."])
