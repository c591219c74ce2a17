"""Cuts of frames, scores of size distributions and the trivial analyses: closed forms, scipy, masks and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls
from scipy.stats import wasserstein_distance

from scatterflow import instrument as geometry
from scatterflow import sizes
from scatterflow.baselines import cutfit
from scatterflow.baselines.cutfit import cut_fit
from scatterflow.baselines.cuts import Cuts, cuts, peak_distance, uniform_sizes
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.loading import validate
from scatterflow.config.particles import ParticleSampleConfig
from scatterflow.errors import ConfigError, FrameError
from scatterflow.forward.dwba.particles import expected_counts
from scatterflow.sizescores import mean_and_width, wasserstein
from scatterflow.units import energy_kev

# rows from just below the horizon to 1 deg, columns to 1.6 1/nm on both sides; bins of 8 x 16 pixels
INSTRUMENT = InstrumentConfig(
    shape=(400, 1024), pixel_mm=0.172, distance_mm=3230.0, beam_z_px=141.1, beam_y_px=512.0, wavelength_nm=0.105,
    incidence_deg=0.4, resolution_mm=0.0, background=0.0,
    views={"image": {"rows": ((4, 324),), "columns": (0, 1024), "bins": (40, 64)}},
)  # fmt: skip
BINS = geometry.axes(INSTRUMENT.views["image"])
WAFER: dict[str, Any] = {
    "material": {"name": "Si", "delta": 5.4e-6, "beta": 8e-8},
    "roughness_nm": [0.1, 0.6], "hurst": 0.6, "correlation_length_nm": 30,
}  # fmt: skip
GOLD = {"name": "Au", "delta": 3e-5, "beta": 2.6e-6}


def sample(**options: Any) -> ParticleSampleConfig:
    content = {
        "material": GOLD, "substrate": WAFER, "radius_nm": [0.5, 8], "sizes": 20, "distance_nm": [6, 16],
        "modes": {"number": 1, "mean_radius_nm": [1, 6]}, **options,
    }  # fmt: skip
    return validate(ParticleSampleConfig, content, "particles.yaml")


SAMPLE = sample()
PRIOR = sizes.particle_prior(SAMPLE, 0)


@pytest.fixture(scope="module")
def of() -> Cuts:
    return cuts(SAMPLE, INSTRUMENT, BINS.z, BINS.y)


def frames(of: Cuts, theta: np.ndarray) -> np.ndarray:
    """Images of all bins by tables of the cuts' kind, 1e6 counts each."""
    every = cuts(SAMPLE, INSTRUMENT, BINS.z, BINS.y)
    every.beside[:], every.yoneda[:] = True, every.above
    images = np.zeros((len(theta), *of.shape))
    images[:, every.above] = every.images((None,), theta)[0]
    return 1e6 * images / images.sum((1, 2), keepdims=True)


shares = st.lists(st.floats(0.0, 1.0), min_size=12, max_size=12).filter(lambda each: sum(each) > 0.1)


@given(first=shares, second=shares)
def test_wasserstein_is_scipys(first: list[float], second: list[float]) -> None:
    radius = np.cumsum(np.linspace(0.2, 1.5, 12))
    p, q = (np.array([each, each[::-1]]) / sum(each) for each in (first, second))
    theirs = [wasserstein_distance(radius, radius, a, b) for a, b in zip(p, q, strict=True)]
    assert wasserstein(p, q, radius) == pytest.approx(theirs, abs=1e-12)
    assert wasserstein(p[0], q, radius)[0] == pytest.approx(theirs[0], abs=1e-12)  # one against many
    assert wasserstein(p, p, radius) == pytest.approx(0, abs=1e-15)
    mean, width = mean_and_width(p, radius)
    assert mean == pytest.approx(np.average(np.stack([radius, radius]), axis=1, weights=p))
    assert width**2 == pytest.approx(np.average((radius - mean[:, None]) ** 2, axis=1, weights=p))


@pytest.mark.parametrize(
    ("shares", "radius", "message"),
    [
        ([[0.5, 0.6]], [1, 2], "must be 0 or more, sum 1"),
        ([[-0.5, 1.5]], [1, 2], "must be 0 or more, sum 1"),
        ([[np.nan, 1.0]], [1, 2], "must be 0 or more, sum 1"),
        ([[0.5, 0.5]], [1, 2, 3], r"must be \(simulation, 3\), got \(1, 2\)"),
        ([[0.5, 0.5]], [2, 1], "must be finite and ascending"),
    ],
)
def test_what_is_no_distribution(shares: list[list[float]], radius: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mean_and_width(shares, radius)
    with pytest.raises(ConfigError, match=message):
        wasserstein(np.array(shares), np.array(shares), radius)


def test_cuts_lie_where_analysts_put_them(of: Cuts) -> None:
    alpha, _ = geometry.angles(INSTRUMENT, BINS.z[of.yoneda], np.full((of.yoneda.sum(), 2), INSTRUMENT.beam_y_px))
    critical = np.sqrt(2 * WAFER["material"]["delta"])
    assert alpha.min() < critical < alpha.max()
    assert alpha.max() - alpha.min() < critical
    assert (BINS.z[of.above, 0] > geometry.horizon_px(INSTRUMENT)).all()
    assert not of.above.all()
    bands = np.array([of.band(number) for number in range(len(of.ends) - 1)])
    assert bands.any(axis=1).all()
    assert (bands == bands[:, ::-1]).all()  # the beam is in the middle
    assert not bands[:, ~of.beside].any()
    for q_peak in (0.5, 0.8):
        near = bands[of.bands_of(np.array([q_peak]))[0]]
        assert of.q[near] == pytest.approx(q_peak, rel=0.15)


def test_peak_of_a_narrow_ring_is_found_through_masks(of: Cuts) -> None:
    distance = np.array([7.0, 9.5, 12.0])
    ring = np.exp(-0.5 * ((of.q - 2 * np.pi / distance[:, None]) / 0.06) ** 2)
    image = np.repeat(1000 * ring[:, None], of.shape[0], axis=1) + 10 / of.q**2
    valid = np.random.default_rng(0).random(image.shape) > 0.2
    valid[:, :, 30:] &= np.arange(of.shape[1] - 30) % 10 < 8  # gaps
    found = peak_distance(image, valid, of)
    assert found["success"].all()
    assert found["distance_nm"].values == pytest.approx(distance, rel=0.02)
    dark = peak_distance(np.where(valid, image, np.nan), valid, of)  # what is not valid does not count
    assert (dark["distance_nm"] == found["distance_nm"]).all()


def test_no_peak_is_no_success(of: Cuts) -> None:
    images = np.stack([np.zeros(of.shape), np.broadcast_to(1 / of.q**2, of.shape), np.ones(of.shape)])
    valid = np.ones(images.shape, dtype=bool)
    valid[2] = False
    found = peak_distance(images, valid, of)
    assert not found["success"].any()
    assert found["distance_nm"].values == pytest.approx(np.mean(SAMPLE.distance_nm))


def test_scale_and_background_are_the_non_negative_least_squares(of: Cuts) -> None:
    """Against scipy's, for models that fit, fall where the data rise, and are flat."""
    rng = np.random.default_rng(2)
    image = rng.uniform(0, 50, of.shape)
    frame = cutfit._frame(image, rng.random(of.shape) > 0.3, of, 3)
    assert frame is not None
    noise = rng.uniform(0.1, 1, (6, len(frame.data)))
    model = np.concatenate([noise, 1 / (frame.data + 1)[None], frame.data[None] + 3, 2 * frame.flat[None]])
    residual, scale, level = cutfit._residuals(frame, model)
    assert (scale >= 0).all()
    assert (level >= 0).all()
    for number, cut in np.ndindex(len(model), 2):
        part = frame.segments[cut]
        basis = np.stack([model[number, part], frame.flat[part]], axis=1)
        _, best = nnls(basis, frame.data[part])
        assert np.linalg.norm(residual[number, part]) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_jacobian_is_the_slope_of_the_residuals(of: Cuts) -> None:
    """Where the fit is exact, Kaufman's Jacobian is that of the projected residuals: central differences agree."""
    truth = np.full((1, len(PRIOR.names)), 0.6)
    image = (
        frames(of, PRIOR.from_cube(truth))[0] + 20
    )  # a background that is nowhere 0, where the residuals have a kink
    frame = cutfit._frame(image, np.ones(of.shape, dtype=bool), of, 4)
    assert frame is not None
    problem = cutfit._Problem(frame, of, PRIOR)
    slopes = problem.jacobian(truth[0])
    for parameter in range(len(PRIOR.names)):
        aside = 2e-3 * np.eye(len(PRIOR.names))[parameter]
        both = problem.residuals(truth[0] + aside) - problem.residuals(truth[0] - aside)
        # of 1e6 counts, rounding of float32 is 0.05 of a standard deviation across the unit cube
        assert slopes[:, parameter] == pytest.approx(both / 4e-3, abs=0.05 + 0.03 * np.abs(both / 4e-3).max())


@pytest.mark.parametrize("beam_y_px", [512.0, 431.7])
def test_images_of_the_cuts_are_the_references(beam_y_px: float) -> None:
    beside = INSTRUMENT.model_copy(update={"beam_y_px": beam_y_px})
    here, theta = cuts(SAMPLE, beside, BINS.z, BINS.y), PRIOR.from_cube(np.full((1, len(PRIOR.names)), 0.4))
    energy = energy_kev(INSTRUMENT.wavelength_nm)
    told = sizes.particles(SAMPLE, energy), sizes.arrangement(SAMPLE, theta), sizes.stack(SAMPLE, theta, energy)
    for cut, ours in zip((None, 2), here.images((None, 2), theta), strict=True):
        rows, columns = here.where(cut)
        theirs = expected_counts(*told, beside, BINS.z[rows], BINS.y[columns], rough=False)
        assert ours == pytest.approx(theirs, rel=1e-3)
        left = BINS.y.mean(axis=1) < beam_y_px
        assert columns[left].any()
        assert columns[~left].any()


def test_samples_within_bins_are_summed() -> None:
    theta = PRIOR.from_cube(np.full((2, len(PRIOR.names)), 0.4))
    fine = cuts(SAMPLE, INSTRUMENT, BINS.z, BINS.y, sampling=(2, 3))
    every = np.linspace(4, 324, 81), np.linspace(0, 1024, 193)
    parts = cuts(SAMPLE, INSTRUMENT, *(np.column_stack([edge[:-1], edge[1:]]) for edge in every))
    parts.yoneda[:], parts.beside[:] = np.repeat(fine.yoneda, 2), np.repeat(fine.beside, 3)
    (ours,), (theirs,) = fine.images((None,), theta), parts.images((None,), theta)
    summed = theirs.reshape(2, ours.shape[1], 2, ours.shape[2], 3).sum((2, 4))
    assert ours == pytest.approx(summed, rel=1e-4)


def test_a_frame_does_not_depend_on_the_others_nor_on_what_is_masked(of: Cuts) -> None:
    image = frames(of, PRIOR.from_cube(np.array([[0.3] * len(PRIOR.names), [0.7] * len(PRIOR.names)])))
    valid = np.random.default_rng(1).random(image.shape) > 0.1
    both = cut_fit(image, valid, of, starts=64, kept=1)
    alone = cut_fit(np.where(valid, image, 1e9)[1:], valid[1:], of, starts=64, kept=1)
    for name in ("parameters", "distance_nm_sd", "chi2_reduced"):
        np.testing.assert_array_equal(alone[name].values[0], both[name].values[1])


def test_frames_that_say_nothing(of: Cuts) -> None:
    """Empty, masked and nearly empty frames: no success or honest errors, and never NaN."""
    image = np.zeros((4, *of.shape))
    valid = np.ones(image.shape, dtype=bool)
    valid[1] = False
    image[2:] = 5.0
    valid[3] = False
    valid[3, of.yoneda.argmax(), -3:] = True
    found = cut_fit(image, valid, of, starts=32, kept=1)
    assert np.isfinite(found["parameters"]).all()
    assert not found["success"][:2].any()
    for name in cutfit.VALUES:
        assert np.isinf(found[f"{name}_sd"][:2]).all()
    assert not np.isnan(found.drop_vars("parameters").to_array("name")).any()
    assert found["size_distribution"].sum("radius").values == pytest.approx(1)
    assert found["distance_nm_sd"][2] > 0.1 * np.ptp(SAMPLE.distance_nm)  # flat: a background alone


def test_a_distance_that_nothing_depends_on_has_the_priors_error() -> None:
    """Without interference the distance only sets the scale, which is free."""
    alone = sample(interference="none")
    prior = sizes.particle_prior(alone, 0)
    here = cuts(alone, INSTRUMENT, BINS.z, BINS.y)
    theta = prior.from_cube(np.full((1, len(prior.names)), 0.5))
    image = np.zeros((1, *here.shape))
    for cut in range(len(here.ends) - 1):
        image[np.ix_([True], *here.where(cut))] = here.images((cut,), theta)[0]
    image *= 1e5 / image.sum()
    found = cut_fit(image, image > 0, here, starts=32, kept=1)
    assert "disorder" not in found
    uniform = np.ptp(SAMPLE.distance_nm) / np.sqrt(12)
    assert 0.7 * uniform < found["distance_nm_sd"][0] < 1.01 * uniform
    assert found["mean_radius_nm_sd"][0] < 0.1 * found["mean_radius_nm"][0]


def test_uniform_sizes() -> None:
    found = uniform_sizes(SAMPLE, 3)
    drawn = sizes.size_distribution(SAMPLE, PRIOR.sample(3))
    assert (found["radius"].values == drawn["radius"].values).all()
    assert found.sum("radius").values == pytest.approx(1)
    assert np.ptp(found.values) == 0


def test_errors_are_one_line(of: Cuts) -> None:
    with pytest.raises(FrameError, match=r"must be \(simulation, 40, 64\), got"):
        peak_distance(np.zeros((1, 40, 63)), np.ones((1, 40, 63), dtype=bool), of)
    with pytest.raises(FrameError, match="must be finite and not negative"):
        cut_fit(np.full((1, *of.shape), -1.0), np.ones((1, *of.shape), dtype=bool), of)
    with pytest.raises(ConfigError, match=r"must hold the Yoneda line at an exit angle of 0.188 deg"):
        cuts(SAMPLE, INSTRUMENT, BINS.z[12:], BINS.y)
    with pytest.raises(ConfigError, match=r"must reach in-plane wave numbers above 0.196 1/nm"):
        cuts(SAMPLE, INSTRUMENT, BINS.z, BINS.y[30:34])
    film = {"material": GOLD, "thickness_nm": 40.0, "roughness_nm": 0.3, "hurst": 0.6, "correlation_length_nm": 30}
    with pytest.raises(ConfigError, match="must be 0, the surface, for a fit of cuts, got 1"):
        cuts(sample(layers=[film], layer=1), INSTRUMENT, BINS.z, BINS.y)
    flat = INSTRUMENT.model_copy(update={"geometry": "flat"})
    with pytest.raises(ConfigError, match=r"geometry must be bornagain .*, got flat"):
        cuts(SAMPLE, flat, BINS.z, BINS.y).images((None,), PRIOR.sample(1).values)
