"""Losses of one frame over strain and tilts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from scatterflow.report.figures.maps import ON_IMAGE, SHORT, plain, symbol
from scatterflow.report.figures.posterior import axis_label, power
from scatterflow.report.numbers import minus
from scatterflow.report.style import CYCLE, INK, LINES, MUTED, blank, styled

Array = NDArray[np.float64]
_LOG = 20.0  # greatest over least loss, from which colours are logarithmic


class Axis(NamedTuple):
    """A parameter: its name, unit, values (step,), the truth, and the prior's range."""

    name: str
    unit: str
    values: Array
    truth: float
    box: tuple[float, float]

    @property
    def exponent(self) -> int:
        """Power of ten in which its values read best."""
        return power(float(self.values[0]), float(self.values[-1]))

    @property
    def label(self) -> str:
        """Symbol with unit."""
        return axis_label(symbol(self.name), self.unit, self.exponent)


@styled
def planes(values: Array, pairs: Sequence[tuple[Axis, Axis]], label: str) -> Figure:
    """A loss (plane, first, second) over planes of two parameters through the truth, on one scale.

    Cross: the truth; dashed: the prior's box; lines: equal loss.
    """
    figure = blank(height=2.25)
    grid = figure.subplots(1, len(pairs))
    low, high = float(values.min()), float(values.max())
    wide_range = low > 0 and high > _LOG * low  # else the bottom would be one colour
    norm = LogNorm(low, high) if wide_range else Normalize(low, high)
    levels = (np.geomspace if wide_range else np.linspace)(low, high, 9)[1:-1]
    drawn = None
    for axes, part, (first, second) in zip(grid, values, pairs, strict=True):
        sizes = [10.0**axis.exponent for axis in (first, second)]
        ends = []
        for axis, size in zip((first, second), sizes, strict=True):
            half = (axis.values[1] - axis.values[0]) / 2
            ends += [(axis.values[0] - half) / size, (axis.values[-1] + half) / size]
        drawn = axes.imshow(
            part.T, origin="lower", extent=tuple(ends), aspect="auto", interpolation="none", norm=norm
        )  # fmt: skip
        x, y = (axis.values / size for axis, size in zip((first, second), sizes, strict=True))
        if np.ptp(part) > 0:
            axes.contour(x, y, part.T, levels, colors=ON_IMAGE, linewidths=0.5, alpha=0.7)
        corner, wide = zip(*((a.box[0] / s, (a.box[1] - a.box[0]) / s) for a, s in zip((first, second), sizes, strict=True)),
                        strict=True)  # fmt: skip
        axes.add_patch(Rectangle(corner, *wide, fill=False, edgecolor=ON_IMAGE, linestyle="--", linewidth=1.0))
        axes.plot(
            first.truth / sizes[0], second.truth / sizes[1], "+", color=ON_IMAGE, markersize=8, markeredgewidth=1.6
        )
        axes.set(xlabel=first.label, xlim=ends[:2], ylim=ends[2:])
        axes.set_title(second.label, loc="left", fontsize=8)
        axes.locator_params(nbins=3)
        for side in (axes.xaxis, axes.yaxis):
            side.set_major_formatter(SHORT)
        axes.tick_params(labelsize=7)
        axes.grid(False)
    assert drawn is not None
    bar = figure.colorbar(drawn, ax=list(grid), location="bottom", aspect=40, pad=0.02)
    bar.set_label(plain(label))
    bar.outline.set_visible(False)
    if wide_range:
        bar.ax.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 3.0)))
        bar.ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        bar.ax.locator_params(nbins=5)
    bar.ax.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: minus(f"{value:,.6g}" if value < 1e6 else f"{value:.0e}"))
    )
    return figure


@styled
def cuts(losses: Mapping[str, Array], axes_of: Sequence[Axis]) -> Figure:
    """Losses (parameter, place) by name along each parameter through the truth, each from its least to its greatest."""
    figure = blank(height=0.85 + 1.15 * len(axes_of) + 0.16 * len(losses))
    panels = figure.subplots(len(axes_of), 1, squeeze=False)[:, 0]
    for number, (axes, axis) in enumerate(zip(panels, axes_of, strict=True)):
        size = 10.0**axis.exponent
        axes.axvline(axis.truth / size, color=MUTED, linewidth=0.9)
        for place, (name, values) in enumerate(losses.items()):
            part = values[number]
            scaled = (part - part.min()) / (np.ptp(part) or 1.0)
            axes.plot(axis.values / size, scaled, color=CYCLE[place % len(CYCLE)], linestyle=LINES[place % len(LINES)],
                      linewidth=1.2, label=plain(name))  # fmt: skip
        axes.set(xlabel=axis.label, ylim=(-0.04, 1.04), xlim=(axis.values[0] / size, axis.values[-1] / size))
        axes.xaxis.set_major_formatter(SHORT)
        axes.set_yticks([0, 1])
    panels[len(panels) // 2].set_ylabel("loss, least to greatest", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=1, borderpad=0, labelspacing=0.25)
    return figure
