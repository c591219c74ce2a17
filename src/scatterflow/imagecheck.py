"""Does a GISAXS image look like the study's simulations, and does its own answer reproduce it? Scores of the verdict.

`features`: see `verdict.FeatureScore`, here of the logarithm of coarse bins and of the in-plane cut, the mean taken off.
`predictive`: images of posterior samples, each with the scale and even background that fit best; the residuals over
counting noise and a tenth of the image (artefacts are not in it), squared, cut at 16 (streaks and tails are somewhere),
averaged over the bins, median of the samples.
`background`: share of the counts that the even background explains, beside the image of one sample.
`border`: share of the posterior within the uppermost `BORDER` of the prior's disorder: more disorder than the model knows
looks to it like the most that it knows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import verdict
from scatterflow.forward.parallel import one_thread
from scatterflow.particles import VIEW, ParticlesStudy

Array = NDArray[np.float64]
_COARSE = (16, 20)  # bins (z, y) at most of the features' image
_FLOOR = 0.5  # counts per coarse bin below which a logarithm says nothing
_ARTEFACTS = 0.1  # relative deviation that artefacts may cause
BORDER = 0.03  # of the range of disorder
MOST = 0.5  # share of the posterior there, above which the answer is only a lower limit
_CUT = 16.0  # squared residuals beyond this count as this
_ROBUST = 6  # rounds of weights in a fit that takes little notice of bins far off
_ROWS = 32  # images whose posterior samples are simulated at once


def coarse(recorded: xr.Dataset) -> xr.Dataset:
    """Features of recorded images for `verdict.fit_features` and for ABC: `profile`, `image` and their masks.

    `profile` (simulation, profile_point) is the sum over all rows, `image` (simulation, z, y) the coarse image: natural
    logarithms of mean counts per valid bin, less their mean; masked values are 0.
    """
    counts, valid = recorded[VIEW].values, recorded[f"mask_{VIEW}"].values
    rows, columns = (-(-size // most) for size, most in zip(counts.shape[1:], _COARSE, strict=True))
    image, seen = _logarithm(_blocks(counts * valid, rows, columns), _blocks(valid, rows, columns))
    profile, bright = _logarithm(_blocks(counts * valid, counts.shape[1], 1), _blocks(valid, counts.shape[1], 1))
    return xr.Dataset(
        {
            "profile": (("simulation", "profile_point"), profile[:, 0]),
            "mask_profile": (("simulation", "profile_point"), bright[:, 0]),
            "image": (("simulation", "z", "y"), image),
            "mask_image": (("simulation", "z", "y"), seen),
        }
    )


def _blocks(values: NDArray[Any], rows: int, columns: int) -> Array:
    """Sums over blocks of bins; what is left at the upper and right end makes a smaller one."""
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % rows), (0, -values.shape[2] % columns)))
    shape = len(values), padded.shape[1] // rows, rows, padded.shape[2] // columns, columns
    return np.asarray(padded.reshape(shape).sum((2, 4), dtype=np.float64))


def _logarithm(summed: Array, number: Array) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logarithms of means less their average over what is seen."""
    seen = number > 0
    values = np.log(np.maximum(summed, _FLOOR) / np.maximum(number, 1))
    average = (values * seen).sum((1, 2)) / np.maximum(seen.sum((1, 2)), 1)
    return np.where(seen, values - average[:, None, None], 0).astype(np.float32), seen


class Fitted(NamedTuple):
    """Images (simulation, z, y) with their scale, background per bin and score, (simulation,) each.

    Images are whole: with the bins that are not valid, and tell nothing of scale and background.
    """

    image: Array
    scale: Array
    background: Array
    score: Array


def fitted(
    expected: NDArray[Any], counts: NDArray[Any], valid: NDArray[np.bool_], *, cauchy: float | None = None
) -> Fitted:
    """Scale and even background, neither negative, with which `expected` is nearest to `counts` (simulation, z, y).

    With `cauchy`, the residual at which a bin's weight is a half, what is far off weighs little. Where nothing is valid
    both are 0.
    """
    n, m = (np.asarray(each, dtype=np.float64) * valid for each in (counts, expected))
    tiny = np.finfo(float).tiny
    total = np.maximum(n.sum((1, 2)), 1) / np.maximum(m.sum((1, 2)), tiny)
    m *= total[:, None, None]
    model = n  # weights are those of the data first, of the model then
    for step in range(2 if cauchy is None else _ROBUST):
        weight = valid / variance(model)
        if cauchy is not None and step:
            weight /= 1 + (n - model) ** 2 / variance(model) / cauchy**2
        s = {key: (weight * a * b).sum((1, 2)) for key, (a, b) in _products(m, n).items()}
        size = np.maximum(s["mm"] * s["11"] - s["m1"] ** 2, 1e-12 * s["mm"] * s["11"])
        size = np.maximum(size, tiny)
        scale = (s["mn"] * s["11"] - s["1n"] * s["m1"]) / size
        level = (s["1n"] * s["mm"] - s["mn"] * s["m1"]) / size
        scale, level = (
            np.where(level < 0, s["mn"] / np.maximum(s["mm"], tiny), np.maximum(scale, 0)),
            np.where(scale < 0, s["1n"] / np.maximum(s["11"], tiny), np.maximum(level, 0)),
        )
        model = scale[:, None, None] * m + level[:, None, None]
    score = (np.minimum((n - model) ** 2 / variance(model), _CUT) * valid).sum((1, 2)) / np.maximum(
        valid.sum((1, 2)), 1
    )
    scale *= total
    return Fitted(scale[:, None, None] * expected + level[:, None, None], scale, level, score)


def variance(model: Array) -> Array:
    """Squared deviation that noise and artefacts may cause of counts `model`."""
    return np.asarray(np.maximum(model, 1) + (_ARTEFACTS * model) ** 2)


def _products(m: Array, n: Array) -> dict[str, tuple[Any, Any]]:
    return {"mm": (m, m), "m1": (m, 1.0), "11": (np.ones_like(m), 1.0), "mn": (m, n), "1n": (np.ones_like(n), n)}


def predictive(study: ParticlesStudy, samples: xr.DataArray, recorded: xr.Dataset) -> Array:
    """The score (simulation,) of recorded images by `samples` (observation, sample, parameter) of their posterior."""
    theta, counts, valid = samples.values, recorded[VIEW].values, recorded[f"mask_{VIEW}"].values
    draws, found = theta.shape[1], np.empty(len(theta))
    for start in range(0, len(theta), _ROWS):
        part = slice(start, start + _ROWS)
        with one_thread():
            images = study.expected(theta[part].reshape(-1, theta.shape[2]))
        many, seen = (np.repeat(each[part], draws, axis=0) for each in (counts, valid))
        scores = fitted(images, many, seen).score.reshape(-1, draws)
        found[part] = np.median(scores, axis=1)
    return found


def scores(
    study: ParticlesStudy, known: verdict.FeatureScore, samples: xr.DataArray, recorded: xr.Dataset
) -> dict[str, Array]:
    """All scores (simulation,) of recorded images, by name as `verdict.judge` wants them."""
    draws = samples.isel(sample=slice(0, study.config.inference.predictive_draws))
    found = {"features": known.score(coarse(recorded)), "predictive": predictive(study, draws, recorded)}
    return found | {"background": background(study, samples, recorded)} | border(study, samples)


def background(study: ParticlesStudy, samples: xr.DataArray, recorded: xr.Dataset) -> Array:
    """The score (simulation,) that tells images without particles: what an even background explains of their counts."""
    counts, valid = recorded[VIEW].values, recorded[f"mask_{VIEW}"].values
    with one_thread():
        fit = fitted(study.expected(samples.values[:, 0]), counts, valid)
    total = (fit.image * valid).sum((1, 2))
    return np.asarray(fit.background * valid.sum((1, 2)) / np.maximum(total, np.finfo(float).tiny))


def border(study: ParticlesStudy, samples: xr.DataArray) -> dict[str, Array]:
    """The score `border` (simulation,) of posterior `samples` (observation, sample, parameter), where there is disorder."""
    if "disorder" not in study.prior.names:
        return {}
    high, low = study.config.sample.disorder[1], study.config.sample.disorder[0]
    drawn = samples.values[..., study.prior.names.index("disorder")]
    return {"border": (drawn > high - BORDER * (high - low)).mean(axis=1)}
