"""Errors of the geometry and blur of the beam, applied to the counts of bins by one matrix per direction.

A matrix holds the share of each bin's counts that goes to each other bin: a bin is stretched and shifted as a whole,
its counts spread evenly in it, blurred by a Gaussian and summed again. So counts are conserved but for those that cross
the border, whatever the magnification; an error of 0 gives the identity; a shift alone is linear interpolation. What
enters across the border is taken as even as the outermost bin.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]

_REACH = 6.0  # standard deviations beyond which a Gaussian is left out: 1e-9
_ROUNDING = 1e-9  # shares below are rounding errors of the differences


def redistribution(edges: Array, centre: float, shift: Array, stretch: Array, sigma: Array, relative: Array) -> Array:
    """Shares (simulation, new bin, old bin) of the counts of bins between `edges` (bin + 1,) [pixel].

    Position p goes to centre + shift + (p - centre) (1 + stretch) and is blurred by a Gaussian of the variance
    sigma^2 + (relative (p - centre))^2; `shift`, `stretch`, `sigma` and `relative` are (simulation,).
    """
    bins = len(edges) - 1
    moved = (edges - centre) * (1 + stretch[:, None])
    deviation = np.hypot(sigma[:, None], relative[:, None] * moved)
    moved += centre + shift[:, None]
    width = np.diff(moved, axis=1)
    # a bin's counts go no further than this many bins: only these shares are computed, all others are 0
    furthest = np.abs(moved - edges).max(initial=0) + _REACH * deviation.max(initial=0)
    reach = min(1 + math.ceil(furthest / np.diff(edges).min()), bins - 1)
    beyond = edges[-1] - edges[0]  # the outermost bins go on for the length of the view
    moved[:, 0] -= beyond
    moved[:, -1] += beyond
    old = np.arange(bins + 1)[:, None] + np.arange(-reach - 1, reach + 2)  # old edges near each new one
    near = old.clip(0, bins)
    integral = _integral(edges[:, None] - moved[:, near], deviation[:, near])
    inside = integral[:, 1:, :-1] - integral[:, :-1, 1:]  # of each new bin, up to each old edge near it
    new, place = np.nonzero((old[:-1, 1:-1] >= 0) & (old[:-1, 1:-1] < bins))
    source = old[new, place + 1]
    share = -(inside[:, new, place + 1] - inside[:, new, place]) / width[:, source]
    share[share < _ROUNDING] = 0.0
    shares = np.zeros((len(moved), bins, bins))
    shares[:, new, source] = share
    return shares


def apply(rows: Array, columns: Array, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """`image` (simulation, z, y) with the shares of its rows and of its columns."""
    moved: NDArray[Any] = rows.astype(np.float32) @ image @ columns.astype(np.float32).transpose(0, 2, 1)
    return moved


def _integral(distance: Array, sigma: Array) -> Array:
    """Integral of the normal distribution function from -inf to `distance`; of the step function where sigma is 0."""
    result = np.maximum(distance, 0.0)
    sigma = np.broadcast_to(sigma, distance.shape)
    near = np.abs(distance) < _REACH * sigma
    width = sigma[near]
    t = np.abs(distance[near]) / width
    result[near] += width * (np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi) - t * ndtr(-t))
    return result
