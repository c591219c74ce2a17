"""Prior, size distributions and layers of particles: exact maps, nothing at a border, laws as scipy has them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import nquad

from scatterflow import sizes
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.loading import validate
from scatterflow.config.particles import ParticleSampleConfig
from scatterflow.errors import ConfigError
from scatterflow.forward import particles as engines
from scatterflow.forward.dwba import formfactors
from scatterflow.forward.dwba.particles import expected_counts
from scatterflow.prior import Limit, Parameter, Prior, prior_from_spec

GOLD = {"name": "Au", "formula": "Au", "density_g_cm3": 19.3}
OXIDE = {"name": "SiO2", "formula": "SiO2", "density_g_cm3": 2.2}
ROUGH: dict[str, Any] = {"hurst": 0.6, "correlation_length_nm": 30}
FILM: dict[str, Any] = {"material": OXIDE, "thickness_nm": [1, 6], "roughness_nm": [0.2, 3], **ROUGH}
WAFER = {"material": {"name": "Si", "delta": 3.5e-6, "beta": 3.8e-8}, "roughness_nm": 0.3, **ROUGH}
BASE: dict[str, Any] = {"material": GOLD, "substrate": WAFER}
ENERGY_KEV = 11.808


def sample(**options: Any) -> ParticleSampleConfig:
    return validate(ParticleSampleConfig, BASE | options, "particles.yaml")


CONFIGS = {
    "one mode": sample(),
    "authors' ranges, two modes": sample(modes={"number": 2}, disorder=[0.05, 0.6], layers=[FILM, FILM]),
    "sorted modes": sample(
        modes={"number": 4, "separation": 1}, distance_nm=[40, 60], shape="hemi-ellipsoid", aspect_ratio=[0.5, 2]
    ),
    "gaussian with clearance": sample(
        modes={"number": 3, "law": "gaussian"}, distance_nm=[6, 20], clearance_sd=1.5, aspect_ratio=[0.3, 1]
    ),
    "hard disks": sample(modes={"number": 2}, interference="hard-disks", distance_nm=[5, 20], shape="sphere"),
    "hard boxes in a layer": sample(
        interference="hard-disks", shape="box", aspect_ratio=[0.5, 1.2], aspect_ratios=12, distance_nm=[7, 20], layer=1,
        layers=[FILM | {"thickness_nm": [40, 50]}],
    ),
}  # fmt: skip
PRIORS = {name: sizes.particle_prior(config, 3) for name, config in CONFIGS.items()}
every_config = pytest.mark.parametrize("name", CONFIGS)
cubes = st.lists(st.floats(0, 1, exclude_max=True), min_size=24, max_size=24)


def draws(name: str, n: int = 4000) -> tuple[Prior, np.ndarray, dict[str, np.ndarray]]:
    """Draws of a study, the last half of them from edges of the unit cube: the extremes of the support."""
    prior = PRIORS[name]
    generator = np.random.default_rng(1)
    cube = generator.random((n, len(prior.names)))
    edge = np.rint(cube[n // 2 :])
    cube[n // 2 :] = np.where(generator.random(edge.shape) < 0.8, edge, cube[n // 2 :])
    theta = prior.from_cube(cube)
    return prior, theta, dict(zip(prior.names, theta.T, strict=True))


@given(cube=cubes, name=st.sampled_from(list(CONFIGS)))
def test_cube_round_trip_and_support(cube: list[float], name: str) -> None:
    prior = PRIORS[name]
    unit = np.array([cube[: len(prior.names)]])
    theta = prior.from_cube(unit)
    assert prior.inside(theta).all()
    box = prior.upper - prior.lower
    wide = (prior.conditional_upper(theta) - prior.conditional_lower(theta))[0] > 1e-5 * box
    # what a double resolves: the power's root stretches the end of the range where the density is 0
    np.testing.assert_allclose(prior.to_cube(theta)[0][wide], unit[0][wide], atol=1e-6)


@given(normal=st.lists(st.floats(-40, 40), min_size=24, max_size=24), name=st.sampled_from(list(CONFIGS)))
def test_no_real_number_leaves_the_support(normal: list[float], name: str) -> None:
    prior = PRIORS[name]
    assert prior.inside(prior.from_normal(np.array([normal[: len(prior.names)]]))).all()


@every_config
def test_density_is_that_of_the_transform(name: str) -> None:
    """log p(theta) = -log |d theta / d cube|, by central differences."""
    prior = PRIORS[name]
    number, step = len(prior.names), 1e-6
    cube = np.random.default_rng(0).uniform(0.05, 0.95, (30, number))
    moved = [prior.from_cube(cube + sign * step * np.eye(number)[:, None]) for sign in (1, -1)]
    jacobian = np.moveaxis(moved[0] - moved[1], 0, -1) / (2 * step)
    log_prob = prior.log_prob(prior.from_cube(cube))
    # a kink, where another bound takes over, falls into the step of hardly any
    close = np.abs(log_prob + np.linalg.slogdet(jacobian)[1]) < 1e-4
    assert close.mean() > 0.9


def test_density_integrates_to_one() -> None:
    config = sample(distance_nm=[40, 60], modes={"relative_width": [0.1, 0.3]})
    prior = sizes.particle_prior(config, 0)
    radius, width = (prior.names.index(f"mode1.{name}") for name in ("radius_nm", "relative_width"))
    middle = prior.from_cube(np.full(len(prior.names), 0.5))
    (low, high), least = config.mean_radii_nm, config.least_width_nm
    others = np.prod(np.delete(prior.upper - prior.lower, [radius, width]))

    def density(s: float, r: float) -> float:
        theta = middle.copy()
        theta[[radius, width]] = r, s
        return float(np.exp(prior.log_prob(theta)) * others)

    def between(r: float) -> tuple[float, float]:
        return max(0.1, least / r), min(0.3, (r - 1) / (2 * r), (15 - r) / (2 * r))

    total, _ = nquad(density, [between, (low + 1e-9, high - 1e-9)], opts={"epsabs": 1e-6})
    assert total == pytest.approx(1, abs=1e-5)


def test_modes_are_sorted_uniform_numbers_with_shares_uniform_on_the_simplex() -> None:
    config, prior = CONFIGS["sorted modes"], PRIORS["sorted modes"]
    theta = prior.sample(4000, seed=7)
    low, high = config.mean_radii_nm
    for mode in range(1, 5):
        place = (theta.sel(parameter=f"mode{mode}.radius_nm").values - low) / (high - low)
        assert stats.kstest(place, stats.beta(mode, 5 - mode).cdf).pvalue > 1e-3
    shares = [theta.sel(parameter=f"mode{mode}.share").values for mode in (1, 2, 3)]
    for share in (*shares, 1 - sum(shares)):
        assert stats.kstest(share, stats.beta(1, 3).cdf).pvalue > 1e-3
    # and jointly: the density of both is constant on its support
    names = [name for name in prior.names if name.endswith(("radius_nm", "share"))]
    alone = Prior(tuple(p for p in prior.parameters if p.name in names or p.name == "distance_nm"))
    values = alone.sample(50, seed=1)
    simplex = stats.dirichlet([1, 1, 1, 1]).logpdf([0.25] * 4)
    expected = -np.log(20) + np.log(24) - 4 * np.log(high - low) + simplex
    np.testing.assert_allclose(alone.log_prob(values), expected, rtol=1e-9)


@every_config
def test_nothing_piles_up_on_a_border(name: str) -> None:
    prior = PRIORS[name]
    theta = prior.sample(4000, seed=11)
    low, high = prior.conditional_lower(theta.values), prior.conditional_upper(theta.values)
    assert not (theta.values == low).any()
    assert not (theta.values == high).any()
    assert np.isfinite(prior.log_prob(theta)).all()
    assert all(len(np.unique(column)) == len(column) for column in theta.values.T)
    for column in prior.to_cube(theta).T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4


@every_config
def test_constraints_hold_at_the_extremes(name: str) -> None:
    config = CONFIGS[name]
    prior, theta, values = draws(name)
    assert prior.inside(theta).all()
    number, distance = config.modes.number, values["distance_nm"]
    radii = np.stack([values[f"mode{mode}.radius_nm"] for mode in range(1, number + 1)], axis=1)
    widths = np.stack([values[f"mode{mode}.relative_width"] for mode in range(1, number + 1)], axis=1) * radii
    slack = 1e-9
    assert (radii[:, 1:] >= radii[:, :-1] * config.modes.separation - slack).all()
    assert (radii + config.clearance_sd * widths <= distance[:, None] / 2 + slack).all()
    assert (radii - 2 * widths >= 1 - slack).all()
    assert (radii + 2 * widths <= 15 + slack).all()
    found = sizes.size_distribution(config, theta)
    assert float(found["beyond"].max()) < 0.05
    assert (2 * (found * found["radius"]).sum("radius").values <= distance + slack).all()
    particles, arrangement = sizes.particles(config, ENERGY_KEV), sizes.arrangement(config, theta)
    if config.shape != "hemi-ellipsoid":
        assert (particles.height <= 2 * particles.radius * max(1, np.max(config.aspect_ratio)) + slack).all()
    structure = engines.structure_factor(particles, arrangement, np.linspace(0.1, 3, 5))  # else disks cover too much
    assert (structure > 0).all()
    layers = sizes.stack(config, theta, ENERGY_KEV).layers
    assert (layers[:, :-1, 3] <= layers[:, :-1, 2]).all()
    if config.layer:
        assert particles.height.max() <= layers[:, config.layer - 1, 2].min()


def _some_options(seed: int) -> dict[str, Any]:
    """Options as a user might set them, most of them possible."""
    generator = np.random.default_rng(seed)
    low = generator.uniform(0.2, 3)
    shape = str(generator.choice(formfactors.SHAPES))
    free = [0.4, 1.0 if shape == "truncated-sphere" else generator.uniform(1.2, 2.5)]
    return {
        "shape": shape,
        "radius_nm": [low, low * generator.uniform(5, 20)],
        "sizes": int(generator.integers(8, 80)),
        "modes": {
            "number": int(generator.integers(1, 5)),
            "law": str(generator.choice(["log-normal", "gaussian"])),
            "mean_radius_nm": [low, low * generator.uniform(5, 20)],
            "relative_width": [generator.uniform(0.01, 0.2), generator.uniform(0.21, 0.5)],
            "separation": generator.uniform(1, 1.2),
        },
        "aspect_ratio": 1 if shape == "sphere" or generator.random() < 0.5 else free,
        "distance_nm": [low * generator.uniform(6, 15), low * generator.uniform(15.1, 40)],
        "clearance_sd": float(generator.choice([0, generator.uniform(0, 3)])),
        "interference": str(generator.choice(["none", "paracrystal", "hard-disks"])),
    }


@given(seed=st.integers(0, 2**31))
@settings(max_examples=60)
def test_what_a_configuration_allows_is_a_prior(seed: int) -> None:
    """Its draws fit on the grid and beside each other."""
    try:
        config = sample(**_some_options(seed))
    except ConfigError:
        reject()  # a fifth of them, mostly for particles that do not fit beside each other
    prior = sizes.particle_prior(config, 0)
    unit = np.random.default_rng(seed).random((60, len(prior.names)))
    unit[30:] = np.rint(unit[30:])
    theta = prior.from_cube(unit)
    assert prior.inside(theta).all()
    np.testing.assert_allclose(prior.to_cube(theta[:30]), unit[:30], atol=1e-5)
    found = sizes.size_distribution(config, theta)
    np.testing.assert_allclose(found.sum("radius"), 1, rtol=1e-12)
    assert float(found["beyond"].max()) < 0.05
    diameter = 2 * (found * found["radius"]).sum("radius").values
    assert (diameter <= theta[:, prior.names.index("distance_nm")] * (1 + 1e-9)).all()
    arrangement, particles = sizes.arrangement(config, theta), sizes.particles(config, ENERGY_KEV)
    assert (engines.structure_factor(particles, arrangement, np.array([0.5, 2.0])) > 0).all()


@given(mean=st.floats(2.5, 6), width=st.floats(0.05, 0.3), law=st.sampled_from(["log-normal", "gaussian"]))
@settings(max_examples=60)
def test_a_mode_has_its_mean_and_width(mean: float, width: float, law: str) -> None:
    """Of bins d much narrower than the grid is long: the variance gains d^2 / 12 (Sheppard)."""
    config = sample(radius_nm=[0.01, 40], sizes=512, modes={"law": law})
    theta = PRIORS["one mode"].dataarray([[30, 0.2, mean, width]])
    shares = sizes.size_distribution(config, theta)
    radius, step = shares["radius"].values, np.diff(shares["radius"].values)[0]
    assert float(shares.sum()) == pytest.approx(1, abs=1e-12)
    found = float(shares.values[0] @ radius)
    variance = float(shares.values[0] @ (radius - found) ** 2) - step**2 / 12
    assert found == pytest.approx(mean, abs=2e-3 * step + 1e-3 * mean * (law == "gaussian"))
    assert np.sqrt(variance) == pytest.approx(mean * width, rel=0.01)


@pytest.mark.parametrize("law", ["log-normal", "gaussian"])
def test_shares_are_those_of_scipys_truncated_laws(law: str) -> None:
    config = sample(modes={"number": 3, "law": law, "separation": 1}, distance_nm=[10, 20])
    prior = sizes.particle_prior(config, 0)
    theta = prior.sample(20, seed=2)
    found = sizes.size_distribution(config, theta)
    np.testing.assert_array_equal(found["simulation"], theta["simulation"])
    edges = sizes.size_edges(config)
    for row, shares in enumerate(found.values):
        value = dict(zip(prior.names, theta.values[row], strict=True))
        weights = [value["mode1.share"], value["mode2.share"]]
        expected, beyond = np.zeros(config.sizes), 0.0
        for mode, weight in enumerate([*weights, 1 - sum(weights)], start=1):
            mean, sd = value[f"mode{mode}.radius_nm"], 0.0
            sd = mean * value[f"mode{mode}.relative_width"]
            shape = np.sqrt(np.log(1 + (sd / mean) ** 2))
            scale = mean * np.exp(-(shape**2) / 2)
            distribution = stats.lognorm(shape, scale=scale) if law == "log-normal" else stats.norm(mean, sd)
            assert (distribution.mean(), distribution.std()) == pytest.approx((mean, sd))
            mass = np.diff(distribution.cdf(edges))
            expected += weight * mass / mass.sum()
            beyond += weight * (1 - mass.sum())
        np.testing.assert_allclose(shares, expected, atol=1e-12)
        assert float(found["beyond"][row]) == pytest.approx(beyond, abs=1e-12)


def test_heights_and_shares_are_in_the_order_of_the_engines() -> None:
    config = CONFIGS["gaussian with clearance"]
    theta = PRIORS["gaussian with clearance"].sample(50)
    joint = sizes.size_height_distribution(config, theta)
    np.testing.assert_allclose(joint.sum("aspect_ratio"), sizes.size_distribution(config, theta), atol=1e-14)
    np.testing.assert_allclose(joint.sum(["radius", "aspect_ratio"]), 1, rtol=1e-12)
    assert (joint["height"] <= 2 * joint["radius"]).all()
    ratio = (joint.sum("radius") * joint["aspect_ratio"]).sum("aspect_ratio").values
    spread = config.aspect_ratio[1] - config.aspect_ratio[0] if isinstance(config.aspect_ratio, tuple) else 0
    np.testing.assert_allclose(ratio, theta.sel(parameter="aspect_ratio"), atol=0.03 * spread)
    particles, arrangement = sizes.particles(config, ENERGY_KEV), sizes.arrangement(config, theta)
    volume = arrangement.shares @ formfactors.volume(config.shape, particles.radius, particles.height)
    expected = joint * np.pi * joint["height"] ** 2 * (joint["radius"] - joint["height"] / 3)
    np.testing.assert_allclose(volume, expected.sum(["radius", "aspect_ratio"]), rtol=1e-12)


@every_config
def test_the_engine_takes_every_draw(name: str) -> None:
    config = CONFIGS[name]
    theta = PRIORS[name].sample(2)
    instrument = InstrumentConfig()
    rows, columns = (np.array([[start, start + 1.0]]) for start in (470.0, 100.0))
    parts = (
        sizes.particles(config, ENERGY_KEV),
        sizes.arrangement(config, theta),
        sizes.stack(config, theta, ENERGY_KEV),
    )
    counts = expected_counts(*parts, instrument, rows, columns)
    assert counts.shape == (2, 1, 1)
    assert (counts > 0).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([10, 0.2, np.nan, 0.2], r"mode1.radius_nm of row 0 must be finite"),
        ([10, 0.2, 4, -0.2], "mode1 of row 0 must have a positive mean and width"),
        ([10, 0.2, 40, 0.1], "mode1 of row 0 must lie on its grid"),
        ([10, 0.2, 40], "must end in 4 parameters"),
    ],
)
def test_parameters_that_are_no_sizes_are_refused(row: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sizes.size_distribution(CONFIGS["one mode"], np.array([row]))


@every_config
def test_a_description_tells_everything(name: str) -> None:
    prior = PRIORS[name]
    assert prior_from_spec(json.loads(json.dumps(prior.spec())), seed=3) == prior


def test_descriptions_without_limits_are_as_they_were() -> None:
    plain = Prior((Parameter("t", 1.0, 2.0, "nm"), Parameter("s", 0.5, 3.0, "nm", "t")))
    assert [set(entry) for entry in plain.spec()] == [{"name", "lower", "upper", "unit", "cap"}] * 2
    with pytest.raises(ConfigError, match="prior description"):
        prior_from_spec([plain.spec()[0] | {"at_most": [{"constant": 1}]}])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((Parameter("a", 0, 1, at_most=(Limit(terms=(("b", 1),)),)), Parameter("b", 0, 1)), "limited by b, which must"),
        ((Parameter("a", 0, 1), Parameter("b", 0, 1, at_most=(Limit(1, (), "a"),))), "ratio over a, which must"),
        ((Parameter("a", 0, 1), Parameter("b", 0.5, 1, at_most=(Limit(0, (("a", 1),)),))), "must not be empty"),
        ((Parameter("a", 0, 2), Parameter("b", 0, 1, at_least=(Limit(0, (("a", 1),)),))), "must not be empty"),
        ((Parameter("a", 0, 1, power=0),), "finite power"),
    ],
)
def test_impossible_limits_are_refused(parameters: tuple[Parameter, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Prior(parameters)


def test_rows_depend_on_seed_and_index_only() -> None:
    prior = PRIORS["sorted modes"]
    np.testing.assert_array_equal(prior.sample(9, seed=2)[8:], prior.sample(1, seed=2, start=8))
