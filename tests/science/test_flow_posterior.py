"""Trained posteriors against a posterior known in closed form (tests/science/analytic.py), in both modes."""

import numpy as np
import pytest
import xarray as xr
from pydantic import TypeAdapter
from scipy.stats import kstest

from scatterflow.config.model import ModelConfig
from scatterflow.models.fitting import train_estimator
from scatterflow.prior import log_normal_density
from scatterflow.progress import quiet
from tests.science.analytic import NOISE, Problem, problem

pytestmark = pytest.mark.science

HELD_BACK, VALIDATION, TRAIN = 500, 500, 12_000
ROWS = HELD_BACK + VALIDATION + TRAIN
PROFILE, IMAGE = 4, (4, 2)  # the first features are the profile, the others the image
ENCODER = {"hidden": 64, "outputs": 16}
PHASE = {"epochs": 10, "schedule": "cosine", "learning_rate": 3e-3, "batch_size": 64}
FLOW = {"hidden": 32, "transforms": 3, "encoder": ENCODER}


@pytest.fixture(scope="module")
def made() -> Problem:
    return problem(ROWS, parameters=3, features=PROFILE + IMAGE[0] * IMAGE[1])


def exact(made: Problem, features: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and covariance of u given the first `features`, and the mutual information [nat] (Bishop 2006, 2.3.3)."""
    count = made.features.shape[1]
    u = made.prior.to_normal(made.theta)
    # the response that `problem` drew: known from its exact posterior, as noise and prior are
    response = np.random.default_rng(0).standard_normal((count, u.shape[1]))[:features] / np.sqrt(u.shape[1])
    residual = made.features[:, :features] - u @ response.T
    assert residual.std() == pytest.approx(NOISE, rel=0.02), "the response must be the problem's"
    precision = np.eye(u.shape[1]) + response.T @ response / NOISE**2
    covariance = np.linalg.inv(precision)
    mean = made.features[:, :features] @ response @ covariance / NOISE**2
    return mean, covariance, 0.5 * float(np.linalg.slogdet(precision)[1])


def gain_of(normal: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    deviation = normal - mean
    square = (deviation @ np.linalg.inv(covariance) * deviation).sum(axis=-1)
    log_q = -0.5 * square - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    return log_q - log_normal_density(normal)


@pytest.fixture(scope="module")
def dataset(made) -> xr.Dataset:
    profile, image = np.split(made.features, [PROFILE], axis=1)
    image = image.reshape(ROWS, *IMAGE)
    roles = np.repeat(["held_back", "validation", "train"], [HELD_BACK, VALIDATION, TRAIN])
    return xr.Dataset(
        {
            "profile": (("simulation", "profile_point"), profile),
            "mask_profile": (("simulation", "profile_point"), np.ones(profile.shape, bool)),
            "image": (("simulation", "z_image", "y_image"), image),
            "mask_image": (("simulation", "z_image", "y_image"), np.ones(image.shape, bool)),
            "parameters": made.prior.dataarray(made.theta),
        },
        coords={"split": ("simulation", roles)},
    )


def trained(content: dict, dataset: xr.Dataset, made: Problem, folder):
    config = TypeAdapter(ModelConfig).validate_python(content)
    return train_estimator(config, dataset, made.prior, folder, seed=1, log=lambda _: None, tracker=quiet).estimator


@pytest.fixture(scope="module")
def control(dataset, made, tmp_path_factory):
    # the flow itself: 500 validation rows fix its widths to some percent only
    content = {"kind": "maf-profile", "flow": FLOW | {"recalibrate": False}, "training": {"flow": PHASE}}
    return trained(content, dataset, made, tmp_path_factory.mktemp("control"))


@pytest.fixture(scope="module")
def with_image(dataset, made, tmp_path_factory):
    content = {
        "kind": "cvae-maf",
        "cvae": {"latent": 3, "channels": [16, 32], "encoder": ENCODER},
        "flow": FLOW,
        "training": {"flow": PHASE, "cvae": PHASE},
    }
    return trained(content, dataset, made, tmp_path_factory.mktemp("cvae"))


@pytest.fixture(scope="module")
def summary(dataset, made, tmp_path_factory):
    content = {
        "kind": "summary-maf",
        "summary": {"hidden": 64, "blocks": 1, "outputs": 16},
        "flow": {"hidden": 32, "transforms": 3},
        "training": {"flow": PHASE},
    }
    return trained(content, dataset, made, tmp_path_factory.mktemp("summary"))


def test_a_summary_network_recovers_the_posterior_with_and_without_the_image(summary, dataset, made):
    held_back = dataset.isel(simulation=slice(0, HELD_BACK))
    theta, normal = made.theta[:HELD_BACK], made.prior.to_normal(made.theta[:HELD_BACK])
    for mode, features in (("image+profile", made.features.shape[1]), ("profile", PROFILE)):
        mean, covariance, information = exact(made, features)
        posterior = summary.posterior(held_back, mode)
        lost = gain_of(normal, mean[:HELD_BACK], covariance) - posterior.information_gain(theta).values
        print(f"{mode}: information {information:.3f} nat, lost {lost.mean():.3f}")
        assert -3 * lost.std() / np.sqrt(HELD_BACK) < lost.mean() < 0.05
        ranks = (posterior.sample(1000, seed=3).values < theta[:, None]).mean(axis=1)
        assert min(kstest(ranks[:, k], "uniform").pvalue for k in range(ranks.shape[1])) > 0.01 / ranks.shape[1]


def test_flow_recovers_the_analytic_posterior(control, dataset, made):
    held_back = dataset.isel(simulation=slice(0, HELD_BACK))
    mean, covariance, information = exact(made, PROFILE)
    posterior = control.posterior(held_back)
    normal = made.prior.to_normal(made.theta[:HELD_BACK])
    gain = posterior.information_gain(made.theta[:HELD_BACK]).values
    best = gain_of(normal, mean[:HELD_BACK], covariance)
    lost = best - gain  # nat, per observation; its mean is the Kullback-Leibler divergence to the exact posterior
    print(f"information {information:.3f} nat, exact {best.mean():.3f}, flow {gain.mean():.3f}, lost {lost.mean():.3f}")
    assert -3 * lost.std() / np.sqrt(HELD_BACK) < lost.mean() < 0.05
    samples = made.prior.to_normal(posterior.sample(1000, seed=3).values)
    sigma = np.sqrt(np.diag(covariance))
    error = (samples.mean(axis=1) - mean[:HELD_BACK]) / sigma
    assert np.sqrt((error**2).mean()) < 0.15  # in standard deviations of the posterior
    np.testing.assert_allclose(samples.std(axis=1).mean(axis=0), sigma, rtol=0.05)
    inner = samples - samples.mean(axis=1, keepdims=True)
    correlation = np.einsum("osp,osq->pq", inner, inner) / (HELD_BACK * 1000) / np.outer(sigma, sigma)
    np.testing.assert_allclose(correlation, covariance / np.outer(sigma, sigma), atol=0.06)


def test_its_samples_are_calibrated(control, dataset, made):
    samples = control.posterior(dataset.isel(simulation=slice(0, HELD_BACK))).sample(1000, seed=3).values
    ranks = (samples < made.theta[:HELD_BACK, None]).mean(axis=1)
    p_values = [kstest(ranks[:, index], "uniform").pvalue for index in range(ranks.shape[1])]
    assert min(p_values) > 0.01 / len(p_values)  # Bonferroni


def test_a_flow_that_is_too_sure_would_be_seen(control, dataset, made):
    """The same test fails on the same samples, narrowed by a third around their mean."""
    samples = control.posterior(dataset.isel(simulation=slice(0, HELD_BACK))).sample(1000, seed=3).values
    middle = samples.mean(axis=1, keepdims=True)
    ranks = (middle + 0.66 * (samples - middle) < made.theta[:HELD_BACK, None]).mean(axis=1)
    assert min(kstest(ranks[:, index], "uniform").pvalue for index in range(ranks.shape[1])) < 0.01 / 3


def test_no_estimator_beats_the_mutual_information(control, with_image, dataset, made):
    held_back = dataset.isel(simulation=slice(0, HELD_BACK))
    theta, normal = made.theta[:HELD_BACK], made.prior.to_normal(made.theta[:HELD_BACK])
    for estimator, mode, features in (
        (control, "profile", PROFILE),
        (with_image, "profile", PROFILE),
        (with_image, "image+profile", made.features.shape[1]),
    ):
        mean, covariance, information = exact(made, features)
        gain = estimator.posterior(held_back, mode).information_gain(theta).values
        best = gain_of(normal, mean[:HELD_BACK], covariance)
        lost = best - gain
        print(f"{mode}: information {information:.3f} nat, exact {best.mean():.3f}, found {gain.mean():.3f}")
        assert lost.mean() > -3 * lost.std() / np.sqrt(HELD_BACK)


def test_the_image_adds_information_and_the_mixture_over_z_costs_little(control, with_image, dataset, made):
    held_back = dataset.isel(simulation=slice(0, HELD_BACK))
    theta = made.theta[:HELD_BACK]
    gain = {mode: with_image.posterior(held_back, mode).information_gain(theta).values for mode in with_image.modes}
    alone = control.posterior(held_back).information_gain(theta).values
    added = gain["image+profile"] - alone
    assert added.mean() > 5 * added.std() / np.sqrt(HELD_BACK)
    _, _, from_profile = exact(made, PROFILE)
    _, _, from_all = exact(made, made.features.shape[1])
    assert added.mean() > 0.5 * (from_all - from_profile)
    assert gain["profile"].mean() > 0.8 * alone.mean()


def test_more_latent_draws_change_nothing(with_image, dataset, made):
    held_back = dataset.isel(simulation=slice(0, HELD_BACK))
    posterior = with_image.posterior(held_back, "profile")
    found = posterior.information_gain(made.theta[:HELD_BACK]).values.mean()
    many = posterior.information_gain(made.theta[:HELD_BACK], draws=1024).values.mean()
    assert found == pytest.approx(many, abs=0.05)
