"""What a measurement can see at all: the Fisher information of its Poisson counts beside the prior's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import instrument as geometry

if TYPE_CHECKING:
    from scatterflow.multilayer import MultilayerStudy

Array = NDArray[np.float64]
_BATCH_BYTES = 2**28  # of derivatives at once


def remaining_sd(study: MultilayerStudy, theta: xr.DataArray, view: str) -> Array:
    """Least standard deviation that a view leaves of each parameter, in units of the prior's: (simulation, parameter).

    Square root of the diagonal of (F + P)^-1 over that of P^-1: F is the Fisher information of the Poisson counts in the
    valid bins of the view, P = 12 / width^2 that of the conditionally uniform prior at the sample `theta` (simulation,
    parameter). 1: the view says nothing of the parameter; 0.1: a tenth of what was unknown remains. Source: van Trees,
    Detection, Estimation, and Modulation Theory I, 2.4 (1968).
    """
    bins, parameters = np.prod(geometry.view(study.config.instrument, view).bins), len(study.prior.names)
    step = max(1, int(_BATCH_BYTES // (8 * bins * parameters)))
    parts = [_remaining(study, theta[start : start + step], view) for start in range(0, len(theta), step)]
    return np.concatenate(parts)


def _remaining(study: MultilayerStudy, theta: xr.DataArray, view: str) -> Array:
    found = study.derivatives(theta, views=(view,))
    share = geometry.valid_share(study.config.instrument, view)
    share = np.where(share >= study.config.observe.min_valid_share, share, 0.0).reshape(-1)
    values = study.prior.values(theta)
    width = study.prior.conditional_upper(values) - study.prior.conditional_lower(values)
    sd = width / np.sqrt(12)  # the unit of every parameter from here on
    slopes = found[f"d_{view}"].values.reshape(*theta.shape, -1) * sd[..., None]
    expected = found[view].values.reshape(len(theta), 1, -1)
    weighted = slopes * np.sqrt(share / expected)
    information = weighted @ weighted.transpose(0, 2, 1) + np.eye(theta.shape[1])
    return np.asarray(np.sqrt(np.diagonal(np.linalg.inv(information), axis1=1, axis2=2)))
