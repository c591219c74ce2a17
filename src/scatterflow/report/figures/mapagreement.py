"""How far every pair of estimators agrees, and how well each reproduces the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from scatterflow.report.figures.maps import DIVERGING, INK_ON_IMAGE, ON_IMAGE, plain
from scatterflow.report.numbers import NONE, minus, significant
from scatterflow.report.style import INK, Style, blank, styled

Array = NDArray[np.float64]
_LEAST = 0.01  # difference over sd that is still written out
_DARK_CELL = 0.5  # size of r from which its colour wants light text


@styled
def matrix(estimators: Sequence[str], pearson: Array, in_errors: Array, title: str) -> Figure:
    """Pearson r (estimator, estimator) below the diagonal, rms difference over the stated errors above it; NaN: none."""
    size = len(estimators)
    figure = blank(height=1.05 + 0.33 * size)
    axes = figure.add_subplot()
    lower = np.tril(np.ones((size, size), dtype=bool), -1)
    shown = np.ma.masked_invalid(np.where(lower, pearson, np.nan))
    drawn = axes.imshow(shown, vmin=-1, vmax=1, cmap=DIVERGING, aspect="auto", interpolation="none")
    for row, column in np.ndindex(size, size):
        value = float((pearson if row > column else in_errors)[row, column])
        if row == column or (row > column and not np.isfinite(value)):
            words, color = ("" if row == column else NONE), INK
        elif row > column:
            words, color = minus(f"{value:.2f}"), ON_IMAGE if abs(value) > _DARK_CELL else INK_ON_IMAGE
        else:
            words, color = (
                (NONE if not np.isfinite(value) else significant(value, 2) if value >= _LEAST else f"<{_LEAST}"),
                INK,
            )
        axes.text(column, row, words, ha="center", va="center", fontsize=8, color=color)
    names = [f"{plain(name)}  {number}" for number, name in enumerate(estimators, start=1)]
    axes.set_yticks(range(size), names)
    axes.set_xticks(range(size), [str(number) for number in range(1, size + 1)])
    axes.set_title(f"{title}: r below the diagonal, difference / sd above it", loc="right", fontsize=8)
    axes.grid(False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(drawn, ax=axes, location="bottom", aspect=40, pad=0.02)
    bar.set_label("Pearson r")
    bar.outline.set_visible(False)
    bar.set_ticks([-1.0, 0.0, 1.0], labels=[minus("-1"), "0", "1"])
    return figure


class Deviance(NamedTuple):
    """Quantiles of an estimator's deviance over the expected one, and the threshold that simulations set."""

    low: float
    median: float
    high: float
    threshold: float | None


@styled
def deviances(found: Mapping[str, Deviance], styles: Mapping[str, Style]) -> Figure:
    """Median, 5 % and 95 % quantiles of the deviance of every estimator, with its threshold (dashed), on a log scale."""
    figure = blank(height=0.75 + 0.3 * len(found))
    axes = figure.add_subplot()
    places = np.arange(len(found))[::-1]
    values = [1.0]
    for y, (name, entry) in zip(places, found.items(), strict=True):
        color, _, marker = styles[name]
        axes.plot([entry.low, entry.high], [y, y], color=color, linewidth=1.6)
        axes.plot(entry.median, y, marker, color=color, markersize=6)
        values += [max(entry.low, 1e-3), entry.high]
        if entry.threshold is not None:
            axes.plot([entry.threshold] * 2, [y - 0.38, y + 0.38], color=INK, linestyle="--", linewidth=1.2)
            values.append(entry.threshold)
    low, high = min(values) / 1.15, max(values) * 1.15
    axes.set(xscale="log", xlim=(low, high), ylim=(-0.6, len(found) - 0.4), xlabel="deviance / expected")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(places, [plain(name) for name in found])
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure
