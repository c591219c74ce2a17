"""Sections on simulated images of particles: errors, examples, what counts allow, calibration, ablation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import norm

from scatterflow.estimates import P
from scatterflow.particles import QUANTITIES
from scatterflow.report import particletables
from scatterflow.report.figures import particleimages as images
from scatterflow.report.figures import particles as drawing
from scatterflow.report.gallery import Gallery, Picture, Section
from scatterflow.report.mapwords import joined, upper
from scatterflow.report.numbers import NONE, level, percent, significant
from scatterflow.report.style import estimator_styles
from scatterflow.stages.particles.evaluate import CONFIDENCE

Array = NDArray[np.float64]
Found = Mapping[str, Any]
Answers = Mapping[str, xr.Dataset]  # on the test images, by estimator
EVALUATE = "Nothing to show: run `snakemake evaluate`."
CUT_FIT = "cut-fit"
_MEDIAN = float(norm.ppf(0.75))  # median size of a normal error of deviation 1


def labels(found: Found) -> dict[str, str]:
    """Readable name of every estimator."""
    return {name: str(entry.get("label") or name) for name, entry in found["estimators"].items()}


def models(found: Found) -> list[str]:
    """Trained models, the one that stands for the study first."""
    return [name for name, entry in found["estimators"].items() if entry["kind"] == "model"]


def on_images(found: Found, number: str) -> str:
    """`n = 200 simulated images of 100,000 counts` of a set."""
    facts = found.get("sets", {}).get(number) or {}
    counts = f" of {facts['total_counts']:,.0f} counts" if facts.get("total_counts") is not None else ""
    return f"n = {facts['n']:,} simulated images{counts}" if facts.get("n") is not None else "simulated images"


def accuracy(found: Found, answers: Answers, gallery: Gallery, seed: int) -> Section:
    """Table of all estimators, and estimates against the truth."""
    title = "How good is it?"
    if not found:
        return Section("accuracy", title, missing=EVALUATE)
    names = labels(found)
    panels: dict[str, dict[str, drawing.Answers]] = {}
    for name in QUANTITIES:
        told = {each: one for each, test in answers.items() if (one := _answers(test, name)) is not None}
        if told:
            panels[name] = told
    pictures = []
    if panels:
        words = joined([f"{drawing.SYMBOLS[name]}: {_error_words(found, panels[name], name)}" for name in panels])
        pictures.append(
            gallery.add(
                "truth",
                drawing.against_truth(panels, estimator_styles(found["estimators"]), names),
                f"Estimate against truth, a panel per quantity, on test images. Median errors: {words}.",
                f"Line: estimate equals truth. Bars: {level(found['interval'])} intervals of some images. Points are a "
                f"thinned choice of {on_images(found, 'test')}, seed {seed}.",
            )
        )
    tables = [particletables.errors(found, names)]
    tables += [
        table for make in (particletables.modes, particletables.coverage) if (table := make(found, names)) is not None
    ]
    return Section("accuracy", title, "", pictures, tables=tables)


def compared(found: Found) -> list[str]:
    """The estimators in figures of single images: the first model and the fit."""
    return [*models(found)[:1], *([CUT_FIT] if CUT_FIT in found["estimators"] else [])]


def _answers(test: xr.Dataset, name: str) -> drawing.Answers | None:
    if name not in test or f"{name}_true" not in test:
        return None
    ends = [test[f"{name}_{end}"].values if f"{name}_{end}" in test else None for end in ("low", "high")]
    return drawing.Answers(test[name].values, test[f"{name}_true"].values, *ends)


def _error_words(found: Found, shown: Mapping[str, Any], name: str) -> str:
    names = labels(found)
    words = [
        f"{names[each]} {particletables.error(name, found['estimators'][each]['test'].get(name))}" for each in shown
    ]
    return ", ".join(words)


def examples(shown: xr.Dataset | None, interval: float, gallery: Gallery) -> Section:
    """Test images beside the rebuilt ones, and p(R) beside the truth."""
    title = "Size distributions of test images"
    if shown is None:
        return Section("examples", title, missing="Nothing to show: run `snakemake infer`.")
    pictures = []
    for number in range(shown.sizes["simulation"]):
        one = shown.isel(simulation=number)
        apart = f"{_number(one, 'wasserstein_nm', 2)} nm from the truth" if "wasserstein_nm" in one else ""
        words = []
        for name in QUANTITIES:
            if name in one:
                unit = f" {drawing.UNITS[name]}" if drawing.UNITS[name] else ""
                value, true = (_number(one, key) for key in (name, f"{name}_true"))
                words.append(f"{drawing.SYMBOLS[name]} {value} (truth {true}){unit}")
        text = f"p(R) {apart}; {joined(words)}" if apart else joined(words)
        pictures.append(
            image_picture(f"example-{number + 1}", f"Test image {number + 1}", one, interval, True, text, gallery)
        )
    lead = (
        f"Answers of {shown.attrs.get('model', 'the first model')} on the first test images. Rebuilt: simulated from the "
        "posterior's median, with the scale and the even background that fit best."
    )
    return Section("examples", title, lead, pictures)


def _number(one: xr.Dataset, name: str, digits: int = 3) -> str:
    value = float(one[name])
    return significant(value, digits) if math.isfinite(value) else NONE


def image_picture(
    key: str, name: str, one: xr.Dataset, interval: float, trusted: bool, text: str, gallery: Gallery
) -> Picture:
    """Recorded and rebuilt image with p(R) of one frame or simulation."""
    valid = one["valid"].values.astype(bool)
    counts = np.where(valid, one["recorded"].values.astype(float), np.nan)
    optional = (one[key].values if key in one else None for key in (f"{P}_low", f"{P}_high", f"{P}_true"))
    sizes = images.Sizes(one["radius"].values, one[P].values, *optional)
    qz, qy = one["qz"].values, one["qy"].values
    masked = f"{percent(float(1 - valid.mean()))} masked"
    return gallery.add(
        key,
        images.image_fit(counts, one["rebuilt"].values.astype(float), qz, qy, sizes, interval, trusted),
        f"{name}: recorded image on a log scale ({masked}), the rebuilt one, and the size distribution. {upper(text)}.",
        f"{name}: {text}. Hatched: masked.",
    )


def allowed(found: Found, gallery: Gallery, seed: int) -> list[Section]:
    """Errors against counts and disorder beside the Cramer-Rao bound."""
    title = "How near to what the counts allow?"
    if not found:
        return [Section("limits", title, missing=EVALUATE)]
    pictures = []
    bound = found.get("bound") or {}
    for key, bins, least, xlabel, log in (
        ("counts", "counts", "counts", "counts of the sample in the image", True),
        ("disorder", "disorder_bins", "disorder_bins", "true disorder w/D", False),
    ):
        panels: dict[str, list[drawing.Line]] = {}
        for name in QUANTITIES:
            lines = _lines(found, name, bins) + _bound_line(bound.get(least) or [], name)
            if any(line.name for line in lines):
                panels[name] = lines
        if panels:
            words = _bound_words(panels, labels(found), models(found))
            dashed = "; dashed: the median error that counting noise and prior allow" if words else ""
            pictures.append(
                gallery.add(
                    key,
                    drawing.errors(panels, estimator_styles(found["estimators"]), labels(found), xlabel, log),
                    f"Median error of every estimator against {xlabel}, a panel per quantity, with the bound. {words}",
                    f"Median size of the error against {xlabel}{dashed}. Seed {seed}. {words}",
                )
            )
    if not pictures:
        return []
    if not bound.get("counts"):
        return [Section("limits", title, pictures=pictures)]
    number = f" (medians of {bound['n']:,} images)" if bound.get("n") else ""
    lead = (
        f"The Cram\u00e9r\N{EN DASH}Rao bound{number} takes the artefacts as known but for an even background: nobody "
        f"reaches it quite. It is drawn as the median error of normal errors, {_MEDIAN:.2f} of the standard deviation."
    )
    return [Section("limits", title, lead, pictures)]


def _place(entry: Found) -> float:
    return float(entry["total_counts"]) if "total_counts" in entry else (entry["low"] + entry["high"]) / 2


def _lines(found: Found, name: str, bins: str) -> list[drawing.Line]:
    """Median errors of all estimators by counts or by disorder."""
    lines = []
    for estimator, entry in found["estimators"].items():
        told = [each for each in entry.get(bins) or [] if (each.get(name) or {}).get("median_error") is not None]
        if told:
            lines.append(drawing.Line(estimator, [_place(e) for e in told], [e[name]["median_error"] for e in told]))
    return lines


def _bound_line(entries: Sequence[Found], name: str) -> list[drawing.Line]:
    told = [entry for entry in entries if entry.get(name) is not None]
    return [drawing.Line(None, [_place(e) for e in told], [_MEDIAN * e[name] for e in told])] if told else []


def _bound_words(panels: Mapping[str, Sequence[drawing.Line]], names: Mapping[str, str], trained: Sequence[str]) -> str:
    """How far the first model is from the bound, at the last place."""
    words = []
    for name, lines in panels.items():
        mine = next((line for line in lines if line.name in trained[:1]), None)
        least = next((line for line in lines if line.name is None), None)
        ratio = _ratios(mine, least) if mine and least else []
        if ratio:
            low, high = significant(min(ratio), 2), significant(max(ratio), 2)
            words.append(f"{drawing.SYMBOLS[name]} {low if low == high else f'{low} to {high}'}")
    return f"{upper(names[trained[0]])} over the bound: {joined(words)} times." if words else ""


def _ratios(mine: drawing.Line, least: drawing.Line) -> list[float]:
    bounds = dict(zip(least.x, least.y, strict=True))
    return [y / bounds[x] for x, y in zip(mine.x, mine.y, strict=True) if bounds.get(x, 0) > 0]


def calibration(found: Found, gallery: Gallery, seed: int) -> Section:
    """Coverage of all quantities, and what becomes of the intervals beyond the prior."""
    title = "Are the uncertainties right?"
    if not found:
        return Section("calibration", title, missing=EVALUATE)
    names, nominal = labels(found), found["interval"]
    shares = {
        estimator: by
        for estimator, entry in found["estimators"].items()
        if (by := {name: drawing.Share(*(part[key] for key in ("coverage", "coverage_low", "coverage_high")))
                   for name in QUANTITIES if (part := entry["test"].get(name)) and part.get("coverage") is not None})
    }  # fmt: skip
    pictures = []
    if shares:
        first = next((name for name in models(found) if name in shares), next(iter(shares)))
        words = joined([f"{drawing.SYMBOLS[name]} {percent(share.value)}" for name, share in shares[first].items()])
        pictures.append(
            gallery.add(
                "coverage",
                drawing.coverage(shares, estimator_styles(found["estimators"]), names, nominal),
                f"Share of truths in the {level(nominal)} intervals, by quantity and estimator. By {names[first]}: {words}.",
                f"Coverage with {level(CONFIDENCE)} binomial intervals; the line is what the "
                f"intervals promise. Left of it: they are too narrow. By {names[first]}: {words}. "
                f"{on_images(found, 'test')}, seed {seed}.",
            )
        )
    tables = [table] if (table := particletables.beyond(found, names)) is not None else []
    return Section("calibration", title, beyond_sentence(found), pictures, tables=tables)


def beyond_sentence(found: Found) -> str:
    """Whether intervals widen beyond the prior's disorder, and whether the verdict tells."""
    first = next(iter(models(found)), None)
    far = found["estimators"][first].get("beyond") if first is not None else None
    if not far:
        return ""
    assert first is not None
    parts = []
    wider = {name: value for name, value in (far.get("width_over_test") or {}).items() if value is not None}
    if wider:
        words = [f"{value:.2f} times as wide for {drawing.SYMBOLS.get(name, name)}" for name, value in wider.items()]
        parts.append(f"intervals are {', '.join(words)}")
    if far.get("outside") is not None:
        inside = found["estimators"][first]["test"].get("outside")
        parts.append(
            f"{percent(far['outside'])} of the images are called outside, {percent(inside)} of the test images"
        )
    return f"With more disorder than the prior knows: {'; '.join(parts)}." if parts else ""


def ablated(found: Found, without: Sequence[str]) -> list[Section]:
    """What training without artefacts costs; nothing where no model was trained so."""
    trained = models(found) if found else []
    bare = [name for name in trained if name in without]
    full = next((name for name in trained if name not in without), None)
    if not bare or full is None:
        return []
    words = [ablation_sentence(found, full, name) for name in bare]
    table = particletables.ablation(found, [full, *bare], labels(found))
    title = "What do artefacts in the training bring?"
    return [Section("ablation", title, " ".join(word for word in words if word), tables=[table])]


def ablation_sentence(found: Found, full: str, bare: str) -> str:
    """How much larger the errors are without artefacts in the training."""
    tests = [found["estimators"][name]["test"] for name in (bare, full)]
    ratios = {"p(R)": _ratio(tests, "wasserstein_nm", "median")}
    ratios |= {drawing.SYMBOLS[name]: _ratio(tests, name, "median_error") for name in QUANTITIES}
    words = [f"{significant(value, 2)} for {name}" for name, value in ratios.items() if value is not None]
    if not words:
        return ""
    held = [(test.get("distance_nm") or {}).get("coverage") for test in tests]
    covered = (
        f"; its {level(found['interval'])} intervals hold D in {percent(held[0])} of cases, not {percent(held[1])}"
        if None not in held
        else ""
    )
    return (
        f"{upper(labels(found)[bare])}, trained without artefacts, against {labels(found)[full]}, on the same images: "
        f"errors times {', '.join(words)}{covered}."
    )


def _ratio(tests: Sequence[Found], name: str, key: str) -> float | None:
    """A figure of the first over that of the second."""
    first, second = ((test.get(name) or {}).get(key) for test in tests)
    return first / second if first is not None and second else None


def value_words(entry: Found, name: str) -> str:
    """`spacing D 12.3 [11.9, 12.8] nm`."""
    text = particletables.interval(entry)
    unit = drawing.UNITS.get(name, "")
    return f"{drawing.SYMBOLS.get(name, name)} {text}{f' {unit}' if unit and text != NONE else ''}"
