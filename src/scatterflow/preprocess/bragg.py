"""From the sum of a scan's frames to what is cut out of each: defects, gaps between modules, the Bragg peak, binning.

Pure functions on arrays of (z, y), whatever the direction of the exit angle.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

BOX = 5  # pixels: edge of the neighbourhood that a pixel is judged by
SIGMAS = 6.0  # of counting noise beyond which a difference is none of it: one in 1e9 pixels
GAP_DEPTH = 0.6  # a line of a gap holds less than this part of what the lines around it hold
GAP_REACH = 12  # lines on each side that it is compared with; gaps are narrower
GAP_PARTS = 8  # pieces of a line; a gap runs through all, the edge of a peak does not
GAP_COUNTS = 30.0  # expected in a piece, without which it says nothing
PEAK_SIGMAS = 10.0  # of the peak in its window, without which there is none


def defects(total: NDArray[np.float64], valid: Mask, hot_ratio: float) -> tuple[Mask, Mask]:
    """Hot and dead pixels (z, y) of the sum of many frames (z, y).

    Hot: `hot_ratio` times the median of its surroundings, and above it by more than noise. Dead: no counts where noise
    does not explain it. Both are single pixels or small groups: of larger ones the median takes the side.
    """
    around = ndimage.median_filter(np.where(valid, total, 0.0), BOX, mode="nearest")
    noise = np.sqrt(around + 1)
    hot = valid & (total > hot_ratio * around) & (total > around + SIGMAS * noise)
    dead = valid & (total == 0) & (around > SIGMAS * noise)
    return hot, dead


def module_gaps(total: NDArray[np.float64], valid: Mask) -> Mask:
    """Gaps between modules (z, y): whole rows and columns with fewer counts than those around, all along.

    Pixels at the border of a module count less, or more where they are wider; only those that count less are found. At
    least three pieces of a line must hold enough counts to tell: a frame without background shows no gaps.
    """
    found = np.zeros_like(valid)
    found[_gap_lines(total, valid)] = True
    found[:, _gap_lines(total.T, valid.T)] = True
    return found


def _gap_lines(total: NDArray[np.float64], valid: Mask) -> NDArray[np.int64]:
    """Numbers of the rows that belong to a gap."""
    length = total.shape[1]
    if length < GAP_PARTS or len(total) <= 2 * GAP_REACH:
        return np.empty(0, dtype=np.int64)
    edges = np.linspace(0, length, GAP_PARTS + 1).astype(int)[:-1]
    counts = np.add.reduceat(np.where(valid, total, 0), edges, axis=1)  # (row, piece)
    pixels = np.add.reduceat(valid.astype(float), edges, axis=1)
    mean = np.divide(counts, pixels, out=np.zeros_like(counts), where=pixels > 0)
    expected = ndimage.median_filter(mean, (2 * GAP_REACH + 1, 1), mode="nearest")
    tells = expected * pixels >= GAP_COUNTS
    low = mean < GAP_DEPTH * expected
    return np.flatnonzero((tells.sum(1) >= 3) & (low | ~tells).all(1))


class Peak(NamedTuple):
    """Where the Bragg peak is on a frame, and how sure that is."""

    z: int  # first row of the window
    y: int  # first column
    sigmas: float  # counts in the window above background, over their noise
    fraction: float  # part of all counts above background that lies in the window
    background: float  # counts per pixel of the sum


def find_peak(total: NDArray[np.float64], valid: Mask, window: tuple[int, int]) -> Peak | None:
    """The window (rows, columns) of the sum of frames (z, y) that holds most counts above background, or None.

    Background is what most of the valid pixels hold, so the peak must be smaller than half of the frame. Among windows that
    hold as much but for noise, the one whose middle is nearest to the centroid is taken.
    """
    values = total[valid]
    median = float(np.median(values))
    background = float(values[values <= median + 3 * np.sqrt(median + 1)].mean())
    above = np.where(valid, total - background, 0.0)
    gained, counts = (_window_sums(each, window) for each in (above, np.where(valid, total, 0.0)))
    noise = np.sqrt(np.maximum(counts, 1.0))
    best = np.unravel_index(int(np.argmax(gained)), gained.shape)
    sigmas = float(gained[best] / noise[best])
    if sigmas < PEAK_SIGMAS:
        return None
    rows, columns = np.nonzero(gained >= gained[best] - 2 * noise[best])
    first, corner = centroid(above, (int(best[0]), int(best[1])), window), np.array([window[0] - 1, window[1] - 1]) / 2
    distance = np.hypot(rows + corner[0] - first[0], columns + corner[1] - first[1])
    nearest = int(np.argmin(distance))
    z, y = int(rows[nearest]), int(columns[nearest])
    return Peak(z, y, sigmas, float(gained[z, y] / max(above.sum(), gained[z, y])), background)


def _window_sums(values: NDArray[np.float64], window: tuple[int, int]) -> NDArray[np.float64]:
    """Sums over all windows that lie within, by the number of their first row and column."""
    sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = window
    return np.asarray(sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns])


def centroid(above: NDArray[np.float64], corner: tuple[int, int], window: tuple[int, int]) -> NDArray[np.float64]:
    """Centroid (z, y) of the counts above background in a window; its middle where none are."""
    part = np.maximum(above[corner[0] : corner[0] + window[0], corner[1] : corner[1] + window[1]], 0.0)
    if not part.any():
        part = np.ones(window)
    rows, columns = (np.arange(n) for n in part.shape)
    centre = np.array([part.sum(1) @ rows, part.sum(0) @ columns]) / part.sum()
    return np.asarray(centre + corner)


def bin_sums(values: NDArray[Any], binning: int) -> NDArray[Any]:
    """Sums of blocks of `binning` x `binning` pixels of the last two axes, whose sizes are multiples of it."""
    *lead, rows, columns = values.shape
    blocks = values.reshape(*lead, rows // binning, binning, columns // binning, binning)
    return np.asarray(blocks.sum((-3, -1)))


def bin_mask(valid: Mask, binning: int) -> Mask:
    """A binned pixel is valid where all its pixels are: sums would not compare otherwise."""
    return np.asarray(bin_sums(~valid, binning) == 0)
