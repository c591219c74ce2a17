"""May the model be trusted on this frame? Two scores, each with a threshold set on simulations of the study.

`features`: Mahalanobis distance per valid feature under a probabilistic principal component model of the training
features (Tipping & Bishop 1999, doi:10.1111/1467-9868.00196). It knows nothing of the posterior: a frame that looks like
no simulation scores high. Masked features are marginalised exactly.

`predictive`: squared distance of the profile from the mean of simulations drawn from its posterior, in units of their
spread (posterior and counting noise): a posterior predictive check (Gelman, Meng & Stern 1996).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.errors import BundleError
from scatterflow.forward.parallel import simulate
from scatterflow.multilayer import MultilayerStudy
from scatterflow.preprocess import profile_features

Array = NDArray[np.float64]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_COMPONENTS = 24  # principal components of the features; the rest counts as noise
_SMALLEST_SD = 1e-4  # features that vary less than this (a scale of 0 to 1) say nothing


class Samples(Protocol):
    """A posterior that can be sampled."""

    def sample(self, n: int, seed: int = 0) -> xr.DataArray:
        """(observation, sample, parameter)."""


@dataclass(frozen=True)
class FeatureScore:
    """Probabilistic principal components of standardised features: covariance L L^T + noise I."""

    mean: Array  # (feature,)
    sd: Array  # (feature,), 0 for features that say nothing
    loadings: Array  # (feature, component)
    noise: float

    def score(self, features: xr.Dataset) -> Array:
        """Mahalanobis distance squared per valid feature, (simulation,); about 1 in range."""
        values, mask = _vectors(features)
        valid = mask & (self.sd > 0)
        standard = np.where(valid, (values - self.mean) / np.where(self.sd > 0, self.sd, 1.0), 0.0)
        result = np.empty(len(values))
        masks, which = np.unique(valid, axis=0, return_inverse=True)
        for number, columns in enumerate(masks):  # one small factorisation per distinct mask
            rows = standard[which == number][:, columns]
            loadings = self.loadings[columns]
            inner = self.noise * np.eye(loadings.shape[1]) + loadings.T @ loadings
            projected = rows @ loadings
            explained = (projected * np.linalg.solve(inner, projected.T).T).sum(axis=1)
            result[which == number] = ((rows**2).sum(axis=1) - explained) / self.noise / max(1, columns.sum())
        return result

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Plain arrays for a model bundle."""
        parts = {"mean": self.mean, "sd": self.sd, "loadings": self.loadings, "noise": np.array([self.noise])}
        return {name: np.ascontiguousarray(part, dtype=np.float32) for name, part in parts.items()}


def score_from_arrays(arrays: dict[str, NDArray[np.float32]]) -> FeatureScore:
    """Inverse of `FeatureScore.arrays`. Raises BundleError if a part is missing or misshaped."""
    try:
        mean, sd, loadings = (arrays[name].astype(np.float64) for name in ("mean", "sd", "loadings"))
        noise = float(arrays["noise"][0])
    except (KeyError, IndexError) as error:
        raise BundleError(
            "verdict of the bundle", "must be complete", f"{error} is missing", "train it again"
        ) from None
    if not (mean.shape == sd.shape == loadings.shape[:1] and noise > 0):
        raise BundleError("verdict of the bundle", "must be consistent", loadings.shape, "train it again")
    return FeatureScore(mean, sd, loadings, noise)


def fit_features(features: xr.Dataset, seed: int) -> FeatureScore:
    """Fit the feature score to training features (profile, image and their masks)."""
    from sklearn.decomposition import PCA  # takes a second to import, and a fitted score does without

    values, mask = _vectors(features)
    count = np.maximum(mask.sum(axis=0), 1)
    mean = np.where(mask, values, 0.0).sum(axis=0) / count
    sd = np.sqrt(np.where(mask, (values - mean) ** 2, 0.0).sum(axis=0) / count)
    known = sd > _SMALLEST_SD
    standard = np.where(mask, (values - mean) / np.where(known, sd, 1.0), 0.0)[:, known]
    components = min(_COMPONENTS, standard.shape[1] - 1, len(standard) - 1)
    pca = PCA(components, svd_solver="randomized", random_state=seed).fit(standard)
    noise = float(max(pca.noise_variance_, 1e-6))
    loadings = np.zeros((len(mean), components))
    loadings[known] = pca.components_.T * np.sqrt(np.maximum(pca.explained_variance_ - noise, 0.0))
    return FeatureScore(mean, np.where(known, sd, 0.0), loadings, noise)


def _vectors(features: xr.Dataset) -> tuple[Array, NDArray[np.bool_]]:
    """Profile and image of each simulation as one vector, and its valid entries."""
    n = features.sizes["simulation"]
    values = [np.asarray(features[name].values, dtype=np.float64).reshape(n, -1) for name in ("profile", "image")]
    masks = [features[f"mask_{name}"].values.reshape(n, -1) for name in ("profile", "image")]
    return np.concatenate(values, axis=1), np.concatenate(masks, axis=1)


def predictive_draws(
    study: MultilayerStudy, posterior: Samples, draws: int, seed: int, experiment: bool = False
) -> xr.DataArray:
    """Profiles simulated from posterior draws, with noise: (observation, draw, profile_point) in [0, 1]."""
    theta = posterior.sample(draws, seed=seed)
    observations = theta.sizes["observation"]
    flat = study.prior.dataarray(theta.values.reshape(observations * draws, -1))
    counts = simulate(study, flat, views=("profile",))
    noisy = study.observe(counts, seed=seed, experiment=experiment)
    profile = profile_features(noisy, study.config.instrument, study.config.preprocess)["profile"].values
    return xr.DataArray(
        profile.reshape(observations, draws, -1),
        dims=("observation", "draw", "profile_point"),
        attrs={"units": "1", "long_name": "posterior predictive profile"},
    )


def predictive_score(features: xr.Dataset, draws: xr.DataArray) -> Array:
    """Squared distance from the mean of `draws` over their variance, both summed over valid points: (simulation,)."""
    profile, mask = features["profile"].values.astype(np.float64), features["mask_profile"].values
    predicted = draws.values.astype(np.float64)
    number = predicted.shape[1]
    distance = ((profile - predicted.mean(axis=1)) ** 2 * mask).sum(axis=1)
    spread = (predicted.var(axis=1, ddof=1) * mask).sum(axis=1) * (1 + 1 / number)
    return np.asarray(distance / np.maximum(spread, np.finfo(float).tiny))


def thresholds(scores: dict[str, Array], false_alarm_rate: float) -> dict[str, dict[str, Any]]:
    """Threshold of each score at the false alarm rate, and the quantiles of the in-range simulations beside it."""
    return {
        name: {
            "threshold": float(np.quantile(values, 1 - false_alarm_rate, method="higher")),
            "in_range_quantiles": {f"{100 * q:g}": float(np.quantile(values, q)) for q in QUANTILES},
            "n": len(values),
            "false_alarm_rate": false_alarm_rate,
        }
        for name, values in scores.items()
    }


_MEANING = {
    "features": "it looks like no simulation of the study",
    "predictive": "simulations from its own posterior do not reproduce it",
    "background": "an even background explains most of its counts",
    "border": "its disorder lies at the upper end of what the model knows, or beyond",
}


def judge(values: Mapping[str, float], limits: Mapping[str, dict[str, Any]]) -> tuple[str, str]:
    """Status ("ok" or "outside") and the reason in words, of one frame's scores."""
    reasons = []
    for name, value in values.items():
        limit = limits[name]
        if not value <= limit["threshold"]:
            share = 1 - limit["false_alarm_rate"]
            reasons.append(
                f"{_MEANING[name]} ({name} score {value:.3g}; {share:.0%} of {limit['n']} in-range simulations "
                f"lie below {limit['threshold']:.3g})"
            )
    return ("outside", "; ".join(reasons)) if reasons else ("ok", "in the range of the simulations")
