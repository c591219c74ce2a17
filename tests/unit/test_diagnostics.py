"""Figures of merit: each number against scipy or its definition, and what bad input says."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scatterflow import diagnostics
from scatterflow.errors import ScatterflowError
from scatterflow.prior import Parameter, Prior

PRIOR = Prior((Parameter("thickness_nm", 0.5, 4.5, "nm"), Parameter("roughness_nm", 0.0, 2.0, "nm", "thickness_nm")))


@pytest.fixture(scope="module")
def drawn():
    """Truth and samples, both from the prior: truth (30, 2), samples (30, 200, 2)."""
    truth = PRIOR.sample(30, seed=1)
    samples = PRIOR.sample(6000, seed=2).values.reshape(30, 200, 2)
    return truth, samples


def test_mean_and_paired_difference():
    rng = np.random.default_rng(0)
    first, shared = rng.standard_normal(50), 10 * rng.standard_normal(50)
    found = diagnostics.mean(first)
    assert (found.value, found.standard_error, found.n) == pytest.approx((first.mean(), stats.sem(first), 50))
    gap = diagnostics.difference(first + shared, shared)  # what both share cancels
    assert gap.value == pytest.approx(found.value)
    assert gap.standard_error == pytest.approx(found.standard_error)


def test_log_prob_summary_against_scipy():
    values = stats.t(2).rvs(200, random_state=0) - 3
    values[7] = -1e6
    found = diagnostics.log_prob(values, trim=0.05)
    assert found.trimmed.value == pytest.approx(stats.trim_mean(values, 0.05))
    assert found.trimmed.standard_error == pytest.approx(stats.mstats.trimmed_stde(values, (0.05, 0.05)), rel=0.01)
    assert found.mean.value == pytest.approx(values.mean())
    assert found.sigmas == pytest.approx(values.mean() / stats.sem(values))
    assert found.median == pytest.approx(np.median(values))
    assert abs(found.trimmed.value + 3) < 5 * found.trimmed.standard_error  # one outlier decides the mean, not this
    assert found.mean.value < -1000


def test_impossible_truths_are_counted_not_averaged():
    values = np.random.default_rng(1).standard_normal(100)
    values[:3] = -np.inf
    found = diagnostics.log_prob(values)
    assert found.mean is None
    assert found.sigmas is None
    assert found.impossible == 3
    assert found.trimmed.value == pytest.approx(np.sort(values)[5:95].mean())
    values[:60] = -np.inf
    worse = diagnostics.log_prob(values)
    assert worse.trimmed is None
    assert worse.median is None
    json.dumps(dataclasses.asdict(worse), allow_nan=False)


def test_information_gain_subtracts_the_prior(drawn):
    prior = PRIOR.log_prob_box(drawn[0])
    found = diagnostics.information_gain(prior + 2 + 0.1 * np.random.default_rng(2).standard_normal(30), prior)
    assert found.mean.value == pytest.approx(2, abs=0.1)
    assert found.sigmas > 50
    none = diagnostics.information_gain(prior, prior)
    assert none.mean.value == 0
    assert none.sigmas is None


def test_point_error_is_scaled_by_the_box(drawn):
    truth = drawn[0]
    off = truth + np.array([0.4, 0.1])  # a tenth and a twentieth of the box
    found = diagnostics.point_error(off, truth, PRIOR)
    assert found.overall.value == pytest.approx(0.075)
    assert found.by_parameter["thickness_nm"].value == pytest.approx(0.1)
    assert found.by_parameter["roughness_nm"].value == pytest.approx(0.05)
    shuffled = off.isel(parameter=[1, 0])  # parameters are matched by name
    assert diagnostics.point_error(shuffled, truth, PRIOR).overall.value == pytest.approx(0.075)
    constant = diagnostics.point_error(np.array([2.5, 1.0]), truth, PRIOR)
    expected = np.abs(PRIOR.to_box(truth) - 0.5).mean(axis=1)
    assert constant.overall.value == pytest.approx(expected.mean())
    assert constant.overall.standard_error == pytest.approx(stats.sem(expected))


def test_median(drawn):
    found = diagnostics.median(xr.DataArray(drawn[1], dims=("observation", "sample", "parameter"),
                                            coords={"parameter": list(PRIOR.names)}), PRIOR)  # fmt: skip
    np.testing.assert_array_equal(found, np.median(drawn[1], axis=1))
    assert found.dims == ("observation", "parameter")


def test_wasserstein_against_scipy(drawn):
    samples, reference = drawn[1][:15], drawn[1][15:] * 0.7
    a, b = PRIOR.to_box(samples), PRIOR.to_box(reference)
    expected = np.array([[stats.wasserstein_distance(a[i, :, k], b[i, :, k]) for k in range(2)] for i in range(15)])
    found = diagnostics.wasserstein(samples, reference, PRIOR)
    assert found.overall.value == pytest.approx(expected.mean())
    assert found.overall.standard_error == pytest.approx(stats.sem(expected.mean(axis=1)))
    assert found.sd == pytest.approx(expected.mean(axis=0).std(ddof=1))
    assert found.by_parameter["roughness_nm"].value == pytest.approx(expected[:, 1].mean())
    assert 0 < found.floor < found.overall.value
    assert diagnostics.wasserstein(samples, samples, PRIOR).overall.value == 0


def test_ranks_count_samples_below(drawn):
    truth, samples = drawn
    rank = diagnostics.ranks(truth, samples, PRIOR)
    assert rank[3, 1] == sum(sample[1] < truth.values[3, 1] for sample in samples[3])
    lowest = np.tile(PRIOR.lower - 1, (30, 1))
    assert (diagnostics.ranks(lowest, samples, PRIOR) == 0).all()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    # closure principle (Marcus et al. 1976): a hypothesis falls if every intersection that contains it falls
    p = np.array(p_values)
    expected = np.zeros(len(p))
    for size in range(1, len(p) + 1):
        for subset in itertools.combinations(range(len(p)), size):
            chosen = list(subset)
            expected[chosen] = np.maximum(expected[chosen], min(1.0, size * p[chosen].min()))
    np.testing.assert_allclose(diagnostics.holm(p), expected, rtol=1e-12)


def test_credibility_of_uniform_ranks_is_uniform():
    rank = np.random.default_rng(3).integers(0, 11, size=(20_000, 2))  # 10 samples: 11 possible ranks
    found = diagnostics.credibility(rank, 10)
    assert (stats.kstest(found, "uniform", axis=0).pvalue > 0.01).all()
    assert found.min() > 0
    assert found.max() < 1


def test_flat_posteriors_do_not_fake_coverage():
    # every density equal: the highest-density region is undefined, so ties are broken at random
    found = diagnostics.density_credibility(np.zeros(2000), np.zeros((2000, 50)))
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_density_credibility_is_the_mass_above():
    found = diagnostics.density_credibility([-1.0, -5.0, 1.0], np.tile([-4.0, -3.0, -2.0, 0.0], (3, 1)))
    assert (np.floor(found * 5) == [1, 4, 0]).all()


def test_coverage_interval_is_binomial():
    credibility = np.random.default_rng(4).random(500)
    found = diagnostics.coverage(credibility, levels=(0.5, 0.9), confidence=0.99)
    assert found.low[0] == pytest.approx(stats.binom(500, 0.5).ppf(0.005) / 500)
    assert found.high[1] == pytest.approx(stats.binom(500, 0.9).ppf(0.995) / 500)
    assert found.share[1].value == pytest.approx((credibility <= 0.9).mean())
    assert found.share[1].standard_error == pytest.approx(
        np.sqrt(found.share[1].value * (1 - found.share[1].value) / 500)
    )
    assert found.passed
    grid = np.linspace(0.5, 1, 20_001)
    area = np.trapezoid((credibility[:, None] <= grid).mean(axis=0) - grid, grid)
    assert found.area.value == pytest.approx(area, abs=1e-4)


def test_central_coverage_by_parameter():
    rank = np.stack([np.arange(101), np.full(101, 50)], axis=1)  # uniform ranks; all truths at the median
    found = diagnostics.central_coverage(rank, 100, PRIOR.names)
    assert found["thickness_nm"].passed
    assert not found["roughness_nm"].passed
    assert found["roughness_nm"].share[0].value == 1


def test_support_leak(drawn):
    samples = drawn[1].copy()
    assert diagnostics.support_leak(samples, PRIOR).value == 0
    samples[:, :50, 0] = 99.0
    samples[:, 50:60, 1] = samples[:, 50:60, 0] + 0.1  # rougher than thick
    found = diagnostics.support_leak(samples, PRIOR)
    assert found.value == pytest.approx(60 / 200)
    assert found.n == 30


def test_every_result_is_plain_json(drawn):
    truth, samples = drawn
    rank = diagnostics.ranks(truth, samples, PRIOR)
    results = [
        diagnostics.log_prob(PRIOR.log_prob_box(truth)),
        diagnostics.point_error(truth, truth, PRIOR),
        diagnostics.wasserstein(samples, samples[::-1], PRIOR),
        diagnostics.sbc(rank, 200, PRIOR.names),
        diagnostics.coverage(diagnostics.tarp_credibility(truth, samples, PRIOR)),
        *diagnostics.central_coverage(rank, 200, PRIOR.names).values(),
        diagnostics.support_leak(samples, PRIOR),
    ]
    for result in results:
        json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_bad_input(drawn):
    truth, samples = drawn
    holes = samples.copy()
    holes[0, 0, 0] = np.nan
    cases = [
        (lambda: diagnostics.mean([1.0]), "at least 2 observations"),
        (lambda: diagnostics.mean([1.0, np.nan]), "values must be finite, got 1 NaN"),
        (lambda: diagnostics.log_prob([1.0, np.nan]), "must be finite or -inf"),
        (lambda: diagnostics.log_prob([1.0, np.inf]), "must be finite or -inf"),
        (
            lambda: diagnostics.information_gain([1.0, 2.0], [1.0, -np.inf]),
            "log-probabilities of the prior must be finite",
        ),
        (lambda: diagnostics.ranks(truth, holes, PRIOR), "samples must be finite"),
        (lambda: diagnostics.ranks(truth[:5], samples, PRIOR), "one row per truth"),
        (lambda: diagnostics.median(truth, PRIOR), "samples must have 3 dimensions"),
        (lambda: diagnostics.wasserstein(samples, samples[:, :100], PRIOR), "must have the shape"),
        (lambda: diagnostics.point_error(truth[:3], truth, PRIOR), "must have 30 rows"),
        (lambda: diagnostics.density_credibility([0.0, np.nan], np.zeros((2, 3))), "must not be NaN"),
        (lambda: diagnostics.coverage([0.5, np.nan]), "credibilities must be finite"),
    ]
    for call, message in cases:
        with pytest.raises(ScatterflowError, match=message):
            call()
