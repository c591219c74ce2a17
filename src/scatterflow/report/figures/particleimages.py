"""A GISAXS image beside the rebuilt one with its size distribution, cuts through both, and answers along a series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from numpy.typing import NDArray

from scatterflow.report.figures.detector import edges, hatch_background
from scatterflow.report.figures.maps import SHORT, plain
from scatterflow.report.figures.particles import quantity
from scatterflow.report.style import BLUE, CYCLE, GRID, INK, MARKERS, MUTED, VERMILLION, WIDTH, blank, dots, styled

Array = NDArray[np.float64]
OUTSIDE = "outside: not to be trusted"
_TOP = 0.99  # of the bins are darker than the last colour: the beam itself must not set the scale
_DEEP = 1e-4  # of that: darker ones have the first colour
_PERCENT = (10.0, 100.0)  # least and largest limits of residuals; few leave the frame


class Sizes(NamedTuple):
    """A size distribution (radius,) over radii [nm] with the ends of its band and, where it is known, the truth."""

    radius: Array
    p: Array
    low: Array | None = None
    high: Array | None = None
    truth: Array | None = None


class Cut(NamedTuple):
    """The cut `name` along `axis` (q [nm^-1]): mean counts of its valid bins, quantiles of the rebuilt ones, their noise."""

    name: str
    axis: str
    q: Array
    counts: Array  # NaN where no bin is valid
    low: Array
    middle: Array
    high: Array
    noise: Array  # standard deviation of counting, relative to the rebuilt one


class Point(NamedTuple):
    """One quantity of one frame: its place in the series, value and interval, and whether it means anything."""

    place: float
    value: float
    low: float
    high: float
    trusted: bool


def _tall(qz: Array, qy: Array) -> float:
    """Height of an image over its width in q, within bounds."""
    return float(np.clip(abs((qz[-1] - qz[0]) / (qy[-1] - qy[0])), 0.25, 0.75))


@styled
def image_fit(
    counts: Array, rebuilt: Array, qz: Array, qy: Array, sizes: Sizes, level: float, trusted: bool = True
) -> Figure:
    """Recorded counts (z, y), NaN where masked, above the rebuilt ones on one log scale, and p(R) below both.

    The rebuilt image is hatched where the recorded one is masked.
    """
    tall = 0.72 * WIDTH * _tall(qz, qy) + 0.3
    figure = blank(height=2 * tall + 2.3)
    upper, middle, lower = figure.subplots(3, 1, height_ratios=[tall, tall, 1.35])
    bright = rebuilt[np.isfinite(counts)] if np.isfinite(counts).any() else rebuilt
    recorded = counts[np.isfinite(counts)]
    top = max([float(np.quantile(each, _TOP)) for each in (bright, recorded) if each.size], default=1.0)
    norm = LogNorm(max(float(np.quantile(bright, 0.01)), _DEEP * top, 1e-9), max(1.01 * top, 1e-8), clip=True)
    meshes = []
    masked = ~np.isfinite(counts)
    for axes, name, values in ((upper, "recorded", counts), (middle, "rebuilt", rebuilt)):
        hatch_background(axes)
        shown = np.ma.masked_array(np.maximum(values, norm.vmin or 0), masked)
        meshes.append(axes.pcolormesh(edges(qy), edges(qz), shown, norm=norm, rasterized=True))
        axes.set_ylabel("q$_z$ / nm⁻¹")
        axes.set_title(name, loc="left", fontsize=8.5, pad=3)
        axes.xaxis.set_major_formatter(SHORT)
        axes.locator_params(nbins=5)
    upper.tick_params(labelbottom=False)
    middle.set_xlabel("q$_y$ / nm⁻¹")
    bar = figure.colorbar(
        meshes[0], ax=[upper, middle], pad=0.02, aspect=26, extend="max", ticks=LogLocator(10),
        format=FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"),
    )  # fmt: skip
    bar.minorticks_off()
    bar.set_label("counts per bin")
    bar.outline.set_visible(False)
    size_distribution(lower, sizes, level, trusted)
    return figure


def size_distribution(axes: Axes, sizes: Sizes, level: float, trusted: bool) -> None:
    """p(R) with its band; dashed: the truth. Grey, with words, where it is not to be trusted."""
    color = BLUE if trusted else MUTED
    if sizes.low is not None and sizes.high is not None:
        axes.fill_between(
            sizes.radius, sizes.low, sizes.high, color=color, alpha=0.28, linewidth=0, label=f"{100 * level:g} % band"
        )
    axes.plot(sizes.radius, sizes.p, color=color, linestyle="-" if trusted else ":", label="estimate")
    if sizes.truth is not None:
        axes.plot(sizes.radius, sizes.truth, color=INK, linestyle="--", linewidth=1.2, label="truth")
    if not trusted:
        axes.text(0.5, 0.5, OUTSIDE, transform=axes.transAxes, ha="center", va="center", color=VERMILLION, fontsize=9)
    axes.set(xlabel="radius R / nm", ylabel="p(R)", ylim=(0, None))
    axes.margins(x=0)
    axes.yaxis.set_major_formatter(SHORT)
    axes.locator_params(axis="y", nbins=4)
    axes.legend(loc="upper right", borderpad=0.1, labelspacing=0.2, handlelength=1.6)


@styled
def cuts(parts: Sequence[Cut], level: float, trusted: bool = True) -> Figure:
    """Cuts of the recorded image with the band of the rebuilt ones; below each the residual and twice the noise (grey)."""
    figure = blank(height=2.75 * len(parts) + 0.35)
    grid = figure.subplots(2 * len(parts), 1, height_ratios=[2.2, 1] * len(parts))
    color = BLUE if trusted else MUTED
    for part, upper, lower in zip(parts, grid[::2], grid[1::2], strict=True):
        upper.fill_between(
            part.q,
            part.low,
            part.high,
            color=color,
            alpha=0.3,
            linewidth=0,
            label=f"predictive band, {100 * level:g} %",
        )
        upper.plot(part.q, part.middle, color=color, linewidth=1.1, label="rebuilt")
        dots(upper, part.q, part.counts, INK, "recorded")
        upper.set_yscale("log")
        upper.minorticks_off()  # they would take most of the time
        seen = part.counts[part.counts > 0]
        if seen.size:
            upper.set_ylim(0.5 * float(np.quantile(seen, 0.02)), 2 * float(seen.max()))
        upper.set_ylabel("counts per bin")
        upper.set_title(part.name, loc="left", fontsize=8.5, pad=3)
        upper.tick_params(labelbottom=False)
        residual = 100 * (part.counts / part.middle - 1)
        off = np.abs(residual[np.isfinite(residual)])
        limit = float(np.clip(1.2 * np.quantile(off, 0.95), *_PERCENT)) if off.size else _PERCENT[1]
        lower.fill_between(part.q, -200 * part.noise, 200 * part.noise, color=GRID, linewidth=0)
        lower.axhline(0, color=MUTED, linewidth=0.8)
        dots(lower, part.q, np.where(np.abs(residual) <= limit, residual, np.nan), VERMILLION)
        lower.set(ylim=(-limit, limit), ylabel="off / %", xlabel=f"q$_{part.axis}$ / nm⁻¹")
        lower.locator_params(axis="y", nbins=3)
        lower.yaxis.set_major_formatter(SHORT)
        for axes in (upper, lower):
            axes.set_xlim(part.q[0], part.q[-1])
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, borderpad=0, columnspacing=1.2, handlelength=1.6)
    return figure


@styled
def series(panels: Mapping[str, Mapping[str, Sequence[Point]]], xlabel: str) -> Figure:
    """Values with their intervals along a series {quantity: {set: points}}; hollow and grey: frames that are outside."""
    figure = blank(height=0.6 + 1.35 * len(panels))
    all_axes = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True))
    sets = list(dict.fromkeys(name for by in panels.values() for name in by))
    for axes, (name, by) in zip(all_axes, panels.items(), strict=True):
        for each, points in by.items():
            number = sets.index(each)
            color, marker = CYCLE[number % len(CYCLE)], MARKERS[number % len(MARKERS)]
            good = [point for point in points if point.trusted]
            if len(good) > 1:
                axes.plot([p.place for p in good], [p.value for p in good], color=color, linewidth=0.7, alpha=0.6)
            for point in points:
                drawn = color if point.trusted else MUTED
                axes.plot([point.place] * 2, [point.low, point.high], color=drawn, linewidth=1.3,
                          linestyle="-" if point.trusted else ":")  # fmt: skip
                axes.plot(point.place, point.value, marker, color=drawn, markersize=5,
                          markerfacecolor=drawn if point.trusted else "none")  # fmt: skip
        axes.set_title(quantity(name), loc="left", fontsize=8.5, pad=3)
        axes.yaxis.set_major_formatter(SHORT)
        axes.locator_params(axis="y", nbins=4)
        axes.margins(x=0.08, y=0.15)
    all_axes[-1].set_xlabel(xlabel)
    all_axes[-1].locator_params(axis="x", integer=True, nbins=8)
    for number, each in enumerate(sets):
        color, marker = CYCLE[number % len(CYCLE)], MARKERS[number % len(MARKERS)]
        all_axes[0].plot([], [], marker, color=color, markersize=5, label=plain(each))
    if any(not point.trusted for by in panels.values() for points in by.values() for point in points):
        all_axes[0].plot([], [], "o", color=MUTED, markerfacecolor="none", markersize=5, label=OUTSIDE)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, borderpad=0, columnspacing=1.2)
    return figure
