"""Curves of one observation: its in-plane profile with the posterior predictive, and its depth profile."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scatterflow.report.style import BLUE, GRID, INK, MUTED, VERMILLION, blank, dots, legend_above, styled

Array = NDArray[np.float64]


def with_gaps(x: Array) -> list[slice]:
    """Ranges of `x` between jumps (the beam stop splits a profile in parts), so that no line bridges them."""
    steps = np.diff(x)
    jumps = np.flatnonzero(steps > 5 * np.median(steps)) + 1
    borders = [0, *jumps.tolist(), len(x)]
    return [slice(a, b) for a, b in itertools.pairwise(borders)]


@styled
def profile_fit(
    qz: Array,
    profile: Array,
    mask: NDArray[np.bool_],
    bands: dict[float, Array],
    residual: Array | None,
    *,
    band_name: str = "posterior predictive",
    log: bool = False,
) -> Figure:
    """A profile (point,) with bands of quantiles {level: (point,)} around it, and residuals [sigma] below.

    `bands` holds symmetric pairs of levels (0.05 with 0.95 ...) and maybe 0.5; masked points are not drawn.
    """
    figure = blank(height=3.9 if residual is not None else 3.0)
    if residual is None:
        upper, lower = figure.add_subplot(), None
    else:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    shown = np.where(mask, profile, np.nan)
    for number, part in enumerate(with_gaps(qz)):
        for level in sorted(level for level in bands if level < 0.5):
            wide = level == min(bands)
            upper.fill_between(
                qz[part], bands[level][part], bands[round(1 - level, 6)][part], color=BLUE, linewidth=0,
                alpha=0.22 if wide else 0.38,
                label=f"{band_name} {100 * (1 - 2 * level):.0f} %" if number == 0 else None,
            )  # fmt: skip
        if 0.5 in bands:
            upper.plot(qz[part], bands[0.5][part], color=BLUE, linewidth=1.0, label="median" if number == 0 else None)
        dots(upper, qz[part], shown[part], INK, "observed" if number == 0 else None)
        if lower is not None and residual is not None:
            dots(lower, qz[part], np.where(mask, residual, np.nan)[part], VERMILLION)
    upper.set_ylabel("scaled counts")
    if log:
        upper.set_yscale("log")
    legend_above(upper)
    bottom = upper
    if lower is not None:
        lower.axhspan(-2, 2, color=GRID, linewidth=0, alpha=0.7)
        lower.axhline(0, color=MUTED, linewidth=0.8)
        lower.set_ylabel("residual / \N{GREEK SMALL LETTER SIGMA}")
        bottom = lower
    bottom.set_xlabel("q$_z$ / nm⁻¹")
    return figure


@styled
def depth(depth_nm: Array, draws: Array, truth: Array | None, interfaces: list[tuple[str, float]]) -> Figure:
    """delta against depth: median and 50 / 90 % bands of posterior `draws` (draw, depth), and the truth (depth,).

    `interfaces` are layers, from the top, with the depth [nm] at which they begin.
    """
    figure = blank()
    axes = figure.add_subplot()
    scaled = draws * 1e5
    low, first, middle, third, high = np.quantile(scaled, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    axes.fill_between(depth_nm, low, high, color=BLUE, alpha=0.22, linewidth=0, label="posterior 90 %")
    axes.fill_between(depth_nm, first, third, color=BLUE, alpha=0.38, linewidth=0, label="50 %")
    axes.plot(depth_nm, middle, color=BLUE, label="median")
    if truth is not None:
        axes.plot(depth_nm, truth * 1e5, color=INK, linestyle="--", linewidth=1.2, label="truth")
    axes.margins(x=0)
    axes.set(xlabel="depth / nm", ylabel="dispersion δ / 10⁻⁵", ylim=(None, 1.22 * axes.get_ylim()[1]))
    free = [-np.inf, -np.inf, -np.inf]  # where the names on each of three lines end
    width = 0.055 * (depth_nm[-1] - depth_nm[0])
    for name, place in interfaces:
        axes.axvline(place, color=MUTED, linewidth=0.7, linestyle=":")
        row = next((i for i, end in enumerate(free) if end < place), 0)
        free[row] = place + width * max(len(name), 2)
        axes.annotate(
            name, (place, 1), xycoords=("data", "axes fraction"), xytext=(2, -2 - 9 * row), textcoords="offset points",
            fontsize=8, va="top", color=MUTED,
        )  # fmt: skip
    legend_above(axes, columns=4)
    return figure
