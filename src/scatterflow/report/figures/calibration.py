"""Whether posteriors are as wide as they should be: coverage, ranks, TARP."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binom

from scatterflow.report.style import CYCLE, GRID, MUTED, Style, blank, legend_above, styled

Array = NDArray[np.float64]
_BAND_DRAWS = 2000  # simulated sets of uniform ranks: the band's edge is known to a few percent of its width
_GRID = 51
_FAR_OFF = 25.0  # percentage points
_SHORT = {"thickness_nm": "thickness", "roughness_nm": "roughness", "correlation_length_nm": "corr. length"}


def binomial_band(level: Array, n: int, confidence: float) -> tuple[Array, Array]:
    """Interval of the observed share among `n` when the true share is `level`, at each level separately."""
    tail = (1 - confidence) / 2
    return binom.ppf(tail, n, level) / n, binom.ppf(1 - tail, n, level) / n


@lru_cache
def simultaneous_band(n: int, confidence: float) -> tuple[Array, Array, Array]:
    """Points u and the band of the ECDF of `n` uniform values, minus u, that holds at all points at once.

    The pointwise binomial band is widened until the given share of simulated ECDFs stays inside everywhere
    (Saeilynoja, Buerkner and Vehtari 2022, doi:10.1007/s11222-022-10090-6, section 2.2).
    """
    u = np.linspace(0, 1, _GRID)[1:-1]
    generator = np.random.default_rng(0)  # a fixed stream: the band is a constant of n
    values = np.sort(generator.random((_BAND_DRAWS, n)), axis=1)
    counts = np.stack([np.searchsorted(row, u, side="right") for row in values])
    # how extreme the most extreme point of each ECDF is, as a two-sided tail probability
    extreme = np.minimum(binom.cdf(counts, n, u), binom.sf(counts - 1, n, u)).min(axis=1)
    tail = np.quantile(extreme, 1 - confidence)
    return u, binom.ppf(tail, n, u) / n - u, binom.isf(tail, n, u) / n - u


@styled
def curve_against_diagonal(
    level: Array, curves: Mapping[str, Array], styles: Mapping[str, Style],
    labels: Mapping[str, str], n: int, xlabel: str, ylabel: str, confidence: float = 0.99,
) -> Figure:  # fmt: skip
    """Observed minus nominal share, in percentage points, of each estimator with the binomial band around zero."""
    figure = blank(height=3.4)
    axes = figure.add_subplot()
    low, high = binomial_band(level, n, confidence)
    band = f"{100 * confidence:.0f} % band, n = {n:,}"
    axes.fill_between(level, 100 * (low - level), 100 * (high - level), color=GRID, linewidth=0, label=band)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    for name, values in curves.items():
        color, line, _ = styles[name]
        axes.plot(level, 100 * (values - level), color=color, linestyle=line, label=labels[name])
    # an estimator that is far off must not squash those that are compared: its curve leaves the frame
    gaps = [100 * float(np.abs(values - level).max()) for values in curves.values()]
    limit = 1.25 * max([6.0, 100 * float((high - level).max()), *(gap for gap in gaps if gap < _FAR_OFF)])
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1), ylim=(-limit, limit))
    legend_above(axes, columns=1)
    return figure


@styled
def rank_ecdf(ranks: Array, draws: int, parameters: list[str], confidence: float = 0.99) -> Figure:
    """ECDF of the ranks (observation, parameter) of the truth among `draws` samples, minus uniform, one line each.

    Lines are coloured by quantity; those that leave the simultaneous band are thick.
    """
    figure = blank(height=3.4)
    axes = figure.add_subplot()
    u, low, high = simultaneous_band(len(ranks), confidence)
    axes.fill_between(u, low, high, color=GRID, linewidth=0, label=f"{100 * confidence:.0f} % band, n = {len(ranks):,}")
    axes.axhline(0, color=MUTED, linewidth=0.8)
    values = np.sort((ranks + 0.5) / (draws + 1), axis=0)
    quantities = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in parameters))
    named: set[str] = set()
    for index, name in enumerate(parameters):
        quantity = name.rsplit(".", 1)[-1]
        difference = np.searchsorted(values[:, index], u, side="right") / len(ranks) - u
        outside = bool(((difference < low) | (difference > high)).any())
        label = None if quantity in named else _SHORT.get(quantity, quantity)
        named.add(quantity)
        color = CYCLE[quantities.index(quantity) % len(CYCLE)]
        axes.plot(u, difference, color=color, linewidth=1.8 if outside else 0.8, label=label)
    axes.set(xlabel="rank of the truth among the samples, scaled", ylabel="ECDF \N{MINUS SIGN} uniform", xlim=(0, 1))
    legend_above(axes, columns=3)
    return figure


def outside_band(ranks: Array, draws: int, confidence: float = 0.99) -> NDArray[np.bool_]:
    """Which parameters' rank ECDFs leave the simultaneous band, (parameter,)."""
    u, low, high = simultaneous_band(len(ranks), confidence)
    values = np.sort((ranks + 0.5) / (draws + 1), axis=0)
    ecdf = np.stack([np.searchsorted(column, u, side="right") for column in values.T]) / len(ranks) - u
    return np.asarray(((ecdf < low) | (ecdf > high)).any(axis=1))
