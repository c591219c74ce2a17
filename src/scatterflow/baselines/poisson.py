"""The Poisson deviance at few counts, where it is not a chi-square."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy

Array = NDArray[np.float64]
MANY = 100.0  # expected counts from which 1 + 1 / (6 mu) is exact to 1e-4
FEW = 1e-8


def expected_deviance(expected: Array) -> Array:
    """Mean of 2 (n log(n / mu) - n + mu) for Poisson counts n of mean mu = `expected`, any shape; within 1e-3.

    About 1 for many counts, up to 1.15 near 2 and 0 for none: so a deviance per pixel is no measure of fit by itself.
    """
    mu, mean = _table()
    inside = np.interp(np.log(np.clip(expected, FEW, MANY)), mu, mean)
    return np.where(expected < MANY, inside, 1 + 1 / (6 * np.maximum(expected, MANY)))


@cache
def _table() -> tuple[Array, Array]:
    """Logarithms of means, and their expected deviance by summing over all counts that occur."""
    mu = np.geomspace(FEW, MANY, 1500)[:, None]
    n = np.arange(int(MANY + 12 * np.sqrt(MANY)))
    share = np.exp(xlogy(n, mu) - mu - gammaln(n + 1))
    return np.log(mu[:, 0]), (share * 2 * (xlogy(n, n / mu) - n + mu)).sum(axis=1)
