"""Detector images in q, and an image beside its reconstruction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from scatterflow.report.style import INK, MUTED, SHADE, blank, styled

Array = NDArray[np.float64]
_ON_IMAGE = "#fefefe"  # lines on the image stay light on dark paper too


def edges(centres: Array) -> Array:
    """Bin edges halfway between ascending bin centres."""
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


def hatch_background(axes: Axes) -> None:
    """Hatch the axes' ground: it shows where a heat map has no value."""
    axes.patch.set(facecolor=SHADE, hatch="////", edgecolor=MUTED)
    axes.grid(False)


@styled
def detector_image(
    counts: Array,
    qz: Array,
    qy: Array,
    lines: dict[str, float],
    masked: Sequence[tuple[float, float, float, float]] = (),
    unit: str = "counts per bin",
) -> Figure:
    """Counts (z, y) on a log scale against qy and qz [nm^-1]; NaN is hatched as masked.

    `lines` are qz [nm^-1] of named horizontal lines, `masked` rectangles (qy0, qz0, qy1, qz1) hatched on the
    image, `unit` that of the colours.
    """
    figure = blank(height=4.6)
    axes = figure.add_subplot()
    hatch_background(axes)
    positive = counts[np.isfinite(counts) & (counts > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 10.0)
    shown = np.where(counts > 0, counts, np.where(np.isnan(counts), np.nan, low))
    norm = LogNorm(low, max(high, low * 1.01))
    mesh = axes.pcolormesh(edges(qy), edges(qz), np.ma.masked_invalid(shown), norm=norm, rasterized=True)
    for qy0, qz0, qy1, qz1 in masked:
        axes.add_patch(
            Rectangle((qy0, qz0), qy1 - qy0, qz1 - qz0, facecolor=SHADE, hatch="////", edgecolor=MUTED, linewidth=0)
        )
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    used: list[float] = []
    for name, value in sorted(lines.items(), key=lambda item: item[1]):
        if not bottom < value < top:
            continue
        axes.axhline(value, color=_ON_IMAGE, linewidth=0.9, linestyle=(0, (4, 3)))
        # labels of neighbouring lines must not touch
        height = max([value, *(place + 0.045 * (top - bottom) for place in used)])
        used.append(height)
        axes.text(right - 0.015 * (right - left), height, name, color=_ON_IMAGE, ha="right", va="bottom", fontsize=8)
    axes.set(xlabel="q$_y$ / nm⁻¹", ylabel="q$_z$ / nm⁻¹")
    ticks = LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,))
    bar = figure.colorbar(
        mesh,
        ax=axes,
        pad=0.02,
        aspect=32,
        ticks=ticks,
        format=FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"),
    )
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label(unit)
    bar.outline.set_visible(False)
    return figure


@styled
def reconstruction(image: Array, rebuilt: Array, rebuilt_sd: Array | None, qz: Array, qy: Array) -> Figure:
    """An image (z, y) in [0, 1], the mean of images rebuilt from its profile, and the difference (in sd, if given)."""
    figure = blank(height=3.9)
    residual = image - rebuilt if rebuilt_sd is None else (image - rebuilt) / np.maximum(rebuilt_sd, 1e-3)
    limit = float(np.nanmax(np.abs(residual))) or 1.0
    if rebuilt_sd is not None:
        limit = min(limit, 5.0)
    panels = (("image", image), ("rebuilt", rebuilt), ("difference", residual))
    all_axes = figure.subplots(1, 3, sharey=True)
    meshes = []
    for axes, (title, values) in zip(all_axes, panels, strict=True):
        hatch_background(axes)
        difference = title == "difference"
        style = {"cmap": "PuOr", "vmin": -limit, "vmax": limit} if difference else {"vmin": 0.0, "vmax": 1.0}
        mesh = axes.pcolormesh(edges(qy), edges(qz), np.ma.masked_invalid(values), rasterized=True, **style)
        axes.set_title(title, color=INK)
        axes.set_xlabel("q$_y$ / nm⁻¹")
        meshes.append(mesh)
    all_axes[0].set_ylabel("q$_z$ / nm⁻¹")
    unit = "scaled log counts" if rebuilt_sd is None else "standard deviations"
    for mesh, group, label in ((meshes[0], all_axes[:2], "scaled log counts"), (meshes[2], all_axes[2:], unit)):
        bar = figure.colorbar(mesh, ax=list(group), location="bottom", aspect=16 if len(group) == 2 else 8)
        bar.set_label(label)
        bar.outline.set_visible(False)
    return figure
