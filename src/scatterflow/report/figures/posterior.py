"""Marginals of single parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.typing import LineStyleType
from numpy.typing import NDArray

from scatterflow.report.style import INK, MUTED, SHADE, blank, styled

Array = NDArray[np.float64]
_BINS = 24
_TRUTH: LineStyleType = (0, (2, 1.2))
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SYMBOLS = {
    "delta": "δ",
    "beta": "β",
    "thickness_nm": "thickness",
    "roughness_nm": "roughness \N{GREEK SMALL LETTER SIGMA}",
    "hurst": "Hurst exponent H",
    "correlation_length_nm": "corr. length ξ",
}


class Curve(NamedTuple):
    """Samples (draw,) of one estimator and how they are drawn."""

    values: Array
    color: str
    line: LineStyleType


def power(low: float, high: float) -> int:
    """Exponent of ten that makes the range readable: 0 for ranges between 0.1 and 1,000."""
    size = max(abs(low), abs(high))
    exponent = int(np.floor(np.log10(size))) if size else 0
    return exponent if exponent < -1 or exponent > 2 else 0


def axis_label(name: str, unit: str, exponent: int) -> str:
    """Symbol of the parameter `layer.quantity` with its unit or power of ten."""
    quantity = name.rsplit(".", 1)[-1]
    symbol = SYMBOLS.get(quantity, quantity)
    scale = f"10{str(exponent).translate(_SUPERSCRIPT)}" if exponent else ""
    divisor = " ".join(part for part in (scale, unit if unit != "1" else "") if part)
    return f"{symbol} / {divisor}" if divisor else symbol


@styled
def key(entries: Mapping[str, tuple[str, LineStyleType]]) -> Figure:
    """The legend of a row of marginals: prior, truth and the estimators {label: (colour, line)}."""
    handles: list[Artist] = [
        Patch(color=SHADE, label="prior"),
        Line2D([], [], color=INK, linestyle=_TRUTH, label="truth"),
    ]
    handles += [Line2D([], [], color=color, linestyle=line, label=label) for label, (color, line) in entries.items()]
    figure = blank(height=0.06 + 0.165 * (len(handles) - 1))
    figure.legend(handles=handles[:2], loc="upper left", ncols=2, borderpad=0, borderaxespad=0.2)
    figure.legend(handles=handles[2:], loc="lower left", borderpad=0, borderaxespad=0.2, labelspacing=0.25)
    figure.set_layout_engine("none")
    return figure


@styled
def marginal(
    name: str, unit: str, limits: tuple[float, float], prior: Array, curves: list[Curve], truth: float | None
) -> Figure:
    """Histograms of one parameter within its prior's `limits`: prior filled, estimators as steps, truth as a line."""
    figure = blank(1.95, 1.4)
    figure.set_layout_engine("none")  # all panels alike, and quicker: there is one per parameter
    axes = figure.add_axes((0.04, 0.27, 0.92, 0.70))
    low, high = limits
    exponent = power(low, high)
    unit_size = 10.0**exponent
    bins = np.linspace(low, high, _BINS + 1)
    axes.stairs(*_density(prior, bins, unit_size), fill=True, color=SHADE)
    for curve in curves:
        density, places = _density(curve.values, bins, unit_size)
        axes.stairs(density, places, color=curve.color, linestyle=curve.line, linewidth=1.2)
    if truth is not None:
        axes.axvline(truth / unit_size, color=INK, linewidth=1.3, linestyle=_TRUTH)
    axes.set(xlim=(low / unit_size, high / unit_size), ylim=(0, None), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    axes.set_xlabel(axis_label(name, unit, exponent), fontsize=8, labelpad=1.5)
    axes.tick_params(labelsize=7.5, pad=1.5, color=MUTED)
    axes.locator_params(axis="x", nbins=4)
    return figure


def _density(values: Array, bins: Array, unit_size: float) -> tuple[Array, Array]:
    """Density per bin over all finite samples, those outside the limits included in the count, and scaled edges."""
    finite = values[np.isfinite(values)]
    counts, _ = np.histogram(finite, bins)
    return counts / max(len(finite), 1) / (np.diff(bins) / unit_size), bins / unit_size
