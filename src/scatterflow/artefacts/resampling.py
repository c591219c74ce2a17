"""Errors of the geometry and blur of the beam, applied to the counts of bins by one matrix per direction.

A matrix holds the share of each bin's counts that goes to each other bin: a bin is stretched and shifted as a whole,
its counts spread evenly in it, blurred by a Gaussian and summed again. So counts are conserved but for those that cross
the border, whatever the magnification; an error of 0 gives the identity; a shift alone is linear interpolation. What
enters across the border is taken as even as the outermost bin.
"""

from __future__ import annotations

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
    moved = (edges - centre) * (1 + stretch[:, None])
    deviation = np.hypot(sigma[:, None], relative[:, None] * moved)
    moved += centre + shift[:, None]
    width = np.diff(moved, axis=1)
    beyond = edges[-1] - edges[0]  # the outermost bins go on for the length of the view
    moved[:, 0] -= beyond
    moved[:, -1] += beyond
    integral = _integral(edges[:, None] - moved[:, None, :], deviation[:, None, :])
    shares = -np.diff(np.diff(integral, axis=1), axis=2) / width[:, None, :]
    shares[shares < _ROUNDING] = 0.0
    return np.asarray(shares)


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
