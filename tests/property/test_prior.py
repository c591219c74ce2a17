"""The conditionally uniform prior: exact density, exact transforms, rows by index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import nquad
from scipy.stats import kstest

from scatterflow import seeds
from scatterflow.errors import ConfigError
from scatterflow.prior import Parameter, Prior, log_normal_density, prior_from_spec


def capped_prior() -> Prior:
    """Thickness with a roughness that it caps, twice, and a free parameter."""
    return Prior(
        (
            Parameter("a.thickness_nm", 0.3, 4.7, "nm"),
            Parameter("a.roughness_nm", 0.3, 5.0, "nm", "a.thickness_nm"),
            Parameter("b.delta", 1e-5, 4e-5),
            Parameter("b.beta", 1e-8, 9e-6, "1", "b.delta"),
            Parameter("b.hurst", 0.1, 0.9),
        ),
        seed=5,
    )


PRIOR = capped_prior()
cubes = st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=5)


@given(cubes)
def test_cube_round_trip_and_support(cube: list[float]) -> None:
    theta = PRIOR.from_cube(np.array([cube]))
    assert PRIOR.inside(theta).all()
    wide = PRIOR.conditional_upper(theta)[0] - PRIOR.lower > 1e-9 * (PRIOR.upper - PRIOR.lower)
    np.testing.assert_allclose(PRIOR.to_cube(theta)[0][wide], np.array(cube)[wide], atol=1e-6)


@given(st.lists(st.floats(-40, 40), min_size=5, max_size=5))
def test_no_real_number_leaves_the_support(normal: list[float]) -> None:
    theta = PRIOR.from_normal(np.array([normal]))
    assert PRIOR.inside(theta).all()
    assert np.isfinite(PRIOR.log_prob(theta)).all() or (PRIOR.conditional_upper(theta) == PRIOR.lower).any()


@given(st.lists(st.floats(-5, 5), min_size=5, max_size=5))
def test_normal_round_trip(normal: list[float]) -> None:
    back = PRIOR.to_normal(PRIOR.from_normal(np.array([normal])))
    np.testing.assert_allclose(back[0], normal, atol=1e-4)


def test_density_is_that_of_the_transform() -> None:
    """log p(theta) = -log |d theta / d cube|, by finite differences of the map from the unit cube."""
    cube = np.random.default_rng(0).uniform(0.05, 0.95, (20, 5))
    step = 1e-6
    shifted = np.stack([PRIOR.from_cube(cube + step * np.eye(5)[i]) for i in range(5)], axis=-1)
    jacobian = (shifted - PRIOR.from_cube(cube)[..., None]) / step
    np.testing.assert_allclose(PRIOR.log_prob(PRIOR.from_cube(cube)), -np.linalg.slogdet(jacobian)[1], atol=1e-4)


def test_density_integrates_to_one() -> None:
    prior = Prior((Parameter("t", 0.3, 4.7), Parameter("s", 0.3, 5.0, "1", "t")))
    total, _ = nquad(
        lambda s, t: float(np.exp(prior.log_prob(np.array([[t, s]])))[0]), [lambda t: (0.3, t), (0.3 + 1e-9, 4.7)]
    )
    assert total == pytest.approx(1.0, abs=1e-6)


def test_density_grows_where_the_cap_nears_the_lower_bound() -> None:
    near, far = PRIOR.log_prob(np.array([[0.31, 0.305, 2e-5, 1e-6, 0.5], [4.6, 0.305, 2e-5, 1e-6, 0.5]]))
    assert near - far == pytest.approx(np.log((4.6 - 0.3) / (0.31 - 0.3)), rel=1e-6)


@pytest.mark.parametrize(
    "theta",
    [
        [5.0, 0.4, 2e-5, 1e-6, 0.5],  # above the box
        [1.0, 1.1, 2e-5, 1e-6, 0.5],  # rougher than thick
        [1.0, 0.5, 2e-5, 2.1e-5, 0.5],  # absorbs more than it refracts
        [1.0, 0.5, 2e-5, 1e-6, np.nan],
    ],
)
def test_outside_the_support_is_minus_infinity(theta: list[float]) -> None:
    assert PRIOR.log_prob(np.array([theta]))[0] == -np.inf


def test_box_density_differs_by_the_volume_only() -> None:
    theta = PRIOR.sample(10)
    volume = np.log(PRIOR.upper - PRIOR.lower).sum()
    np.testing.assert_allclose(PRIOR.log_prob_box(theta) - PRIOR.log_prob(theta), volume)
    np.testing.assert_allclose(PRIOR.from_box(PRIOR.to_box(theta)), theta.values)


@given(st.integers(0, 50), st.integers(1, 20), st.integers(0, 2**31))
@settings(max_examples=30)
def test_rows_depend_on_seed_and_index_only(start: int, n: int, seed: int) -> None:
    alone = PRIOR.sample(1, seed=seed, start=start + n - 1).values
    np.testing.assert_array_equal(PRIOR.sample(n, seed=seed, start=start).values[-1:], alone)


def test_samples_are_uniform_in_the_cube_and_normal_in_the_normal_coordinate() -> None:
    theta = PRIOR.sample(4000, seed=1)
    assert PRIOR.inside(theta).all()
    for column in PRIOR.to_cube(theta).T:
        assert kstest(column, "uniform").pvalue > 1e-3
    for column in PRIOR.to_normal(theta).T:
        assert kstest(column, "norm").pvalue > 1e-3


def test_normal_density_is_scipys() -> None:
    from scipy.stats import norm

    points = np.random.default_rng(3).normal(size=(4, 5))
    np.testing.assert_allclose(log_normal_density(points), norm.logpdf(points).sum(axis=1))


def test_labels_and_reordering() -> None:
    theta = PRIOR.sample(3)
    assert theta.dims == ("simulation", "parameter")
    assert list(theta["unit"].values) == ["nm", "nm", "1", "1", "1"]
    shuffled = theta.isel(parameter=[4, 2, 0, 1, 3])
    np.testing.assert_array_equal(PRIOR.values(shuffled), theta.values)


def test_spec_round_trip() -> None:
    assert prior_from_spec(PRIOR.spec(), seed=5) == PRIOR


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((Parameter("a", 2.0, 1.0),), "ascending"),
        ((Parameter("a", 0.0, np.inf),), "finite"),
        ((Parameter("a", 0.0, 1.0, "1", "b"),), "earlier"),
        ((Parameter("t", 0.1, 1.0), Parameter("s", 0.2, 1.0, "1", "t")), "caps it"),
    ],
)
def test_impossible_priors_are_refused(parameters: tuple[Parameter, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Prior(parameters)


def test_wrong_shapes_and_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="shape"):
        PRIOR.dataarray(np.zeros((3, 4)))
    with pytest.raises(ConfigError, match="must contain"):
        PRIOR.values(PRIOR.sample(2).isel(parameter=[0, 1]))
    with pytest.raises(ConfigError, match="negative"):
        PRIOR.sample(-1)


@given(st.integers(0, 2**31), st.integers(0, 1000), st.integers(1, 30), st.integers(1, 9))
@settings(max_examples=40)
def test_uniform_streams_by_index(seed: int, start: int, n: int, width: int) -> None:
    whole = seeds.uniforms(seed, "x", start, n, width)
    assert whole.shape == (n, width)
    np.testing.assert_array_equal(whole[n // 2], seeds.uniforms(seed, "x", start + n // 2, 1, width)[0])


def test_streams_differ_by_name_seed_and_index() -> None:
    draws = [seeds.generator(s, name, i).random(4) for s in (0, 1) for name in ("a", "b") for i in (0, 1)]
    assert len({tuple(d) for d in draws}) == 8
    rows = seeds.uniforms(0, "a", 0, 1000, 4).ravel()
    assert kstest(rows, "uniform").pvalue > 1e-3
    assert len(np.unique(rows)) == rows.size
