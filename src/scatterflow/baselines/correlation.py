"""The conventional analysis of nanodiffraction: correlate a frame with a library, take centres of mass.

Published (T. Zhou; DONUT, Methods): multiply the frame with every pattern of the library, each normalised to sum 1; sum
the correlations over all values of two parameters; of what is left of the third, subtract the least and take the centre
of mass. Until that subtraction it is linear in the frame, so the patterns are summed over two parameters once, and a
frame costs 3 x 41 scalar products instead of 41^3: the same answer for 1/560 of the arithmetic.

The centre of mass is that of the whole range, which draws all answers towards its middle: a property of the method.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scatterflow.errors import ConfigError, FrameError
from scatterflow.forward.nanodiffraction import Kinematics, factors

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
VALUES = 41  # of each parameter, published
_BLOCK = 256  # frames at once


@dataclass(frozen=True)
class Library:
    """A library summed over two of its three parameters, in turn.

    `axes`: the values of strain, omega [deg] and chi [deg]; `templates` (pixel, value): those of all three, one after the
    other; `mask` (z, y) of the pixels that count, or None.
    """

    axes: tuple[Array, Array, Array]
    templates: NDArray[np.float32]
    mask: Flags | None


def library(at: Kinematics, box: Array, values: int = VALUES, mask: Flags | None = None) -> Library:
    """Sum the library of `values`^3 patterns over `box` (2, parameter), of which strain, omega and chi are used.

    One factor of a pattern depends on strain and omega, the other on strain and chi (`factors`): of 41^3 patterns only
    2 x 41^2 factors are computed. `mask`: (z, y), True = valid. Holds `values`^2 patterns at a time (28 MB for 41).
    """
    box = np.asarray(box, dtype=float)
    if box.ndim != 2 or box.shape[0] != 2 or box.shape[1] < 3 or not (box[0] < box[1]).all():
        raise ConfigError("box of a library", "must be (2, 3 or 4), lower below upper", box.tolist())
    if values < 3:
        raise ConfigError("values of a library", "must be at least 3 of each parameter", values)
    strain, omega, chi = (np.linspace(box[0, number], box[1, number], values) for number in range(3))
    rows, columns = at.qx.shape[0], at.qy.shape[0]
    weight = torch.ones(rows, columns) if mask is None else torch.as_tensor(np.asarray(mask, dtype=np.float32))
    sums = torch.zeros(3, values, rows, columns, dtype=torch.float64)
    for number, each in enumerate(strain):
        theta = torch.as_tensor(np.stack([np.full(values, each), omega, chi], axis=1))
        along, across = factors(at, theta)
        products = along.flatten(0, 1).float() @ across.flatten(0, 1).float().T
        patterns = products.reshape(values, rows, values, columns)  # (omega, z, chi, y)
        patterns = patterns * weight[:, None]
        patterns /= patterns.sum((1, 3), keepdim=True)
        by_omega, by_chi = patterns.sum(2).double(), patterns.sum(0).double().transpose(0, 1)
        sums[0, number] = by_omega.sum(0)
        sums[1] += by_omega
        sums[2] += by_chi
    templates = sums.flatten(2).flatten(0, 1).T.contiguous().float().numpy()
    return Library((strain, omega, chi), templates, mask)


def predict(at: Library, frames: NDArray[np.floating]) -> tuple[Array, Array]:
    """Strain, omega [deg] and chi [deg] of `frames` (frame, z, y), and their standard deviations, (frame, 3) each.

    The standard deviations are what the counting noise alone makes of the answer (delta method, the counts standing for
    their own variance); what the method itself is off by is not in them. Frames whose correlations do not vary (empty
    ones) get the middle of the range, and the deviation of a uniform distribution over it. Raises FrameError for counts
    that are not finite and non-negative, or of another shape.
    """
    counts = _flat(at, frames)
    values, sd = np.empty((len(counts), 3)), np.empty((len(counts), 3))
    for first in range(0, len(counts), _BLOCK):
        part = counts[first : first + _BLOCK]
        for number, (axis, scores) in enumerate(zip(at.axes, np.split(part @ at.templates, 3, axis=1), strict=True)):
            values[first : first + _BLOCK, number] = centre(scores, axis)
            templates = np.split(at.templates, 3, axis=1)[number]
            slope = _coefficients(scores, axis).astype(np.float32) @ templates.T  # of the answer by each pixel's counts
            sd[first : first + _BLOCK, number] = np.sqrt(np.einsum("fp,fp->f", slope**2, part, dtype=np.float64))
        for number, axis in enumerate(at.axes):
            widest = np.ptp(axis) / np.sqrt(12)
            dark = part.sum(axis=1) == 0
            sd[first : first + _BLOCK, number] = np.where(dark, widest, sd[first : first + _BLOCK, number])
    return values, sd


def centre(scores: NDArray[np.floating], axis: Array) -> Array:
    """Centre of mass (frame,) of correlations (frame, value) less their least, over the values `axis` (value,)."""
    above = scores.astype(np.float64) - scores.min(axis=1, keepdims=True)
    total = above.sum(axis=1)
    middle = np.where(total > 0, above @ axis / np.where(total > 0, total, 1), axis.mean())
    return np.asarray(middle)


def _coefficients(scores: NDArray[np.floating], axis: Array) -> Array:
    """Derivative (frame, value) of the centre of mass by the correlations."""
    above = scores.astype(np.float64) - scores.min(axis=1, keepdims=True)
    total = above.sum(axis=1, keepdims=True)
    result = (axis - centre(scores, axis)[:, None]) / np.where(total > 0, total, 1)
    result[np.arange(len(scores)), scores.argmin(axis=1)] -= result.sum(axis=1)  # the least moves all
    return result


def _flat(at: Library, frames: NDArray[np.floating]) -> NDArray[np.float32]:
    counts = np.asarray(frames, dtype=np.float32)
    if counts.ndim != 3 or counts[0:1].size not in (0, len(at.templates)):
        raise FrameError("frames", f"must be (frame, z, y) with {len(at.templates)} pixels each", counts.shape)
    if at.mask is not None:
        counts = np.where(at.mask, counts, np.float32(0))
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise FrameError("counts", "must be finite and not negative", None, "mask the pixels that are not")
    return counts.reshape(len(counts), len(at.templates))
