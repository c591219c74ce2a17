"""Maps of a scan, frames behind their points, errors against the Cramer-Rao bound, agreement, goodness of fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from scatterflow.report.figures.detector import hatch_background
from scatterflow.report.figures.posterior import axis_label, power
from scatterflow.report.numbers import minus
from scatterflow.report.style import GRID, INK, MUTED, PAPER, WIDTH, Style, blank, legend_above, styled

Array = NDArray[np.float64]
SYMBOLS = {
    "strain": "strain ε",
    "omega_deg": "tilt ω",
    "chi_deg": "tilt χ",
    "film_thickness_nm": "film thickness",
}
_SIGNED = ("strain", "omega_deg", "chi_deg")  # their zero means something
_ROBUST = 0.98  # of the absolute values lie within a colour scale
DIVERGING = "PuOr"
ON_IMAGE, INK_ON_IMAGE = "#fefefe", "#1f2329"  # as light and dark on dark paper: so is the image below
_SCATTERED = 400  # points drawn per pair of estimators
_APART = 0.13  # of the height of a map: numbers of points do not overlap then


SHORT = FuncFormatter(lambda value, _: minus(f"{value:g}"))  # 0 and not 0.00: labels of small panels must not touch


class Extent(NamedTuple):
    """Where a map lies: left, right, bottom, top in `unit` (an edge of a point, not its centre)."""

    left: float
    right: float
    bottom: float
    top: float
    unit: str  # um, or empty for numbers of rows and columns


class MapRow(NamedTuple):
    """Maps (row, column) of one estimator, or the truth: values, their error where it is known, the stated error."""

    label: str
    values: Array
    error: Array | None
    sd: Array | None


def _tall(extent: Extent, highest: float) -> float:
    """Height of a map over its width, within bounds: positions may run either way."""
    return float(np.clip(abs((extent.top - extent.bottom) / (extent.right - extent.left)), 0.25, highest))


def plain(text: str) -> str:
    """Text from outside, so that no sign in it starts a formula."""
    return text.replace("$", r"\$")


def symbol(parameter: str) -> str:
    """Readable name of a parameter."""
    return SYMBOLS.get(parameter, parameter)


def span(values: Array) -> float:
    """Robust largest size of the finite values; 1 where there are none or all are 0."""
    sizes = np.abs(values[np.isfinite(values)])
    return float(np.quantile(sizes, _ROBUST)) or 1.0 if sizes.size else 1.0


def _median_span(parts: Sequence[Array]) -> float:
    """Median of the sizes of what varies from zero at all; 1 where nothing does."""
    sizes = [span(part) for part in parts if (np.abs(part[np.isfinite(part)]) > 0).any()]
    return float(np.median(sizes)) if sizes else 1.0


def _image(axes: Axes, values: Array, extent: Extent, **style: Any) -> AxesImage:
    hatch_background(axes)
    drawn = axes.imshow(
        np.ma.masked_invalid(values), origin="lower", extent=extent[:4], interpolation="none", aspect="equal", **style
    )
    axes.locator_params(nbins=4, steps=[1, 2, 5, 10])
    return drawn


def _name_axes(axes: Axes, extent: Extent) -> None:
    axes.set(
        xlabel=f"x / {extent.unit}" if extent.unit else "column", ylabel=f"y / {extent.unit}" if extent.unit else "row"
    )


def _bar(figure: Figure, drawn: AxesImage, axes: Sequence[Axes], label: str, limits: tuple[float, float]) -> None:
    """One colour bar below its panels, with arrows where values leave the scale."""
    shown: list[Array] = [np.ma.compressed(np.ma.asarray(part.images[0].get_array())) for part in axes if part.images]
    values = np.concatenate(shown) if shown else np.zeros(0)
    below, above = bool((values < limits[0]).any()), bool((values > limits[1]).any())
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    bar = figure.colorbar(drawn, ax=list(axes), location="bottom", aspect=12, pad=0.01, shrink=0.92, extend=extend)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.locator_params(nbins=4)
    bar.ax.xaxis.set_major_formatter(SHORT)


@styled
def parameter_maps(
    parameter: str, unit: str, rows: Sequence[MapRow], extent: Extent, bound: bool, use: NDArray[np.bool_]
) -> Figure:
    """Values, errors (if any is known) and stated errors of one parameter, a row per estimator, a scale per column.

    The scale is that of the first row where it is the truth (`bound`: its third map is the Cramer-Rao bound), else the
    median of the rows' own, over the points `use` (row, column): an estimator that is lost cannot flatten the others. A line
    surrounds these points.
    """
    residuals = any(row.error is not None for row in rows)
    columns = 3 if residuals else 2
    panel = (WIDTH - 0.6) / columns * _tall(extent, 2.5)
    figure = blank(height=len(rows) * (panel + 0.24) + 1.15)
    grid = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    limit = span(rows[0].values) * 1.1 if bound else _median_span([row.values[use] for row in rows])
    scales: list[tuple[str, dict[str, Any]]] = []
    if parameter in _SIGNED:
        scales.append((symbol(parameter), {"vmin": -limit, "vmax": limit, "cmap": DIVERGING}))
    else:
        # a lost estimator must not set this scale either
        reference = rows[0].values if bound else np.median([row.values[use] for row in rows], axis=0)
        finite = reference[np.isfinite(reference)]
        low, high = np.quantile(finite, [0.01, 0.99]) if finite.size else (0.0, 1.0)
        margin = 0.1 * float(high - low) or 1.0
        scales.append((symbol(parameter), {"vmin": float(low) - margin, "vmax": float(high) + margin}))
    if residuals:
        typical = _median_span([row.error for row in rows if row.error is not None])
        scales.append(("error", {"vmin": -typical, "vmax": typical, "cmap": DIVERGING}))
    stated = _median_span([row.sd if bound else row.sd[use] for row in rows if row.sd is not None])
    scales.append(("stated sd", {"vmin": 0.0, "vmax": 1.15 * stated}))
    for column, (what, scale) in enumerate(scales):
        exponent = power(scale["vmin"], scale["vmax"])
        size = 10.0**exponent
        scale |= {key: scale[key] / size for key in ("vmin", "vmax")}
        drawn = None
        for axes, row in zip(grid[:, column], rows, strict=True):
            values = (row.values, row.error, row.sd)[column if residuals or not column else 2]
            if values is None:
                axes.set(aspect="equal", xlim=extent[:2], ylim=extent[2:4])
                axes.grid(False)
                axes.tick_params(length=0)
                for side in axes.spines.values():
                    side.set_visible(False)
                words = "none stated" if column == columns - 1 else ""
                axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", fontsize=8, color=MUTED)
                continue
            drawn = _image(axes, values / size, extent, **scale)
            if not use.all() and min(use.shape) > 1:
                axes.contour(use.astype(float), [0.5], extent=extent[:4], colors=INK, linewidths=0.9)
        if drawn is not None:
            label = axis_label(what, unit, exponent)
            _bar(figure, drawn, list(grid[:, column]), label, (scale["vmin"], scale["vmax"]))
    for line, row in zip(grid, rows, strict=True):
        line[0].set_title(plain(row.label), loc="left", fontsize=8.5, pad=3)
        line[0].set_ylabel(f"y / {extent.unit}" if extent.unit else "row")
    if bound:
        grid[0, -1].set_title("Cramér\N{EN DASH}Rao bound", loc="right", fontsize=8.5, pad=3)
    for axes in grid[-1]:
        axes.set_xlabel(f"x / {extent.unit}" if extent.unit else "column")
    return figure


def apart(points: Array, least: float) -> Array:
    """Points (point, 2) moved away from each other until they are at least `least` apart, or nearly so."""
    moved = points.copy()
    for _ in range(100):
        between = moved[:, None] - moved
        distance = np.hypot(between[..., 0], between[..., 1])
        np.fill_diagonal(distance, np.inf)
        lack = np.clip(least - distance, 0, None)
        if not lack.any():
            break
        angle = np.arange(len(points))  # those at one place part in different directions
        aside = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * 1e-3 * least
        moved = moved + (between / np.maximum(distance, 1e-9 * least)[..., None] * lack[..., None]).sum(1) / 2
        moved[(distance == 0).any(1)] += aside[(distance == 0).any(1)]
    return moved


@styled
def marked_map(values: Array, label: str, extent: Extent, points: Sequence[tuple[float, float]]) -> Figure:
    """A map (row, column) with numbered points (x, y); numbers of neighbours move apart."""
    figure = blank(height=2.9)
    axes = figure.add_subplot()
    drawn = _image(axes, values, extent, vmin=0.0)
    where = apart(np.array(points, dtype=float).reshape(-1, 2), _APART * abs(extent.top - extent.bottom))
    for number, ((x, y), (at_x, at_y)) in enumerate(zip(points, where, strict=True), start=1):
        axes.plot([x, at_x], [y, at_y], color=PAPER, linewidth=1.2, clip_on=False)
        axes.plot(
            x, y, "o", markersize=3.5, markerfacecolor=PAPER, markeredgecolor=INK, markeredgewidth=0.8, clip_on=False
        )
        axes.plot(
            at_x,
            at_y,
            "o",
            markersize=13,
            markerfacecolor=PAPER,
            markeredgecolor=INK,
            markeredgewidth=1.0,
            clip_on=False,
        )
        axes.annotate(str(number), (at_x, at_y), ha="center", va="center", fontsize=8.5, color=INK, fontweight="bold")
    _name_axes(axes, extent)
    bar = figure.colorbar(drawn, ax=axes, aspect=24, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return figure


@styled
def frame_fit(frame: Array, rebuilt: Array) -> Figure:
    """A frame (z, y) of counts, the expected counts of its estimate, and the difference in standard deviations.

    The standard deviation is the square root of the expected counts, of one count at least.
    """
    figure = blank(height=2.35)
    residual = (frame - rebuilt) / np.sqrt(np.maximum(rebuilt, 1.0))
    finite = frame[np.isfinite(frame)]
    high = max(float(finite.max()) if finite.size else 1.0, span(rebuilt), 1e-9)
    off = max(3.0, span(residual))
    extent = Extent(-0.5, frame.shape[1] - 0.5, -0.5, frame.shape[0] - 0.5, "")
    panels: tuple[tuple[str, Array, dict[str, Any]], ...] = (
        ("frame", frame, {"vmin": 0.0, "vmax": high}),
        ("reconstruction", rebuilt, {"vmin": 0.0, "vmax": high}),
        ("difference", residual, {"vmin": -off, "vmax": off, "cmap": DIVERGING}),
    )
    all_axes = figure.subplots(1, 3, sharey=True)
    drawn = [_image(axes, values, extent, **style) for axes, (_, values, style) in zip(all_axes, panels, strict=True)]
    for axes, (name, _, _) in zip(all_axes, panels, strict=True):
        axes.set_title(name, color=INK)
        axes.set_xlabel("y / pixel")
    all_axes[0].set_ylabel("z / pixel")
    for image, group, label, aspect in (
        (drawn[0], all_axes[:2], "counts", 24),
        (drawn[2], all_axes[2:], "standard deviations", 12),
    ):
        bar = figure.colorbar(image, ax=list(group), location="bottom", aspect=aspect, pad=0.02)
        bar.set_label(label)
        bar.outline.set_visible(False)
    return figure


class Score(NamedTuple):
    """One estimator at one parameter: error over the bound, with its standard error, and coverage with its interval."""

    ratio: float | None
    ratio_se: float
    bias: float | None  # size of the mean error over the bound
    coverage: tuple[float, float, float] | None


@styled
def against_bound(
    parameters: Sequence[str],
    scores: Mapping[str, Mapping[str, Score]],
    styles: Mapping[str, Style],
    published: Mapping[str, Mapping[str, float]],
    level: float,
) -> Figure:
    """Standard deviation of the error over the Cramer-Rao bound, and coverage of intervals, per estimator and parameter.

    `scores` is {estimator: {parameter: score}}; `published` {estimator: {parameter: ratio}} stands hollow among them.
    """
    lines = [*scores, *published]
    step = 0.8 / max(len(lines), 1)
    figure = blank(height=0.75 + 0.17 * len(lines) + len(parameters) * (0.16 * len(lines) + 0.2))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    left.axvline(1, color=INK, linewidth=1.1)
    right.axvspan(100 * level - 3, 100 * level + 3, color=GRID, linewidth=0)
    right.axvline(100 * level, color=MUTED, linewidth=0.8)
    for number, name in enumerate(lines):
        color, _, marker = styles[name] if name in scores else (MUTED, "-", "*hpX"[number % 4])
        for place, parameter in enumerate(parameters):
            y = len(parameters) - 1 - place + 0.4 - step * (number + 0.5)
            if name in published:
                if parameter in published[name]:
                    left.plot(published[name][parameter], y, marker, color=MUTED, markerfacecolor="none", markersize=7)
                continue
            score = scores[name].get(parameter)
            if score is None:
                continue
            if score.ratio is not None:
                left.errorbar(score.ratio, y, xerr=2 * score.ratio_se, color=color, linewidth=1.2)
                left.plot(score.ratio, y, marker, color=color, markersize=5.5)
            if score.bias is not None:
                left.plot(score.bias, y, "|", color=color, markersize=7, markeredgewidth=1.3)
            if score.coverage is not None:
                share, low, high = (100 * value for value in score.coverage)
                right.plot([low, high], [y, y], color=color, linewidth=1.2)
                right.plot(share, y, marker, color=color, markersize=5.5)
        label = plain(name)
        face = {"markerfacecolor": "none"} if name in published else {}
        left.plot([], [], marker, color=color, markersize=5.5, label=label, **face)
    edges = np.arange(1, len(parameters)) - 0.5
    for axes in (left, right):
        axes.hlines(edges, 0, 1, transform=axes.get_yaxis_transform(), color=GRID, linewidth=0.8)
        axes.grid(axis="y", visible=False)
    values = [s.ratio for by in scores.values() for s in by.values() if s.ratio] + [1.0]
    values += [value for by in published.values() for value in by.values()]
    left.set(xscale="log", xlim=(0.02, 2.0 * max(values)), xlabel="error / Cramér\N{EN DASH}Rao bound")
    marks = [0.1, 1, *([10] if max(values) > 5 else [2, 5]), *([100] if max(values) > 50 else [])]
    left.xaxis.set_major_locator(FixedLocator(marks))
    left.xaxis.set_minor_locator(NullLocator())
    left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    left.set_ylim(-0.5, len(parameters) - 0.5)
    left.set_yticks(range(len(parameters)), [symbol(name) for name in reversed(parameters)], rotation=90, va="center")
    left.tick_params(axis="y", length=0)
    right.tick_params(axis="y", length=0)
    right.set(xlim=(0, 102), xlabel=f"{100 * level:g} % intervals hold / %")
    right.set_xticks([0, 50, 100 * level, 100], ["0", "50", f"{100 * level:g}", "100"])
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=1, borderpad=0, borderaxespad=0.2, labelspacing=0.25)
    return figure


@styled
def scatter(
    parameter: str, unit: str, reference: tuple[str, Array], others: Mapping[str, Array], styles: Mapping[str, Style],
    words: Mapping[str, str],
) -> Figure:  # fmt: skip
    """Other estimators (point,) against the reference (point,), of the same points; `words` stand beside their names.

    Limits are those of the reference, widened: points of an estimator that is lost leave the frame.
    """
    figure = blank(height=3.0 + 0.17 * len(others))
    axes = figure.add_subplot()
    name, values = reference
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.005, 0.995]) if finite.size else (-1.0, 1.0)
    margin = 0.25 * float(high - low) or 1.0
    low, high = float(low) - margin, float(high) + margin
    exponent = power(low, high)
    size = 10.0**exponent
    axes.plot([low / size, high / size], [low / size, high / size], color=MUTED, linewidth=0.8)
    for other, theirs in others.items():
        color, _, marker = styles[other]
        both = np.flatnonzero(np.isfinite(values) & np.isfinite(theirs))
        some = both[:: max(1, len(both) // _SCATTERED)]
        axes.plot(values[some] / size, theirs[some] / size, marker, color=color, markersize=2.2, markeredgewidth=0,
                  alpha=0.7)  # fmt: skip
        axes.plot([], [], marker, color=color, markersize=5, label=plain(f"{other}{words[other]}"))
    axes.set(xlim=(low / size, high / size), ylim=(low / size, high / size))
    axes.set(xlabel=f"{axis_label(symbol(parameter), unit, exponent)}, {plain(name)}",
             ylabel=axis_label(symbol(parameter), unit, exponent))  # fmt: skip
    legend_above(axes, columns=1)
    return figure


@styled
def goodness(values: Array, extent: Extent, threshold: float | None, label: str) -> Figure:
    """Deviance over what counting noise explains as a map (row, column) and, with the threshold, as a histogram below it."""
    tall = _tall(extent, 1.5)
    figure = blank(height=3.0 * tall + 2.3)
    upper, lower = figure.subplots(2, 1, height_ratios=[3.0 * tall, 1.0])
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.01, 0.99]) if finite.size else (0.0, 1.0)
    low = min(float(low), 0.97 * threshold) if threshold is not None else float(low)
    high = max(float(high), 1.2 * threshold if threshold is not None else 0.0, float(low) + 1e-9)
    drawn = _image(upper, values, extent, vmin=float(low), vmax=high)
    _name_axes(upper, extent)
    upper.set_title(plain(label), loc="left", fontsize=8.5)
    bar = figure.colorbar(drawn, ax=upper, aspect=24, pad=0.02)
    bar.set_label("deviance / expected")
    bar.outline.set_visible(False)
    counts, places = np.histogram(np.clip(finite, low, high), np.linspace(float(low), high, 50))
    lower.stairs(counts, places, fill=True, color=MUTED)
    if threshold is not None:
        bar.ax.axhline(threshold, color=INK, linewidth=1.4)
        lower.axvline(threshold, color=INK, linestyle="--", linewidth=1.1)
        lower.annotate(
            "threshold", (threshold, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
            textcoords="offset points", va="top", fontsize=8,
        )  # fmt: skip
    lower.set(xlabel="deviance / expected", ylabel="points", xlim=(float(low), high))
    return figure
