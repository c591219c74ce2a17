"""The section on measured frames of particles: verdict, rebuilt image, cuts, p(R), and values along the series."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import xarray as xr

from scatterflow import misfit
from scatterflow.frames import file_name
from scatterflow.particles import QUANTITIES
from scatterflow.report import particletables
from scatterflow.report.figures import particleimages as drawing
from scatterflow.report.gallery import Gallery, Picture, Section
from scatterflow.report.mapwords import joined, upper
from scatterflow.report.numbers import NONE, significant
from scatterflow.report.particlesections import image_picture, value_words
from scatterflow.report.realframes import MEANING

Found = Mapping[str, Any]
_SHOWN = 6  # frames with images, and named in the headline; the table names all
_BESIDE = 3  # figures that a wide page shows beside each other
_SERIES = QUANTITIES[:3]


def sections(
    summaries: Sequence[Found], arrays: Mapping[str, xr.Dataset], wanted: bool, interval: float, gallery: Gallery
) -> list[Section]:
    """All real frames: what the model says of them, whether it may be believed, and the images of some."""
    title = "Real frames: what does it say, and may it be believed?"
    if not summaries:
        lost = "No real frames were inferred: fetch them with `make data`, then run `snakemake -R infer_posterior`."
        none = "This study names no real frames (inference.frames of the configuration)."
        return [Section("frames", title, missing=lost if wanted else none)]
    counts = {status: sum(entry["status"] == status for entry in summaries) for status in MEANING}
    lead = "; ".join(f"{n} of {len(summaries)} {status}: {MEANING[status]}" for status, n in counts.items() if n) + "."
    sources = dict.fromkeys(str(entry["source"]) for entry in summaries if entry.get("source"))
    lead += f" Source: {'; '.join(sources)}." if sources else ""
    names = called(summaries)
    along = [picture] if (picture := _series(summaries, gallery)) is not None else []
    found = [Section("frames", title, lead, along, tables=particletables.frames(summaries, names))]
    shown = [
        (number, upper(names[number]), entry, arrays[str(number)])
        for number, entry in enumerate(summaries)
        if str(number) in arrays
    ][:_SHOWN]
    pictures: list[Picture] = []
    for start in range(0, len(shown), _BESIDE):  # cuts come to lie below their images
        some = shown[start : start + _BESIDE]
        pictures += [_image(*each, interval, gallery) for each in some]
        pictures += [picture for each in some if (picture := _cuts(*each, gallery)) is not None]
    if pictures:
        lead = (
            "Rebuilt: mean of the images of posterior samples, each with the scale and the even background that fit best; "
            "the band of the cuts is that of the samples."
        )
        if any(entry.get("despite_misfit") for _, _, entry, _ in shown):
            lead += (
                " Where the predictive check fails, the answer comes from what the model does explain: each row has a scale "
                "of its own, tails of the direct and of the specular beam and scattering of rough interfaces are added, and "
                f"every bin may be off by {misfit.SHARE:.0%} of the brightest ones. The rebuilt image is that of the best "
                "answer, with all of this. Errors are then those of a wrong model: how firmly the frame holds the answer, "
                "not whether it is true."
            )
        found.append(Section("frames-rebuilt", "Real frames beside what is rebuilt from the answers", lead, pictures))
    return found


def sentence(summaries: Sequence[Found]) -> str:
    """What the verdict of a study says of its real frames."""
    answered = [
        (name, entry) for name, entry in zip(called(summaries), summaries, strict=True) if entry.get("estimates")
    ]
    if not answered:
        return ""
    good = [f"{name}: {_values(entry, _SERIES[:1])}" for name, entry in answered if entry["status"] == "ok"]
    words = f"{len(good)} of {len(answered)} real frames lie in the range of the simulations"
    words += f" ({joined(good[:_SHOWN])})" if good else ""
    outside = len(answered) - len(good)
    some = f"{outside} {'lies' if outside == 1 else 'lie'} outside: "
    if all(entry.get("despite_misfit") for _, entry in answered if entry["status"] != "ok"):
        some += "answered as far as the model explains them, and no interval there counts what it lacks"
    else:
        some += "numbers inferred there mean nothing"
    end = some if outside else "none lies outside"
    return f"{words}; {end}."


def numbers(summaries: Sequence[Found]) -> list[float] | None:
    """Numbers of the frames in their series, the last ones in their names; None where these do not tell them apart."""
    digits = [re.findall(r"\d+", _stem(str(entry["file"]))) for entry in summaries]
    if not all(digits):
        return None
    found = [float(each[-1][-9:]) for each in digits]
    apart = {(entry["set"], number) for entry, number in zip(summaries, found, strict=True)}
    return found if len(apart) == len(found) else None


def _stem(file: str) -> str:
    return (
        file if file.endswith("]") else PurePath(file_name(file)).stem
    )  # a frame of a stack has its number in brackets


def called(summaries: Sequence[Found]) -> list[str]:
    """Short names of the frames, for captions: `frame 5 (p03)`."""
    known = numbers(summaries)
    if known is None:
        return [f"{entry['file']} ({entry['set']})" for entry in summaries]
    return [f"frame {number:g} ({entry['set']})" for number, entry in zip(known, summaries, strict=True)]


def _series(summaries: Sequence[Found], gallery: Gallery) -> Picture | None:
    """Values with intervals along the frames; none for a single frame."""
    known = numbers(summaries)
    what = "frame, in order" if known is None else "number of the frame"
    places = [number + 1.0 for number in range(len(summaries))] if known is None else known
    panels: dict[str, dict[str, list[drawing.Point]]] = {}
    for name in _SERIES:
        by: dict[str, list[drawing.Point]] = {}
        for at, entry in zip(places, summaries, strict=True):
            told = (entry.get("estimates") or {}).get(name)
            if told:
                point = drawing.Point(at, told["value"], told["low"], told["high"], entry["status"] == "ok")
                by.setdefault(str(entry["set"]), []).append(point)
        if sum(map(len, by.values())) > 1:
            panels[name] = by
    if not panels:
        return None
    told = [
        f"{name}, {entry['status']}, {_values(entry, _SERIES[:1])}"
        for name, entry in zip(called(summaries), summaries, strict=True)
        if entry.get("estimates")
    ]
    return gallery.add(
        "frames-series",
        drawing.series(panels, what),
        f"Spacing, disorder and mean radius with their intervals against the {what}. {upper(joined(told))}.",
        f"Values with their intervals along the series. {upper(joined(told))}.",
    )


def _values(entry: Found, names: Sequence[str]) -> str:
    told = entry.get("estimates") or {}
    return ", ".join(value_words(told[name], name) for name in names if name in told)


def _image(number: int, name: str, entry: Found, one: xr.Dataset, interval: float, gallery: Gallery) -> Picture:
    """Image, rebuilt image and p(R) of a frame."""
    trusted, words = entry["status"] == "ok", _values(entry, QUANTITIES)
    text = f"in range; {words}" if trusted else f"{entry['status']}: its answer is not to be trusted ({words})"
    return image_picture(f"frame-{number}", name, one, interval, trusted, text, gallery)


def _cuts(number: int, name: str, entry: Found, one: xr.Dataset, gallery: Gallery) -> Picture | None:
    """Both cuts of a frame; none where nothing of it is valid."""
    both = (("y", "in-plane cut"), ("z", "out-of-plane cut"))
    parts = [part for axis, title in both if (part := _cut(one, axis, title)) is not None]
    if not parts:
        return None
    peak = entry.get("peak") or {}
    places = " and ".join(particletables.pixels(peak.get(f"peak_px_{what}")) for what in ("measured", "rebuilt"))
    band = float(one["quantile"].values[-1] - one["quantile"].values[0])
    off = joined([f"{part.name} {_off(part)}" for part in parts])
    return gallery.add(
        f"frame-{number}-cuts",
        drawing.cuts(parts, band, entry["status"] == "ok"),
        f"{name}: in-plane and out-of-plane cut with the predictive band and residuals. Median deviation: {off}.",
        f"{name}: means over the valid bins. Below: deviation from the rebuilt image, grey: twice the counting noise; "
        f"median {off}. Correlation peak in the brightest rows, measured and rebuilt: {places} px.",
    )


def _off(part: drawing.Cut) -> str:
    off = np.abs(part.counts / part.middle - 1)
    off = off[np.isfinite(off)]
    return f"{significant(100 * float(np.median(off)), 2)} %" if off.size else NONE


def _cut(one: xr.Dataset, axis: str, title: str) -> drawing.Cut | None:
    name = title.removesuffix(" cut").replace("-", "_")  # as `particleframes` names it
    number = one["valid"].values.sum(axis=0 if axis == "y" else 1)
    seen = number > 0
    low, middle, high = (np.where(seen & (row > 0), row, np.nan) for row in one[f"{name}_rebuilt"].values.astype(float))
    counts = np.where(seen, one[f"{name}_recorded"].values.astype(float), np.nan)
    if not np.isfinite(counts * middle).any():
        return None
    noise = 1 / np.sqrt(np.maximum(middle * number, 1e-9))
    return drawing.Cut(
        title, axis, one[f"q{axis}"].values.astype(float), counts, low, middle, high, np.where(seen, noise, np.nan)
    )
