"""What a GISAXS image of particles can tell at all: the Cramer-Rao bound of its Poisson counts beside the prior.

Scale and even background of the image are nuisances; all other artefacts count as known. Derivatives are finite
differences in the prior's unit cube, where its own information is that of a uniform distribution. Source: van Trees,
Detection, Estimation, and Modulation Theory I, 2.4 (1968).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scatterflow import imagecheck
from scatterflow.particles import ParticlesStudy

Array = NDArray[np.float64]
_STEP = 1e-3  # in the unit cube: images are float32, so that slopes are good to 1e-3
_PRIOR = 12.0  # one over the variance of a uniform distribution
_LEAST = 1e-3  # counts per bin that the model expects at least


def bounds(
    study: ParticlesStudy, theta: Array, counts: NDArray[np.floating], valid: NDArray[np.bool_]
) -> dict[str, Array]:
    """Least standard deviation (simulation,) of every quantity, at the truth `theta` of recorded images (simulation, z, y).

    Slower than answering: one image per parameter and simulation.
    """
    prior = study.prior
    cube = np.clip(prior.to_cube(theta), _STEP, 1 - _STEP)
    size = cube.shape[1]
    steps = np.where(cube < 0.5, _STEP, -_STEP)
    points = cube[:, None] + np.concatenate([np.zeros((1, size)), np.eye(size)])[None] * steps[:, None]
    near = prior.from_cube(points)
    images = study.expected(near.reshape(-1, size)).reshape(len(theta), size + 1, *counts.shape[1:]).astype(np.float64)
    told = study.quantities(near)
    fit = imagecheck.fitted(images[:, 0], counts, valid)
    mean = np.maximum(fit.image, _LEAST)
    slopes = fit.scale[:, None, None, None] * (images[:, 1:] - images[:, :1]) / steps[:, :, None, None]
    shape = (len(theta), 1, *counts.shape[1:])
    nuisances = [fit.scale[:, None, None, None] * images[:, :1], np.ones(shape)]
    weight = np.sqrt(valid / mean)[:, None]
    all_slopes = (np.concatenate([slopes, *nuisances], axis=1) * weight).reshape(len(theta), size + 2, -1)
    information = all_slopes @ all_slopes.transpose(0, 2, 1)
    index = np.arange(size)
    information[:, index, index] += _PRIOR
    scale = np.sqrt(np.maximum(np.diagonal(information, axis1=1, axis2=2), np.finfo(float).tiny))
    normed = information / (scale[:, :, None] * scale[:, None, :])
    covariance = np.linalg.pinv(normed, hermitian=True) / (scale[:, :, None] * scale[:, None, :])
    found = {}
    for name, values in told.items():
        slope = (values[:, 1:] - values[:, :1]) / steps
        variance = np.einsum("np,npq,nq->n", slope, covariance[:, :size, :size], slope)
        found[name] = np.sqrt(np.maximum(variance, 0.0))
    return found
