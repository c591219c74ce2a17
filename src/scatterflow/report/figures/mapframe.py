"""The mean frame of a scan: what is cut out of it, and what is masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from scatterflow.report.figures.detector import hatch_background
from scatterflow.report.figures.maps import ON_IMAGE, plain
from scatterflow.report.style import MUTED, ORANGE, PAPER, VERMILLION, blank, styled

Array = NDArray[np.float64]
_MANY = 300  # marked pixels beyond which marks would hide the frame


@styled
def mean_frame(
    counts: Array,
    block: int,
    roi: Sequence[int],
    centre: tuple[float, float],
    marked: Mapping[str, tuple[Array, Array]],
) -> Figure:
    """Mean counts (z, y) of blocks of `block` pixels, on a log scale; NaN is hatched.

    `roi` (first z, last z, first y, last y) and `centre` (z, y) [pixel]; `marked`: places (z, y) [pixel] of single
    masked pixels by cause.
    """
    high, wide = (n * block for n in counts.shape)
    figure = blank(height=min(max(3.7 * high / wide, 2.0), 5.0) + 1.25)
    axes = figure.add_subplot()
    hatch_background(axes)
    positive = counts[np.isfinite(counts) & (counts > 0)]
    low, top = (np.quantile(positive, 0.02), positive.max()) if positive.size else (1.0, 10.0)
    shown = np.where(counts > low, counts, np.where(np.isnan(counts), np.nan, low))
    drawn = axes.imshow(
        np.ma.masked_invalid(shown), origin="lower", extent=(-0.5, wide - 0.5, -0.5, high - 0.5),
        interpolation="none", norm=LogNorm(low, max(top, 1.01 * low)), aspect="equal",
    )  # fmt: skip
    z0, z1, y0, y1 = roi
    corner, size = (y0 - 0.5, z0 - 0.5), (y1 - y0 + 1, z1 - z0 + 1)
    for color, line in ((MUTED, 3.0), (ON_IMAGE, 1.4)):  # a light line with a dark edge shows on any ground
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=line))
    axes.plot([], [], "s", color=MUTED, markerfacecolor="none", markersize=8, label="cut out")
    for (cause, (z, y)), (marker, color) in zip(
        marked.items(), (("x", VERMILLION), ("+", ORANGE), ("1", VERMILLION), ("2", ORANGE)), strict=False
    ):
        if 0 < len(z) <= _MANY:
            axes.plot(y, z, marker, color=color, markersize=4.5, markeredgewidth=1.0, linestyle="", label=plain(cause))
    axes.plot(
        centre[1], centre[0], "o", markersize=6, markerfacecolor=PAPER, markeredgecolor=MUTED, linestyle="",
        label="centre of its counts",
    )  # fmt: skip
    axes.set(xlabel="y / pixel", ylabel="z / pixel", xlim=(-0.5, wide - 0.5), ylim=(-0.5, high - 0.5))
    figure.legend(loc="outside upper left", ncols=4, borderpad=0, columnspacing=1.0, handletextpad=0.3)
    bar = figure.colorbar(drawn, ax=axes, location="bottom", aspect=40, pad=0.02)
    bar.set_label("counts per pixel, mean of the frames")
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 3.0)))
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bar.ax.xaxis.set_minor_formatter(NullFormatter())
    return figure
