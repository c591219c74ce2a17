"""Maximum likelihood of nanodiffraction frames: what no unbiased estimator beats, and the errors that go with it.

The expected counts of a frame are amplitude * intensities(theta) [+ background], the same in every pixel; counts are
Poisson. Amplitude and background are nuisances: they are fitted for every theta anew, and what they cost is in the
standard deviations. Fisher scoring on the separable model: image and derivatives are four to five products of the same
small matrices, for a batch of frames at once. Where the ring is a grid of points, as published, the likelihood of chi has
plateaus and cliffs: chi is its mean over the likelihood there.

The frame's edges are a tenth of a pixel wide, so its likelihood has a narrow summit and other ones beside it. The fit
starts from the best of a grid compared with row and column sums, and goes through models with wider peaks, each of
which leads into the reach of the next. Model and derivatives are float32: a score's rounding error (1e-6 of the counts) is
far below the counting noise (1e-2 of them); equations of parameters are solved in float64.

Source: Osborne, Int. Stat. Rev. 60, 99 (1992), doi:10.2307/1403504 (Fisher scoring).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scatterflow.baselines.poisson import expected_deviance
from scatterflow.baselines.scoring import (
    BATCH,
    Model,
    Point,
    dark,
    deviations,
    evaluate,
    fisher_information,
    nuisances,
    raised,
)
from scatterflow.errors import ConfigError, FrameError
from scatterflow.forward.nanodiffraction import Kinematics, intensities, thinned
from scatterflow.forward.nanodiffraction_slopes import slopes

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
BLURS = ((0.8, 1e-2), (0.3, 1e-3), (0.0, 1e-5))  # least width of the peak [pixel]; floor in units of the maximum
GRID = (21, 21, 41)  # strain, omega, chi of the start
BLOCKS = 7  # of omega, a divisor of its number
_WIDE = 0.29  # least width for a third of the nodes: a bias of 0.02 standard deviations
_DARK = -1e3  # log-likelihood per count of a start without light
START = 0.3  # width there: the fringes of a thick film must remain
START_FLOOR = {False: 1e-2, True: 0.1}  # without and with a background, which is not yet fitted there
STEPS = 30  # per blur, at most
PER_PERIOD = 24  # values of chi from point to point of a ring of points
SAME = 1e-3  # of the log-likelihood: what float32 leaves uncertain, 0.04 of a standard deviation at the summit
CLOSE = (0.3, 0.3, 0.1)  # of the standard deviation: after a step this short the next would be its square


@dataclass(frozen=True)
class Fit:
    """Maximum likelihood of frames, one row each.

    `theta`, `sd` (frame, parameter): strain, omega [deg], chi [deg] and maybe thickness [nm], and their Fisher standard
    deviations; `amplitude`, `background` (frame,): in counts over intensities, and counts per pixel; `deviance` (frame,):
    over what it would be on average if the model were true (1: it fits); `converged` (frame,): False also where a frame
    is empty, or its maximum lies on the border of the box.
    """

    theta: Array
    sd: Array
    amplitude: Array
    background: Array
    deviance: Array
    converged: Flags


def fit(
    frames: NDArray[np.floating],
    at: Kinematics,
    box: Array,
    start: Array | None = None,
    mask: Flags | None = None,
    background: bool = False,
    starts: int = 1,
) -> Fit:
    """Fit counts `frames` (frame, z, y) within `box` (2, parameter), whose width says whether thickness is free.

    start : (frame, parameter) of another estimator; None: the best of a grid over the box.
    mask : (z, y), True = valid; None: all are.
    background : fit a constant one, too.
    starts : parts of the box, along omega, in which the likelihood is climbed in its coarsest form; the highest summit
        is followed. One will do for frames that the model describes, at most `BLOCKS` for others. Not with `start`.

    Takes 64 MB beside the frames and 20 numbers per frame. Raises FrameError for counts that are not finite and
    non-negative, ConfigError for a box, start or mask of the wrong shape.
    """
    counts, valid, box = _checked(frames, at, box, mask)
    low, width = torch.as_tensor(box[0]), torch.as_tensor(box[1] - box[0])
    if start is None:
        start = _summits(counts, at, box, valid, background, starts)
    if start.shape != (len(counts), box.shape[1]) or not np.isfinite(start).all():
        raise ConfigError("start of a fit", f"must be finite, of shape {(len(counts), box.shape[1])}", start.shape)
    unit = ((torch.as_tensor(start) - low) / width).clamp(0, 1)
    lit = counts.sum((1, 2)) > 0
    found = torch.zeros(len(counts), dtype=torch.bool)
    if lit.any():
        inside = counts[lit]
        for (blur, floor), close in zip(BLURS, CLOSE, strict=True):
            model = Model(_blurred(at, blur), low, width, valid, floor, background)
            unit[lit], found[lit], point = _climb(model, inside, unit[lit], close)
        if at.points:
            unit[lit], spread = _averaged(model, inside, unit[lit])
            point = evaluate(model, inside, unit[lit])
    unit[~lit] = 0.5
    sd = np.tile((width / np.sqrt(12)).numpy(), (len(counts), 1))  # what the box alone says
    amplitude, level, deviance = (np.zeros(len(counts)) for _ in range(3))
    if lit.any():
        chosen = lit.numpy()
        sd[chosen] = np.minimum(sd[chosen], (deviations(point.information) * width).numpy())
        if at.points:
            sd[chosen, 2] = (spread * width[2]).numpy()
        amplitude[chosen], level[chosen] = point.amplitude.numpy(), point.background.numpy()
        deviance[chosen] = torch.cat([batch[1] for batch in _rebuilt(model, inside, unit[lit])]).numpy()
    return Fit((low + width * unit).numpy(), sd, amplitude, level, deviance, found.numpy())


def step(
    frames: NDArray[np.floating],
    at: Kinematics,
    theta: Array,
    box: Array,
    mask: Flags | None = None,
    background: bool = False,
) -> tuple[Array, Array]:
    """One step of Fisher scoring from another estimator's `theta` (frame, parameter): new values and their sd.

    Efficient where `theta` lies within the summit's reach, a few standard deviations. No step leaves the box. Frames
    without counts keep `theta`, with the box's own sd. Errors as in `fit`.
    """
    counts, valid, box = _checked(frames, at, box, mask)
    low, width = torch.as_tensor(box[0]), torch.as_tensor(box[1] - box[0])
    if theta.shape != (len(counts), box.shape[1]) or not np.isfinite(theta).all():
        raise ConfigError("theta of a step", f"must be finite, of shape {(len(counts), box.shape[1])}", theta.shape)
    unit = ((torch.as_tensor(theta) - low) / width).clamp(0, 1)
    sd = (width / np.sqrt(12)).repeat(len(counts), 1)  # what the box alone says
    seen = counts.sum((1, 2)) > 0
    if seen.any():
        model = Model(at, low, width, valid, BLURS[-1][1], background)
        point = evaluate(model, counts[seen], unit[seen])
        change = _solved(point, unit[seen], torch.zeros(len(point.height), dtype=torch.float64))
        unit[seen] = (unit[seen] + change).clamp(0, 1)
        sd[seen] = torch.minimum(sd[seen], deviations(point.information) * width)
    return (low + width * unit).numpy(), sd.numpy()


def rebuild(
    frames: NDArray[np.floating], at: Kinematics, theta: Array, mask: Flags | None = None, background: bool = False
) -> tuple[NDArray[np.float32], Array]:
    """Expected counts (frame, z, y) at any estimator's `theta` (frame, parameter), and how far the frames are from them.

    Amplitude and background are the most likely ones. The second is the deviance (frame,), as in `Fit`. Errors as in
    `fit`. Holds as many numbers as `frames`.
    """
    theta = np.asarray(theta, dtype=float)
    if theta.shape not in ((len(frames), 3), (len(frames), 4)) or not np.isfinite(theta).all():
        raise ConfigError("theta of a frame", f"must be finite, of shape ({len(frames)}, 3 or 4)", theta.shape)
    low, width = torch.zeros(theta.shape[1]).double(), torch.ones(theta.shape[1]).double()
    counts, valid, _ = _checked(frames, at, np.stack([low.numpy(), width.numpy()]), mask)
    model = Model(at, low, width, valid, BLURS[-1][1], background)
    images, deviance = np.empty(counts.shape, dtype=np.float32), np.empty(len(counts))
    for number, (expected, misfit) in enumerate(_rebuilt(model, counts, torch.as_tensor(theta))):
        part = slice(number * BATCH, number * BATCH + len(expected))
        images[part], deviance[part] = expected.numpy(), misfit.numpy()
    return images, deviance


def bound(theta: Array, at: Kinematics, max_counts: float, background: float | None = None) -> Array:
    """Cramer-Rao bound on the standard deviation of unbiased estimates at `theta` (frame, parameter), same shape.

    Frames have an expected maximum of `max_counts` without background; their amplitude is unknown, and so is the
    `background` per pixel unless it is None (there is none then).
    """
    theta = np.asarray(theta, dtype=float)
    if not max_counts > 0 or not np.isfinite(theta).all():
        raise ConfigError("bound", "needs max_counts > 0 and finite theta", max_counts)
    unit = np.array([1e-3, 1e-2, 1e-2, 1.0])[: theta.shape[1]]  # so that no equation mixes scales
    result = np.empty_like(theta)
    for first in range(0, len(theta), BATCH):
        part = torch.as_tensor(theta[first : first + BATCH])
        image, slope = slopes(at, part)
        image = raised(image, BLURS[-1][1], 0.0)
        amplitude = max_counts / image.amax((1, 2))
        slope = slope * torch.as_tensor(unit, dtype=slope.dtype)[:, None, None]
        level = None if background is None else torch.full_like(amplitude, background)
        information = fisher_information(image, slope, amplitude, level, None)
        result[first : first + BATCH] = deviations(information).numpy() * unit
    return result


def starting_values(
    frames: NDArray[np.floating], at: Kinematics, box: Array, mask: Flags | None = None, background: bool = False
) -> Array:
    """Best of a grid over the box, (frame, parameter); thickness is the middle one. Errors as in `fit`."""
    counts, valid, box = _checked(frames, at, box, mask)
    return _grid(counts, at, box, valid, background)[:, 0]


def _summits(counts: Tensor, at: Kinematics, box: Array, valid: Tensor | None, background: bool, starts: int) -> Array:
    """Where to start the fit (frame, parameter): the best of the grid, or the highest of what `starts` of it lead to."""
    tried = _grid(counts, at, box, valid, background)[:, :starts]
    lit = counts.sum((1, 2)) > 0
    if starts == 1 or not lit.any():
        return tried[:, 0]
    low, width = torch.as_tensor(box[0]), torch.as_tensor(box[1] - box[0])
    model = Model(_blurred(at, BLURS[0][0]), low, width, valid, BLURS[0][1], background)
    reached, heights = torch.as_tensor(tried), torch.zeros(tried.shape[:2], dtype=torch.float64)
    for number in range(tried.shape[1]):
        unit = ((reached[lit, number] - low) / width).clamp(0, 1)
        unit, _, point = _climb(model, counts[lit], unit, CLOSE[0])
        reached[lit, number], heights[lit, number] = low + width * unit, point.height
    highest: Array = reached[torch.arange(len(reached)), heights.argmax(1)].numpy()
    return highest


def _grid(counts: Tensor, at: Kinematics, box: Array, valid: Tensor | None, background: bool) -> Array:
    """Best of each part of a grid over the box, the best part first: (frame, part, parameter).

    Compared by the likelihood with free amplitude, sum(n log p) with p of sum 1: chi by the sums of columns, strain and
    omega by those of rows, both by a matrix product. Rows do not tell well where the ring of a thick film lies, of which
    only a stripe is lit: the best of each of `BLOCKS` parts of omega are compared by whole frames.
    """
    axes = [np.linspace(box[0, number], box[1, number], size) for number, size in enumerate(GRID)]
    blurred = _blurred(at, START)
    least = dark(blurred)

    def shares(theta: Array, summed: tuple[int, ...]) -> Tensor:
        parts, lit = [], []
        for first in range(0, len(theta), BATCH):
            image = intensities(blurred, torch.as_tensor(theta[first : first + BATCH]))
            lit.append(image.amax((1, 2)) > least)
            image = raised(image, START_FLOOR[background], least)
            image = image if valid is None else image * valid
            parts.append(image.sum(summed) if summed else image)
        found = (
            torch.cat(parts).flatten(1) + torch.finfo(torch.float32).tiny
        )  # where all is masked, there are no counts
        # an image whose light falls beside the detector is flat, which is no reason to start there
        return (found / found.sum(1, keepdim=True)).log() + torch.where(torch.cat(lit), 0.0, _DARK)[:, None]

    middle = box.mean(axis=0)
    theta = np.tile(middle, (GRID[2], 1))
    theta[:, 2] = axes[2]
    chi = axes[2][(counts.sum(1) @ shares(theta, (1,)).T).argmax(1).numpy()]
    grid = np.array(list(product(axes[1], axes[0])))  # omega is the slower one
    theta = np.tile(middle, (len(grid), 1))
    theta[:, 1], theta[:, 0] = grid.T
    heights = (counts.sum(2) @ shares(theta, (2,)).T).reshape(len(counts), BLOCKS, len(grid) // BLOCKS)
    places = heights.argmax(2).numpy() + np.arange(BLOCKS) * (len(grid) // BLOCKS)
    tried = theta[places]  # (frame, block, parameter)
    tried[..., 2] = chi[:, None]
    for number, (each, seen) in enumerate(zip(tried, counts.flatten(1), strict=True)):  # a batch of its own each
        tried[number] = each[np.argsort(-(shares(each, ()) @ seen).numpy(), kind="stable")]
    return np.asarray(tried)


def _checked(
    frames: NDArray[np.floating], at: Kinematics, box: Array, mask: Flags | None
) -> tuple[Tensor, Tensor | None, Array]:
    shape = (at.qx.shape[0], at.qy.shape[0])
    frames = np.asarray(frames)
    if frames.ndim != 3 or frames.shape[1:] != shape:
        raise FrameError("frames", f"must be (frame, {shape[0]}, {shape[1]})", frames.shape)
    if mask is not None and mask.shape != shape:
        raise ConfigError("mask", f"must be {shape}", mask.shape)
    seen = frames if mask is None else np.where(mask, frames, 0)
    if not np.isfinite(seen).all() or (seen < 0).any():
        raise FrameError("counts", "must be finite and not negative", None, "mask the pixels that are not")
    box = np.asarray(box, dtype=float)
    if box.ndim != 2 or box.shape[0] != 2 or box.shape[1] not in (3, 4) or not (box[0] < box[1]).all():
        raise ConfigError("box of a fit", "must be (2, 3 or 4), lower below upper", box.tolist())
    valid = None if mask is None else torch.as_tensor(np.asarray(mask, dtype=np.float32))
    return torch.as_tensor(np.asarray(seen, dtype=np.float32)), valid, box


def _blurred(at: Kinematics, pixels: float) -> Kinematics:
    """The same with a peak that is no narrower than so many pixels; with fewer nodes where it needs fewer."""
    pixel = float(at.qy[1, 0] - at.qy[0, 0])  # [1/nm]
    blur = max(1.0, pixels * pixel / at.width)
    wide = replace(at, width=at.width * blur, ring=at.ring if at.points else at.ring / blur)
    return thinned(wide) if wide.width >= _WIDE * pixel else wide


def _climb(model: Model, counts: Tensor, unit: Tensor, close: float) -> tuple[Tensor, Tensor, Point]:
    """Levenberg-Marquardt with the expected information, every frame at its own pace: values, found, and the summit."""
    unit = unit.clone()
    point = evaluate(model, counts, unit)
    damping = torch.zeros(len(unit), dtype=torch.float64)
    found = torch.zeros(len(unit), dtype=torch.bool)
    active = torch.arange(len(unit))
    # chi has a plateau, not a summit, between points of the ring: it is averaged in the end
    told = [number for number in range(unit.shape[1]) if number != 2 or not model.at.points]
    for _ in range(STEPS):
        here = Point(*(part[active] for part in vars(point).values()))
        change = _solved(here, unit[active], damping[active])
        trial = (unit[active] + change).clamp(0, 1)
        new = evaluate(model, counts[active], trial)
        better = new.height >= here.height - SAME
        for name, part in vars(point).items():
            part[active[better]] = vars(new)[name][better]
        unit[active[better]] = trial[better]
        short = ((change.abs() / deviations(here.information))[:, told].amax(1) < close) & (damping[active] < 1)
        found[active] = short
        damping[active] = torch.where(better, damping[active] / 10, (damping[active] * 10).clamp_min(0.1))
        damping[damping < 1e-2] = 0
        active = active[~short & (damping[active] < 1e6)]
        if not len(active):
            break
    return unit, found & ((unit > 0) & (unit < 1)).all(1), point


def _averaged(model: Model, counts: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """With chi, of which a ring of points says little between its points, averaged over its likelihood; and its sd.

    Within one period of the points to either side, where amplitude and background are fitted anew, all else held.
    """
    at = model.at
    period = float(at.qy[0, 0] - at.qy[0, 1]) / at.g * 180 / np.pi / float(model.width[2])
    shifts = torch.linspace(-1, 1, 2 * PER_PERIOD + 1, dtype=torch.float64) * abs(period)
    unit, spread = unit.clone(), torch.empty(len(unit), dtype=torch.float64)
    for number in range(len(unit)):  # a batch of its own each: as many images as there are shifts
        tried = unit[number].repeat(len(shifts), 1)
        tried[:, 2] = (tried[:, 2] + shifts).clamp(0, 1)
        image = model.image(intensities(at, model.low + model.width * tried))
        seen = counts[number].expand_as(image)
        amplitude, background = nuisances(model, seen, image)
        expected = amplitude[:, None, None] * image + background[:, None, None]
        each = seen * expected.log() - expected
        height = (each if model.valid is None else each * model.valid).sum((1, 2), dtype=torch.float64)
        share = (height - height.max()).softmax(0)
        mean = (share * tried[:, 2]).sum()
        # a grid of shifts knows no better than its own step
        variance = (share * (tried[:, 2] - mean) ** 2).sum() + (shifts[1] - shifts[0]) ** 2 / 12
        unit[number, 2], spread[number] = mean, variance.sqrt()
    return unit, spread


def _solved(point: Point, unit: Tensor, damping: Tensor) -> Tensor:
    """The damped step (frame, parameter) of Fisher scoring; parameters that would leave the box stay."""
    stuck = ((unit <= 0) & (point.score < 0)) | ((unit >= 1) & (point.score > 0))
    free = (~stuck).double()
    matrix = point.information * free[:, :, None] * free[:, None, :]
    scale = torch.diagonal(matrix, dim1=1, dim2=2)
    # a parameter of which a frame says nothing is held by 1: the box's own width
    matrix = matrix + torch.diag_embed(damping[:, None] * scale + 1.0)
    step: Tensor = torch.linalg.solve(matrix, (point.score * free)[..., None])[..., 0]
    return step


def _rebuilt(model: Model, counts: Tensor, unit: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Expected counts (frame, z, y), and deviance over its expectation (frame,), batch by batch.

    What the fitted parameters take away of the deviance is left out on both sides.
    """
    fitted = unit.shape[1] + 1 + int(model.background)
    pixels = counts[0].numel() if model.valid is None else float(model.valid.sum())
    for first in range(0, len(counts), BATCH):
        part = slice(first, first + BATCH)
        image = model.image(intensities(model.at, model.low + model.width * unit[part]))
        seen = counts[part]
        amplitude, background = nuisances(model, seen, image)
        expected = amplitude[:, None, None] * image + background[:, None, None]
        dark = expected.amax((1, 2)) <= 0
        sure = expected.clamp_min(torch.finfo(expected.dtype).tiny)
        each = 2 * (torch.xlogy(seen, seen / sure) - seen + expected)
        average = torch.as_tensor(expected_deviance(expected.double().numpy()))
        if model.valid is not None:
            each, average = each * model.valid, average * model.valid
        total = each.sum((1, 2), dtype=torch.float64)
        usual = average.sum((1, 2)) * max(1 - fitted / pixels, 1 / pixels)
        yield expected, torch.where(dark, 0.0, total / usual.clamp_min(1e-300))
