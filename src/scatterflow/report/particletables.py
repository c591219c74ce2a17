"""Tables on estimates of particles, from the figures of merit of `stages.particles.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scatterflow.particles import QUANTITIES
from scatterflow.report.figures.particles import SYMBOLS, UNITS, quantity
from scatterflow.report.mapwords import joined, upper
from scatterflow.report.numbers import NONE, level, percent, seconds, significant
from scatterflow.report.tables import Table
from scatterflow.stages.particles.evaluate import CONFIDENCE

Found = Mapping[str, Any]
RELATIVE = ("distance_nm", "width_nm")  # their errors are told as shares
PEOPLE = "people: half of 46 analysts"
OFF = "off"  # marks a coverage that is not what the intervals promise


def error(name: str, entry: Found | None) -> str:
    """Median error of a quantity, relative or with its unit."""
    value = (entry or {}).get("median_relative_error" if name in RELATIVE else "median_error")
    if value is None:
        return NONE
    unit = UNITS[name]
    return percent(value) if name in RELATIVE else f"{significant(value, 2)}{f' {unit}' if unit else ''}"


def holds(entry: Found | None, nominal: float) -> bool | None:
    """Whether coverage may be what the intervals promise; None where there are no intervals."""
    if not entry or entry.get("coverage") is None:
        return None
    return bool(entry["coverage_low"] <= nominal <= entry["coverage_high"])


def share(entry: Found | None, name: str) -> str:
    """A share with its interval: `67.1 % (64.3 to 69.8)`."""
    if not entry or entry.get(name) is None:
        return NONE
    low, high = (f"{100 * entry[f'{name}_{end}']:.1f}" for end in ("low", "high"))
    return f"{percent(entry[name])} ({low} to {high})"


def nanometres(merit: Found) -> str:
    """Median Wasserstein distance of p(R) from the truth."""
    apart = (merit.get("wasserstein_nm") or {}).get("median")
    return NONE if apart is None else f"{significant(apart, 2)} nm"


def known(estimators: Found) -> list[str]:
    """Quantities that any estimator tells."""
    return [name for name in QUANTITIES if any(name in entry["test"] for entry in estimators.values())]


def errors(found: Found, labels: Mapping[str, str]) -> Table:
    """Median errors of every estimator on the test images, the human round robin below."""
    estimators, names = found["estimators"], known(found["estimators"])
    rows = []
    for name, entry in estimators.items():
        test = entry["test"]
        over = test.get("wasserstein_over_uniform")
        apart = nanometres(test) + ("" if over is None else f" ({over:.2f})")
        told = (error(each, test.get(each)) for each in names)
        rows.append([labels[name], apart, *told, seconds(entry.get("seconds_per_image"))])
    robin = found.get("round_robin_width_error")
    if robin is not None and "width_nm" in names:
        cells = [f"within {level(robin)}" if name == "width_nm" else NONE for name in names]
        rows.append([PEOPLE, NONE, *cells, NONE])
    heads = ["estimator", "p(R)", *(SYMBOLS[name] for name in names), "time / image"]
    total = (found.get("sets", {}).get("test") or {}).get("total_counts")
    counts = f" at {total:,.0f} counts" if total is not None else ""
    most = max(entry["test"]["n"] for entry in estimators.values())
    fewer = [f"{labels[name]}: the first {entry['test']['n']:,}" for name, entry in estimators.items()
             if entry["test"]["n"] < most]  # fmt: skip
    number = f"n = {most:,}{f' ({joined(fewer)})' if fewer else ''}"
    notes = [
        f"Median errors on simulated images with artefacts{counts}, which trained nothing, "
        f"{number}. p(R): one-dimensional Wasserstein distance from the truth (and over that of the uniform distribution, "
        "which measures nothing). Errors of D and of the width (standard deviation of p(R)) are relative.",
    ]
    if robin is not None:
        notes.append(
            f"People: in a round robin half of the widths that 46 analysts found agreed within {level(robin)} "
            "(arXiv 2303.03772)."
        )
    return Table("Errors on the test images", heads, rows, notes)


def modes(found: Found, labels: Mapping[str, str]) -> Table | None:
    """Median errors of single modes of the size distribution; None where no estimator tells any."""
    told = {name: entry["test"]["modes"] for name, entry in found["estimators"].items() if entry["test"].get("modes")}
    if not told:
        return None
    rows = []
    for name, entry in told.items():
        radius, width, part = (entry[f"mode_{what}"] for what in ("radius_nm", "width_nm", "share"))
        off = f"{significant(radius['median_error'], 2)} nm ({percent(radius['median_relative_error'])})"
        points = NONE if entry["number"] == 1 else percent(part["median_error"])
        rows.append(
            [
                labels[name],
                off,
                percent(width["median_relative_error"]),
                points,
                f"{found['estimators'][name]['test']['n']:,}",
            ]
        )
    robin = found.get("round_robin_width_error")
    if robin is not None:
        rows.append([PEOPLE, NONE, f"within {level(robin)}", NONE, NONE])
    number = next(iter(told.values()))["number"]
    count = "one mode" if number == 1 else f"{number} modes"
    notes = [
        f"Median errors of the {count} on the test images: mean radius, width (standard deviation of a mode's radii, "
        "relative), share of the particles (percentage points). Estimates: posterior medians, or the fit's parameters. "
        "Modes of estimate and truth are matched in the order of their radii, the assignment with the least sum of squared "
        "distances; the error of an image is the mean over its true modes, weighted by their shares."
    ]
    return Table(
        "Errors of single modes of the size distribution",
        ["estimator", "mean radius", "width", "share", "images"],
        rows,
        notes,
    )


def coverage(found: Found, labels: Mapping[str, str]) -> Table | None:
    """Share of truths within the intervals; marked where it is not what these promise."""
    nominal, rows = found["interval"], []
    names = known(found["estimators"])
    for name, entry in found["estimators"].items():
        cells = []
        for each in names:
            part = entry["test"].get(each)
            mark = f", {OFF}" if holds(part, nominal) is False else ""
            cells.append(share(part, "coverage") + mark)
        if any(cell != NONE for cell in cells):
            rows.append([labels[name], *cells])
    if not rows:
        return None
    notes = [
        f"Share of truths in the {level(nominal)} intervals, with its {level(CONFIDENCE)} binomial interval. {upper(OFF)}: "
        f"this does not hold {level(nominal)}."
    ]
    heads = ["estimator", *(SYMBOLS[name] for name in names)]
    return Table(f"Coverage of the {level(nominal)} intervals", heads, rows, notes)


def beyond(found: Found, labels: Mapping[str, str]) -> Table | None:
    """What becomes of the intervals beyond the prior's disorder, and how many images are called outside."""
    names, rows = known(found["estimators"]), []
    for name, entry in found["estimators"].items():
        far = entry.get("beyond")
        if not far:
            continue
        wider = far.get("width_over_test", {})
        if not wider and far.get("outside") is None:
            continue
        cells = [NONE if wider.get(each) is None else f"{wider[each]:.2f}" for each in names]
        rows.append([labels[name], *cells, share(far, "outside"), share(entry["test"], "outside")])
    if not rows:
        return None
    n = (found.get("sets", {}).get("beyond") or {}).get("n")
    notes = [
        f"Median width of the intervals over that on the test images{f', n = {n:,}' if n else ''}. Called outside: by the "
        f"verdict, with {level(CONFIDENCE)} binomial intervals."
    ]
    heads = ["estimator", *(f"{SYMBOLS[name]}: width" for name in names), "called outside", "of the test images"]
    return Table("Beyond the prior's disorder", heads, rows, notes)


def ablation(found: Found, pair: Sequence[str], labels: Mapping[str, str]) -> Table:
    """Errors and coverage of models trained with and without artefacts, on the same test images."""
    names = known(found["estimators"])
    rows = []
    for number, name in enumerate(pair):
        test = found["estimators"][name]["test"]
        rows.append(
            [f"{labels[name]}, {'without' if number else 'with'} artefacts", nanometres(test),
             *(error(each, test.get(each)) for each in names),
             *(percent((test.get(each) or {}).get("coverage")) for each in names), percent(test.get("outside"))]
        )  # fmt: skip
    heads = [
        "trained", "p(R) off by", *(SYMBOLS[each] for each in names), *(f"{SYMBOLS[each]}: held" for each in names),
        "called outside",
    ]  # fmt: skip
    return Table(
        "With and without artefacts",
        heads,
        rows,
        [
            "The same test images, which have artefacts. Held: truths in the intervals. Without artefacts: neither training "
            "nor validation images, which end the training and fix intervals and verdict, have any."
        ],
    )


def frames(summaries: Sequence[Found], called: Sequence[str]) -> list[Table]:
    """Answers on the real frames, with short names, in parentheses where they are not to be trusted; then why."""
    names = [name for name in QUANTITIES if any(name in (entry.get("estimates") or {}) for entry in summaries)]
    scores = list(dict.fromkeys(name for entry in summaries for name in entry.get("scores") or {}))
    rows, reasons = [], []
    for short, entry in zip(called, summaries, strict=True):
        trusted, peak = entry["status"] == "ok", entry.get("peak") or {}
        told = (interval((entry.get("estimates") or {}).get(name)) for name in names)
        places = " / ".join(pixels(peak.get(f"peak_px_{what}")) for what in ("measured", "rebuilt")) if peak else NONE
        rows.append([short, str(entry["status"]), *(_bracketed(text, trusted) for text in told), places])
        limits = (_score((entry.get("scores") or {}).get(name)) for name in scores)
        reasons.append([short, *limits, str(entry["file"]), str(entry["why"])])
    heads = ["frame", "verdict", *(quantity(name) for name in names), "peak / px"]
    notes = [
        "Medians with the ends of their intervals; in parentheses: answers on frames that are outside, not to be trusted. "
        "Peak: of correlation, in the in-plane cut, recorded / rebuilt, in pixels of the frame's own detector from the beam."
    ]
    why = ["frame", *(f"{name} score (limit)" for name in scores), "file", "why"]
    return [Table("Verdict and answers", heads, rows, notes), Table("Why", why, reasons)]


def interval(entry: Found | None) -> str:
    """`12.3 [11.9, 12.8]`."""
    if not entry or entry.get("value") is None:
        return NONE
    value, low, high = (significant(entry[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _bracketed(text: str, trusted: bool) -> str:
    return text if trusted or text == NONE else f"({text})"


def pixels(value: float | None) -> str:
    """A place on the detector."""
    return NONE if value is None else f"{value:.1f}"


def _score(entry: Found | None) -> str:
    return f"{significant(entry['value'])} ({significant(entry['threshold'])})" if entry else NONE
