"""Is a posterior informative, and may its widths be believed? Figures of merit on simulations with known truth.

Arrays: truth (observation, parameter), samples (observation, sample, parameter), in physical units, as DataArray or in
the prior's order; log-probabilities (observation,) or (observation, sample): natural, over box-scaled parameters.
Every figure comes with its standard error over observations and their number. Results are frozen dataclasses of plain
numbers: `dataclasses.asdict` makes them JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from scatterflow import seeds
from scatterflow.errors import ScatterflowError
from scatterflow.prior import Prior

Array = NDArray[np.float64]
LEVELS = (0.5, 0.68, 0.9, 0.95)


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error over `n` independent observations."""

    value: float
    standard_error: float
    n: int


def mean(values: ArrayLike) -> Estimate:
    """Mean of finite `values` (observation,) with its standard error."""
    array = _finite(values, 1, "values")
    return Estimate(float(array.mean()), float(stats.sem(array)), len(array))


def difference(first: ArrayLike, second: ArrayLike) -> Estimate:
    """Mean of first - second, paired by observation: two methods on the same simulations."""
    return mean(_finite(first, 1, "first") - _finite(second, 1, "second"))


@dataclass(frozen=True)
class LogProb:
    """Log-probabilities of the truth [nat].

    `trimmed` is the mean without the outermost share `trim` of each tail, with its own standard error
    (Tukey & McLaughlin 1963); it estimates another quantity than the mean, but one that outliers do not decide.
    `sigmas` is the mean in standard errors: for an information gain, how surely it is positive. `impossible` counts
    truths of density 0; what these make minus infinity is None.
    """

    mean: Estimate | None
    sigmas: float | None
    trimmed: Estimate | None
    trim: float
    median: float | None
    impossible: int
    n: int


def log_prob(values: ArrayLike, trim: float = 0.05) -> LogProb:
    """Summary of `values` (observation,): log q(theta | x) of the truth, or its gain over the prior."""
    array = _array(values, 1, "log-probabilities")
    if np.isnan(array).any() or np.isposinf(array).any():
        raise ScatterflowError("log-probabilities", "must be finite or -inf", "NaN or +inf", "check the estimator")
    n, impossible = len(array), int(np.isneginf(array).sum())
    average = mean(array) if not impossible else None
    trimmed = None
    cut = int(trim * n)
    if impossible <= cut < n / 2:
        kept = np.sort(array)[cut : n - cut]
        winsorised = np.pad(kept, cut, mode="edge")
        error = winsorised.std(ddof=1) / ((1 - 2 * cut / n) * np.sqrt(n))
        trimmed = Estimate(float(kept.mean()), float(error), n)
    middle = float(np.median(array)) if impossible < n / 2 else None
    sigmas = average.value / average.standard_error if average and average.standard_error else None
    return LogProb(average, sigmas, trimmed, trim, middle, impossible, n)


def information_gain(log_q: ArrayLike, log_p: ArrayLike, trim: float = 0.05) -> LogProb:
    """log q(theta | x) - log p(theta) [nat], (observation,) each: a lower bound of the mutual information in the mean.

    Positive: the posterior knows more than the prior. Raises ScatterflowError where the prior excludes the truth.
    """
    return log_prob(_array(log_q, 1, "log q") - _finite(log_p, 1, "log-probabilities of the prior"), trim)


@dataclass(frozen=True)
class PointError:
    """Mean absolute error over box-scaled parameters (the paper's normalised MAE): all together, and by parameter."""

    overall: Estimate
    by_parameter: dict[str, Estimate]


def point_error(estimate: xr.DataArray | ArrayLike, truth: xr.DataArray | ArrayLike, prior: Prior) -> PointError:
    """Error of a point estimate (observation, parameter), or of one for all (parameter,) such as the prior's median."""
    there = _scaled(truth, prior, 2, "truth")
    here = prior.to_box(estimate)
    here = _finite(np.broadcast_to(here, there.shape) if here.ndim == 1 else here, 2, "estimate")
    if here.shape != there.shape:
        raise ScatterflowError("estimate", f"must have {len(there)} rows", len(here))
    error = np.abs(here - there)
    return PointError(mean(error.mean(axis=1)), _by_parameter(error, prior))


def median(samples: xr.DataArray | ArrayLike, prior: Prior) -> xr.DataArray:
    """Median of each parameter over the samples, physical units, (observation, parameter)."""
    values = _finite(prior.values(samples), 3, "samples")
    return xr.DataArray(
        np.median(values, axis=1), dims=("observation", "parameter"), coords={"parameter": list(prior.names)}
    )


@dataclass(frozen=True)
class Wasserstein:
    """1D Wasserstein distances between two posteriors over box-scaled parameters.

    `overall`: averaged over parameters, then observations. `sd` over parameters (as the paper's table 1 states it).
    `floor`: the distance between two halves of the second posterior's samples; less cannot be resolved.
    """

    overall: Estimate
    sd: float
    by_parameter: dict[str, Estimate]
    floor: float


def wasserstein(samples: xr.DataArray | ArrayLike, reference: xr.DataArray | ArrayLike, prior: Prior) -> Wasserstein:
    """Distance between two sets of samples (observation, sample, parameter) with equal numbers of samples."""
    first, second = _scaled(samples, prior, 3, "samples"), _scaled(reference, prior, 3, "reference samples")
    if first.shape != second.shape:
        raise ScatterflowError("reference samples", f"must have the shape {first.shape} of the samples", second.shape)
    distance = _wasserstein(first, second)
    half = second.shape[1] // 2
    floor = _wasserstein(second[:, :half], second[:, half : 2 * half])
    return Wasserstein(
        mean(distance.mean(axis=1)),
        float(distance.mean(axis=0).std(ddof=1)) if distance.shape[1] > 1 else 0.0,
        _by_parameter(distance, prior),
        float(floor.mean()),
    )


def ranks(truth: xr.DataArray | ArrayLike, samples: xr.DataArray | ArrayLike, prior: Prior) -> NDArray[np.int64]:
    """SBC ranks: number of samples below the truth, (observation, parameter); uniform on 0..samples if calibrated.

    Talts et al. (2018), arXiv:1804.06788.
    """
    there, drawn = _pair(truth, samples, prior)
    return np.asarray((drawn < there[:, None]).sum(axis=1))


@dataclass(frozen=True)
class Sbc:
    """Kolmogorov-Smirnov tests of the ranks, by parameter; `passed`: no corrected p-value below `significance`."""

    statistic: dict[str, float]
    p_value: dict[str, float]
    p_value_holm: dict[str, float]
    significance: float
    passed: bool
    n: int
    samples: int


def sbc(rank: ArrayLike, samples: int, names: Sequence[str], significance: float = 0.01, seed: int = 0) -> Sbc:
    """Simulation-based calibration from `ranks` of `samples` posterior samples, (observation, parameter).

    Ranks are spread evenly within their step (seeded), so that the test is exact for any number of samples. Corrected
    over parameters after Holm (1979).
    """
    uniform = credibility(rank, samples, seed)
    test = stats.kstest(uniform, "uniform", axis=0)
    corrected = holm(test.pvalue)
    return Sbc(
        _named(test.statistic, names),
        _named(test.pvalue, names),
        _named(corrected, names),
        significance,
        bool((corrected >= significance).all()),
        len(uniform),
        samples,
    )


def holm(p_values: ArrayLike) -> Array:
    """P-values corrected for their number (Holm 1979): any below alpha has family-wise error alpha."""
    array = _finite(p_values, 1, "p-values")
    order = np.argsort(array)
    stepped = np.maximum.accumulate(array[order] * np.arange(len(array), 0, -1))
    corrected = np.empty_like(array)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def credibility(rank: ArrayLike, samples: int, seed: int = 0) -> Array:
    """Ranks in 0..samples to (0, 1), spread evenly within their step of 1 / (samples + 1)."""
    array = np.asarray(rank, dtype=np.float64)
    spread = seeds.uniforms(seed, "rank", 0, len(array), array[0].size).reshape(array.shape)
    return (array + spread) / (samples + 1)


def density_credibility(log_prob_truth: ArrayLike, log_prob_samples: ArrayLike, seed: int = 0) -> Array:
    """Mass of the highest-density region that just reaches the truth, (observation,); uniform if calibrated.

    Samples of higher density than the truth are counted; ties (flat posteriors) are broken at random. Expected coverage
    of Deistler et al. (2022), arXiv:2210.04815. Inputs: (observation,), (observation, sample).
    """
    there, drawn = _array(log_prob_truth, 1, "log q of the truth"), _array(log_prob_samples, 2, "log q of the samples")
    if np.isnan(there).any() or np.isnan(drawn).any():
        raise ScatterflowError("log-probabilities", "must not be NaN")
    above, tied = (drawn > there[:, None]).sum(axis=1), (drawn == there[:, None]).sum(axis=1)
    broken = np.floor(seeds.uniforms(seed, "ties", 0, len(there), 1)[:, 0] * (tied + 1))
    return credibility(above + broken, drawn.shape[1], seed)


def tarp_credibility(
    truth: xr.DataArray | ArrayLike, samples: xr.DataArray | ArrayLike, prior: Prior, seed: int = 0
) -> Array:
    """Share of samples nearer than the truth to a random point of the box, (observation,); uniform if calibrated.

    TARP, Lemos et al. (2023), arXiv:2302.03026. Distances over box-scaled parameters.
    """
    there, drawn = _pair(truth, samples, prior)
    points = seeds.uniforms(seed, "tarp", 0, *there.shape)
    radius = ((there - points) ** 2).sum(axis=1)
    distance = ((drawn - points[:, None]) ** 2).sum(axis=2)
    return credibility((distance < radius[:, None]).sum(axis=1), drawn.shape[1], seed)


@dataclass(frozen=True)
class Coverage:
    """Share of truths inside the credible region of each level, and where it must lie if calibrated.

    `low` and `high`: the binomial interval at `confidence` for `n` observations. `area`: area between coverage and
    level above one half; negative is over-confident, positive over-wide. `p_value`: Kolmogorov-Smirnov test of the
    credibilities. `passed`: every level lies in its interval.
    """

    level: tuple[float, ...]
    share: tuple[Estimate, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    confidence: float
    area: Estimate
    p_value: float
    passed: bool


def coverage(credibilities: ArrayLike, levels: Sequence[float] = LEVELS, confidence: float = 0.99) -> Coverage:
    """Coverage from the credibilities (observation,) of the truths: highest-density, TARP or central ones."""
    array = _finite(credibilities, 1, "credibilities")
    share = (array[:, None] <= np.asarray(levels)).mean(axis=0)
    error = np.sqrt(share * (1 - share) / len(array))
    low, high = (edge / len(array) for edge in stats.binom.interval(confidence, len(array), np.asarray(levels)))
    return Coverage(
        tuple(levels),
        tuple(Estimate(float(s), float(e), len(array)) for s, e in zip(share, error, strict=True)),
        tuple(low.tolist()),
        tuple(high.tolist()),
        confidence,
        mean(1 - np.maximum(array, 0.5) - 0.375),  # the integral of (1[credibility <= level] - level) from 1/2 to 1
        float(stats.kstest(array, "uniform").pvalue),
        bool(((share >= low) & (share <= high)).all()),
    )


def central_coverage(
    rank: ArrayLike,
    samples: int,
    names: Sequence[str],
    levels: Sequence[float] = LEVELS,
    confidence: float = 0.99,
    seed: int = 0,
) -> dict[str, Coverage]:
    """Coverage of central intervals, by parameter, from `ranks` (observation, parameter)."""
    central = np.abs(2 * credibility(rank, samples, seed) - 1)
    return {name: coverage(central[:, place], levels, confidence) for place, name in enumerate(names)}


def support_leak(samples: xr.DataArray | ArrayLike, prior: Prior) -> Estimate:
    """Share of the posterior's mass outside the prior's support, by its samples (observation, sample, parameter)."""
    values = _finite(prior.values(samples), 3, "samples")
    return mean(1 - prior.inside(values).mean(axis=1))


def c2st(
    samples: xr.DataArray | ArrayLike, reference: xr.DataArray | ArrayLike, prior: Prior, seed: int = 0
) -> Estimate:
    """Accuracy at which a random forest tells two posteriors apart: 0.5 the same, 1 disjoint; mean over observations.

    Lopez-Paz & Oquab (2017), arXiv:1610.06545; `sbi.utils.metrics.c2st`, cross-validated, about a second each.
    """
    import torch
    from sbi.utils.metrics import c2st as accuracy

    first, second = _scaled(samples, prior, 3, "samples"), _scaled(reference, prior, 3, "reference samples")
    pairs = zip(torch.from_numpy(first), torch.from_numpy(second), strict=True)
    return mean([float(accuracy(a, b, seed=seeds.integer(seed, "c2st"))) for a, b in pairs])


def _wasserstein(first: Array, second: Array) -> Array:
    """W1 of equally many samples is the mean distance of their order statistics, (observation, parameter)."""
    return np.asarray(np.abs(np.sort(first, axis=1) - np.sort(second, axis=1)).mean(axis=1))


def _pair(truth: xr.DataArray | ArrayLike, samples: xr.DataArray | ArrayLike, prior: Prior) -> tuple[Array, Array]:
    """Truth and samples, box-scaled and checked to belong together."""
    there, drawn = _scaled(truth, prior, 2, "truth"), _scaled(samples, prior, 3, "samples")
    if len(there) != len(drawn):
        raise ScatterflowError("samples", f"must have one row per truth ({len(there)})", len(drawn))
    return there, drawn


def _scaled(data: xr.DataArray | ArrayLike, prior: Prior, ndim: int, what: str) -> Array:
    return _finite(prior.to_box(data), ndim, what)


def _finite(data: ArrayLike, ndim: int, what: str) -> Array:
    array = _array(data, ndim, what)
    if not np.isfinite(array).all():
        raise ScatterflowError(what, "must be finite", f"{int((~np.isfinite(array)).sum())} NaN or infinite values")
    return array


def _array(data: ArrayLike, ndim: int, what: str) -> Array:
    array = np.asarray(data, dtype=np.float64)
    if array.ndim != ndim or len(array) < 2:
        raise ScatterflowError(what, f"must have {ndim} dimensions and at least 2 observations", array.shape)
    return array


def _by_parameter(values: Array, prior: Prior) -> dict[str, Estimate]:
    return {name: mean(values[:, place]) for place, name in enumerate(prior.names)}


def _named(values: Any, names: Sequence[str]) -> dict[str, float]:
    return dict(zip(names, np.asarray(values).tolist(), strict=True))
