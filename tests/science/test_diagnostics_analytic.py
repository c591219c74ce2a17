"""The diagnostics must pass the exact posterior and fail wrong ones; their numbers must be those of the sbi library."""

from __future__ import annotations

import numpy as np
import pytest
from analytic import Gaussian, problem
from scipy import stats

from scatterflow import diagnostics

pytestmark = pytest.mark.science
N, SAMPLES = 500, 300
# what each wrong posterior is, and which diagnostics must see it
SPREADS = {"over-confident": 0.6, "under-confident": 1.6}


@pytest.fixture(scope="module")
def exact():
    return problem(N, parameters=4)


def candidates(exact):
    found = {name: exact.posterior(N, spread=spread) for name, spread in SPREADS.items()}
    found["exact"] = exact.posterior(N)
    found["biased"] = exact.posterior(N, shift=0.5)
    found["prior"] = Gaussian(exact.prior, np.zeros((N, 4)), np.eye(4))
    return found


@pytest.fixture(scope="module")
def judged(exact):
    """For each posterior: all verdicts."""
    results = {}
    prior = exact.prior
    for name, posterior in candidates(exact).items():
        samples = posterior.sample(SAMPLES, seed=5)
        log_q = posterior.log_prob(exact.theta)
        rank = diagnostics.ranks(exact.theta, samples, prior)
        density = diagnostics.density_credibility(log_q, posterior.log_prob(samples))
        results[name] = {
            "gain": diagnostics.information_gain(log_q, prior.log_prob_box(exact.theta)),
            "log_q": log_q,
            "samples": samples,
            "error": diagnostics.point_error(diagnostics.median(samples, prior), exact.theta, prior),
            "sbc": diagnostics.sbc(rank, SAMPLES, prior.names),
            "density": diagnostics.coverage(density),
            "tarp": diagnostics.coverage(diagnostics.tarp_credibility(exact.theta, samples, prior)),
            "central": diagnostics.central_coverage(rank, SAMPLES, prior.names),
        }
    return results


def test_the_exact_posterior_passes_everything(judged, exact):
    verdict = judged["exact"]
    assert verdict["sbc"].passed
    assert verdict["density"].passed
    assert verdict["tarp"].passed
    assert all(coverage.passed for coverage in verdict["central"].values())
    assert verdict["density"].p_value > 0.01
    assert abs(verdict["density"].area.value) < 3 * verdict["density"].area.standard_error
    information = -0.5 * np.linalg.slogdet(exact.covariance)[1]
    assert abs(verdict["gain"].mean.value - information) < 3 * verdict["gain"].mean.standard_error


@pytest.mark.parametrize("check", ["density", "tarp"])
@pytest.mark.parametrize(("name", "sign"), [("over-confident", -1), ("under-confident", 1)])
def test_wrong_widths_fail_with_the_right_sign(judged, name, sign, check):
    coverage = judged[name][check]
    assert not coverage.passed
    assert coverage.p_value < 1e-4
    assert sign * coverage.area.value > 4 * coverage.area.standard_error
    assert all(sign * (share.value - level) > 0 for share, level in zip(coverage.share, coverage.level, strict=True))


@pytest.mark.parametrize("name", SPREADS)
def test_wrong_widths_fail_sbc_and_central_intervals(judged, name):
    assert not judged[name]["sbc"].passed
    assert not any(coverage.passed for coverage in judged[name]["central"].values())


def test_a_bias_fails_sbc_in_every_parameter_and_joint_coverage(judged):
    verdict = judged["biased"]
    assert max(verdict["sbc"].p_value_holm.values()) < 1e-4
    assert not verdict["density"].passed
    assert verdict["density"].area.value < 0


def test_the_prior_is_calibrated_and_knows_nothing(judged):
    # calibration alone does not make a posterior: only gain, error and classifier see it
    verdict = judged["prior"]
    assert verdict["sbc"].passed
    assert verdict["density"].passed
    assert verdict["tarp"].passed
    assert verdict["gain"].mean.value == pytest.approx(0, abs=1e-9)
    gap = diagnostics.difference(verdict["log_q"], judged["exact"]["log_q"])
    assert gap.value < -5 * gap.standard_error
    assert verdict["error"].overall.value > 1.5 * judged["exact"]["error"].overall.value


@pytest.mark.parametrize("name", ["over-confident", "under-confident", "biased"])
def test_every_wrong_posterior_loses_information(judged, name):
    # Gibbs: in the mean no density beats the true one
    loss = diagnostics.difference(judged["exact"]["log_q"], judged[name]["log_q"])
    assert loss.value > 3 * loss.standard_error


def test_prior_median_has_its_closed_form_error(exact):
    # |U - 1/2| of a uniform has mean 1/4
    middle = (exact.prior.lower + exact.prior.upper) / 2
    found = diagnostics.point_error(middle, exact.theta, exact.prior).overall
    assert abs(found.value - 0.25) < 3 * found.standard_error


def test_c2st_tells_posteriors_apart(judged, exact):
    few = {name: verdict["samples"][:3] for name, verdict in judged.items()}
    again = exact.posterior(N).sample(SAMPLES, seed=6)[:3]
    same = diagnostics.c2st(few["exact"], again, exact.prior)
    # accuracy of guessing 600 labels: standard deviation 0.02 each, of the mean of three 0.012
    assert abs(same.value - 0.5) < 0.04
    for name in ("prior", "biased"):
        assert diagnostics.c2st(few[name], again, exact.prior).value > same.value + 0.05, name


def test_wasserstein_of_shifted_posteriors_is_the_shift(exact):
    # in one dimension a shift moves every quantile by the same distance
    samples = exact.posterior(N).sample(SAMPLES, seed=7)
    width = exact.prior.upper - exact.prior.lower
    found = diagnostics.wasserstein(samples, samples + 0.03 * width, exact.prior)
    assert found.overall.value == pytest.approx(0.03)
    assert found.floor > 0


@pytest.fixture(scope="module")
def tensors(judged, exact):
    """Truth (observation, parameter) and samples (sample, observation, parameter) as sbi wants them, box-scaled."""
    import torch

    box = exact.prior.to_box
    samples = {name: np.swapaxes(box(verdict["samples"]), 0, 1).copy() for name, verdict in judged.items()}
    return torch.from_numpy(box(exact.theta)), {name: torch.from_numpy(values) for name, values in samples.items()}


@pytest.mark.parametrize("name", ["exact", "biased", "over-confident"])
def test_ranks_and_uniformity_are_those_of_sbi(judged, exact, tensors, name):
    from sbi.diagnostics.sbc import _run_sbc, check_uniformity_frequentist

    truth, samples = tensors
    theirs = _run_sbc(truth, truth, samples[name], "marginals", show_progress_bar=False)
    ours = diagnostics.ranks(exact.theta, judged[name]["samples"], exact.prior)
    np.testing.assert_array_equal(ours, theirs.numpy())
    p_values = check_uniformity_frequentist(theirs, SAMPLES).numpy()
    # theirs compares discrete ranks with a continuous law, ours spreads them: the statistic differs by 1 / samples
    mine = np.array(list(judged[name]["sbc"].p_value.values()))
    assert ((mine < 0.01) == (p_values < 0.01)).all()
    statistic = stats.kstest(theirs.numpy() / SAMPLES, "uniform", axis=0).statistic
    np.testing.assert_allclose(list(judged[name]["sbc"].statistic.values()), statistic, atol=1.5 / SAMPLES)


@pytest.mark.parametrize("name", ["exact", "over-confident"])
def test_density_coverage_is_the_expected_coverage_of_sbi(judged, exact, tensors, name):
    import torch
    from sbi.diagnostics.sbc import _run_sbc

    truth, samples = tensors
    posterior = candidates(exact)[name]

    def log_prob(theta, place):
        one = Gaussian(exact.prior, posterior.mean[int(place)][None], posterior.covariance)
        return torch.from_numpy(one.log_prob(exact.prior.from_box(theta.numpy())[None])[0])

    places = torch.arange(50)
    theirs = _run_sbc(truth[:50], places, samples[name][:, :50], log_prob, show_progress_bar=False)[:, 0].numpy()
    log_q, drawn = judged[name]["log_q"][:50], judged[name]["samples"][:50]
    log_samples = Gaussian(exact.prior, posterior.mean[:50], posterior.covariance).log_prob(drawn)
    ours = diagnostics.density_credibility(log_q, log_samples)
    # sbi counts samples less dense than the truth, ours those denser
    np.testing.assert_array_equal(np.floor(ours * (SAMPLES + 1)), SAMPLES - theirs)


@pytest.mark.parametrize("name", ["exact", "over-confident", "under-confident"])
def test_tarp_is_that_of_sbi(judged, exact, tensors, name):
    import torch
    from sbi.diagnostics.tarp import _run_tarp, check_tarp

    from scatterflow import seeds

    truth, samples = tensors
    references = torch.from_numpy(seeds.uniforms(0, "tarp", 0, N, 4))
    ecp, alpha = _run_tarp(samples[name], truth, references, num_bins=50)
    credibility = diagnostics.tarp_credibility(exact.theta, judged[name]["samples"], exact.prior, seed=0)
    ours = (credibility[:, None] <= alpha.numpy()).mean(axis=0)
    np.testing.assert_allclose(ours, ecp.numpy(), atol=0.02)  # ours spreads each credibility within 1 / samples
    area, _ = check_tarp(ecp, alpha)
    assert judged[name]["tarp"].area.value == pytest.approx(area, abs=0.01)
