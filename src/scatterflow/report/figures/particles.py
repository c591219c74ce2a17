"""Estimates of particles against the truth, errors against counts and disorder, coverage of the intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from scatterflow.report.figures.maps import SHORT, plain
from scatterflow.report.style import GRID, INK, MUTED, Style, blank, styled

Array = NDArray[np.float64]
SYMBOLS = {
    "distance_nm": "spacing D",
    "disorder": "disorder w/D",
    "mean_radius_nm": "mean radius",
    "width_nm": "width of p(R)",
}
UNITS = {"distance_nm": "nm", "disorder": "", "mean_radius_nm": "nm", "width_nm": "nm"}
_DRAWN = 150  # images shown of an estimator
_BARS = 30  # of them with their interval
_MARGIN = 0.08  # of the range of the truth, on either side


def quantity(name: str, what: str = "") -> str:
    """`error of spacing D / nm`: the name of a quantity with its unit."""
    unit = UNITS.get(name, "")
    return f"{what}{SYMBOLS.get(name, name)}{f' / {unit}' if unit else ''}"


class Answers(NamedTuple):
    """Estimates (image,) of one estimator, the truth, and the ends of the intervals where it states them."""

    values: Array
    truth: Array
    low: Array | None = None
    high: Array | None = None


class Line(NamedTuple):
    """Errors of one estimator (point,) at the places `x`; None as name stands for the Cramer-Rao bound."""

    name: str | None
    x: Sequence[float]
    y: Sequence[float]


class Share(NamedTuple):
    """Coverage with its binomial interval."""

    value: float
    low: float
    high: float


def limits(truth: Array) -> tuple[float, float]:
    """Where both axes begin and end: a little beyond the truth."""
    finite = truth[np.isfinite(truth)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = _MARGIN * (high - low) or 1.0
    return low - margin, high + margin


def spread(values: Array, number: int) -> NDArray[np.intp]:
    """`number` of the places of finite values at most, evenly taken."""
    places = np.flatnonzero(np.isfinite(values))
    return places[np.linspace(0, len(places) - 1, min(number, len(places))).astype(np.intp)]


def _grid(number: int, height: float) -> tuple[Figure, list[Axes]]:
    """Two panels beside each other, in as many lines as needed."""
    lines = -(-number // 2)
    figure = blank(height=0.5 + height * lines)
    axes = list(figure.subplots(lines, 2, squeeze=False).flat)
    for unused in axes[number:]:
        unused.set_visible(False)
    return figure, axes[:number]


def _legend(figure: Figure, handles: Mapping[str, tuple[Artist, str]]) -> None:
    figure.legend(
        [handle for handle, _ in handles.values()], [label for _, label in handles.values()],
        loc="outside upper left", ncols=1, borderpad=0, borderaxespad=0.2, labelspacing=0.25,
    )  # fmt: skip


@styled
def against_truth(
    panels: Mapping[str, Mapping[str, Answers]], styles: Mapping[str, Style], labels: Mapping[str, str]
) -> Figure:
    """Estimate against truth, a panel per quantity {quantity: {estimator: answers}}; bars: intervals of some images.

    Limits are those of the truth: what is lost leaves the frame. The first estimator lies on top.
    """
    figure, all_axes = _grid(len(panels), 2.05)
    handles: dict[str, tuple[Artist, str]] = {}
    for axes, (name, answers) in zip(all_axes, panels.items(), strict=True):
        low, high = limits(next(iter(answers.values())).truth)
        axes.plot([low, high], [low, high], color=MUTED, linewidth=0.8)
        for order, (estimator, one) in enumerate(answers.items()):
            color, _, marker = styles[estimator]
            some = spread(one.values, _DRAWN)
            face = color if order == 0 else "none"
            drawn = axes.plot(
                one.truth[some], one.values[some], marker, color=color, markerfacecolor=face, markersize=2.4 + 0.5 * order,
                markeredgewidth=0.7 if order else 0, linestyle="", zorder=3 - 0.1 * order,
            )  # fmt: skip
            handles.setdefault(estimator, (drawn[0], plain(labels[estimator])))
            if order == 0 and one.low is not None and one.high is not None:
                bars = spread(one.values, _BARS)
                start, end = np.clip(one.low[bars], low, high), np.clip(one.high[bars], low, high)
                axes.vlines(one.truth[bars], start, end, color=color, linewidth=0.8, alpha=0.8)
        axes.set(xlim=(low, high), ylim=(low, high))
        axes.set_title(quantity(name), loc="left", fontsize=8.5)
        axes.locator_params(nbins=4)
        axes.xaxis.set_major_formatter(SHORT)
        axes.yaxis.set_major_formatter(SHORT)
    for place, axes in enumerate(all_axes):
        if place % 2 == 0:
            axes.set_ylabel("estimate")
        if place >= len(all_axes) - 2:
            axes.set_xlabel("truth")
    _legend(figure, handles)
    return figure


@styled
def errors(
    panels: Mapping[str, Sequence[Line]], styles: Mapping[str, Style], labels: Mapping[str, str], xlabel: str, log: bool
) -> Figure:
    """Median errors on a log scale against `xlabel`, which is on one too if `log`; black: what the counts allow."""
    figure, all_axes = _grid(len(panels), 1.95)
    handles: dict[str, tuple[Artist, str]] = {}
    for axes, (name, lines) in zip(all_axes, panels.items(), strict=True):
        for line in lines:
            color, dashes, marker = styles[line.name] if line.name else (INK, (0, (2, 1.2)), "")
            shown = np.array(line.y, dtype=float)
            drawn = axes.plot(
                line.x, np.where(shown > 0, shown, np.nan), color=color, linestyle=dashes, marker=marker, markersize=3.8,
                linewidth=1.3, zorder=2 if line.name else 3,
            )  # fmt: skip
            label = plain(labels[line.name]) if line.name else "Cramér\N{EN DASH}Rao bound"
            handles.setdefault(line.name or "", (drawn[0], label))
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0,) if high > 40 * low else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(SHORT)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(10, numticks=6))
        else:
            axes.xaxis.set_major_formatter(SHORT)
            axes.locator_params(axis="x", nbins=4)
        axes.minorticks_off()  # they would take most of the time
        axes.set_title(quantity(name), loc="left", fontsize=8.5)
    figure.supxlabel(xlabel, fontsize=9)
    for axes in all_axes[::2]:
        axes.set_ylabel("median error")
    _legend(figure, handles)
    return figure


@styled
def coverage(
    shares: Mapping[str, Mapping[str, Share]], styles: Mapping[str, Style], labels: Mapping[str, str], level: float
) -> Figure:
    """Share of truths within the intervals, {estimator: {quantity: share}}; the line is what they promise."""
    names = list(dict.fromkeys(name for by in shares.values() for name in by))
    step = 0.75 / max(len(shares), 1)
    figure = blank(height=0.9 + 0.17 * len(shares) + len(names) * (0.2 + 0.13 * len(shares)))
    axes = figure.add_subplot()
    axes.axvline(100 * level, color=INK, linewidth=1.0)
    for number, (estimator, by) in enumerate(shares.items()):
        color, _, marker = styles[estimator]
        for name, share in by.items():
            y = len(names) - 1 - names.index(name) + 0.375 - step * (number + 0.5)
            axes.plot([100 * share.low, 100 * share.high], [y, y], color=color, linewidth=1.3)
            axes.plot(100 * share.value, y, marker, color=color, markersize=5)
        axes.plot([], [], marker, color=color, markersize=5, label=plain(labels[estimator]))
    axes.hlines(np.arange(1, len(names)) - 0.5, 0, 1, transform=axes.get_yaxis_transform(), color=GRID, linewidth=0.8)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(names)), [SYMBOLS.get(name, name) for name in reversed(names)])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(-0.5, len(names) - 0.5), xlim=(0, 100), xlabel=f"{100 * level:g} % intervals hold / %")
    axes.set_xticks([0, 25, 50, 100 * level, 100], ["0", "25", "50", f"{100 * level:g}", "100"])
    handles, names_of = axes.get_legend_handles_labels()
    figure.legend(handles, names_of, loc="outside upper left", ncols=1, borderpad=0, labelspacing=0.25)
    return figure
