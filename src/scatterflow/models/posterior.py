"""Posterior of observations under a trained flow: samples, densities, information gain. NumPy and xarray outside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, ndtri

from scatterflow import seeds
from scatterflow.errors import BundleError, ConfigError
from scatterflow.models import fastflow
from scatterflow.models.encoder import Encoder
from scatterflow.models.summary import Summary
from scatterflow.prior import Prior, log_normal_density

Array = NDArray[np.float64]
_LARGEST = 8.0  # normal coordinates beyond this are the border of the support to double precision
_ROWS = 16_384  # pairs of condition and sample at once: bounds memory
_SMALLEST_UNIFORM = 2.0**-53


@dataclass(frozen=True)
class ModeFit:
    """What validation rows fix for one mode.

    `draws`: number of z whose densities are averaged, doubled until the mean log density changes by less than the
    tolerance; `change`: that last change [nat]. `shares` (sum 1) of `widths`: the flow's base distribution is a mixture
    of normal distributions so many times as wide as trained (recalibration). `prior_share`: weight of the prior in the
    defensive mixture.
    `gain`: mean information gain on the validation rows [nat], `gain_se` its standard error.
    """

    draws: int = 1
    change: float = 0.0
    widths: tuple[float, ...] = (1.0,)
    shares: tuple[float, ...] = (1.0,)
    prior_share: float = 0.0
    gain: float = 0.0
    gain_se: float = 0.0

    @property
    def mean_width(self) -> float:
        """Mean of the base's widths: how much wider than trained."""
        return sum(width * share for width, share in zip(self.widths, self.shares, strict=True))


@dataclass(frozen=True)
class Posterior:
    """Posterior of each observation; made by `Model.posterior`.

    q(theta | x) = (1 - w) E_z q(theta | profile, z) + w p(theta): z from q(z | image, profile) (`mean`, `sd` (row,
    latent)) or from p(z) = N(0, 1); the expectation is the mean over `fit.draws` scrambled Sobol points, the same for
    all observations; w is `fit.prior_share`; `flow` is recalibrated already. It lives in the normal coordinate, so no sample
    leaves the support.
    """

    prior: Prior
    encoder: Encoder | Summary | None  # only an encoder with latent variables is used again
    flow: fastflow.FastFlow
    described: torch.Tensor  # (row, number): see Networks.describe
    mean: torch.Tensor | None
    sd: torch.Tensor | None
    latent: int
    mode: str
    fit: ModeFit

    def sample(self, n: int, seed: int = 0) -> xr.DataArray:
        """`n` samples per observation in physical units, (observation, sample, parameter), a fresh z for each.

        Observation `i` depends on (seed, i) only. Raises ConfigError for a negative `n`, BundleError for a flow that has
        diverged.
        """
        return xr.DataArray(
            self.drawn(n, seed),
            dims=("observation", "sample", "parameter"),
            coords={"parameter": list(self.prior.names), "unit": ("parameter", list(self.prior.units))},
            name="posterior",
            attrs={"long_name": f"posterior samples, mode {self.mode}", "units": "see coordinate unit", "seed": seed},
        )

    def drawn(self, n: int, seed: int = 0) -> Array:
        """The values of `sample`."""
        if n < 0:
            raise ConfigError("number of posterior samples", "must not be negative", n)
        observations, parameters = len(self.described), self.flow.parameters
        width = parameters + self.latent + 2
        widths, borders = np.asarray(self.flow.widths, np.float32), np.cumsum(self.flow.shares)[:-1]
        values = np.empty((observations, n, parameters))
        together = max(1, _ROWS // max(1, n))
        for start in range(0, observations, together):
            rows = np.arange(start, min(start + together, observations))
            numbers = seeds.uniforms(seed, f"posterior {self.mode}", start, len(rows), n * width)
            numbers = numbers.reshape(-1, width)
            noise = ndtri(numbers[:, :-2].clip(_SMALLEST_UNIFORM)).astype(np.float32)
            scale = widths[np.searchsorted(borders, numbers[:, -2], side="right")]
            index = np.repeat(rows, n) if self.latent else rows  # one condition for all samples where nothing is latent
            condition = self._condition(torch.from_numpy(index), torch.from_numpy(noise[:, parameters:]))
            scaled = scale[:, None] * noise[:, :parameters]
            normal = fastflow.draw(self.flow, scaled, condition).astype(np.float64)
            if not np.isfinite(normal).all():
                raise BundleError("posterior samples", "must be finite", remedy="the flow has diverged: train it again")
            from_prior = numbers[:, -1] < self.fit.prior_share
            normal[from_prior] = noise[from_prior, :parameters]
            normal = normal.clip(-_LARGEST, _LARGEST)
            values[rows] = self.prior.from_normal(normal).reshape(len(rows), n, parameters)
        return values

    def log_prob(self, theta: xr.DataArray | ArrayLike, draws: int | None = None) -> xr.DataArray:
        """Natural log density over box-scaled parameters; -inf outside the prior's support.

        theta : (observation, parameter), one row per observation, or (observation, sample, parameter); physical units.
        draws : number of z to average over; default: enough (see `ModeFit`).
        Returns (observation,) or (observation, sample). Raises ConfigError for another number of observations.
        """
        values = self._values(theta)
        density = self._gain(values, draws) + self.prior.log_prob_box(values)
        return self._labelled(density, "log_prob", "log density over box-scaled parameters")

    def information_gain(self, theta: xr.DataArray | ArrayLike, draws: int | None = None) -> xr.DataArray:
        """log q(theta | x) - log p(theta) [nat], the same in every coordinate; shapes as in `log_prob`.

        Raises ConfigError where `theta` lies outside the prior's support: there is no gain over nothing.
        """
        values = self._values(theta)
        outside = int((~self.prior.inside(values)).sum())
        if outside:
            raise ConfigError("theta", "must lie in the prior's support", f"{outside} rows outside")
        return self._labelled(self._gain(values, draws), "information_gain", "information gain over the prior")

    def map(self, n: int = 200, seed: int = 0, draws: int | None = None) -> xr.DataArray:
        """The sample of highest density over box-scaled parameters, out of `n`: (observation, parameter)."""
        samples = self.sample(n, seed)
        best = self.log_prob(samples, draws).argmax("sample")
        return samples.isel(sample=best).drop_attrs().rename("map")

    def _condition(self, rows: torch.Tensor, latent: torch.Tensor) -> NDArray[np.float32]:
        """Condition of the flow (row, number) of the observations `rows` with standard normal `latent` (row, latent)."""
        with torch.inference_mode():
            if not self.latent:
                return self.described[rows].numpy()
            assert isinstance(self.encoder, Encoder)  # a summary network has no latent variables
            z = latent if self.mean is None or self.sd is None else self.mean[rows] + self.sd[rows] * latent
            return self.encoder.combine(self.described[rows], z).numpy()

    def _gain(self, values: Array, draws: int | None) -> Array:
        """Information gain of values (observation, ..., parameter), whatever it is outside the support."""
        inside = self.prior.inside(values)
        with np.errstate(invalid="ignore"):
            normal = self.prior.to_normal(np.where(inside[..., None], values, self.prior.lower))
        normal = normal.clip(-_LARGEST, _LARGEST)
        points = normal if normal.ndim == 3 else normal[:, None]
        observations, samples, _ = points.shape
        latent = sobol(draws or self.fit.draws, self.latent)
        density = np.empty((observations, samples))
        block = min(samples, max(1, _ROWS // len(latent)))
        together = max(1, _ROWS // (block * len(latent)))
        for start in range(0, observations, together):
            rows = torch.arange(start, min(start + together, observations))
            condition = self._condition(rows.repeat_interleave(len(latent)), latent.repeat(len(rows), 1))
            for low in range(0, samples, block):
                part = np.s_[start : start + len(rows), low : low + block]
                given = np.repeat(points[part], len(latent), axis=0).astype(np.float32)
                each = fastflow.log_density(self.flow, given, condition).reshape(len(rows), len(latent), -1)
                density[part] = logsumexp(each, axis=1) - math.log(len(latent))
        gain = density - log_normal_density(points)
        if share := self.fit.prior_share:
            gain = np.logaddexp(math.log1p(-share) + gain, math.log(share))
        return np.asarray(gain.reshape(values.shape[:-1]))

    def _values(self, theta: xr.DataArray | ArrayLike) -> Array:
        values = self.prior.values(theta)
        if values.ndim not in (2, 3) or len(values) != len(self.described):
            raise ConfigError("theta", f"must have one row per observation ({len(self.described)})", values.shape)
        return values

    def _labelled(self, values: Array, name: str, long_name: str) -> xr.DataArray:
        dims = ("observation", "sample")[: values.ndim]
        return xr.DataArray(values, dims=dims, name=name, attrs={"long_name": long_name, "units": "nat"})


def sobol(n: int, dimensions: int) -> torch.Tensor:
    """`n` scrambled Sobol points of a standard normal, float32 (n, dimensions); (1, 0) without dimensions."""
    if not dimensions:
        return torch.empty(1, 0)
    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=0)
    uniform: torch.Tensor = engine.draw(n, dtype=torch.float64)
    normal: torch.Tensor = torch.special.ndtri(uniform.clamp(_SMALLEST_UNIFORM, 1 - _SMALLEST_UNIFORM))
    return normal.float()
