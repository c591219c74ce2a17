"""The verdict: scores that know in-range from out-of-range, on a problem with known answer."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import chi2

from scatterflow import verdict
from scatterflow.errors import BundleError

POINTS, ROWS, COLUMNS, LATENT, NOISE = 30, 6, 5, 4, 0.05


def gaussian(n: int, seed: int) -> xr.Dataset:
    """Features from a linear Gaussian model of four latent numbers, with noise."""
    mixing = np.random.default_rng(0).normal(size=(LATENT, POINTS + ROWS * COLUMNS))
    rng = np.random.default_rng(seed)
    values = 0.5 + 0.1 * rng.normal(size=(n, LATENT)) @ mixing + NOISE * rng.normal(size=(n, POINTS + ROWS * COLUMNS))
    image = values[:, POINTS:].reshape(n, ROWS, COLUMNS)
    return xr.Dataset(
        {
            "profile": (("simulation", "profile_point"), values[:, :POINTS].astype(np.float32)),
            "mask_profile": (("simulation", "profile_point"), np.ones((n, POINTS), dtype=bool)),
            "image": (("simulation", "z_image", "y_image"), image.astype(np.float32)),
            "mask_image": (("simulation", "z_image", "y_image"), np.ones(image.shape, dtype=bool)),
        }
    )


def test_score_of_a_gaussian_model_is_chi_squared() -> None:
    score = verdict.fit_features(gaussian(4000, 1), seed=0)
    freedom = POINTS + ROWS * COLUMNS
    values = score.score(gaussian(2000, 2)) * freedom
    assert values.mean() == pytest.approx(freedom, rel=0.05)
    assert np.mean(values > chi2.isf(0.01, freedom)) < 0.03


def test_what_looks_like_no_simulation_scores_high() -> None:
    score = verdict.fit_features(gaussian(2000, 1), seed=0)
    odd = gaussian(50, 3)
    odd["image"] += 0.3 * np.sin(np.arange(ROWS))[:, None]
    assert score.score(odd).min() > np.quantile(score.score(gaussian(500, 2)), 0.99)


def test_masked_features_are_marginalised() -> None:
    """Whatever stands in masked places, the score is that of the rest, and stays near 1 in range."""
    score = verdict.fit_features(gaussian(4000, 1), seed=0)
    data = gaussian(300, 2)
    data["mask_profile"][:, ::3] = False
    data["mask_image"][:100, :2] = False
    masked = score.score(data)
    data["profile"].values[:, ::3] = 1e3
    np.testing.assert_allclose(score.score(data), masked)
    assert masked.mean() == pytest.approx(1, abs=0.06)


def test_features_that_never_vary_say_nothing() -> None:
    data = gaussian(500, 1)
    data["image"][:, 0] = 0
    score = verdict.fit_features(data, seed=0)
    assert (score.sd == 0).sum() == COLUMNS
    other = gaussian(50, 2)
    assert np.isfinite(score.score(other)).all()


def test_arrays_round_trip_and_damage() -> None:
    score = verdict.fit_features(gaussian(500, 1), seed=0)
    arrays = score.arrays()
    np.testing.assert_allclose(
        verdict.score_from_arrays(arrays).score(gaussian(20, 2)), score.score(gaussian(20, 2)), rtol=1e-4
    )
    del arrays["sd"]
    with pytest.raises(BundleError, match=r"sd.*missing"):
        verdict.score_from_arrays(arrays)


def test_predictive_score_of_the_right_model_is_about_one() -> None:
    rng = np.random.default_rng(0)
    data = gaussian(400, 1)
    truth = data["profile"].values
    draws = xr.DataArray(rng.normal(size=(400, 8, POINTS)), dims=("observation", "draw", "profile_point"))
    data["profile"].values[:] = rng.normal(size=truth.shape)
    right = verdict.predictive_score(data, draws)
    assert np.median(right) == pytest.approx(1, abs=0.1)
    data["profile"].values[:] += 3
    assert np.median(verdict.predictive_score(data, draws)) > 5


def test_threshold_holds_its_false_alarm_rate_and_the_reason_is_said() -> None:
    values = np.random.default_rng(0).chisquare(5, 1000)
    limits = verdict.thresholds({"features": values, "predictive": values}, 0.01)
    assert np.mean(values > limits["features"]["threshold"]) <= 0.01
    status, why = verdict.judge({"features": 100.0, "predictive": 1.0}, limits)
    assert status == "outside"
    assert "no simulation" in why
    assert "predictive" not in why
    assert verdict.judge({"features": 1.0, "predictive": 1.0}, limits)[0] == "ok"
    assert verdict.judge({"features": float("nan"), "predictive": 1.0}, limits)[0] == "outside"
