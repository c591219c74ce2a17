"""A model's posterior, refined by the image itself: scoring steps on all valid bins with the exact forward model.

A network answers from what it has learnt; a few Gauss-Newton steps from its answer use every count. Scale and even
background are solved for at each step (variable projection). Bins far off weigh little (Cauchy's weights): streaks, tails
and undetected hot pixels are not in the forward model. In the prior's unit cube, whose uniform distribution adds its own
information; the covariance is that of the last step. What artefacts do to it is calibrated on validation rows.

Sources: Golub & Pereyra, doi:10.1137/0710036; Holland & Welsch, doi:10.1080/03610927708827533 (weights).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from scatterflow import seeds
from scatterflow.forward.parallel import one_thread
from scatterflow.imagecheck import fitted, variance
from scatterflow.particles import ParticlesStudy

Array = NDArray[np.float64]
STEP = 1e-3  # of finite differences in the unit cube: images are float32
PRIOR = 12.0  # one over the variance of a uniform distribution
_REACH = 0.15  # of the unit cube that one step goes at most
_CAUCHY = 2.385  # residuals at which a bin's weight is a half: 95 % efficient where noise is normal
BORDER = 2 * STEP
_ROWS = 16  # images at once
_SMALLEST = 2.0**-53  # uniform number that has a normal quantile


class Refined(NamedTuple):
    """Parameters in the unit cube (image, parameter), their covariance there, and the mean squared residual (image,).

    `aim` (image, parameter): where the next step would lead if the prior had no ends.
    """

    cube: Array
    covariance: Array
    chi2: Array
    aim: Array


def refine(
    study: ParticlesStudy, start: Array, counts: NDArray[np.floating], valid: NDArray[np.bool_], steps: int
) -> Refined:
    """`steps` steps from parameters `start` (image, parameter) for recorded images (image, z, y); the best one counts."""
    with one_thread():
        parts = [
            _refine(study, start[rows], counts[rows], valid[rows], steps)
            for rows in (slice(first, first + _ROWS) for first in range(0, len(start), _ROWS))
        ]
    return Refined(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _refine(
    study: ParticlesStudy, start: Array, counts: NDArray[np.floating], valid: NDArray[np.bool_], steps: int
) -> Refined:
    size = start.shape[1]
    here = np.clip(study.prior.to_cube(start), BORDER, 1 - BORDER)
    best = Refined(here, np.zeros((len(here), size, size)), np.full(len(here), np.inf), here)
    for _ in range(steps + 1):
        gradient, information, chi2 = _linearised(study, here, counts, valid)
        covariance = np.linalg.inv(information)
        onwards = np.einsum("npq,nq->np", covariance, gradient)
        better = (chi2 < best.chi2)[:, None]
        best = Refined(
            np.where(better, here, best.cube),
            np.where(better[..., None], covariance, best.covariance),
            np.where(better[:, 0], chi2, best.chi2),
            np.where(better, here + onwards, best.aim),
        )
        # from where it was best, half as far where the last step made it worse
        step = np.where(better, onwards, 0.5 * (here - best.cube))
        step *= np.minimum(1, _REACH / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-12))
        here = np.clip(np.where(better, here, best.cube) + step, BORDER, 1 - BORDER)
    return best


def _linearised(
    study: ParticlesStudy, cube: Array, counts: NDArray[np.floating], valid: NDArray[np.bool_]
) -> tuple[Array, Array, Array]:
    """Gradient (image, parameter), information (image, parameter, parameter), robust chi2 (image,) at points of the cube."""
    number, size = cube.shape
    steps = np.where(cube < 0.5, STEP, -STEP)
    points = cube[:, None] + np.concatenate([np.zeros((1, size)), np.eye(size)])[None] * steps[:, None]
    images = study.expected(study.prior.from_cube(points).reshape(-1, size))
    images = images.reshape(number, size + 1, -1)
    fit = fitted(images[:, 0].reshape(counts.shape), counts, valid, cauchy=_CAUCHY)
    model, seen = fit.image.reshape(number, -1), valid.reshape(number, -1)
    spread = variance(model)
    residual = (np.where(seen, counts.reshape(number, -1), 0) - model) * seen
    squared = residual**2 / spread
    weight = seen / spread / (1 + squared / _CAUCHY**2)
    chi2 = _CAUCHY**2 * (np.log1p(squared / _CAUCHY**2) * seen).sum(1) / np.maximum(seen.sum(1), 1)
    root = np.sqrt(weight)[:, None]
    slopes = fit.scale[:, None, None] * (images[:, 1:] - images[:, :1]) / steps[:, :, None] * root
    nuisances = np.concatenate([images[:, :1] * root, root], axis=1)
    nuisances /= np.maximum(np.linalg.norm(nuisances, axis=2, keepdims=True), np.finfo(float).tiny)
    inner = nuisances @ nuisances.transpose(0, 2, 1)
    inner[:, [0, 1], [0, 1]] += 1e-9  # an even image is a background, too
    slopes = slopes - (slopes @ nuisances.transpose(0, 2, 1)) @ np.linalg.solve(inner, nuisances)
    information = slopes @ slopes.transpose(0, 2, 1)
    information[:, np.arange(size), np.arange(size)] += PRIOR
    gradient = np.einsum("npb,nb->np", slopes, residual * root[:, 0])
    return gradient, information, chi2


def noise(seed: int, shape: tuple[int, ...]) -> Array:
    """Standard normal numbers (image, sample, parameter) of `shape`; those of image `i` depend on (seed, i) only."""
    images, number, size = shape
    uniform = seeds.uniforms(seed, "refined samples", 0, images, number * size)
    return np.asarray(ndtri(np.maximum(uniform, _SMALLEST)).reshape(shape))


def draw(study: ParticlesStudy, found: Refined, noise: Array, width: float = 1.0) -> Array:
    """Parameters (image, sample, parameter) from standard normal `noise` (image, sample, parameter).

    Normal in the cube with `width` times the deviations found, reflected at its borders. Where the image asks for more
    disorder than the prior has, samples are about what it asks for and stay at the prior's end: what they say is that.
    """
    factors = np.linalg.cholesky(found.covariance) * width
    centre, names = found.cube.copy(), study.prior.names
    if "disorder" in names:
        of = names.index("disorder")
        more = (centre[:, of] >= 1 - BORDER) & (found.aim[:, of] > 1)
        centre[more, of] = found.aim[more, of]
    cube = centre[:, None] + noise @ factors.transpose(0, 2, 1)
    if "disorder" in names:
        cube[more, :, of] = np.clip(cube[more, :, of], 0, 1)
    cube = np.abs(np.mod(cube + 1, 2) - 1)  # reflected
    return study.prior.from_cube(np.clip(cube, 1e-9, 1 - 1e-9))
