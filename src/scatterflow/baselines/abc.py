"""ABC on stored simulations: rejection with a kernel density estimate, and regression adjustment.

Rejection accepts the simulations nearest to the observation (Pritchard et al. 1999); its parameters, smoothed by
Gaussian kernels, are the posterior. The exact posterior for zero distance and infinitely many simulations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from scatterflow import seeds
from scatterflow.baselines import distance, kde, regression
from scatterflow.config.baselines import AbcMethod, BaselinesConfig
from scatterflow.errors import ConfigError, StoreError
from scatterflow.prior import Prior, log_normal_density

Array = NDArray[np.float64]
_COVARIANCE_ROWS = 50_000  # simulations that the principal components are computed from
_LARGEST = 1e9  # features are scaled to about [0, 1]; squares of larger ones leave float32
_GATHER_BYTES = 256 * 2**20  # accepted features held at once


def fit(
    library_features: xr.DataArray | ArrayLike,
    library_theta: xr.DataArray | ArrayLike,
    prior: Prior,
    config: BaselinesConfig,
    mask: xr.DataArray | ArrayLike | None = None,
) -> AbcLibrary:
    """Index stored simulations for ABC.

    library_features : (simulation, ...), float32; trailing axes (an image) are flattened.
    library_theta : (simulation, parameter), physical units, drawn from `prior`.
    mask : like `library_features`, True = valid.

    Raises StoreError where the library holds non-finite valid features, parameters outside the prior's support or
    fewer simulations than must be accepted.
    """
    features = np.ascontiguousarray(_flat(library_features), dtype=np.float32)
    valid = None if mask is None else _flat(mask).astype(bool)
    theta = prior.values(library_theta)
    if valid is not None and valid.shape != features.shape:
        raise StoreError(
            "mask of the ABC library", f"must have the shape of its features {features.shape}", valid.shape
        )
    if len(theta) != len(features):
        raise StoreError("ABC library", f"must have one row of parameters per simulation ({len(features)})", len(theta))
    needed = config.min_accepted
    if len(features) < needed:
        raise StoreError(
            "ABC library",
            f"must hold at least baselines.min_accepted = {needed} simulations",
            len(features),
            "raise the number of simulations or lower min_accepted",
        )
    outside = np.flatnonzero(~prior.inside(theta))
    if outside.size:
        raise StoreError("ABC library parameters", "must lie in the prior's support", f"row {outside[0]} outside")
    bad = _unusable(features, valid)
    if bad.size:
        raise StoreError("ABC library features", f"must be below {_LARGEST:g} and finite where valid", f"row {bad[0]}")
    return AbcLibrary(distance.build(features, valid), theta, prior, config)


@dataclass(frozen=True)
class AbcLibrary:
    """Stored simulations, ready to be compared with observations. Made by `fit`."""

    index: distance.Index
    theta: Array
    prior: Prior
    config: BaselinesConfig

    def posterior(
        self,
        observations: xr.DataArray | ArrayLike,
        method: AbcMethod = "abc-kde",
        mask: xr.DataArray | ArrayLike | None = None,
    ) -> AbcPosterior:
        """Posterior of each observation (observation, ...); `mask` of the same shape, True = valid.

        Raises ConfigError for an unknown method and StoreError for observations that do not fit the library, are not
        finite where valid or have nothing valid.
        """
        if method not in get_args(AbcMethod):
            raise ConfigError("baselines.methods", f"must be of {', '.join(get_args(AbcMethod))}", method)
        features, valid = self._check(observations, mask)
        config = self.config
        if method == "abc-regression":
            accepted = self._accepted(config.regression_acceptance, config.regression_min_accepted)
        else:
            accepted = self._accepted(config.acceptance, config.min_accepted)
        rows, distances = distance.nearest(self.index, features, valid, accepted)
        if not np.isfinite(distances).all():
            raise StoreError(
                "observation",
                f"must share valid features with at least {accepted} simulations",
                f"too few in row {np.flatnonzero(~np.isfinite(distances).all(axis=1))[0]}",
                "observe the library with the mask of the instrument",
            )
        if method == "abc-kde":
            mixture = kde.fixed_bandwidth(self.prior.to_box(self.theta[rows]), config.kde_bandwidth)
        elif method == "abc-kde-normal":
            weights = np.full(rows.shape, 1 / accepted)
            mixture = kde.matched_kernels(self.prior.to_normal(self.theta[rows]), weights)
        else:
            weights = regression.epanechnikov(distances)
            mixture = kde.matched_kernels(self._adjusted(rows, features, valid, weights), weights)
        return AbcPosterior(self.prior, method, mixture, distances, accepted / len(self.theta))

    def _check(
        self, observations: xr.DataArray | ArrayLike, mask: xr.DataArray | ArrayLike | None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Observations as float32 with 0 where masked, and their mask, (observation, feature)."""
        features = _flat(observations)
        valid = np.ones(features.shape, dtype=bool) if mask is None else _flat(mask).astype(bool)
        expected = self.index.centred.shape[1]
        if features.shape[1] != expected or valid.shape != features.shape:
            raise StoreError(
                "observations",
                f"must have {expected} features like the ABC library, and a mask of the same shape",
                f"{features.shape} and mask {valid.shape}",
            )
        if not valid.any(axis=1).all():
            raise StoreError(
                "observation", "must have a valid feature", f"row {np.flatnonzero(~valid.any(axis=1))[0]} all masked"
            )
        bad = _unusable(features, valid)
        if bad.size:
            raise StoreError(
                "observation", f"must be below {_LARGEST:g} and finite where valid", f"row {bad[0]}", "mask it"
            )
        return np.where(valid, features, 0).astype(np.float32), valid

    def _accepted(self, share: float, least: int) -> int:
        """Number of accepted simulations: the quantile, at least `least`, at most the library."""
        return min(len(self.theta), max(least, round(share * len(self.theta))))

    @cached_property
    def _covariance(self) -> Array:
        """Covariance of the features (feature, feature), from the first rows: they are independent draws."""
        rows = self.index.centred[:_COVARIANCE_ROWS]
        return np.asarray(rows.T @ rows, dtype=np.float64) / len(rows)

    def _adjusted(
        self,
        rows: NDArray[np.intp],
        features: NDArray[np.float32],
        valid: NDArray[np.bool_],
        weights: Array,
    ) -> Array:
        """Accepted parameters, regressed to the observation, in the normal coordinate."""
        adjusted = np.empty((*rows.shape, self.theta.shape[1]))
        for same, columns in _equal_masks(valid):
            basis = self._components(columns)
            block = max(1, _GATHER_BYTES // (8 * rows.shape[1] * len(columns)))
            for start in range(0, len(same), block):
                part = same[start : start + block]
                scores = self.index.centred[rows[part][..., None], columns] @ basis
                observed = (features[part][:, columns] - self.index.mean[columns]) @ basis
                values = self.prior.to_normal(self.theta[rows[part]])
                adjusted[part] = regression.adjust(scores, observed, values, weights[part])
        return adjusted

    def _components(self, columns: NDArray[np.intp]) -> Array:
        """Leading principal directions of the features `columns`, (column, component)."""
        vectors = np.linalg.eigh(self._covariance[np.ix_(columns, columns)])[1]
        return np.asarray(vectors[:, ::-1][:, : self.config.regression_components])


@dataclass(frozen=True)
class AbcPosterior:
    """Posterior of each observation as a Gaussian mixture; made by `AbcLibrary.posterior`.

    `abc-kde` lives in box-scaled parameters and puts mass outside the prior's support (see
    `diagnostics.support_leak`); the others live in the normal coordinate and cannot. `distances` (observation,
    accepted) ascend; `acceptance` is the share of the library that was accepted.
    """

    prior: Prior
    method: AbcMethod
    mixture: kde.Mixture
    distances: Array
    acceptance: float

    def sample(self, n: int, seed: int = 0) -> xr.DataArray:
        """`n` samples per observation in physical units, (observation, sample, parameter).

        Observation `i` depends on (seed, i) only.
        """
        observations, _, parameters = self.mixture.centres.shape
        numbers = seeds.uniforms(seed, f"baseline {self.method}", 0, observations, n * (parameters + 1))
        drawn = kde.draw(self.mixture, numbers.reshape(observations, n, parameters + 1))
        values = self.prior.from_box(drawn) if self.method == "abc-kde" else self.prior.from_normal(drawn)
        return xr.DataArray(
            values,
            dims=("observation", "sample", "parameter"),
            coords={"parameter": list(self.prior.names), "unit": ("parameter", list(self.prior.units))},
            name="posterior",
            attrs={"long_name": f"posterior samples of {self.method}", "seed": seed, "acceptance": self.acceptance},
        )

    def log_prob(self, theta: xr.DataArray | ArrayLike) -> xr.DataArray:
        """Natural log density over box-scaled parameters.

        theta : (observation, parameter), one row per observation, or (observation, sample, parameter); physical units.
        Returns (observation,) or (observation, sample). Where the method respects the support, -inf outside it.
        """
        values = self.prior.values(theta)
        observations = len(self.mixture.centres)
        if values.ndim not in (2, 3) or len(values) != observations:
            raise ConfigError("theta", f"must have one row per observation ({observations})", values.shape)
        points = values if values.ndim == 3 else values[:, None]
        if self.method == "abc-kde":
            density = kde.log_density(self.mixture, self.prior.to_box(points))
        else:
            normal = self.prior.to_normal(points)
            density = kde.log_density(self.mixture, normal) - log_normal_density(normal)
            density = density + self.prior.log_prob_box(points)
        dims = ("observation", "sample")[: values.ndim - 1]
        return xr.DataArray(
            density.reshape(values.shape[:-1]),
            dims=dims,
            name="log_prob",
            attrs={"long_name": "log density", "units": "nat"},
        )

    def information_gain(self, theta: xr.DataArray | ArrayLike) -> xr.DataArray:
        """log q(theta | x) - log p(theta) [nat], the same in every coordinate; shapes as in `log_prob`.

        Raises ConfigError where `theta` lies outside the prior's support: there is no gain over nothing.
        """
        prior = self.prior.log_prob_box(theta)
        if not np.isfinite(prior).all():
            raise ConfigError(
                "theta", "must lie in the prior's support", f"{int((~np.isfinite(prior)).sum())} rows outside"
            )
        return (self.log_prob(theta) - prior).rename("information_gain")

    def map(self, n: int = 1000, seed: int = 0) -> xr.DataArray:
        """The sample of highest density over box-scaled parameters, out of `n`: (observation, parameter)."""
        samples = self.sample(n, seed)
        best = self.log_prob(samples).argmax("sample")
        return samples.isel(sample=best).drop_attrs().rename("map")


def _flat(data: xr.DataArray | ArrayLike) -> NDArray[Any]:
    """(row, feature): trailing axes flattened."""
    values = np.asarray(data)
    return values.reshape(len(values), -1) if values.ndim > 1 else values.reshape(1, -1)


def _unusable(features: NDArray[Any], valid: NDArray[np.bool_] | None) -> NDArray[np.intp]:
    """Rows with a valid feature that is not finite or whose square would overflow."""
    with np.errstate(invalid="ignore"):
        usable = np.abs(features) < _LARGEST
    if valid is not None:
        usable |= ~valid
    return np.flatnonzero(~usable.all(axis=1))


def _equal_masks(valid: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Observations that share a mask, with the valid columns of that mask."""
    masks, which = np.unique(valid, axis=0, return_inverse=True)
    for number, mask in enumerate(masks):
        yield np.flatnonzero(which == number), np.flatnonzero(mask)
