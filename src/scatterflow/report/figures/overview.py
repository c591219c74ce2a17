"""Figures across estimators and stages: information gain, losses, cost, scores of frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scatterflow.report.numbers import minus
from scatterflow.report.style import BLUE, GRID, INK, LINES, MUTED, PAPER, VERMILLION, blank, legend_above, styled


class Gain(NamedTuple):
    """Information gain of one estimator [nats]; `mean` is none where it is minus infinity."""

    label: str
    mean: float | None
    se: float
    truncated: float | None
    works: bool
    color: str


@styled
def information_gain(gains: list[Gain]) -> Figure:
    """Mean information gain [nats] with 5 standard errors; the zero line is the exact prior. Hollow: does not work."""
    figure = blank(height=0.75 + 0.52 * len(gains))
    axes = figure.add_subplot()
    place = np.arange(len(gains))[::-1]
    axes.axvline(0, color=INK, linewidth=1.1)
    axes.annotate(
        "exact prior", (0, 0), xycoords=("data", "axes fraction"), xytext=(3, 3), textcoords="offset points", fontsize=8
    )
    for y, gain in zip(place, gains, strict=True):
        number = minus(f"{gain.mean:+.2f}") if gain.mean is not None else "\N{MINUS SIGN}∞"
        # the name stands above its bar: beside the axes it would take half of the width
        axes.text(
            0.01,
            y + 0.3,
            f"{gain.label}: {number}",
            transform=axes.get_yaxis_transform(),
            fontsize=8,
            color=INK,
            va="bottom",
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
        )
        if gain.mean is None:
            axes.plot(0.02, y, "<", transform=axes.get_yaxis_transform(), color=gain.color, markersize=7)
            continue
        axes.errorbar(gain.mean, y, xerr=5 * gain.se, color=gain.color, linewidth=1.3, capsize=3)
        face = gain.color if gain.works else "none"
        axes.plot(
            gain.mean, y, "o", markersize=7, markerfacecolor=face, markeredgecolor=gain.color, markeredgewidth=1.5
        )
        if gain.truncated is not None:
            axes.plot(gain.truncated, y, "|", color=INK, markersize=11, markeredgewidth=1.3)
    axes.set(yticks=[], ylim=(-0.65, len(gains) - 0.15), xlabel="information gain / nats")
    axes.margins(x=0.06)
    axes.spines["left"].set_visible(False)
    return figure


@styled
def losses(history: pd.DataFrame) -> Figure:
    """Training and validation loss against epoch, one panel per phase (autoencoder, flow)."""
    phases = list(dict.fromkeys(history["phase"])) if "phase" in history else [""]
    figure = blank(height=2.9)
    for axes, phase in zip(np.atleast_1d(figure.subplots(1, len(phases))), phases, strict=True):
        part = history[history["phase"] == phase] if "phase" in history else history
        axes.plot(part["epoch"], part["train_loss"], color=BLUE, linestyle=LINES[1], label="training")
        axes.plot(part["epoch"], part["val_loss"], color=VERMILLION, label="validation")
        if part["val_loss"].notna().any():
            best = part.loc[part["val_loss"] == part["val_loss"].min()].iloc[0]
            axes.plot(best["epoch"], best["val_loss"], "o", color=VERMILLION, markersize=4)
        values = np.concatenate([part["train_loss"].to_numpy(), part["val_loss"].to_numpy()])
        values = values[np.isfinite(values)]
        if len(values) > 10:  # the first epochs must not squeeze the rest
            low, high = values.min(), np.quantile(values, 0.97)
            if high > low:
                axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        axes.set(xlabel="epoch", title=str(phase) or "loss")
        axes.locator_params(axis="x", nbins=5, integer=True)
    first = figure.axes[0]
    first.set_ylabel("loss / nats" if len(phases) == 1 else "loss")
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, borderpad=0)
    return figure


@styled
def cost(seconds: Mapping[str, float]) -> Figure:
    """Wall time of the jobs [s], in their order."""
    figure = blank(height=0.75 + 0.27 * len(seconds))
    axes = figure.add_subplot()
    place = np.arange(len(seconds))[::-1]
    values = list(seconds.values())
    axes.barh(place, values, color=BLUE, height=0.62)
    for y, value in zip(place, values, strict=True):
        axes.annotate(
            f"{value:,.1f}" if value < 100 else f"{value:,.0f}", (value, y), xytext=(3, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axes.set(yticks=place, xlabel="wall time / s", xlim=(0, 1.18 * max(values, default=1.0)))
    axes.set_yticklabels(list(seconds))
    axes.grid(axis="y", visible=False)
    return figure


class ScoreRow(NamedTuple):
    """One score: of frames, of in-range simulations at the given percentages, and the threshold."""

    name: str
    values: list[float]
    quantiles: Mapping[str, float]
    threshold: float | None


@styled
def frame_scores(rows: list[ScoreRow]) -> Figure:
    """Scores of frames in units of their thresholds (log scale) beside the spread of in-range simulations."""
    figure = blank(height=1.15 + 0.45 * len(rows))
    axes = figure.add_subplot()
    place = np.arange(len(rows))[::-1]
    for y, row in zip(place, rows, strict=True):
        unit = row.threshold or 1.0
        known = sorted(value / unit for value in row.quantiles.values() if value > 0)
        if known:
            axes.plot([known[0], known[-1]], [y, y], color=GRID, linewidth=11, solid_capstyle="butt", zorder=1)
            axes.plot(known, [y] * len(known), "|", color=MUTED, markersize=11, zorder=2)
        shown = [value / unit for value in row.values if value > 0]
        axes.plot(shown, [y] * len(shown), "D", color=VERMILLION, markersize=5, alpha=0.75, zorder=3)
    axes.axvline(1, color=INK, linewidth=1.1, linestyle="--")
    axes.plot([], [], "D", color=VERMILLION, markersize=5, label="frames")
    levels = sorted({level for row in rows for level in row.quantiles}, key=float)
    span = f", {levels[0]} to {levels[-1]} %" if levels else ""
    axes.plot([], [], color=GRID, linewidth=8, label=f"in-range simulations{span}")
    axes.plot([], [], color=INK, linewidth=1.1, linestyle="--", label="threshold")
    axes.set(xscale="log", yticks=place, ylim=(-0.6, len(rows) - 0.4), xlabel="score / threshold")
    axes.set_yticklabels([row.name for row in rows])
    axes.grid(axis="y", visible=False)
    legend_above(axes, columns=1)
    return figure
