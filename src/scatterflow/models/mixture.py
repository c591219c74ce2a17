"""Posterior under an ensemble: the members' posteriors with equal weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from scatterflow.models.posterior import Posterior

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MixedPosterior:
    """Posterior of images under an ensemble: the members' posteriors with equal weights."""

    members: tuple[Posterior, ...]

    def sample(self, n: int, seed: int = 0) -> xr.DataArray:
        """`n` samples per image, (observation, sample, parameter), from the members by turns; see `Posterior.sample`."""
        prior = self.members[0].prior
        return xr.DataArray(
            self.drawn(n, seed),
            dims=("observation", "sample", "parameter"),
            coords={"parameter": list(prior.names), "unit": ("parameter", list(prior.units))},
            name="posterior",
            attrs={"long_name": "posterior samples", "units": "see coordinate unit", "seed": seed},
        )

    def drawn(self, n: int, seed: int = 0) -> Array:
        """The values of `sample`."""
        number = len(self.members)
        parts = [member.drawn((n - k + number - 1) // number, seed) for k, member in enumerate(self.members)]
        if number == 1:
            return parts[0]
        values = np.empty((len(parts[0]), n, parts[0].shape[2]))
        for k, part in enumerate(parts):
            values[:, k::number] = part
        return values

    def log_prob(self, theta: xr.DataArray | ArrayLike) -> xr.DataArray:
        """Natural log density over box-scaled parameters; see `Posterior.log_prob`."""
        return self._mean([member.log_prob(theta) for member in self.members])

    def information_gain(self, theta: xr.DataArray | ArrayLike) -> xr.DataArray:
        """log q(theta | image) - log p(theta) [nat]; see `Posterior.information_gain`."""
        return self._mean([member.information_gain(theta) for member in self.members])

    def map(self, n: int = 200, seed: int = 0) -> xr.DataArray:
        """The sample of highest density over box-scaled parameters, out of `n`: (observation, parameter)."""
        samples = self.sample(n, seed)
        best = self.log_prob(samples).argmax("sample")
        return samples.isel(sample=best).drop_attrs().rename("map")

    def _mean(self, parts: Sequence[xr.DataArray]) -> xr.DataArray:
        return parts[0].copy(data=logsumexp([part.values for part in parts], axis=0) - math.log(len(parts)))
