"""How far size distributions are from each other, their moments (of histograms on a common grid of sizes) and modes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scatterflow.errors import ConfigError

Array = NDArray[np.float64]
MODES = {"mode_radius_nm": "nm", "mode_width_nm": "nm", "mode_share": "1"}


def wasserstein(p: ArrayLike, q: ArrayLike, radius_nm: ArrayLike) -> Array:
    """1D Wasserstein distance [nm] (simulation,) of shares `p`, `q` (simulation, radius) at `radius_nm` (radius,).

    The integral of the difference between both distribution functions: the mean way that a particle's radius must go to
    turn one histogram into the other. `p` and `q` broadcast against each other. Raises ConfigError.
    """
    radius = _ascending(radius_nm)
    apart = np.cumsum(_shares(p, radius) - _shares(q, radius), axis=-1)
    return np.asarray(np.abs(apart[..., :-1]) @ np.diff(radius))


def mean_and_width(p: ArrayLike, radius_nm: ArrayLike) -> tuple[Array, Array]:
    """Mean and standard deviation [nm] (simulation,) of shares `p` (simulation, radius) at `radius_nm` (radius,).

    Raises ConfigError.
    """
    radius = _ascending(radius_nm)
    shares = _shares(p, radius)
    mean = shares @ radius
    return mean, np.sqrt((shares * (radius - mean[..., None]) ** 2).sum(axis=-1))


def modes(names: Sequence[str], theta: ArrayLike) -> dict[str, Array]:
    """MODES (..., mode) of parameters `theta` (..., parameter) with `names`: mean and deviation of the radii [nm], share.

    The smallest mode comes first; the law of a mode is not cut at the ends of the grid.
    """
    values = dict(zip(names, np.moveaxis(np.asarray(theta, dtype=np.float64), -1, 0), strict=True))
    number = sum(name.startswith("mode") and name.endswith(".radius_nm") for name in values)
    radius, relative = (
        np.stack([values[f"mode{mode}.{name}"] for mode in range(1, number + 1)], axis=-1)
        for name in ("radius_nm", "relative_width")
    )
    shares = [values[f"mode{mode}.share"] for mode in range(1, number)]
    rest = np.maximum(1 - sum(shares, np.zeros(radius.shape[:-1])), 0)  # rounding may leave less than 0
    return {
        "mode_radius_nm": radius,
        "mode_width_nm": relative * radius,
        "mode_share": np.stack([*shares, rest], axis=-1),
    }


def _ascending(radius_nm: ArrayLike) -> Array:
    radius = np.asarray(radius_nm, dtype=np.float64)
    if radius.ndim != 1 or not np.isfinite(radius).all() or not (np.diff(radius) > 0).all():
        raise ConfigError("radii of a size distribution", "must be finite and ascending", radius.shape)
    return radius


def _shares(p: ArrayLike, radius: Array) -> Array:
    shares = np.asarray(p, dtype=np.float64)
    if shares.shape[-1:] != radius.shape:
        raise ConfigError("size distribution", f"must be (simulation, {len(radius)})", shares.shape)
    if not (shares >= 0).all() or not np.allclose(shares.sum(axis=-1), 1, atol=1e-4):  # float32 from a network will do
        raise ConfigError("shares of a size distribution", "must be 0 or more, sum 1")
    return shares
