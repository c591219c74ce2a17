"""Answers from an image that the model cannot reproduce: what it explains beside what it does not.

Where every bin counts, what a model lacks speaks through its parameters: tails look like disorder, an unknown vertical
profile like another spacing. Here each row has a scale of its own (waves, heights and roughness act on rows as a whole),
tails of the direct and of the specular beam, scattering of rough interfaces and an even background are added, and every bin
may be off by a share of the brightest ones: features count that stand out. All of these are solved for at each step
(variable projection). The errors are those of a wrong model, the sandwich of Huber and White over blocks of bins whose
residuals hang together. They tell how firmly the image holds an answer, not whether it is true.

Sources: Golub & Pereyra, doi:10.1137/0710036; White, doi:10.2307/1912526 (errors); Marquardt, doi:10.1137/0111030 (steps).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import nnls

from scatterflow import instrument as geometry
from scatterflow.forward.parallel import one_thread
from scatterflow.particles import VIEW, ParticlesStudy
from scatterflow.refine import BORDER, PRIOR, STEP, Refined, draw, noise

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
SHARE = 0.03  # of the brightest bins that every bin may be off by
_BRIGHT = 0.995  # quantile of the counts that the brightest bins are taken at
_ROW_SD = 1.0  # of a row's scale about 1
_CAUCHY = 10.0  # residuals at which a bin's weight is a half: only what is no smooth scattering is put aside
_POWER = -2  # of the tails with the distance from their beam
_ROUNDS = 6  # of weights, scales and rows in turn
_TRIED, _FOLLOWED = 127, 8  # points of the prior that the search may begin at
_STEPS = 60
_REACH = 0.2  # of the unit cube that one step goes at most
_ENDED = 1e-5  # relative gain of a step after which there is no other
_BLOCKS = 8  # in either direction, for the errors


class Explained(NamedTuple):
    """What is made of one image: `image` (z, y), whole, of which `particles` (z, y) times `rows` (z, 1) is the model's part.

    `weight` (z, y) of the bins, one over variance; `misfit`: mean of what is minimised over the valid bins.
    """

    image: Array
    particles: Array
    rows: Array
    weight: Array
    misfit: float


def backgrounds(study: ParticlesStudy) -> Array:
    """Shapes (shape, z, y), at most 1: even, tails of the direct and of the specular beam, and rough interfaces'."""
    bins = geometry.axes(geometry.view(study.config.instrument, VIEW))
    z, y = (each.mean(axis=1) for each in (bins.z, bins.y))
    incidence = math.radians(study.config.instrument.incidence_deg)
    beams = geometry.rows_px(study.config.instrument, np.array([-incidence, incidence]))
    beside = y - geometry.foot_px(study.config.instrument)[1]
    away = (np.maximum(np.hypot(z[:, None] - beam, beside), 1.0) for beam in beams)
    shapes = [np.ones((len(z), len(y))), *(each**_POWER for each in away)]
    rough = study.interfaces(study.prior.from_cube(np.full((1, len(study.prior.names)), 0.5)))
    if rough is not None and rough.max() > 0:
        shapes.append(rough[0])
    return np.stack([each / each.max() for each in shapes])


def explain(expected: Array, shapes: Array, counts: NDArray[np.floating], valid: Flags) -> Explained:
    """Scale, row scales and backgrounds, none negative, with which `expected` (z, y) comes nearest to `counts` (z, y)."""
    seen = np.where(valid, counts, 0.0)
    extra = (SHARE * np.quantile(seen[valid], _BRIGHT)) ** 2
    image, rows, scale = seen, np.ones((len(seen), 1)), 0.0
    parts = np.empty((len(shapes) + 2, *seen.shape))  # the model's part, the backgrounds, and what is seen
    parts[1:-1], parts[-1] = shapes, seen
    for _ in range(_ROUNDS):
        weight, _ = _weighed(image, seen, valid, extra)
        np.multiply(expected, rows, out=parts[0])
        flat = parts.reshape(len(parts), -1)
        levels = _levels((flat * weight.ravel()) @ flat.T)
        scale, rest = float(levels[0]), np.tensordot(levels[1:], shapes, 1)
        own = scale * expected
        held = (weight * own * own).sum(1, keepdims=True)
        pulled = (weight * own * (seen - rest)).sum(1, keepdims=True)
        rows = np.maximum((pulled + _ROW_SD**-2) / (held + _ROW_SD**-2), 1e-3)
        if held.any():
            rows = rows / np.exp(np.average(np.log(rows), weights=held))
        image = own * rows + rest
    weight, squared = _weighed(image, seen, valid, extra)
    misfit = _CAUCHY**2 * np.log1p(squared[valid]).sum() + (np.log(rows) ** 2).sum() / _ROW_SD**2
    return Explained(image, scale * expected, rows, weight, float(misfit) / valid.sum())


def _weighed(image: Array, seen: Array, valid: Flags, extra: float) -> tuple[Array, Array]:
    """Weights (z, y) of the bins, and squared residuals over the square at which a weight is a half."""
    spread = np.maximum(image, 1) + extra
    squared = (seen - image) ** 2 / (spread * _CAUCHY**2)
    return valid / (spread * (1 + squared)), squared


def _levels(products: Array) -> Array:
    """Levels (part,), none negative, of least squares by the products (part + 1, part + 1) of all with all, data last."""
    size = np.sqrt(np.maximum(np.diag(products)[:-1], np.finfo(float).tiny))
    inner = products[:-1, :-1] / size / size[:, None] + 1e-12 * np.eye(len(size))
    root = np.linalg.cholesky(inner)
    return np.asarray(nnls(root.T, np.linalg.solve(root, products[:-1, -1] / size))[0] / size)


def refine(study: ParticlesStudy, answer: Array, counts: NDArray[np.floating], valid: Flags) -> Refined:
    """Where steps lead to for one recorded image (z, y), as `refine.refine` gives it; chi2 is the misfit.

    They begin at those of `answer` (parameter,) and of points of the prior that explain most; the best one counts. Takes a
    few seconds.
    """
    shapes = backgrounds(study)
    points = np.concatenate([answer[None], study.prior.sample(_TRIED).values])
    with one_thread():
        images = study.expected(points).astype(np.float64)
        misfits = [explain(image, shapes, counts, valid).misfit for image in images]
        starts = study.prior.to_cube(points[np.argsort(misfits, kind="stable")[:_FOLLOWED]])
        found = [_followed(study, start, shapes, counts, valid) for start in starts]
    return min(found, key=lambda each: float(each.chi2[0]))


def resampled(study: ParticlesStudy, samples: xr.DataArray, features: xr.Dataset, seed: int = 0) -> xr.DataArray:
    """As many `samples` (observation, sample, parameter) from what `refine` finds, beginning at their medians."""
    counts, valid = (features[name].values for name in (VIEW, f"mask_{VIEW}"))
    answers = np.median(samples.values, axis=1)
    found = [refine(study, *each) for each in zip(answers, counts, valid, strict=True)]
    together = Refined(*(np.concatenate(each) for each in zip(*found, strict=True)))
    return samples.copy(data=draw(study, together, noise(seed, samples.shape)))


class _Point(NamedTuple):
    """Where the search is: in the cube, what is explained there, gradient, information, and both summed over blocks."""

    cube: Array
    explained: Explained
    gradient: Array
    information: Array
    scores: Array


def _followed(
    study: ParticlesStudy, start: Array, shapes: Array, counts: NDArray[np.floating], valid: Flags
) -> Refined:
    """Marquardt's steps from a point of the cube (parameter,)."""
    here = _at(study, np.clip(start, BORDER, 1 - BORDER), shapes, counts, valid)
    damping, taken = 1e-2, 0
    while taken < _STEPS:
        taken += 1
        step = _step(here, damping)
        there = np.clip(here.cube + step, BORDER, 1 - BORDER)
        image = study.expected(study.prior.from_cube(there[None]))[0].astype(np.float64)
        gain = here.explained.misfit - explain(image, shapes, counts, valid).misfit
        if gain <= 0:
            damping *= 5
            if damping > 1e4:
                break
            continue
        ended = gain < _ENDED * here.explained.misfit
        here, damping = _at(study, there, shapes, counts, valid), max(damping / 5, 1e-6)
        if ended:
            break
    bread = np.linalg.inv(here.information)
    filling = here.scores @ here.scores.T + PRIOR * np.eye(len(bread))
    covariance = bread @ filling @ bread
    aim = here.cube + bread @ here.gradient
    return Refined(here.cube[None], covariance[None], np.array([here.explained.misfit]), aim[None])


def _step(here: _Point, damping: float) -> Array:
    """Where to go from there (parameter,), but not beyond the borders of the cube."""
    outwards = ((here.cube <= BORDER) & (here.gradient < 0)) | ((here.cube >= 1 - BORDER) & (here.gradient > 0))
    free = ~outwards
    step = np.zeros_like(here.cube)
    inner = here.information[np.ix_(free, free)]
    step[free] = np.linalg.solve(inner + damping * np.diag(np.diag(inner)), here.gradient[free])
    return np.asarray(step * min(1.0, _REACH / max(float(np.abs(step).max(initial=0)), 1e-12)))


def _at(study: ParticlesStudy, cube: Array, shapes: Array, counts: NDArray[np.floating], valid: Flags) -> _Point:
    """Gradient and information (parameter[, parameter]) at a point of the cube, all that is solved for projected out."""
    size = len(cube)
    steps = np.where(cube < 0.5, STEP, -STEP)
    points = cube + np.concatenate([np.zeros((1, size)), np.diag(steps)])
    images = study.expected(study.prior.from_cube(points)).astype(np.float64)
    found = explain(images[0], shapes, counts, valid)
    root = np.sqrt(found.weight)
    own = found.rows * root * (found.particles.sum() / max(float(images[0].sum()), np.finfo(float).tiny))
    slopes = (images[1:] - images[0]) / steps[:, None, None] * own
    line = found.particles * found.rows * root
    held = (line**2).sum(1) + _ROW_SD**-2

    def beside_rows(a: Array) -> Array:
        return np.asarray(a - ((a * line).sum(-1) / held)[..., None] * line)

    # a background that the image does not have is at its bound and explains nothing
    others = beside_rows(shapes * root).reshape(len(shapes), -1)
    others /= np.maximum(np.linalg.norm(others, axis=1, keepdims=True), np.finfo(float).tiny)
    projected = beside_rows(slopes).reshape(size, -1)
    inner = others @ others.T + 1e-9 * np.eye(len(others))
    projected -= (projected @ others.T) @ np.linalg.solve(inner, others)
    residual = ((np.where(valid, counts, 0.0) - found.image) * root).reshape(-1)
    each = projected * residual
    information = slopes.reshape(size, -1) @ projected.T
    information = (information + information.T) / 2 + PRIOR * np.eye(size)
    return _Point(cube, found, each.sum(1), information, _in_blocks(each.reshape(size, *valid.shape)))


def _in_blocks(values: Array) -> Array:
    """Sums (parameter, block) of values (parameter, z, y)."""
    size, *shape = values.shape
    each = [-(-length // _BLOCKS) for length in shape]
    padded = np.pad(values, ((0, 0), *((0, -length % part) for length, part in zip(shape, each, strict=True))))
    blocks = padded.reshape(size, -1, each[0], padded.shape[2] // each[1], each[1])
    return np.asarray(blocks.sum((2, 4)).reshape(size, -1))
