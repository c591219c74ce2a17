"""ABC against a posterior in closed form and against the sbi library on the same simulations."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
from analytic import problem

from scatterflow import diagnostics
from scatterflow.baselines import fit, regression
from scatterflow.config.baselines import BaselinesConfig

pytestmark = pytest.mark.science
OBSERVATIONS, LIBRARY = 300, 30_000
METHODS = ("abc-kde", "abc-kde-normal", "abc-regression")


@pytest.fixture(scope="module")
def exact():
    return problem(OBSERVATIONS + LIBRARY)


@pytest.fixture(scope="module")
def posteriors(exact):
    library = fit(exact.features[OBSERVATIONS:], exact.theta[OBSERVATIONS:], exact.prior, BaselinesConfig())
    return {method: library.posterior(exact.features[:OBSERVATIONS], method) for method in METHODS}


@pytest.fixture(scope="module")
def gains(exact, posteriors):
    truth = exact.theta[:OBSERVATIONS]
    found = {method: posterior.information_gain(truth).values for method, posterior in posteriors.items()}
    found["exact"] = exact.posterior(OBSERVATIONS).log_prob(truth) - exact.prior.log_prob_box(truth)
    return found


def test_regression_reaches_the_information_of_the_exact_posterior(gains, exact):
    # the exact gain's expectation is the mutual information -1/2 log det C
    information = -0.5 * np.linalg.slogdet(exact.covariance)[1]
    mine = diagnostics.mean(gains["exact"])
    assert abs(mine.value - information) < 3 * mine.standard_error
    loss = diagnostics.difference(gains["exact"], gains["abc-regression"])
    assert -3 * loss.standard_error < loss.value < 0.1 * information


def test_methods_rank_as_they_must(gains):
    for better, worse in (
        ("exact", "abc-regression"),
        ("abc-regression", "abc-kde-normal"),
        ("abc-kde-normal", "abc-kde"),
    ):
        gap = diagnostics.difference(gains[better], gains[worse])
        assert gap.value > 3 * gap.standard_error, (better, worse)
    assert diagnostics.log_prob(gains["abc-kde"]).sigmas > 5


def test_regression_has_the_exact_mean_and_covariance(exact, posteriors):
    u = exact.prior.to_normal(posteriors["abc-regression"].sample(1000))
    sigma = np.sqrt(np.diag(exact.covariance))
    error = (u.mean(axis=1) - exact.mean[:OBSERVATIONS]) / sigma
    assert np.sqrt((error**2).mean()) < 0.25  # of a posterior standard deviation
    np.testing.assert_allclose(u.std(axis=1).mean(axis=0), sigma, rtol=0.1)


def test_regression_is_calibrated_and_plain_abc_is_too_wide(exact, posteriors):
    truth = exact.theta[:OBSERVATIONS]
    passed, area = {}, {}
    for method, posterior in posteriors.items():
        samples = posterior.sample(300, seed=1)
        credibility = diagnostics.density_credibility(posterior.log_prob(truth), posterior.log_prob(samples))
        coverage = diagnostics.coverage(credibility)
        rank = diagnostics.ranks(truth, samples, exact.prior)
        passed[method] = (coverage.passed, diagnostics.sbc(rank, 300, exact.prior.names).passed)
        area[method] = coverage.area
    assert passed["abc-regression"] == (True, True)
    for method in ("abc-kde", "abc-kde-normal"):
        assert not passed[method][0]
        assert area[method].value > 5 * area[method].standard_error  # over-wide


def test_acceptance_radius_is_the_only_difference_to_exact(exact):
    # more simulations, same number accepted: plain ABC approaches the exact posterior
    truth, gain = exact.theta[:OBSERVATIONS], []
    for size in (1000, 5000, LIBRARY):
        rows = slice(OBSERVATIONS, OBSERVATIONS + size)
        library = fit(exact.features[rows], exact.theta[rows], exact.prior, BaselinesConfig(acceptance=1e-6))
        posterior = library.posterior(exact.features[:OBSERVATIONS], "abc-kde-normal")
        gain.append(posterior.information_gain(truth).values)
    for fewer, more in pairwise(gain):
        step = diagnostics.difference(more, fewer)
        assert step.value > 5 * step.standard_error


class Stored:
    """What sbi calls prior and simulator: the stored parameters, and their stored features."""

    def __init__(self, theta, features):
        import torch

        self.theta, self.features = torch.from_numpy(theta).float(), torch.from_numpy(features)

    def sample(self, shape):
        assert shape == (len(self.theta),)
        return self.theta

    def simulate(self, theta):
        assert theta.shape == self.theta.shape
        return self.features


@pytest.fixture(scope="module")
def mcabc(exact):
    """sbi's rejection ABC on stored simulations: (observation index, options) -> accepted parameters and features."""
    from sbi.inference import MCABC

    logging.getLogger("sbi").setLevel(logging.ERROR)
    normal = exact.prior.to_normal(exact.theta[OBSERVATIONS:])
    stored = Stored(normal, exact.features[OBSERVATIONS:])

    def run(place, **options):
        sampler = MCABC(stored.simulate, stored, simulation_batch_size=LIBRARY, show_progress_bars=False)
        return sampler(exact.features[place], num_simulations=LIBRARY, return_summary=True, **options)

    return run


@pytest.mark.parametrize("place", [0, 7, 100])
def test_sbi_accepts_the_same_simulations(exact, posteriors, mcabc, place):
    n = posteriors["abc-kde"].distances.shape[1]
    theta, summary = mcabc(place, quantile=(n + 0.5) / LIBRARY)
    order = np.argsort(summary["distances"].numpy(), kind="stable")
    np.testing.assert_allclose(summary["distances"].numpy()[order], posteriors["abc-kde"].distances[place], rtol=1e-4)
    ours = exact.prior.to_normal(exact.prior.from_box(posteriors["abc-kde"].mixture.centres[place]))
    np.testing.assert_allclose(np.sort(theta.numpy(), axis=0), np.sort(ours, axis=0), atol=1e-5)


@pytest.mark.parametrize("place", [0, 7, 100])
def test_sbi_adjusts_by_the_same_regression(exact, mcabc, place):
    # sbi: unweighted, no ridge, constant spread; ours has ridge and varying spread, which this problem does not need
    accepted, summary = mcabc(place, quantile=0.05)
    adjusted, _ = mcabc(place, quantile=0.05, lra=True)
    features = summary["x"].numpy().astype(np.float64)
    n = len(features)
    ours = regression.adjust(
        features[None],
        exact.features[place][None].astype(np.float64),
        accepted.numpy()[None].astype(np.float64),
        np.full((1, n), 1 / n),
    )[0]
    spread = adjusted.numpy().std(axis=0)
    np.testing.assert_allclose(ours.mean(axis=0), adjusted.numpy().mean(axis=0), atol=0.1 * spread.min())
    np.testing.assert_allclose(ours.std(axis=0), spread, rtol=0.1)
    moved = np.abs(adjusted.numpy() - accepted.numpy()).mean()
    assert np.abs(ours - adjusted.numpy()).mean() < 0.1 * moved
