"""A problem whose posterior is known in closed form, for the science tests of baselines and diagnostics.

theta is uniform in a box, u its standard normal quantiles, x = A u + noise. So u given x is normal with covariance
C = (1 + A^T A / s^2)^-1 and mean C A^T x / s^2 (Bishop 2006, section 2.3.3); theta given x follows by the transform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import multivariate_normal

from scatterflow.prior import Parameter, Prior, log_normal_density

NOISE = 0.5


@dataclass(frozen=True)
class Gaussian:
    """Normal distributions in the normal coordinate, one per observation: an exact posterior, or a wrong one."""

    prior: Prior
    mean: np.ndarray  # (observation, parameter)
    covariance: np.ndarray  # (parameter, parameter)

    def sample(self, n: int, seed: int = 0):
        """(observation, sample, parameter), physical units."""
        noise = np.random.default_rng(seed).standard_normal((len(self.mean), n, self.mean.shape[1]))
        return self.prior.from_normal(self.mean[:, None] + noise @ np.linalg.cholesky(self.covariance).T)

    def log_prob(self, theta):
        """Over box-scaled parameters; (observation, parameter) or (observation, sample, parameter)."""
        u = self.prior.to_normal(theta)
        mean = self.mean if u.ndim == 2 else self.mean[:, None]
        density = multivariate_normal(np.zeros(self.mean.shape[1]), self.covariance).logpdf(u - mean)
        return density - log_normal_density(u) + self.prior.log_prob_box(theta)


@dataclass(frozen=True)
class Problem:
    prior: Prior
    theta: np.ndarray
    features: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray

    def posterior(self, n: int, spread: float = 1.0, shift: float = 0.0) -> Gaussian:
        """Posterior of the first `n` observations; `spread` widens it, `shift` moves it by so many of its sigmas."""
        sigma = np.sqrt(np.diag(self.covariance))
        return Gaussian(self.prior, self.mean[:n] + shift * sigma, self.covariance * spread**2)


def problem(n: int, parameters: int = 3, features: int = 12, seed: int = 0) -> Problem:
    """`n` draws of parameters and observations."""
    prior = Prior(tuple(Parameter(f"p{i}", -1.0, 1.0 + i) for i in range(parameters)))
    rng = np.random.default_rng(seed)
    response = rng.standard_normal((features, parameters)) / np.sqrt(parameters)
    theta = prior.sample(n, seed=seed).values
    observed = prior.to_normal(theta) @ response.T + NOISE * rng.standard_normal((n, features))
    covariance = np.linalg.inv(np.eye(parameters) + response.T @ response / NOISE**2)
    return Problem(prior, theta, observed.astype(np.float32), observed @ response @ covariance / NOISE**2, covariance)
