"""Whether the model describes the frames that it was asked about: as many of them as the time allows.

A deviance needs the forward model of a frame, which takes longer than the encoder. So checks have a share of the time
that passes, in small pieces, and give way when frames wait: every answer says whether it was checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

OK, OUTSIDE, UNCHECKED = "ok", "outside", "unchecked"
BURST_S = 0.001  # of checks between two batches of answers; what was begun is finished
BEHIND = 16  # frames that wait, beyond which there is no time for checks
_AT_ONCE = 1  # frames: four take half as long each, but the frames that come meanwhile would wait four times as long
_EACH_S = 0.001  # a check takes about so long, before it was measured

Valid = NDArray[np.bool_]  # (z, y), True = valid


class Check(NamedTuple):
    """How far counts (frame, z, y) are from what the model expects at values (frame, parameter): deviance (frame,).

    Above `threshold` the model does not describe a frame.
    """

    threshold: float
    deviance: Callable[[NDArray[np.float32], NDArray[np.float64], Valid | None], NDArray[np.float64]]


class Checks:
    """Checks of a watch that take at most `share` of the time; with 1 every answer is checked, whatever it takes."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._credit = BURST_S  # time that may be spent [s]
        self._then = time.monotonic()
        self._each = _EACH_S

    def deviances(
        self,
        check: Check | None,
        counts: NDArray[np.float32],
        values: NDArray[np.float64],
        valid: Valid | None,
        waiting: int,
    ) -> dict[int, float]:
        """Deviances of some of the counts (frame, z, y) with the values (frame, parameter), by their place.

        They are spread evenly over the frames. None are checked while more frames are `waiting` than these and `BEHIND`.
        """
        chosen = self._chosen(len(counts), waiting) if check is not None and len(counts) else np.arange(0)
        found: dict[int, float] = {}
        if check is None or not len(chosen):
            return found
        began = time.monotonic()
        for first in range(0, len(chosen), _AT_ONCE):
            part = chosen[first : first + _AT_ONCE]
            found |= zip(part.tolist(), check.deviance(counts[part], values[part], valid).tolist(), strict=True)
        took = time.monotonic() - began  # longer beside other programs: then there are fewer checks
        self._credit -= took
        self._each = max(took / len(chosen), 1e-6)
        return found

    def _chosen(self, frames: int, waiting: int) -> NDArray[np.intp]:
        """Places of the frames to check."""
        now = time.monotonic()
        self._credit = min(BURST_S, self._credit + self._share * (now - self._then))
        self._then = now
        if self._share >= 1:
            return np.arange(frames)
        if self._share <= 0 or self._credit <= 0 or waiting > max(frames, BEHIND):
            return np.arange(0)
        number = min(frames, max(_AT_ONCE, int(self._credit / self._each)))  # what is too much is paid back
        return (np.arange(number) * frames // number).astype(np.intp)


def verdict(deviance: float | None, check: Check | None) -> str:
    """In one word; None: it was not checked."""
    if deviance is None or check is None:
        return UNCHECKED
    return OK if deviance <= check.threshold else OUTSIDE
