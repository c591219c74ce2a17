"""The section on real frames: may the model be trusted on them?"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.report.figures import detector, overview
from scatterflow.report.gallery import Gallery, Picture, Section
from scatterflow.report.metrics import FrameVerdict
from scatterflow.report.numbers import NONE, percent, significant
from scatterflow.report.observation import profile_picture, view_axes
from scatterflow.report.products import Products
from scatterflow.report.tables import Table

_SHOWN = 6  # frames with figures; the table names all
MEANING = {
    "ok": "in the range of the simulations: the posterior may be used",
    "outside": "unlike every simulation: a posterior would mean nothing",
    "unreadable": "the file could not be read",
    "masked-out": "too few valid pixels where the model looks",
    "wrong-instrument": "the frame does not fit its own instrument file",
    "missing": "the file is not there: `make data`",
}


def section(products: Products, gallery: Gallery) -> Section:
    """Verdicts, scores beside those of in-range simulations, thumbnails and profiles of the real frames."""
    title = "Real frames: may the model be trusted on them?"
    wanted = products.study.config.inference.frames
    if not products.frames:
        lost = "No real frames were inferred: fetch them with `make data`, then run `snakemake -R infer_posterior`."
        none = "This study names no real frames (inference.frames of the configuration)."
        return Section("frames", title, missing=lost if wanted else none)
    frames = products.frames
    pictures = [_scores(products, frames, gallery)]
    for index, frame in enumerate(frames[:_SHOWN]):
        arrays = products.frame_arrays.get(str(index))
        if arrays is not None:
            pictures += [_thumbnail(arrays, frame, index, gallery), _profile(products, arrays, frame, index, gallery)]
    counts = {status: sum(frame.status == status for frame in frames) for status in MEANING}
    lead = "; ".join(f"{n} of {len(frames)} {status}: {MEANING[status]}" for status, n in counts.items() if n) + "."
    sources = [frame_set.source for frame_set in wanted if frame_set.source]
    lead += f" Source: {'; '.join(sources)}." if sources else ""
    return Section("frames", title, lead, [p for p in pictures if p], tables=[_table(frames)])


def _table(frames: list[FrameVerdict]) -> Table:
    names = list(dict.fromkeys(name for frame in frames for name in frame.scores))
    heads = ["frame", "set", "verdict", *(f"{name} score (threshold)" for name in names), "why"]
    rows = []
    for frame in frames:
        scores = [frame.scores.get(name) for name in names]
        cells = [f"{significant(s.value)} ({significant(s.threshold)})" if s else NONE for s in scores]
        rows.append([frame.file, frame.set, frame.status, *cells, frame.why])
    return Table("Verdict per frame", heads, rows)


def _scores(products: Products, frames: list[FrameVerdict], gallery: Gallery) -> Picture | None:
    names = list(dict.fromkeys(name for frame in frames for name in frame.scores))
    rows, words = [], []
    known = products.metrics.out_of_range.scores if products.metrics.out_of_range else {}
    for name in names:
        scores = [frame.scores[name] for frame in frames if name in frame.scores]
        values = [score.value for score in scores if score.value is not None]
        reference = known.get(name, scores[0])
        quantiles = scores[0].in_range_quantiles or reference.in_range_quantiles
        threshold = scores[0].threshold or reference.threshold
        rows.append(overview.ScoreRow(name, values, quantiles, threshold))
        if values and threshold:
            ends = dict.fromkeys([significant(min(values) / threshold), significant(max(values) / threshold)])
            words.append(f"{name} score {' to '.join(ends)} times the threshold")
    if not any(row.values for row in rows):
        return None
    alarm = products.metrics.out_of_range.false_alarm if products.metrics.out_of_range else None
    rate = ""
    if alarm and alarm.rate is not None:
        rate = f" False alarms on {alarm.n or 'the'} in-range simulations: {percent(alarm.rate)}"
        rate += f" ({percent(alarm.low)} to {percent(alarm.high)})." if alarm.low is not None else "."
    text = "; ".join(words)
    return gallery.add(
        "frames-scores",
        overview.frame_scores(rows),
        f"Scores of {len(frames)} real frames in units of the threshold, beside in-range simulations. {text}.",
        f"Real frames (n = {len(frames)}): {text}. Right of the dashed line: outside.{rate}",
    )


def _thumbnail(arrays: xr.Dataset, frame: FrameVerdict, index: int, gallery: Gallery) -> Picture | None:
    if not {"counts", "qz", "qy"} <= set(arrays.variables):
        return None
    counts = arrays["counts"].values.astype(float)
    valid = np.isfinite(counts)
    if not valid.any():
        return None
    arrays = arrays.isel(z=_span(valid.any(axis=1)), y=_span(valid.any(axis=0)))
    counts = arrays["counts"].values.astype(float)
    lines = {
        name: float(arrays.attrs[f"{name}_qz"]) for name in ("horizon", "specular") if f"{name}_qz" in arrays.attrs
    }
    figure = detector.detector_image(counts, arrays["qz"].values, arrays["qy"].values, lines, unit="counts per pixel")
    masked = float(np.isnan(counts).mean())
    return gallery.add(
        f"frame-{index}-image",
        figure,
        f"Detector frame {frame.file} against q y and q z on a logarithmic colour scale, {percent(masked)} masked.",
        f"{frame.file}: {frame.status}. {counts.shape[0]} by {counts.shape[1]} bins; hatched: masked.",
        png=True,
    )


def _span(used: NDArray[np.bool_]) -> slice:
    """From the first to the last used row or column."""
    places = np.flatnonzero(used)
    return slice(int(places[0]), int(places[-1]) + 1)


def _profile(
    products: Products, arrays: xr.Dataset, frame: FrameVerdict, index: int, gallery: Gallery
) -> Picture | None:
    qz = (
        arrays["qz_profile"].values
        if "qz_profile" in arrays.variables
        else view_axes(products.study.config.instrument, "profile")[0]
    )
    source = f". Verdict: {frame.status}; {frame.why}" if frame.why else f". Verdict: {frame.status}"
    return profile_picture(qz, arrays, f"frame-{index}", frame.file, gallery, source)
