"""Gaussian mixtures, one per observation, that turn accepted parameters into a density: all observations at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import ndtri

Array = NDArray[np.float64]
_MAX_PAIRS = 2**18  # (point, kernel) distances held at once: 2 MB, so that they stay in the cache
_WIDTHS = np.array([0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99])
_LEFT_OUT = 256  # kernels, at most, that the width is cross-validated on
_OPEN = (2.0**-54, 1 - 2.0**-53)  # uniforms of [0, 1) are kept off the ends, whose normal quantile is infinite


@dataclass(frozen=True)
class Mixture:
    """Kernels N(centre, C C^T) with C = `cholesky`, shared by the kernels of one observation.

    `centres` (observation, kernel, parameter), `log_weights` (observation, kernel; exp sums to 1),
    `cholesky` (observation, parameter, parameter), lower triangular.
    """

    centres: Array
    log_weights: Array
    cholesky: Array


def fixed_bandwidth(centres: Array, bandwidth: float) -> Mixture:
    """Equal isotropic kernels of standard deviation `bandwidth` on `centres` (observation, kernel, parameter)."""
    observations, kernels, parameters = centres.shape
    cholesky = np.broadcast_to(bandwidth * np.eye(parameters), (observations, parameters, parameters))
    return Mixture(centres, np.full((observations, kernels), -np.log(kernels)), cholesky)


def matched_kernels(centres: Array, weights: Array) -> Mixture:
    """Kernels that keep mean and covariance of the weighted `centres`, as wide as they predict each other best.

    Kernel covariance h^2 S with S of `ledoit_wolf`, centres drawn towards their mean by sqrt(1 - h^2): a plain kernel
    estimate would widen the density by 1 + h^2 per direction, which ruins it in 18 dimensions (Liu & West 2001,
    doi:10.1007/978-1-4757-3437-9_10). h maximises the leave-one-out likelihood (Duin 1976,
    doi:10.1109/TC.1976.1674577), for each observation.

    centres : (observation, kernel, parameter), in an unbounded coordinate.
    weights : (observation, kernel), sum 1.
    """
    cholesky = np.asarray(np.linalg.cholesky(ledoit_wolf(centres, weights)), dtype=np.float64)
    mean: Array = np.einsum("ok,okp->op", weights, centres)[:, None]
    with np.errstate(divide="ignore"):  # a weight of 0 (at the acceptance radius) is a kernel of log weight -inf
        log_weights = np.log(weights)
    width = np.empty(len(centres))
    pairs = _LEFT_OUT * centres.shape[1]
    for rows, _ in _blocks(len(centres), 1, pairs):
        width[rows] = _width(_whiten(cholesky[rows], centres[rows] - mean[rows]), log_weights[rows])
    shrunk = mean + np.sqrt(1 - width**2)[:, None, None] * (centres - mean)
    return Mixture(shrunk, log_weights, width[:, None, None] * cholesky)


def _width(white: Array, log_weights: Array) -> Array:
    """h of largest leave-one-out likelihood, (observation,); `white` are whitened centres around their mean."""
    kernels, parameters = white.shape[1:]
    left_out = np.arange(0, kernels, -(-kernels // _LEFT_OUT))
    points = white[:, left_out]
    product = points @ np.swapaxes(white, 1, 2)
    product[:, np.arange(len(left_out)), left_out] = -np.inf  # no kernel predicts its own centre
    there, here = (white**2).sum(axis=2), (points**2).sum(axis=2)
    trust = np.exp(log_weights[:, left_out])
    score = np.empty((len(_WIDTHS), len(white)))
    for number, width in enumerate(_WIDTHS):
        shrink = np.sqrt(1 - width**2)
        exponent = product * (shrink / width**2)
        exponent += (log_weights - 0.5 * (shrink / width) ** 2 * there)[:, None, :]
        density = _log_sum_exp(exponent) - 0.5 * here / width**2 - parameters * np.log(width)
        score[number] = (trust * density).sum(axis=1)
    return np.asarray(_WIDTHS[score.argmax(axis=0)])


def ledoit_wolf(values: Array, weights: Array) -> Array:
    """Covariance shrunk to a multiple of the identity, (observation, parameter, parameter).

    Ledoit & Wolf (2004), doi:10.1016/S0047-259X(03)00096-4, with weights; positive definite for any number of rows.

    values : (observation, row, parameter).
    weights : (observation, row), sum 1.
    """
    parameters = values.shape[-1]
    centred = values - np.einsum("ok,okp->op", weights, values)[:, None]
    sample = np.swapaxes(centred * weights[..., None], 1, 2) @ centred
    scale = np.trace(sample, axis1=1, axis2=2) / parameters
    identity = np.eye(parameters)
    spread = ((sample - scale[:, None, None] * identity) ** 2).sum(axis=(1, 2))
    # sum w^2 |x x^T - S|^2, expanded so that no (row, parameter, parameter) array is needed
    squares = (centred**2).sum(axis=2)
    cross = ((centred @ sample) * centred).sum(axis=2)
    noise = (weights**2 * (squares**2 - 2 * cross + (sample**2).sum(axis=(1, 2))[:, None])).sum(axis=1)
    share = np.where(spread > 0, np.minimum(noise, spread) / np.where(spread > 0, spread, 1.0), 1.0)[:, None, None]
    floor = np.finfo(np.float64).eps * np.maximum(scale, 1.0)[:, None, None]  # no spread at all: still invertible
    return np.asarray((1 - share) * sample + (share * scale[:, None, None] + floor) * identity)


def log_density(mixture: Mixture, points: Array) -> Array:
    """Natural log density of `points` (observation, point, parameter) under each mixture, (observation, point)."""
    result = np.empty(points.shape[:2])
    for rows, columns in _blocks(points.shape[0], points.shape[1], mixture.centres.shape[1]):
        cholesky = mixture.cholesky[rows]
        middle = mixture.centres[rows].mean(axis=1, keepdims=True)  # centring keeps the expanded square accurate
        kernels = _whiten(cholesky, mixture.centres[rows] - middle)
        where = _whiten(cholesky, points[rows, columns] - middle)
        squares = (where**2).sum(axis=2)[:, :, None] + (kernels**2).sum(axis=2)[:, None, :]
        squares -= 2 * where @ np.swapaxes(kernels, 1, 2)
        exponent = mixture.log_weights[rows][:, None, :] - 0.5 * np.maximum(squares, 0.0)
        log_volume = np.log(np.diagonal(cholesky, axis1=1, axis2=2)).sum(axis=1)[:, None]
        constant = 0.5 * points.shape[2] * np.log(2 * np.pi)
        result[rows, columns] = _log_sum_exp(exponent) - log_volume - constant
    return result


def draw(mixture: Mixture, uniforms: Array) -> Array:
    """Samples (observation, sample, parameter) made of `uniforms` in [0, 1) (observation, sample, parameter + 1)."""
    cumulative = np.exp(mixture.log_weights).cumsum(axis=1)
    kernels = cumulative.shape[1]
    # one sorted list for all observations: observation i occupies the interval [i, i + 1)
    offsets = np.arange(len(cumulative))[:, None]
    edges = (cumulative / cumulative[:, -1:] + offsets).ravel()
    flat = np.searchsorted(edges, (uniforms[..., 0] + offsets).ravel(), side="right").reshape(uniforms.shape[:2])
    chosen = np.clip(flat - offsets * kernels, 0, kernels - 1)
    centres = np.take_along_axis(mixture.centres, chosen[..., None], axis=1)
    noise = ndtri(np.clip(uniforms[..., 1:], *_OPEN))
    return np.asarray(centres + noise @ np.swapaxes(mixture.cholesky, 1, 2))


def _log_sum_exp(exponent: Array) -> Array:
    """Over the last axis; overwrites `exponent`. scipy's own takes 4 to 15 times as long."""
    top = exponent.max(axis=-1, keepdims=True)
    exponent -= top
    return np.asarray(np.log(np.exp(exponent, out=exponent).sum(axis=-1)) + top[..., 0])


def _whiten(cholesky: Array, values: Array) -> Array:
    """C^-1 of each row, for `values` (observation, row, parameter)."""
    return np.asarray(np.swapaxes(solve_triangular(cholesky, np.swapaxes(values, 1, 2), lower=True), 1, 2))


def _blocks(observations: int, points: int, kernels: int) -> Iterator[tuple[slice, slice]]:
    """Cover (observation, point) with blocks of at most _MAX_PAIRS distances to the kernels."""
    columns = max(1, min(points, _MAX_PAIRS // kernels))
    rows = max(1, _MAX_PAIRS // (kernels * columns))
    for row in range(0, observations, rows):
        for column in range(0, points, columns):
            yield slice(row, row + rows), slice(column, column + columns)
