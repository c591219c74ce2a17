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
from scipy.ndimage import gaussian_filter
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
_ROUNDS = 4  # of weights
_AROUND = 2.0  # bins that the noise of a bin is averaged over
_TINY = float(np.finfo(float).tiny)
_TRIED = 16  # points of the prior for each of which one is followed
_AT_ONCE = 32  # of them whose images are made at once
_STEPS = 60
_REACH = 0.2  # of the unit cube that one step goes at most
_ENDED = 1e-5  # relative gain of a step after which there is no other
_BLOCKS = 8  # in either direction, for the errors


class Seen(NamedTuple):
    """An image to explain: `counts` (z, y), 0 where not `valid`, the variance `spread` (z, y) of its bins, and `shapes`
    (shape, z, y) of backgrounds.
    """

    counts: Array
    valid: Flags
    spread: Array
    shapes: Array


class Explained(NamedTuple):
    """What is made of one image: `image` (z, y), whole: the model's part `particles` (z, y) times `rows` (z, 1), and the
    shapes with their `levels` (shape,).

    `weight` (z, y) of the bins, one over variance; `misfit`: mean of what is minimised over the valid bins.
    """

    image: Array
    particles: Array
    rows: Array
    levels: Array
    weight: Array
    misfit: float


def seen(study: ParticlesStudy, counts: NDArray[np.floating], valid: Flags) -> Seen:
    """A recorded image (z, y) of a study's view. Its noise is that of counts around, as the model's may be far off."""
    values = np.where(valid, counts, 0.0)
    around = gaussian_filter(values, _AROUND) / np.maximum(gaussian_filter(valid.astype(float), _AROUND), 1e-3)
    extra = (SHARE * np.quantile(values[valid], _BRIGHT)) ** 2
    return Seen(values, valid, np.maximum(around, 1) + extra, backgrounds(study))


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
        shapes.append(rough[0].astype(np.float64))
    return np.stack([each / each.max() for each in shapes])


def explain(expected: Array, of: Seen) -> Explained:
    """Scales of rows and backgrounds, none negative, with which `expected` (z, y) comes nearest to what is seen.

    Least squares with all of them at once, and weights in rounds.
    """
    weight = of.valid / of.spread
    for _ in range(_ROUNDS):
        scale = float((weight * expected * of.counts).sum() / max(float((weight * expected**2).sum()), _TINY))
        own = scale * expected
        held = (weight * own * own).sum(1, keepdims=True) + _ROW_SD**-2
        # the rows are eliminated: what is not the model's in each of them is left to the backgrounds
        parts = np.concatenate([of.shapes, (of.counts - own)[None]])
        line = weight * own
        beside = parts - ((parts * line).sum(2, keepdims=True) / held) * own
        flat, other = (each.reshape(len(parts), -1) for each in (beside * weight, parts))
        levels = _levels(flat @ other.T)
        rest = np.tensordot(levels, of.shapes, 1)
        rows = np.maximum(1 + (line * (of.counts - own - rest)).sum(1, keepdims=True) / held, 0)
        image = own * rows + rest
        squared = (of.counts - image) ** 2 / (of.spread * _CAUCHY**2)
        weight = of.valid / (of.spread * (1 + squared))
    misfit = _CAUCHY**2 * np.log1p(squared[of.valid]).sum() + ((rows - 1) ** 2).sum() / _ROW_SD**2
    return Explained(image, own, rows, levels, weight, float(misfit) / of.valid.sum())


def _levels(products: Array) -> Array:
    """Levels (part,), none negative, of least squares by the products (part + 1, part + 1) of all with all, data last."""
    products = (products + products.T) / 2
    size = np.sqrt(np.maximum(np.diag(products)[:-1], _TINY))
    inner = products[:-1, :-1] / size / size[:, None] + 1e-12 * np.eye(len(size))
    root = np.linalg.cholesky(inner)
    return np.asarray(nnls(root.T, np.linalg.solve(root, products[:-1, -1] / size))[0] / size)


def refine(study: ParticlesStudy, answer: Array, counts: NDArray[np.floating], valid: Flags) -> Refined:
    """Where steps lead to for one recorded image (z, y), as `refine.refine` gives it; chi2 is the misfit.

    They begin at those of `answer` (parameter,) and of points of the prior that explain most, `inference.misfit_starts` of
    them; the best one counts. Takes about a second each for 64 x 160 bins.
    """
    of, number = seen(study, counts, valid), study.config.inference.misfit_starts
    points = np.concatenate([answer[None], study.prior.sample(_TRIED * number - 1).values])
    with one_thread():
        misfits = [
            explain(image.astype(np.float64), of).misfit
            for first in range(0, len(points), _AT_ONCE)
            for image in study.of_particles(points[first : first + _AT_ONCE])
        ]
        starts = study.prior.to_cube(points[np.argsort(misfits, kind="stable")[:number]])
        found = [_followed(study, start, of) for start in starts]
    return min(found, key=lambda each: float(each.chi2[0]))


def resampled(
    study: ParticlesStudy, samples: xr.DataArray, features: xr.Dataset, seed: int = 0
) -> tuple[xr.DataArray, Array]:
    """As many `samples` (observation, sample, parameter) from what `refine` finds, and the best parameters (observation,
    parameter). The search begins at the medians, too.
    """
    counts, valid = (features[name].values for name in (VIEW, f"mask_{VIEW}"))
    answers = np.median(samples.values, axis=1)
    found = [refine(study, *each) for each in zip(answers, counts, valid, strict=True)]
    together = Refined(*(np.concatenate(each) for each in zip(*found, strict=True)))
    drawn = draw(study, together, noise(seed, samples.shape))
    return samples.copy(data=drawn), study.prior.from_cube(together.cube)


class _Point(NamedTuple):
    """Where the search is: in the cube, what is explained there, gradient, information, and both summed over blocks."""

    cube: Array
    explained: Explained
    gradient: Array
    information: Array
    scores: Array


def _followed(study: ParticlesStudy, start: Array, of: Seen) -> Refined:
    """Marquardt's steps from a point of the cube (parameter,)."""
    here = _at(study, np.clip(start, BORDER, 1 - BORDER), of)
    damping = 1e-2
    for _ in range(_STEPS):
        there = np.clip(here.cube + _step(here, damping), BORDER, 1 - BORDER)
        image = study.of_particles(study.prior.from_cube(there[None]))[0].astype(np.float64)
        gain = here.explained.misfit - explain(image, of).misfit
        if gain > 0:
            here, damping = _at(study, there, of), max(damping / 5, 1e-6)
        else:
            damping *= 5
        if damping > 1e4 or 0 < gain < _ENDED * here.explained.misfit:
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


def _at(study: ParticlesStudy, cube: Array, of: Seen) -> _Point:
    """Gradient and information (parameter[, parameter]) at a point of the cube, all that is solved for projected out."""
    size = len(cube)
    steps = np.where(cube < 0.5, STEP, -STEP)
    points = cube + np.concatenate([np.zeros((1, size)), np.diag(steps)])
    images = study.of_particles(study.prior.from_cube(points)).astype(np.float64)
    found = explain(images[0], of)
    root = np.sqrt(found.weight)
    scale = float(found.particles.sum()) / max(float(images[0].sum()), _TINY)
    slopes = scale * (images[1:] - images[0]) / steps[:, None, None] * (found.rows * root)
    line = found.particles * root
    held = (line**2).sum(1) + _ROW_SD**-2

    def beside_rows(a: Array) -> Array:
        return np.asarray(a - ((a * line).sum(-1) / held)[..., None] * line)

    # a background at its bound, 0, takes nothing of a slope
    others = beside_rows(of.shapes[found.levels > 0] * root).reshape(-1, root.size)
    others /= np.maximum(np.linalg.norm(others, axis=1, keepdims=True), _TINY)
    projected = beside_rows(slopes).reshape(size, -1)
    inner = others @ others.T + 1e-9 * np.eye(len(others))
    projected -= (projected @ others.T) @ np.linalg.solve(inner, others)
    each = projected * ((of.counts - found.image) * root).reshape(-1)
    information = slopes.reshape(size, -1) @ projected.T
    information = (information + information.T) / 2 + PRIOR * np.eye(size)
    return _Point(cube, found, each.sum(1), information, _in_blocks(each.reshape(size, *of.valid.shape)))


def _in_blocks(values: Array) -> Array:
    """Sums (parameter, block) of values (parameter, z, y)."""
    size, *shape = values.shape
    each = [-(-length // _BLOCKS) for length in shape]
    padded = np.pad(values, ((0, 0), *((0, -length % part) for length, part in zip(shape, each, strict=True))))
    blocks = padded.reshape(size, -1, each[0], padded.shape[2] // each[1], each[1])
    return np.asarray(blocks.sum((2, 4)).reshape(size, -1))
