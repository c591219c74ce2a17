"""How the losses of several models fall, with epochs and with time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scatterflow.report.figures.maps import plain
from scatterflow.report.style import Style, blank, styled

Array = NDArray[np.float64]
_SLACK = 0.06  # of a panel's height, above and below the curves


class Run(NamedTuple):
    """One model's training: epochs from 1 (epoch,), wall seconds where known, losses, and the best epoch's place."""

    model: str
    epochs: Array
    seconds: Array | None
    train: Array
    validation: Array
    best: int


class Panel(NamedTuple):
    """Trainings by the same loss, which has a name with a unit."""

    loss: str
    runs: Sequence[Run]


@styled
def convergence(panels: Sequence[Panel], styles: Mapping[str, Style]) -> Figure:
    """Validation loss against epochs and wall time, a row per kind of loss; pale: training loss, mark: the best epoch."""
    models = list(dict.fromkeys(run.model for panel in panels for run in panel.runs))
    figure = blank(height=0.35 + 1.95 * len(panels) + 0.17 * len(models))
    grid = figure.subplots(len(panels), 2, sharey="row", squeeze=False)
    for line, panel in zip(grid, panels, strict=True):
        for run in panel.runs:
            color, dashes, marker = styles[run.model]
            for axes, places in zip(line, (run.epochs, run.seconds), strict=True):
                if places is None:
                    continue
                axes.plot(places, run.train, color=color, linestyle=dashes, linewidth=0.9, alpha=0.4)
                axes.plot(places, run.validation, color=color, linestyle=dashes, linewidth=1.4)
                axes.plot(places[run.best], run.validation[run.best], marker, color=color, markersize=5)
        _limits(line[0], panel.runs)
        for axes, name in zip(line, ("epochs", "wall time / s"), strict=True):
            axes.set_xlabel(name)
            axes.locator_params(axis="x", nbins=4, integer=True)
            axes.set_xlim(left=0, right=1.05 * max((float(line.get_xdata()[-1]) for line in axes.lines), default=1.0))
        if not any(run.seconds is not None for run in panel.runs):
            line[1].set_visible(False)
        line[0].set_title(panel.loss, loc="left", fontsize=8)
    for model in models:
        color, dashes, marker = styles[model]
        grid[0, 0].plot([], [], color=color, linestyle=dashes, marker=marker, markersize=5, label=plain(model))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=1, borderpad=0, labelspacing=0.25)
    return figure


def _limits(axes: Axes, runs: Sequence[Run]) -> None:
    """Limits that the first epochs do not set alone: they would squeeze the rest."""
    values = np.concatenate([part for run in runs for part in (run.train, run.validation)])
    values = values[np.isfinite(values)]
    if not values.size:
        return
    low, high = float(values.min()), float(np.quantile(values, 0.97) if len(values) > 10 else values.max())
    if high > low:
        axes.set_ylim(low - _SLACK * (high - low), high + _SLACK * (high - low))
