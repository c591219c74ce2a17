"""Scaling of cuts and images to [0, 1] on plain arrays, whole batches at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scatterflow.errors import FrameError

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
LOWEST_COUNTS = 0.5  # counts below half a photon carry no information: the floor of logarithms


def scale_profile(
    profile: Float, mask: Mask, parts: Sequence[int], log: bool, max_masked: float, max_masked_part: float
) -> Float:
    """Each part of a profile scaled to [0, 1] by its own valid minimum and maximum; masked points are interpolated.

    `profile` and `mask` are (..., point), `parts` the borders of the parts along the points. Raises FrameError where more
    than `max_masked` of the profile or `max_masked_part` of a part is masked, or where a part is constant.
    """
    values = np.log10(np.maximum(profile, LOWEST_COUNTS)) if log else np.asarray(profile)
    result = np.empty(values.shape, dtype=np.float32)
    _check_masked(mask.mean(axis=-1), max_masked, "profile")
    for start, stop in itertools.pairwise(parts):
        valid = mask[..., start:stop]
        _check_masked(valid.mean(axis=-1), max_masked_part, f"part {start}-{stop} of the profile")
        scaled = min_max(values[..., start:stop], valid, (-1,), "profile")
        result[..., start:stop] = fill_linear(scaled, valid)
    return result


def scale_image(image: Float, mask: Mask, percentile: float, max_masked: float) -> Float:
    """log10 of images clipped at a percentile of their valid bins, scaled to [0, 1]; masked bins hold 0.

    `image` and `mask` are (..., z, y). Raises FrameError where more than `max_masked` is masked, or for a constant image.
    """
    _check_masked(mask.mean(axis=(-2, -1)), max_masked, "image")
    floor = masked_percentile(image, mask, percentile)[..., None, None]
    log = np.log10(np.maximum(image, np.maximum(floor, LOWEST_COUNTS)))
    return np.where(mask, min_max(log, mask, (-2, -1), "image"), 0.0).astype(np.float32)


def masked_percentile(values: Float, mask: Mask, percentile: float) -> NDArray[np.float64]:
    """Percentile of the valid values over the last two axes, shape (...,), with linear interpolation as in numpy."""
    flat = np.where(mask, values, np.inf).reshape(*values.shape[:-2], -1)
    flat.sort(axis=-1)
    position = (mask.sum(axis=(-2, -1)) - 1) * (percentile / 100)
    low = np.floor(position).astype(np.intp)
    lower = np.take_along_axis(flat, low[..., None], axis=-1)[..., 0]
    upper = np.take_along_axis(flat, np.ceil(position).astype(np.intp)[..., None], axis=-1)[..., 0]
    return np.asarray(lower + (position - low) * (upper - lower))


def min_max(values: Float, mask: Mask, over: tuple[int, ...], what: str) -> Float:
    """Scale to [0, 1] by the minimum and maximum of the valid values over the axes `over`."""
    low = np.min(values, axis=over, keepdims=True, where=mask, initial=np.inf)
    high = np.max(values, axis=over, keepdims=True, where=mask, initial=-np.inf)
    flat = ~(high > low)
    if flat.any():
        row = int(np.argmax(flat.reshape(-1)))
        raise FrameError(f"{what} of frame {row}", "must have contrast", "constant counts", status="masked-out")
    return np.asarray(np.clip((values - low) / (high - low), 0.0, 1.0))


def fill_linear(values: Float, mask: Mask) -> Float:
    """Masked points replaced by linear interpolation between their valid neighbours on the last axis (ends: the nearest).

    Needs one valid point at least in every row.
    """
    if mask.all():
        return values
    index = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
    before = np.maximum.accumulate(np.where(mask, index, -1), axis=-1)
    after = np.minimum.accumulate(np.where(mask, index, values.shape[-1])[..., ::-1], axis=-1)[..., ::-1]
    before, after = np.where(before < 0, after, before), np.where(after >= values.shape[-1], before, after)
    gap = np.maximum(after - before, 1)
    left, right = np.take_along_axis(values, before, -1), np.take_along_axis(values, after, -1)
    return np.asarray(left + (right - left) * ((index - before) / gap), dtype=values.dtype)


def _check_masked(valid_share: NDArray[np.float64], max_masked: float, what: str) -> None:
    bad = 1 - valid_share > max_masked
    if np.any(bad):
        row = int(np.argmax(np.reshape(bad, -1)))
        share = 1 - np.reshape(valid_share, -1)[row]
        raise FrameError(
            f"{what} of frame {row}",
            f"must not be masked by more than {max_masked:.0%}",
            f"{share:.0%}",
            "check mask, beam centre and incidence",
            status="masked-out",
        )
