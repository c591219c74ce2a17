"""Whether maps of strain and tilt can be trusted, in a few computed sentences, from `maps.evaluation`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scatterflow import maps
from scatterflow.report.figures.maps import symbol
from scatterflow.report.mapwords import count, joined, sized, upper
from scatterflow.report.numbers import percent, significant
from scatterflow.units import UNITS

GOOD = 1.5  # times the Cramer-Rao bound: an estimator that wastes more than half of the counts is not good
_NEAR = 0.03  # coverage may miss its level by so much: nobody reads a standard deviation more finely
_RARE = 0.01  # share of failures that a good estimator may have
Found = Mapping[str, Any]


def accuracy(parameter: str, entry: Found) -> str:
    """Standard deviation of the error with its unit."""
    return sized(entry["sd"], UNITS.get(parameter, "1"))


def ratios(entry: Found) -> list[float]:
    """Errors of an estimator over the bound, of all its parameters."""
    return [part["ratio"] for part in entry["parameters"].values() if part["ratio"] is not None]


def best(merit: Found) -> str | None:
    """The estimator nearest to the bound (geometric mean over the parameters), one that can be trusted if there is any."""
    able = {name: entry for name, entry in merit["estimators"].items() if ratios(entry)}
    complete = max((len(entry["parameters"]) for entry in able.values()), default=0)
    able = {name: entry for name, entry in able.items() if len(entry["parameters"]) == complete}
    good = {name: entry for name, entry in able.items() if _good(entry)}
    pool = good or able
    return min(pool, key=lambda name: sum(map(math.log, ratios(pool[name]))), default=None)


def trusted(merit: Found) -> str | None:
    """The best estimator, if it can be trusted."""
    name = best(merit)
    return name if name is not None and _good(merit["estimators"][name]) else None


def _good(entry: Found) -> bool:
    near = [ratio <= GOOD for ratio in ratios(entry)]
    return all(near) and not _fails(entry) and not _wrong_widths(entry)


def _fails(entry: Found) -> bool:
    found = entry["failures"]["share"]
    return found is None or found > _RARE


def _wrong_widths(entry: Found) -> list[str]:
    """Parameters whose stated errors are wrong: coverage off by more than 3 points, and not by chance."""
    wrong = []
    for name, part in entry["parameters"].items():
        for level, share in (part["coverage"] or {}).items():
            off = abs(share["share"] - float(level)) > _NEAR and not share["low"] <= float(level) <= share["high"]
            if off and name not in wrong:
                wrong.append(name)
        if part["coverage"] is None:
            wrong.append(name)
    return wrong


def best_sentence(scan: Found) -> str:
    """How good the best estimator is, and whether its errors can be believed."""
    merit = scan["merit"]
    name = best(merit)
    if name is None:
        return "No estimator answers."
    entry = merit["estimators"][name]
    found = ratios(entry)
    near = f"{min(found):.2f} to {max(found):.2f}" if len(found) > 1 else f"{found[0]:.2f}"
    first = (
        f"Best is {name}: its errors are {near} times the Cramér\N{EN DASH}Rao bound on {merit['points']:,} simulated "
        f"frames ({scan['title']})"
    )
    biased = [abs(part["bias_in_sd"]) for part in entry["parameters"].values() if part["bias_in_sd"] is not None]
    first += f", their mean is at most {max(biased):.2f} standard deviations." if biased else "."
    shares = [part["coverage"] for part in entry["parameters"].values()]
    if any(part is None for part in shares):
        return f"{first} It states no errors."
    at = f"{maps.LEVELS[0]:g}"
    low, high = (pick(part[at]["share"] for part in shares) for pick in (min, max))
    spread = percent(low) if low == high else f"{percent(low)} to {percent(high)}"
    wrong = _wrong_widths(entry)
    believed = f"cannot be trusted for {', '.join(symbol(p) for p in wrong)}" if wrong else "can be trusted"
    return f"{first} Its stated errors {believed}: 68 % intervals hold the truth in {spread} of cases."


def published_sentence(scan: Found, published: Found) -> str:
    """Whether the best estimator beats every published figure of the test scan."""
    name = best(scan["merit"])
    if name is None or not scan["as_published"]:
        return ""
    entry = scan["merit"]["estimators"][name]["parameters"]
    words, beaten = [], True
    for parameter, part in entry.items():
        theirs = [row[parameter] for row in published["estimators"].values() if parameter in row]
        if not theirs or part["sd"] is None:
            continue
        least = min(sd for _, sd in theirs)
        beaten &= part["sd"] < least
        words.append(f"{significant(least / part['sd'], 2)} for {symbol(parameter)}")
    if not words:
        return ""
    how = "Every published error on these fields is larger" if beaten else "Not every published error is larger"
    return f"{how}: the smallest one over that of {name} is {', '.join(words)}."


def scan_sentence(scan: Found) -> str:
    """Whether the film model holds on a measured scan."""
    if scan["simulated"]:
        return ""
    found = scan["goodness"]["verdict"]
    if found["status"] == "ok":
        return f"{upper(scan['title'])}: the film model reproduces the frames; {found['why']}."
    if found["status"] == "untested":
        return f"{upper(scan['title'])}: whether the film model holds was not tested, {found['why']}."
    return (
        f"{upper(scan['title'])}: the film model does not reproduce all frames, maps mean nothing where it does not; "
        f"{found['why']}."
    )


def failing_sentence(merit: Found) -> str:
    """Estimators that fail or whose errors are far from the bound."""
    words = []
    for name, entry in merit["estimators"].items():
        worst = max(ratios(entry), default=None)
        why = []
        if _fails(entry):
            why.append(f"fails at {percent(entry['failures']['share'])} of the points")
        if worst is not None and worst > GOOD:
            why.append(f"errors of up to {significant(worst)} times the bound")
        if why:
            words.append(f"{name} ({', '.join(why)})")
    return f"Far from the bound: {joined(words)}." if words else ""


def seeds_lead(found: Sequence[Found]) -> str:
    """How many trainings succeed."""
    if not found:
        return ""
    models = dict.fromkeys(str(entry["model"]) for entry in found)
    words = []
    for model in models:
        its = [entry for entry in found if entry["model"] == model]
        words.append(f"{sum(bool(entry['ok']) for entry in its)} of {count(len(its), 'seed')} of {model} succeed")
    return f"{joined(words)}."
