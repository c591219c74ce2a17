"""Local regression that moves accepted parameters to the observation, all observations at once.

Beaumont, Zhang & Balding (2002), doi:10.1093/genetics/162.4.2025; with varying spread: Blum & Francois (2010),
doi:10.1007/s11222-009-9116-0. Linear instead of a neural network, ridge by generalised cross-validation per parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# ridge relative to the mean eigenvalue of the standardised features; the last one is next to no regression
_RIDGES = np.geomspace(1e-5, 1e3, 17)
_FEW = 0.5  # generalised cross-validation is trusted while the fit uses less than this share of the rows


def epanechnikov(distances: Array) -> Array:
    """Weights 1 - (d / d_max)^2 of accepted simulations, sum 1; `distances` (observation, accepted), any order."""
    radius = distances.max(axis=1, keepdims=True)
    weights = 1 - (distances / np.where(radius > 0, radius, 1.0)) ** 2
    total = weights.sum(axis=1, keepdims=True)
    # all equally far: nothing to prefer
    return np.where(total > 0, weights / np.where(total > 0, total, 1.0), 1.0 / distances.shape[1])


def adjust(features: Array, observed: Array, values: Array, weights: Array) -> Array:
    """Accepted parameters as if each had been accepted at zero distance, (observation, accepted, parameter).

    v* = m(x_obs) + (v - m(x)) s(x_obs) / s(x), with m and log s^2 linear in the features. The residuals v - m(x) are
    leave-one-out: residuals of the fit itself are too small and would make an over-confident posterior.

    features : (observation, accepted, feature), `observed` (observation, feature).
    values : (observation, accepted, parameter), in an unbounded coordinate.
    weights : (observation, accepted), sum 1.
    """
    design = _design(features, observed, weights)
    fitted, predicted, leverage, leverage_here = _ridge(design, values, weights)
    residual = (values - fitted) / np.sqrt(1 - leverage) * np.sqrt(1 + leverage_here[:, None])
    variance = (weights[..., None] * residual**2).sum(axis=1, keepdims=True)
    floor = 1e-12 * np.where(variance > 0, variance, 1.0)  # the logarithm of an exact hit
    spread, spread_here, *_ = _ridge(design, np.log(residual**2 + floor), weights)
    # the spread is not extrapolated beyond what was fitted: its exponential would explode
    here = np.clip(spread_here[:, None], spread.min(axis=1, keepdims=True), spread.max(axis=1, keepdims=True))
    return np.asarray(predicted[:, None] + residual * np.exp(0.5 * (here - spread)))


@dataclass(frozen=True)
class _Design:
    """Standardised features in the eigenbasis of their weighted covariance."""

    scores: Array  # (observation, accepted, component)
    observed: Array  # (observation, component)
    eigenvalues: Array  # (observation, component)


def _design(features: Array, observed: Array, weights: Array) -> _Design:
    mean = np.einsum("ok,okf->of", weights, features)
    centred = features - mean[:, None]
    deviation = np.sqrt(np.einsum("ok,okf->of", weights, centred**2))
    scale = np.where(deviation > 0, deviation, 1.0)  # a constant feature predicts nothing and stays 0
    standard = centred / scale[:, None]
    eigenvalues, vectors = np.linalg.eigh(np.swapaxes(standard * weights[..., None], 1, 2) @ standard)
    here = ((observed - mean) / scale)[:, None] @ vectors
    return _Design(standard @ vectors, here[:, 0], np.maximum(eigenvalues, 0.0))


def _ridge(design: _Design, values: Array, weights: Array) -> tuple[Array, Array, Array, Array]:
    """Weighted ridge regression of every parameter: fitted values, prediction at the observation, leverages."""
    mean = np.einsum("ok,okp->op", weights, values)
    centred = values - mean[:, None]
    moment = np.swapaxes(design.scores * weights[..., None], 1, 2) @ centred  # (observation, component, parameter)
    inverse = 1.0 / (design.eigenvalues[:, None] + _RIDGES[:, None])  # (observation, ridge, component)
    total = np.einsum("ok,okp->op", weights, centred**2)[:, None]
    explained = (2 * inverse - design.eigenvalues[:, None] * inverse**2) @ moment**2
    used = (1 + (design.eigenvalues[:, None] * inverse).sum(axis=2)) * (weights**2).sum(axis=1)[:, None]
    used = np.where(np.arange(len(_RIDGES)) == len(_RIDGES) - 1, np.minimum(used, _FEW), used)[..., None]
    score = np.where(used <= _FEW, (total - explained) / (1 - np.minimum(used, _FEW)) ** 2, np.inf)
    best = score.argmin(axis=1)  # (observation, parameter)
    chosen = np.swapaxes(
        np.take_along_axis(inverse, best[..., None], axis=1), 1, 2
    )  # (observation, component, parameter)
    coefficients = moment * chosen
    fitted = mean[:, None] + design.scores @ coefficients
    predicted = mean + (design.observed[:, None] @ coefficients)[:, 0]
    leverage = weights[..., None] * (1 + design.scores**2 @ chosen)
    leverage_here = (weights**2).sum(axis=1)[:, None] * (1 + (design.observed**2)[:, None] @ chosen)[:, 0]
    return fitted, predicted, np.minimum(leverage, _FEW), leverage_here
