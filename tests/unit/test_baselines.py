"""ABC on stored simulations: distances, kernels, regression, posterior, and what bad input says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.special import ndtr
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import KernelDensity

from scatterflow.baselines import fit, kde, regression
from scatterflow.config.baselines import BaselinesConfig
from scatterflow.errors import ConfigError, ScatterflowError, StoreError
from scatterflow.prior import Parameter, Prior

METHODS = ("abc-kde", "abc-kde-normal", "abc-regression")
PRIOR = Prior((Parameter("thickness_nm", 0.5, 4.0, "nm"), Parameter("roughness_nm", 0.3, 3.0, "nm", "thickness_nm")))


def library(n: int = 1500, prior: Prior = PRIOR, seed: int = 3):
    """Features that depend on the parameters nonlinearly, with noise."""
    theta = prior.sample(n, seed=seed)
    box = prior.to_box(theta)
    grid = np.linspace(0, 1, 12)
    clean = np.sin(3 * box[:, :1] * grid) + box[:, 1:2] * grid**2
    noise = 0.1 * np.random.default_rng(seed).standard_normal(clean.shape)
    return (clean + noise).astype(np.float32), theta


@pytest.fixture(scope="module")
def fitted():
    features, theta = library()
    return fit(features[100:], theta[100:], PRIOR, BaselinesConfig()), features[:100], theta[:100]


def test_masked_values_do_not_matter(fitted):
    theta = fitted[2]
    full, parameters = library()
    mask = np.ones(full.shape, bool)
    mask[:, 3] = False
    mask[::7, 8] = False
    spoilt = np.where(mask, full, np.nan).astype(np.float32)
    config = BaselinesConfig()
    results = []
    for values in (spoilt, np.where(mask, full, 77).astype(np.float32)):
        model = fit(values[100:], parameters[100:], PRIOR, config, mask=mask[100:])
        for method in METHODS:
            results.append(model.posterior(values[:100], method, mask=mask[:100]).log_prob(theta))
    for first, second in zip(results[:3], results[3:], strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-9)


def test_fixed_kernels_equal_scikit_learn():
    rng = np.random.default_rng(0)
    centres, points = rng.random((3, 50, 4)), rng.random((3, 20, 4))
    ours = kde.log_density(kde.fixed_bandwidth(centres, 0.2), points)
    peers = [KernelDensity(bandwidth=0.2).fit(c).score_samples(p) for c, p in zip(centres, points, strict=True)]
    np.testing.assert_allclose(ours, peers, rtol=1e-10)


def test_mixture_density_equals_scipy_and_does_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    roots = rng.standard_normal((3, 4, 4))
    cholesky = np.linalg.cholesky(roots @ np.swapaxes(roots, 1, 2) + np.eye(4))
    weights = rng.dirichlet(np.ones(8), size=3)
    mixture = kde.Mixture(rng.standard_normal((3, 8, 4)) + 1e4, np.log(weights), cholesky)
    points = rng.standard_normal((3, 30, 4)) + 1e4
    expected = np.empty((3, 30))
    for i in range(3):
        parts = [multivariate_normal(c, cholesky[i] @ cholesky[i].T).pdf(points[i]) for c in mixture.centres[i]]
        expected[i] = np.log(weights[i] @ np.array(parts))
    np.testing.assert_allclose(kde.log_density(mixture, points), expected, rtol=1e-9)
    monkeypatch.setattr(kde, "_MAX_PAIRS", 50)
    np.testing.assert_allclose(kde.log_density(mixture, points), expected, rtol=1e-9)


def test_covariance_equals_scikit_learn():
    rng = np.random.default_rng(2)
    values = rng.standard_normal((5, 40, 7)) @ rng.standard_normal((7, 7))
    ours = kde.ledoit_wolf(values, np.full((5, 40), 1 / 40))
    np.testing.assert_allclose(ours, [ledoit_wolf(v)[0] for v in values], rtol=1e-10)


def test_covariance_is_positive_with_fewer_rows_than_parameters():
    values = np.random.default_rng(3).standard_normal((2, 5, 20))
    values[1] = values[1, :1]  # all accepted parameters equal: no spread at all
    assert np.linalg.eigvalsh(kde.ledoit_wolf(values, np.full((2, 5), 0.2))).min() > 0


def test_matched_kernels_keep_mean_and_spread():
    rng = np.random.default_rng(4)
    values = rng.standard_normal((3, 3000, 4)) @ rng.standard_normal((4, 4)) + 5
    weights = np.full((3, 3000), 1 / 3000)
    mixture = kde.matched_kernels(values, weights)
    total = np.stack([np.cov(c.T, bias=True) for c in mixture.centres])
    total += mixture.cholesky @ np.swapaxes(mixture.cholesky, 1, 2)
    np.testing.assert_allclose(total, [np.cov(v.T, bias=True) for v in values], rtol=0.02, atol=0.05)
    np.testing.assert_allclose(mixture.centres.mean(axis=1), values.mean(axis=1), rtol=1e-9)


def test_kernel_width_follows_the_shape_of_the_density():
    rng = np.random.default_rng(5)
    normal = rng.standard_normal((1, 800, 2))
    clumps = np.where(rng.random((1, 800, 1)) < 0.5, -8, 8) + 0.3 * rng.standard_normal((1, 800, 2))
    mixture = kde.matched_kernels(np.concatenate([normal, clumps]), np.full((2, 800), 1 / 800))
    spread = kde.ledoit_wolf(np.concatenate([normal, clumps]), np.full((2, 800), 1 / 800))
    width = np.sqrt(np.linalg.det(mixture.cholesky) ** 2 / np.linalg.det(spread)) ** 0.5
    assert width[0] >= 0.35  # one normal: wide kernels predict best
    assert width[1] <= 0.2  # two far clumps: wide kernels would fill the gap


def test_draws_follow_the_weights_of_the_kernels():
    mixture = kde.Mixture(
        np.array([[[0.0], [10.0]], [[0.0], [10.0]]]), np.log([[0.9, 0.1], [0.25, 0.75]]), np.full((2, 1, 1), 0.5)
    )
    drawn = kde.draw(mixture, np.random.default_rng(6).random((2, 20_000, 2)))
    share = (drawn[..., 0] > 5).mean(axis=1)
    np.testing.assert_allclose(share, [0.1, 0.75], atol=4 * np.sqrt(0.25 / 20_000))
    np.testing.assert_allclose(drawn[0, drawn[0, :, 0] < 5].std(), 0.5, rtol=0.03)


def test_draws_of_extreme_uniforms_are_finite():
    mixture = kde.fixed_bandwidth(np.zeros((1, 3, 2)), 0.2)
    edge = np.array([0.0, 1 - 2.0**-53])
    drawn = kde.draw(mixture, np.stack(np.meshgrid(edge, edge, edge), -1).reshape(1, 8, 3))
    assert np.isfinite(drawn).all()


def test_epanechnikov_weights():
    weights = regression.epanechnikov(np.array([[0.0, 1.0, 2.0], [3.0, 3.0, 3.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(weights[0], np.array([1, 0.75, 0]) / 1.75)
    np.testing.assert_allclose(weights[1:], 1 / 3)


def test_adjustment_of_an_exactly_linear_relation_lands_on_the_answer():
    rng = np.random.default_rng(7)
    features, observed = rng.standard_normal((2, 400, 5)), rng.standard_normal((2, 5))
    matrix = rng.standard_normal((5, 3))
    adjusted = regression.adjust(features, observed, features @ matrix + 2, np.full((2, 400), 1 / 400))
    np.testing.assert_allclose(adjusted, np.broadcast_to((observed @ matrix + 2)[:, None], (2, 400, 3)), atol=1e-3)


def test_adjustment_leaves_unrelated_parameters_where_they_are():
    rng = np.random.default_rng(8)
    features, observed = rng.standard_normal((20, 500, 8)), rng.standard_normal((20, 8))
    values = rng.standard_normal((20, 500, 4))
    adjusted = regression.adjust(features, observed, values, np.full((20, 500), 1 / 500))
    np.testing.assert_allclose(adjusted.mean(axis=1), values.mean(axis=1), atol=0.2)
    np.testing.assert_allclose(adjusted.std(axis=1).mean(), values.std(axis=1).mean(), rtol=0.05)


def test_adjustment_follows_a_spread_that_varies():
    # s(x) = exp(x / 2): at x = 1.5 the spread is exp(0.75)
    rng = np.random.default_rng(9)
    features = rng.uniform(-2, 2, (30, 1000, 1))
    values = np.exp(features / 2) * rng.standard_normal((30, 1000, 1))
    adjusted = regression.adjust(features, np.full((30, 1), 1.5), values, np.full((30, 1000), 1e-3))
    np.testing.assert_allclose(adjusted.std(axis=1).mean(), np.exp(0.75), rtol=0.05)


def test_adjustment_survives_constant_features_and_a_far_observation():
    rng = np.random.default_rng(10)
    features = rng.standard_normal((1, 200, 4))
    features[..., 2] = 1.0
    adjusted = regression.adjust(features, np.full((1, 4), 1e6), features[..., :2], np.full((1, 200), 1 / 200))
    assert np.isfinite(adjusted).all()


@pytest.mark.parametrize("method", METHODS)
def test_density_over_the_box_integrates_to_one(fitted, method):
    model, features, _ = fitted
    posterior = model.posterior(features[:1], method)
    edge = np.linspace(-1, 2, 601)
    first, second = np.meshgrid(edge, edge, indexing="ij")
    theta = PRIOR.from_box(np.stack([first, second], -1).reshape(1, -1, 2))
    density = np.exp(posterior.log_prob(theta).values).reshape(first.shape)
    assert trapezoid(trapezoid(density, edge), edge) == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize("method", METHODS)
def test_samples_follow_the_density(fitted, method):
    # E_q[1 / q restricted to a region] = area of that region
    model, features, _ = fitted
    posterior = model.posterior(features[:1], method)
    samples = posterior.sample(20_000, seed=1)
    log_q = posterior.log_prob(samples).values[0]
    box = PRIOR.to_box(samples)[0]
    middle = np.median(box, axis=0)
    region = (np.abs(box - middle) < 0.05).all(axis=1)
    inside = PRIOR.inside(PRIOR.from_box(middle + 0.05 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])))
    assert inside.all()  # so that the region's area is 0.1^2 for every method
    values = np.where(region, np.exp(-log_q), 0)
    assert values.mean() == pytest.approx(0.01, abs=4 * values.std() / np.sqrt(values.size))


@pytest.mark.parametrize("method", METHODS)
def test_labels_reproducibility_and_independence_of_the_batch(fitted, method):
    model, features, theta = fitted
    posterior = model.posterior(features[:10], method)
    samples = posterior.sample(50, seed=4)
    assert samples.dims == ("observation", "sample", "parameter")
    assert list(samples.parameter.values) == list(PRIOR.names)
    assert list(samples.unit.values) == list(PRIOR.units)
    np.testing.assert_array_equal(samples, posterior.sample(50, seed=4))
    assert not np.array_equal(samples, posterior.sample(50, seed=5))
    alone = model.posterior(features[:3], method)
    np.testing.assert_allclose(alone.sample(50, seed=4), samples[:3], rtol=1e-9)
    log_prob = posterior.log_prob(theta[:10])
    assert log_prob.dims == ("observation",)
    np.testing.assert_allclose(alone.log_prob(theta[:3]), log_prob[:3], rtol=1e-9)
    each = posterior.log_prob(samples)
    assert each.dims == ("observation", "sample")
    np.testing.assert_allclose(posterior.log_prob(samples[:, 7]), each[:, 7], rtol=1e-9)
    shuffled = theta[:10].isel(parameter=[1, 0])
    np.testing.assert_allclose(posterior.log_prob(shuffled), log_prob, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_map_is_the_densest_sample(fitted, method):
    model, features, _ = fitted
    posterior = model.posterior(features[:5], method)
    best = posterior.map(200, seed=2)
    assert best.dims == ("observation", "parameter")
    densest = posterior.log_prob(posterior.sample(200, seed=2)).max("sample")
    np.testing.assert_allclose(posterior.log_prob(best), densest, rtol=1e-9)


def test_only_the_published_kernel_leaves_the_support(fitted):
    model, features, _ = fitted
    inside = {m: PRIOR.inside(model.posterior(features, m).sample(500)).mean() for m in METHODS}
    assert inside["abc-kde"] < 0.95
    assert inside["abc-kde-normal"] == inside["abc-regression"] == 1


@pytest.mark.parametrize("method", ["abc-kde-normal", "abc-regression"])
def test_no_density_outside_the_support(fitted, method):
    model, features, _ = fitted
    outside = np.array([[1.0, 2.0]])  # roughness above thickness
    assert model.posterior(features[:1], method).log_prob(outside).values == -np.inf


def test_leak_of_the_published_kernel_equals_its_closed_form():
    # independent parameters: the kernel's mass inside the box is a product of normal distribution functions
    prior = Prior(tuple(Parameter(f"p{i}", -1.0, 1.0 + i) for i in range(3)))
    features, theta = library(800, prior)
    posterior = fit(features, theta, prior, BaselinesConfig()).posterior(features[:1])
    centres = posterior.mixture.centres[0]
    expected = (ndtr((1 - centres) / 0.2) - ndtr(-centres / 0.2)).prod(axis=1).mean()
    n = 40_000
    found = prior.inside(posterior.sample(n)).mean()
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / n))


def test_number_accepted():
    features, theta = library(4000)
    for config, expected in (
        (BaselinesConfig(), 200),
        (BaselinesConfig(acceptance=0.1), 400),
        (BaselinesConfig(acceptance=0.1, min_accepted=700), 700),
    ):
        posterior = fit(features, theta, PRIOR, config).posterior(features[:2])
        assert posterior.distances.shape == (2, expected)
        assert posterior.acceptance == expected / 4000
        assert (np.diff(posterior.distances, axis=1) >= 0).all()
    assert (
        fit(features, theta, PRIOR, BaselinesConfig()).posterior(features[:2], "abc-regression").acceptance
        == 500 / 4000
    )


def test_images_are_flattened(fitted):
    model, features, theta = fitted
    full, parameters = library()
    image = fit(full[100:].reshape(-1, 3, 4), parameters[100:], PRIOR, BaselinesConfig())
    expected = model.posterior(features).log_prob(theta)
    np.testing.assert_allclose(image.posterior(features.reshape(-1, 3, 4)).log_prob(theta), expected)


def test_information_gain_is_measured_against_the_exact_prior(fitted):
    model, features, theta = fitted
    posterior = model.posterior(features, "abc-regression")
    gain = posterior.information_gain(theta)
    np.testing.assert_allclose(gain + PRIOR.log_prob_box(theta), posterior.log_prob(theta))
    assert gain.mean() > 5 * gain.std() / np.sqrt(gain.size)
    with pytest.raises(ConfigError, match="must lie in the prior's support, got 100 rows outside"):
        posterior.information_gain(np.tile([1.0, 2.0], (100, 1)))


def spoil(features, theta, what):
    features, theta, mask = features.copy(), theta.copy(deep=True), np.ones(features.shape, bool)
    if what == "nan":
        features[5, 2] = np.nan
    elif what == "infinite":
        features[5, 2] = np.inf
    elif what == "outside":
        theta[7, 0] = 99.0
    elif what == "nan parameter":
        theta[7, 0] = np.nan
    elif what == "rows":
        features, mask = features[:-1], mask[:-1]
    elif what == "few":
        features, theta, mask = features[:50], theta[:50], mask[:50]
    elif what == "mask":
        mask = mask[:, :-1]
    return features, theta, mask


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "finite where valid, got row 5"),
        ("infinite", "finite where valid, got row 5"),
        ("outside", "must lie in the prior's support, got row 7"),
        ("nan parameter", "must lie in the prior's support, got row 7"),
        ("rows", "one row of parameters per simulation"),
        ("few", "at least baselines.min_accepted = 200 simulations, got 50; raise"),
        ("mask", "mask of the ABC library must have the shape"),
    ],
)
def test_bad_library(what, message):
    features, theta, mask = spoil(*library(), what)
    with pytest.raises(StoreError, match=message):
        fit(features, theta, PRIOR, BaselinesConfig(), mask=mask)


def test_bad_observations(fitted):
    model, features, theta = fitted
    nothing, some = np.zeros((2, 12), bool), np.full((2, 12), np.nan, np.float32)
    cases = [
        (features[:2, :5], None, "must have 12 features like the ABC library"),
        (features[:2], np.ones((2, 5), bool), "and a mask of the same shape"),
        (features[:2], nothing, "must have a valid feature, got row 0 all masked"),
        (some, None, "must be below 1e\\+09 and finite where valid, got row 0; mask it"),
    ]
    for values, mask, message in cases:
        with pytest.raises(StoreError, match=message):
            model.posterior(values, mask=mask)
    with pytest.raises(ConfigError, match="must be of abc-kde, abc-kde-normal, abc-regression, got abc-smc"):
        model.posterior(features, "abc-smc")
    with pytest.raises(ScatterflowError, match="one row per observation"):
        model.posterior(features[:3]).log_prob(theta[:2])


def test_observation_that_shares_nothing_with_the_library():
    features, theta = library()
    mask = np.ones(features.shape, bool)
    mask[:, 0] = False
    model = fit(features, theta, PRIOR, BaselinesConfig(), mask=mask)
    with pytest.raises(StoreError, match="must share valid features with at least 200 simulations"):
        model.posterior(features[:1], mask=~mask[:1])


def test_a_far_observation_still_gets_an_answer(fitted):
    model = fitted[0]
    far = np.full((1, 12), 1e6, np.float32)
    for method in METHODS:
        assert np.isfinite(model.posterior(far, method).sample(100)).all()
