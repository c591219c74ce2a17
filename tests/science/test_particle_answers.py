"""What images of particles can tell, and what is made of them: fitted scales, scores, refined answers, Cramer-Rao bounds.

Beside closed forms of Poisson statistics, with derivatives that this file takes itself.
"""

from typing import NamedTuple

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import chi2

from scatterflow import imagecheck, verdict
from scatterflow.particlebound import bounds
from scatterflow.particleframes import peak_px
from scatterflow.particles import ParticlesStudy
from scatterflow.refine import draw, refine
from tests import small_particles as made

pytestmark = pytest.mark.science
Array = NDArray[np.float64]
IMAGES = 80
STEP = 1e-3  # of derivatives in the prior's unit cube


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCATTERFLOW_CACHE", str(tmp_path_factory.getbasetemp() / "tables"))


@pytest.fixture(scope="module")
def study() -> ParticlesStudy:
    """Without the sharpest peaks, so that images are linear in what is not known over a few standard deviations."""
    return made.study(sample={"disorder": [0.12, 0.35]})


class Truth(NamedTuple):
    """Parameters (image, parameter), in the unit cube too, and points 0.03 of it away."""

    theta: Array
    cube: Array
    start: Array


@pytest.fixture(scope="module")
def truth(study: ParticlesStudy) -> Truth:
    """Away from the prior's borders, where nothing is normal."""
    theta = study.prior.sample(400).values
    cube = study.prior.to_cube(theta)
    middle = ((cube > 0.1) & (cube < 0.9)).all(1)
    theta, cube = theta[middle][:IMAGES], cube[middle][:IMAGES]
    assert len(cube) == IMAGES
    signs = np.random.default_rng(0).choice([-1, 1], cube.shape)
    return Truth(theta, cube, study.prior.from_cube(cube + 0.03 * signs))


def arrays(seen: xr.Dataset) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return seen["image"].values, seen["mask_image"].values


# Scale and background


@pytest.mark.parametrize(("scale", "level"), [(3.0, 5.0), (0.02, 0.0), (1e-3, 40.0), (250.0, 1.0)])
def test_scale_and_background_of_exact_images_are_found(
    study: ParticlesStudy, truth: Truth, scale: float, level: float
) -> None:
    expected = study.expected(truth.theta[:20]).astype(np.float64)
    expected /= expected.mean((1, 2), keepdims=True) / 100
    valid = np.random.default_rng(1).random(expected.shape) > 0.3
    fit = imagecheck.fitted(expected, np.where(valid, scale * expected + level, 0), valid)
    np.testing.assert_allclose(fit.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(fit.background, level, rtol=1e-6, atol=1e-6 * scale * 100)
    assert fit.score.max() < 1e-10


def test_neither_scale_nor_background_is_negative(study: ParticlesStudy, truth: Truth) -> None:
    expected = study.expected(truth.theta[:4]).astype(np.float64)
    expected /= expected.max((1, 2), keepdims=True) / 1000
    steep, upside = np.maximum(expected - 5, 0), 1000 - expected
    valid = np.ones(expected.shape, dtype=bool)
    for counts in (steep, upside):
        fit = imagecheck.fitted(expected, counts, valid)
        for row in range(len(counts)):
            # scipy's non-negative least squares, with the weights of the answer
            weight = 1 / np.sqrt(imagecheck.variance(fit.image[row])).ravel()
            columns = np.stack([expected[row], np.ones_like(expected[row])]).reshape(2, -1) * weight
            wanted, _ = nnls(columns.T, counts[row].ravel() * weight)
            found = np.array([fit.scale[row], fit.background[row]])
            np.testing.assert_array_equal(found == 0, wanted == 0)
            np.testing.assert_allclose(found, wanted, rtol=0.03)  # the weights are those of a round before
    assert (imagecheck.fitted(expected, steep, valid).background == 0).all()
    assert (imagecheck.fitted(expected, upside, valid).scale == 0).all()


def test_images_without_anything_are_numbers(study: ParticlesStudy, truth: Truth) -> None:
    expected = study.expected(truth.theta[:2])
    valid = np.ones(expected.shape, dtype=bool)
    valid[0] = False
    for counts in (np.zeros_like(expected), expected):
        fit = imagecheck.fitted(expected, counts, valid)
        assert all(np.isfinite(part).all() for part in fit)


# Scores


@pytest.mark.parametrize("total", [1e4, 1e5, 1e6])
def test_score_of_the_truth_is_that_of_poisson_noise(study: ParticlesStudy, truth: Truth, total: float) -> None:
    exact = made.recorded(study, truth.theta, total, noise=False)["image"].values.astype(np.float64)
    samples = study.prior.dataarray(truth.theta).values[:, None]
    posterior = xr.DataArray(samples, dims=("observation", "sample", "parameter"))
    found = imagecheck.predictive(study, posterior, made.recorded(study, truth.theta, total))
    # the variance of counts over that which is granted, mean over the bins, two of which the fit of two numbers takes
    wanted = (exact / (np.maximum(exact, 1) + (0.1 * exact) ** 2)).mean((1, 2))
    apart = found - wanted
    assert abs(apart.mean()) < 4 * apart.std() / np.sqrt(IMAGES) + 3 / exact[0].size
    assert np.abs(apart / wanted).max() < 0.3
    if total == 1e5:
        assert ((found > 0.5) & (found < 1.5)).all()
    away = posterior.copy(data=truth.start[:, None])
    print(f"scores of images of {total:g} counts: {np.median(found):.2f} of the truth, ", end="")
    other = imagecheck.predictive(study, away, made.recorded(study, truth.theta, total))
    print(f"{np.median(other):.2f} of parameters 0.03 of the prior away")
    assert np.median(other) > np.median(found)
    if total >= 1e5:
        assert (other > found).mean() > 0.95


def test_scores_flag_what_is_not_of_the_study(study: ParticlesStudy) -> None:
    theta = study.prior.sample(500).values
    train, own, theirs = theta[:400], theta[400:], theta[400:].copy()
    features = imagecheck.coarse(made.recorded(study, train, 1e5))
    known = verdict.fit_features(features, 0)
    plain = made.recorded(study, own, 1e5, draw=1)
    z, y = np.mgrid[:32, :40]
    ring = np.exp(-0.5 * ((np.hypot(z - 16, y - 20) - 10) / 1.0) ** 2)
    strange = plain.assign(image=plain["image"] + 200 * ring.astype(np.float32))
    theirs[:, study.prior.names.index("disorder")] = 0.02  # a crystal
    crystal = made.recorded(study, theirs, 1e5, draw=1)
    few = xr.DataArray(np.repeat(own[:, None], 8, 1), dims=("observation", "sample", "parameter"))
    limits = {name: np.quantile(each, 0.99) for name, each in imagecheck.scores(study, known, few, plain).items()}
    for what, seen in {"a ring": strange, "a crystal's peaks": crystal}.items():
        found = imagecheck.scores(study, known, few, seen)
        share = {name: float((found[name] > limits[name]).mean()) for name in ("features", "predictive")}
        told = ", ".join(f"{part:.0%} by {name}" for name, part in share.items())
        print(f"scores: of images with {what}, flagged {told}")
        assert max(share.values()) > 0.9


def test_coarse_features_of_masked_blocks_are_numbers(study: ParticlesStudy, truth: Truth) -> None:
    seen = made.recorded(study, truth.theta[:6], 1e3)
    mask = seen["mask_image"].values.copy()
    mask[:, :, 18:22] = False
    mask[1, :20] = False
    mask[2] = False
    masked = seen.assign(image=seen["image"].where(mask, 0), mask_image=(seen["image"].dims, mask))
    found = imagecheck.coarse(masked)
    assert found["image"].shape == (6, 16, 20)
    assert all(np.isfinite(each).all() for each in found.data_vars.values())
    blocks = mask.reshape(6, 16, 2, 20, 2).any((2, 4))
    np.testing.assert_array_equal(found["mask_image"], blocks)
    assert (found["image"].values[~blocks] == 0).all()
    np.testing.assert_allclose(found["image"].values.sum((1, 2)), 0, atol=1e-3)
    # brightness says nothing where no block is empty
    bright = made.recorded(study, truth.theta[:6], 1e6, noise=False)
    twice = bright.assign(image=2 * bright["image"])
    for name in ("image", "profile"):
        np.testing.assert_allclose(imagecheck.coarse(twice)[name], imagecheck.coarse(bright)[name], atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_border_is_the_share_of_samples_at_the_prior_s_end(study: ParticlesStudy, share: float) -> None:
    low, high = study.config.sample.disorder
    values = np.repeat(study.prior.sample(3, seed=5).values[:, None], 40, axis=1)
    values[:, :, 1] = low + (1 - 2 * imagecheck.BORDER) * (high - low)
    values[1, : int(share * 40), 1] = high - 0.5 * imagecheck.BORDER * (high - low)
    samples = xr.DataArray(values, dims=("observation", "sample", "parameter"))
    np.testing.assert_allclose(imagecheck.border(study, samples)["border"], [0, share, 0])
    free = made.study(sample={"interference": "none"})
    assert not imagecheck.border(free, samples[:, :, [0, 2, 3]])


# Refined answers


def test_exact_images_tell_the_truth() -> None:
    whole = made.study()
    theta = whole.prior.sample(100).values
    cube = whole.prior.to_cube(theta)
    signs = np.random.default_rng(0).choice([-1, 1], cube.shape)
    start = whole.prior.from_cube(np.clip(cube + 0.1 * signs, 0.01, 0.99))
    found = refine(whole, start, *arrays(made.recorded(whole, theta, 1e5, noise=False)), 12)
    error = np.abs(found.cube - np.clip(cube, 2 * STEP, 1 - 2 * STEP)).max(1)  # answers keep that far from the borders
    lost = error > 2 * STEP
    print(f"refined from 0.1 away: {lost.mean():.1%} of exact images end elsewhere, others {np.median(error):.1e} away")
    assert lost.mean() <= 0.08
    assert np.median(error) < 1e-5
    # those have peaks so sharp that they do not overlap at the start
    assert (theta[lost, whole.prior.names.index("disorder")] < 0.15).all()
    assert (found.chi2[lost] > 10 * np.median(found.chi2[~lost])).all()  # which their distance tells


class Slopes(NamedTuple):
    """Covariances (image, parameter, parameter) in the unit cube, by central differences."""

    likeliest: Array
    weighted: Array
    posterior: Array


def covariances(study: ParticlesStudy, truth: Truth, total: float) -> Slopes:
    """Of the most efficient estimator, of least squares with `imagecheck.variance`, and with the uniform prior's share."""
    number, size = truth.cube.shape
    steps = STEP * np.concatenate([np.eye(size), -np.eye(size)])
    points = study.prior.from_cube(truth.cube[:, None] + steps).reshape(-1, size)
    near = study.expected(points).reshape(number, 2 * size, -1).astype(np.float64)
    here = study.expected(truth.theta).reshape(number, 1, -1).astype(np.float64)
    scale = total / here.sum(2, keepdims=True)
    slopes = scale * (near[:, :size] - near[:, size:]) / (2 * STEP)
    even = np.full_like(here, total / here.shape[2])  # nuisances in units of the image, for the inverse's sake
    slopes = np.concatenate([slopes, scale * here, even], axis=1)
    mean = (scale * here)[:, 0]
    weight = 1 / (np.maximum(mean, 1) + (0.1 * mean) ** 2)

    def product(each: Array) -> Array:
        return np.einsum("npb,nb,nqb->npq", slopes, each, slopes, optimize=True)

    inner, prior = np.linalg.inv(product(weight)), np.diag([12.0] * size + [0.0, 0.0])
    sandwich = inner @ product(weight**2 * mean) @ inner
    parts = np.linalg.inv(product(1 / mean)), sandwich, np.linalg.inv(product(1 / mean) + prior)
    return Slopes(*(part[:, :size, :size] for part in parts))


@pytest.mark.parametrize("total", [1e4, 1e5, 1e6])
def test_errors_are_those_of_weighted_least_squares(study: ParticlesStudy, truth: Truth, total: float) -> None:
    found = refine(study, truth.start, *arrays(made.recorded(study, truth.theta, total)), 6)
    error = found.cube - truth.cube
    wanted = covariances(study, truth, total)
    distance = np.einsum("np,npq,nq->n", error, np.linalg.inv(wanted.weighted), error)
    low, high = chi2(error.size).interval(0.9999) / np.array(error.size)
    ratio = np.sqrt(np.trace(wanted.weighted, axis1=1, axis2=2) / np.trace(wanted.likeliest, axis1=1, axis2=2))
    own = np.einsum("np,npq,nq->n", error, np.linalg.inv(found.covariance), error).mean() / error.shape[1]
    print(
        f"refined at {total:g} counts: squared errors {distance.mean() / error.shape[1]:.2f} of the theory's, {own:.2f} of "
        f"the stated; deviations {np.median(ratio):.2f} of the least"
    )
    assert low < distance.sum() / error.size < high
    # what is stated grants artefacts, and never less than the noise
    assert own < high
    stated = np.trace(found.covariance, axis1=1, axis2=2)
    assert np.median(stated / np.trace(wanted.weighted, axis1=1, axis2=2)) > 0.95
    if total <= 1e5:
        assert np.median(ratio) < 1.3  # the price of granting artefacts


def test_a_streak_hardly_moves_the_answer(study: ParticlesStudy, truth: Truth) -> None:
    seen = made.recorded(study, truth.theta, 1e5)
    counts, valid = arrays(seen)
    streaked = counts.copy()
    streaked[:, :, 31] += 50 * counts.mean((1, 2))[:, None]
    before, after = (refine(study, truth.start, each, valid, 8) for each in (counts, streaked))
    masked = valid.copy()
    masked[:, :, 31] = False
    without = refine(study, truth.start, counts, masked, 8)
    sd = np.sqrt(np.diagonal(before.covariance, axis1=1, axis2=2))
    moved = np.abs(after.cube - without.cube) / sd
    print(f"a bright streak moves refined answers by {np.median(moved):.2f} stated deviations")
    assert np.median(moved) < 0.2
    assert np.quantile(moved, 0.95) < 1.0


def test_images_without_anything_leave_the_answer_where_it_was(study: ParticlesStudy, truth: Truth) -> None:
    counts, valid = arrays(made.recorded(study, truth.theta[:3], 1e4))
    valid[0] = False
    counts[1] = 0
    found = refine(study, truth.start[:3], counts * valid, valid, 3)
    assert all(np.isfinite(part).all() for part in found)
    np.testing.assert_allclose(found.cube[0], study.prior.to_cube(truth.start[:1])[0], atol=1e-9)
    np.testing.assert_allclose(found.covariance[0], np.eye(4) / 12, atol=1e-9)  # the prior's
    least = bounds(study, truth.theta[:3], counts * valid, valid)
    low, high = study.config.sample.distance_nm
    assert all(np.isfinite(each).all() for each in least.values())
    assert least["distance_nm"][0] == pytest.approx((high - low) / np.sqrt(12), rel=1e-6)


def test_draws_are_normal_about_the_answer_and_inside_the_prior(study: ParticlesStudy, truth: Truth) -> None:
    found = refine(study, truth.start, *arrays(made.recorded(study, truth.theta, 1e6)), 4)
    noise = np.random.default_rng(2).standard_normal((IMAGES, 500, 4))
    cube = study.prior.to_cube(draw(study, found, noise))
    sd = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
    central = ((found.cube > 6 * sd) & (found.cube < 1 - 6 * sd)).all(1)
    assert central.sum() > 20
    z = ((cube - found.cube[:, None]) / sd[:, None])[central]
    np.testing.assert_allclose(z.mean((0, 1)), 0, atol=5 / np.sqrt(z.shape[0] * 500))
    np.testing.assert_allclose(z.std((0, 1)), 1, rtol=0.02)
    wide = draw(study, found, noise, 1e3)
    assert np.isfinite(study.prior.log_prob(wide.reshape(-1, 4))).all()
    spread = study.prior.to_cube(wide)
    assert ((spread < 1e-6) | (spread > 1 - 1e-6)).mean() < 1e-3  # reflected: nothing piles up on a border
    assert spread.std() > 0.25  # all over the prior: a uniform distribution's is 0.29


def test_more_disorder_than_the_prior_knows_is_said_to_be_more(study: ParticlesStudy, truth: Truth) -> None:
    of = study.prior.names.index("disorder")
    beyond = truth.theta.copy()
    beyond[:, of] = np.random.default_rng(4).uniform(0.42, 0.6, IMAGES)
    noise = np.random.default_rng(5).standard_normal((IMAGES, 200, 4))
    shares = {}
    for name, theta in (("within", truth.theta), ("beyond", beyond)):
        drawn = draw(study, refine(study, truth.start, *arrays(made.recorded(study, theta, 1e5)), 8), noise)
        samples = xr.DataArray(drawn, dims=("observation", "sample", "parameter"))
        shares[name] = float((imagecheck.border(study, samples)["border"] > imagecheck.MOST).mean())
        others = np.delete(study.prior.to_cube(drawn), of, axis=2)
        assert ((others < 1e-6) | (others > 1 - 1e-6)).mean() < 1e-3  # only the disorder has an open end
    print(f"answers at the prior's end of disorder: {shares['within']:.0%} within, {shares['beyond']:.0%} beyond")
    assert shares["within"] < 0.05
    assert shares["beyond"] > 0.9


def test_a_gap_beside_the_peak_does_not_move_it(study: ParticlesStudy, truth: Truth) -> None:
    near = truth.theta[:, study.prior.names.index("disorder")] < 0.2  # broad peaks may be shoulders only
    images = study.expected(truth.theta[near][:10]).astype(np.float64)
    every = np.ones(images.shape[1:], dtype=bool)
    right = np.arange(images.shape[2]) >= images.shape[2] // 2
    for image in images:
        place = peak_px(study, image, every, study.config.instrument)
        assert np.isfinite(place)
        brightest = int(np.where(right & study.cuts.beside, image[study.cuts.yoneda].sum(0), 0).argmax())
        gap = every.copy()
        gap[:, brightest - 2 : brightest + 1] = False
        assert peak_px(study, image * gap, gap, study.config.instrument) == pytest.approx(place, abs=1e-6)
        assert np.isnan(peak_px(study, image * gap, gap & gap[:, ::-1], study.config.instrument))


# What images can tell


@pytest.mark.parametrize("total", [1e3, 1e5])
def test_bounds_are_those_of_the_fisher_information(study: ParticlesStudy, truth: Truth, total: float) -> None:
    found = bounds(study, truth.theta, *arrays(made.recorded(study, truth.theta, total, noise=False)))
    wanted = covariances(study, truth, total).posterior
    for number, name in enumerate(("distance_nm", "disorder")):  # linear in the cube
        low, high = getattr(study.config.sample, name)
        np.testing.assert_allclose(found[name], (high - low) * np.sqrt(wanted[:, number, number]), rtol=0.03)


def test_bounds_fall_with_counts_and_grow_with_masks(study: ParticlesStudy, truth: Truth) -> None:
    def bound(total: float, keep: slice = slice(None)) -> dict[str, Array]:
        counts, valid = arrays(made.recorded(study, truth.theta, total, noise=False))
        mask = np.zeros_like(valid)
        mask[:, :, keep] = True
        return bounds(study, truth.theta, np.where(mask, counts, 0), mask)

    few, some, many, most = (bound(total) for total in (1e-2, 1e4, 1e7, 1e9))
    half, half_of_many = bound(1e4, slice(20)), bound(1e7, slice(20))  # the left half is as good as the right one
    sample = study.config.sample
    for name in few:
        np.testing.assert_allclose(many[name] / most[name], 10, rtol=0.02)
        assert (some[name] > many[name]).all()
        assert (half[name] >= some[name] * (1 - 1e-9)).all()
        np.testing.assert_allclose(half_of_many[name] / many[name], np.sqrt(2), rtol=0.02)
    for name in ("distance_nm", "disorder"):
        low, high = getattr(sample, name)
        prior = (high - low) / np.sqrt(12)
        assert (few[name] <= prior * (1 + 1e-6)).all()
        np.testing.assert_allclose(few[name], prior, rtol=0.02)  # next to no counts tell nothing


def test_an_image_without_particles_is_all_background() -> None:
    of = made.study(3)
    theta = of.prior.sample(6, seed=8)
    seen = of.preprocess(of.observe(of.simulate(theta), config=of.artefacts_with(1e5, artefacts=False)))
    samples = theta.expand_dims(sample=[0]).transpose("simulation", "sample", "parameter")
    samples = samples.rename(simulation="observation")
    assert (imagecheck.background(of, samples, seen) < 0.05).all()
    flat = seen.copy()
    flat["image"] = xr.full_like(seen["image"], 2.0**30).where(seen["mask_image"], 0)
    np.testing.assert_allclose(imagecheck.background(of, samples, flat), 1, atol=1e-3)
