"""Baselines of nanodiffraction against published figures, other optimizers, closed forms and the Cramer-Rao bound."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import optimize, stats

from scatterflow.baselines import centroid, correlation, likelihood
from scatterflow.baselines.poisson import expected_deviance
from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.errors import ConfigError, FrameError
from scatterflow.forward import fields
from scatterflow.forward.nanodiffraction import Kinematics, factors, intensities, kinematics, thinned
from scatterflow.forward.nanodiffraction_slopes import slopes

pytestmark = pytest.mark.science
BEAM, FILM = NanobeamConfig(), FilmConfig()
BOX = np.array([[-5e-3, -0.05, -0.1], [5e-3, 0.05, 0.1]])
BOX4 = np.hstack([BOX, [[10.0], [13.0]]])
MAX_COUNTS = 7
AT = kinematics(BEAM, FILM)
PUBLISHED = kinematics(BEAM, FILM, 2)
# strain, omega [deg], chi [deg]: mean and standard deviation of the errors on the test scan (DONUT, supplement, table 1)
CORRELATION = np.array([[9.2e-5, -1.0e-5, -3.4e-4], [2.61e-4, 8.2e-4, 1.48e-3]])
DONUT = np.array([[-7.2e-5, -5.2e-5, -9.9e-4], [1.00e-4, 2.1e-4, 1.26e-3]])
Array = NDArray[np.float64]


def images(at: Kinematics, theta: Array) -> Array:
    """Expected counts with a maximum of MAX_COUNTS."""
    parts = [intensities(at, torch.tensor(part)) for part in np.array_split(theta, max(1, len(theta) // 64))]
    frames = torch.cat(parts).double().clamp_min(0).numpy()
    return np.asarray(MAX_COUNTS * frames / frames.max(axis=(1, 2), keepdims=True))


def counts(at: Kinematics, theta: Array, seed: int = 1, background: float = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).poisson(images(at, theta) + background).astype(np.float32)


def uniform(n: int, box: Array, seed: int) -> Array:
    return np.random.default_rng(seed).uniform(box[0], box[1], (n, box.shape[1]))


@cache
def scan(upsampling: int | None) -> tuple[Array, NDArray[np.float32]]:
    """Truth (frame, 3) and frames of the published test scan, in random order."""
    truth = fields.test_scan((64, 64), "flat")[..., :3].reshape(-1, 3)
    truth = np.random.default_rng(0).permutation(truth)
    return truth, counts(kinematics(BEAM, FILM, upsampling), truth)


@pytest.mark.parametrize("parameters", [3, 4])
@pytest.mark.parametrize(("upsampling", "width"), [(2, 0.1), (None, 0.1), (None, 2.0)])
def test_slopes_are_those_of_automatic_differentiation(upsampling: int | None, width: float, parameters: int) -> None:
    """Of narrow peaks, of which little is computed and put in its place, and of wide ones."""
    film = FILM.model_copy(update={"peak_width": width})
    at = kinematics(BEAM.model_copy(update={"shape": (32, 20)}), film, upsampling, torch.float64)
    for theta in torch.tensor(uniform(3, BOX4, 1)[:, :parameters]):
        image, slope = slopes(at, theta[None])
        jacobian = torch.autograd.functional.jacobian(lambda each: intensities(at, each[None])[0], theta)
        expected = jacobian.permute(2, 0, 1)
        torch.testing.assert_close(image[0], intensities(at, theta[None])[0], rtol=1e-12, atol=1e-12)
        scale = expected.abs().amax((1, 2), keepdim=True)
        torch.testing.assert_close(slope[0] / scale, expected / scale, rtol=0, atol=1e-8)
        along, across = factors(at, theta[None])
        torch.testing.assert_close((along @ across.transpose(1, 2))[0], image[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("width", "least", "most"), [(0.3, 1e-9, 5e-3), (0.8, 1e-9, 1e-4)])
def test_a_third_of_the_nodes_does_for_wide_peaks(width: float, least: float, most: float) -> None:
    at = kinematics(BEAM, FILM.model_copy(update={"peak_width": width}))
    theta = uniform(20, BOX4, 6)
    few, all_ = (images(each, theta) / MAX_COUNTS for each in (thinned(at), at))
    off = np.abs(few - all_).max()
    print(f"nanodiffraction, peak of {width} pixel, a third of the nodes: {off:.1e} of the maximum")
    assert 3 * len(thinned(at).weight) == len(at.weight)
    assert least < off < most
    assert thinned(PUBLISHED) is PUBLISHED


@pytest.mark.parametrize("background", [None, 0.3])
@pytest.mark.parametrize("parameters", [3, 4])
def test_bound_is_the_inverse_of_the_whole_information(parameters: int, background: float | None) -> None:
    """Parameters, amplitude and background together; central differences in double precision."""
    theta = uniform(2, BOX4, 2)[:, :parameters]
    found = likelihood.bound(theta, AT, MAX_COUNTS, background)
    at = kinematics(BEAM, FILM, dtype=torch.float64)
    steps = torch.diag(torch.tensor([1e-7, 1e-6, 1e-6, 1e-4], dtype=torch.float64)[:parameters])
    for each, bound in zip(torch.tensor(theta), found, strict=True):
        sides = intensities(at, each + torch.cat([steps, -steps])).flatten(1).numpy()
        jacobian = ((sides[:parameters] - sides[parameters:]) / (2 * steps.diag()[:, None].numpy())).T
        image = intensities(at, each[None])[0].flatten().numpy().clip(1e-12)
        amplitude = MAX_COUNTS / image.max()
        columns = [amplitude * jacobian, image[:, None]]
        columns += [] if background is None else [np.ones_like(image[:, None])]
        design = np.hstack(columns) / np.sqrt(amplitude * image + (background or 0))[:, None]
        size = np.sqrt((design**2).sum(axis=0))
        covariance = np.linalg.inv((design / size).T @ (design / size)) / np.outer(size, size)
        np.testing.assert_allclose(bound, np.sqrt(np.diag(covariance))[:parameters], rtol=5e-3)


def test_bound_on_the_test_scan() -> None:
    """Another program's figures: strain 8.0e-5, omega 8.7e-5 deg, chi 1.3 to 2.2e-4 deg."""
    truth = np.random.default_rng(1).permutation(fields.test_scan((64, 64), "flat").reshape(-1, 4))[:200]
    three, four = likelihood.bound(truth[:, :3], AT, MAX_COUNTS), likelihood.bound(truth, AT, MAX_COUNTS)
    print("nanodiffraction, bound on the test scan, median:", np.median(three, axis=0), np.median(four, axis=0))
    np.testing.assert_allclose(np.median(three[:, :2], axis=0), [8.0e-5, 8.7e-5], rtol=0.05)
    assert three[:, 2].min() > 1.25e-4
    assert three[:, 2].max() < 2.25e-4
    assert (four[:, :3] >= three * (1 - 1e-6)).all()  # one more unknown never helps


def test_maximum_likelihood_on_the_test_scan() -> None:
    truth, frames = (each[:2048] for each in scan(None))
    found = likelihood.fit(frames, AT, BOX)
    bound = likelihood.bound(truth, AT, MAX_COUNTS)
    error = found.theta - truth
    bias, spread = error.mean(axis=0) / error.std(axis=0), error.std(axis=0) / np.sqrt((bound**2).mean(axis=0))
    inside = (np.abs(error) < found.sd).mean(axis=0)
    print(f"nanodiffraction, likelihood on the test scan: bias {bias} sd, sd {spread} of the bound, covered {inside}")
    assert (np.abs(bias) < 0.2).all()
    assert (spread <= 1.1).all()
    assert (inside >= 0.65).all()
    assert (inside <= 0.71).all()
    assert found.converged.mean() > 0.99
    assert abs(found.deviance.mean() - 1) < 0.01
    assert (np.abs(error) < 6 * bound).all()  # no frame ends on another summit


def test_one_step_from_two_deviations_away() -> None:
    truth, frames = (each[:768] for each in scan(None))
    bound = likelihood.bound(truth, AT, MAX_COUNTS)
    start = truth + 2 * bound * np.random.default_rng(3).standard_normal(truth.shape)
    theta, sd = likelihood.step(frames, AT, start, BOX)
    spread = (theta - truth).std(axis=0) / np.sqrt((bound**2).mean(axis=0))
    inside = (np.abs(theta - truth) < sd).mean(axis=0)
    print(f"nanodiffraction, one scoring step from 2 sd away: sd {spread} of the bound, covered {inside}")
    assert (spread < 1.15).all()
    assert (np.abs(inside - 0.68) < 0.06).all()


def test_better_than_published_on_the_published_model() -> None:
    truth, frames = (each[:768] for each in scan(2))
    found = likelihood.fit(frames, PUBLISHED, BOX)
    error = found.theta - truth
    mean, sd = error.mean(axis=0), error.std(axis=0)
    print(f"nanodiffraction, published model, likelihood: mean {mean}, sd {sd}; DONUT {DONUT[0]}, {DONUT[1]}")
    for published in (CORRELATION, DONUT):
        assert (np.hypot(mean, sd) < np.hypot(*published)).all()
        assert (sd < published[1]).all()
    # a mean over so many frames is only known within its standard error
    assert (np.abs(mean) < np.minimum(*np.abs([CORRELATION[0], DONUT[0]])) + 3 * sd / np.sqrt(len(error))).all()
    theta = uniform(256, BOX / 10, 9)
    found = likelihood.fit(counts(PUBLISHED, theta, 9), PUBLISHED, BOX)
    inside = (np.abs(found.theta - theta)[:, 2] < found.sd[:, 2]).mean()
    assert 0.55 < inside < 0.8  # a mean over a plateau: its errors are flatter than normal ones


@pytest.mark.parametrize(("box", "film"), [(BOX, FILM), (BOX4, FILM), (BOX, FilmConfig(thickness_nm=55))])
def test_no_other_summits_anywhere_in_the_box(box: Array, film: FilmConfig) -> None:
    at = kinematics(BEAM, film)
    theta = uniform(96, box, 4)
    frames = counts(at, theta, 4)
    found, from_truth = likelihood.fit(frames, at, box), likelihood.fit(frames, at, box, theta)
    bound = likelihood.bound(theta, at, MAX_COUNTS)
    different = (np.abs(found.theta - from_truth.theta) > 0.1 * bound).any(axis=1)
    assert not different.any(), theta[different]


@pytest.mark.parametrize("background", [0.0, 0.5])
def test_maximum_is_that_of_a_general_optimizer(background: float) -> None:
    """Nelder-Mead over parameters, amplitude and background at once, in double precision, from the truth."""
    theta = uniform(2, BOX * 0.9, 5)
    mask = np.random.default_rng(5).random(BEAM.shape) > 0.1
    mask[20:24] = False
    frames = counts(AT, theta, 5, background)
    bound = likelihood.bound(theta, AT, MAX_COUNTS, background or None)
    frames[:, ~mask] = np.nan
    found = likelihood.fit(frames, AT, BOX, mask=mask, background=background > 0)
    at = kinematics(BEAM, FILM, dtype=torch.float64)
    for frame, truth, unit, ours, level in zip(frames, theta, bound, found.theta, found.background, strict=True):
        seen = frame[mask].astype(float)

        def height(x: Array, seen: Array = seen, truth: Array = truth, unit: Array = unit) -> float:
            image = intensities(at, torch.tensor((truth + unit * x[:3])[None]))[0].numpy()
            expected = (image / image.max())[mask] * MAX_COUNTS * np.exp(x[3]) + abs(x[4]) * (background > 0)
            expected = expected.clip(1e-7)
            return float((expected - seen * np.log(expected)).sum())

        start = np.array([0, 0, 0, 0, background])
        simplex = np.vstack([start, start + np.diag([1, 1, 1, 0.03, 0.05])])
        options = {"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-5, "maxiter": 2000}
        best = optimize.minimize(height, start, method="Nelder-Mead", options=options)
        assert (np.abs(truth + unit * best.x[:3] - ours) < 0.05 * unit).all()
        assert abs(abs(best.x[4]) * (background > 0) - level) < 0.01


def test_deviance_tells_a_film_that_is_another() -> None:
    theta = uniform(48, BOX / 2, 6)
    fits = likelihood.fit(counts(AT, theta, 6), AT, BOX)
    other = likelihood.fit(counts(kinematics(BEAM, FilmConfig(thickness_nm=40)), theta, 6), AT, BOX)
    assert (np.abs(fits.deviance - 1) < 0.15).all()
    assert other.deviance.min() > fits.deviance.max()
    rebuilt, deviance = likelihood.rebuild(counts(AT, theta, 6), AT, fits.theta)
    np.testing.assert_allclose(deviance, fits.deviance, rtol=1e-3)
    np.testing.assert_allclose(rebuilt.max(axis=(1, 2)), MAX_COUNTS, rtol=0.1)


@pytest.mark.parametrize("mean", [1e-6, 0.03, 0.7, 2.0, 30.0, 300.0])
def test_expected_deviance(mean: float) -> None:
    n = np.arange(int(mean + 20 * np.sqrt(mean) + 20))
    each = 2 * (np.where(n > 0, n * np.log(np.maximum(n, 1) / mean), 0) - n + mean)
    expected = (stats.poisson.pmf(n, mean) * each).sum()
    np.testing.assert_allclose(expected_deviance(np.array(mean)), expected, rtol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("upsampling", [2, None])
def test_collapsed_correlation_is_the_broadcast_one(upsampling: int | None, masked: bool) -> None:
    values = 9
    at = kinematics(BEAM, FILM, upsampling)
    mask = np.random.default_rng(7).random(BEAM.shape) > 0.2 if masked else None
    frames = counts(at, uniform(20, BOX / 2, 7), 7)
    collapsed, _ = correlation.predict(correlation.library(at, BOX, values, mask), frames)
    axes = [np.linspace(*BOX[:, number], values) for number in range(3)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    patterns = intensities(kinematics(BEAM, FILM, upsampling, torch.float64), torch.tensor(grid)).numpy()
    patterns = patterns.reshape(values, values, values, *BEAM.shape) * (1 if mask is None else mask)
    patterns /= patterns.sum(axis=(3, 4), keepdims=True)
    for frame, found in zip(frames, collapsed, strict=True):
        scores = (frame * patterns).sum(axis=(3, 4))
        for number, axis in enumerate(axes):
            kept = scores.sum(axis=tuple(other for other in range(3) if other != number))
            kept = kept - kept.min()
            expected = (kept * np.arange(values)).sum() / kept.sum() / (values - 1)
            assert abs((found[number] - axis[0]) / np.ptp(axis) - expected) < 1e-6


def test_correlation_fit_has_the_published_errors() -> None:
    """DONUT's own table: the same library, the same scan, the same noise, other random numbers."""
    truth, frames = scan(2)
    patterns = correlation.library(PUBLISHED, BOX)
    theta, _ = correlation.predict(patterns, frames)
    error = theta - truth
    mean, spread = error.mean(axis=0), error.std(axis=0)
    print(f"nanodiffraction, correlation fit: mean {mean}, sd {spread}; published {CORRELATION[0]}, {CORRELATION[1]}")
    np.testing.assert_allclose(spread, CORRELATION[1], rtol=0.03)
    assert (np.abs(mean - CORRELATION[0]) < 4 * spread / 64 + 1e-6).all()
    repeated = correlation.predict(patterns, counts(PUBLISHED, np.tile(truth[:1], (400, 1))))
    np.testing.assert_allclose(repeated[0].std(axis=0), repeated[1].mean(axis=0), rtol=0.15)


def test_centroid_follows_the_tilts() -> None:
    at = centroid.calibration(BEAM, FILM, BOX)
    for number, size in ((1, 0.01), (2, 0.02)):
        theta = np.zeros((21, 3))
        theta[:, number] = np.linspace(-size, size, 21)
        found, _ = centroid.predict(at, images(AT, theta))
        slope = np.polyfit(theta[:, number], found[:, number], 1)[0]
        assert abs(slope - 1) < 0.05
        assert np.abs(found[:, 3 - number]).max() < 2e-3
    strained = centroid.predict(at, images(AT, np.array([[-1e-3, 0, 0], [1e-3, 0, 0]])))[0][:, 1]
    np.testing.assert_allclose(np.diff(strained) / 2e-3, at.omega_per_strain, rtol=0.1)
    truth, frames = scan(None)
    found, sd = centroid.predict(at, frames)
    np.testing.assert_allclose((found - truth)[:, 2].std(), sd[:, 2].mean(), rtol=0.1)
    np.testing.assert_allclose(sd[:, 0], 1e-2 / np.sqrt(12))


def methods() -> list[Callable[[NDArray[np.float32]], tuple[Array, Array]]]:
    patterns, middle = correlation.library(AT, BOX, 3), centroid.calibration(BEAM, FILM, BOX)

    def fit(frames: NDArray[np.float32]) -> tuple[Array, Array]:
        found = likelihood.fit(frames, AT, BOX)
        assert (found.converged == (frames.sum((1, 2)) > 0)).all()
        return found.theta, found.sd

    return [
        fit,
        lambda frames: likelihood.step(frames, AT, np.zeros((len(frames), 3)), BOX),
        lambda frames: correlation.predict(patterns, frames),
        lambda frames: centroid.predict(middle, frames),
    ]


def test_empty_frames_know_nothing_but_the_box() -> None:
    for number, method in enumerate(methods()):
        frames = counts(AT, np.zeros((2, 3)))
        alone = method(frames[:1])
        frames[1] = 0
        theta, sd = method(frames)
        np.testing.assert_allclose(theta[1], 0, atol=1e-9)
        np.testing.assert_allclose(sd[1], np.ptp(BOX, axis=0) / np.sqrt(12), rtol=1e-6)
        np.testing.assert_allclose(theta[0], alone[0][0], atol=1e-6)
        assert (sd[0] < sd[1] + 1e-12).all(), number
        assert method(frames[:0])[0].shape == (0, 3)


def test_a_box_that_reaches_beyond_the_detector_is_no_trap() -> None:
    """A film whose light falls beside the detector is even there: no start, and no number that is not finite."""
    box = np.array([[-5e-3, -1.5, -0.1], [5e-3, 1.5, 0.1]])
    beside = intensities(AT, torch.tensor([[0.0, 1.5, 0.0]]))
    assert beside.max() < 1e-6 * intensities(AT, torch.zeros(1, 3)).max()
    truth = uniform(64, BOX, 8)
    frames = np.concatenate([counts(AT, truth, background=0.5), np.random.default_rng(9).poisson(2.0, (8, 64, 64))])
    fit = likelihood.fit(frames, AT, box, background=True, starts=3)
    for part in vars(fit).values():
        assert np.isfinite(part).all()
    near = np.abs(fit.theta[:64] - truth) < 6 * fit.sd[:64]
    assert near.all(axis=1).mean() > 0.95
    theta, sd = likelihood.step(frames[-8:], AT, np.tile([0.0, 1.5, 0.0], (8, 1)), box, background=True)
    assert np.isfinite(theta).all()
    assert (sd > 0).all()
    images_, deviance = likelihood.rebuild(frames[-8:], AT, np.tile([0.0, 1.5, 0.0], (8, 1)), background=True)
    assert np.isfinite(images_).all()
    np.testing.assert_allclose(deviance, 1, atol=0.1)  # even frames are what an even background makes


def test_several_starts_find_the_highest_summit() -> None:
    """Frames of a thick film with a wide peak, of which a single start may take the wrong stripe."""
    film = FILM.model_copy(update={"thickness_nm": 55.0, "peak_width": 2.0})
    at = kinematics(BEAM, film)
    box = np.array([[-0.02, -0.1, -0.1], [0.02, 0.1, 0.1]])
    truth = uniform(60, box, 10)
    frames = counts(at, truth, background=0.05)
    one, several = (likelihood.fit(frames, at, box, background=True, starts=number) for number in (1, 4))
    assert (several.deviance <= one.deviance + 1e-3).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_bad_counts_are_refused(bad: float) -> None:
    frames = counts(AT, np.zeros((2, 3)))
    frames[1, 3, 4] = bad
    for method in methods():
        with pytest.raises(FrameError, match=r"counts must be finite and not negative; mask the pixels that are not"):
            method(frames)


def test_wrong_shapes_are_refused() -> None:
    frames = counts(AT, np.zeros((2, 3)))
    for call in (
        lambda: likelihood.fit(frames, AT, BOX[::-1]),
        lambda: likelihood.fit(frames, AT, BOX, np.zeros((1, 3))),
        lambda: likelihood.fit(frames, AT, BOX, mask=np.ones((3, 3), dtype=bool)),
        lambda: likelihood.step(frames, AT, np.full((2, 3), np.nan), BOX),
        lambda: likelihood.bound(np.zeros((1, 3)), AT, 0),
        lambda: likelihood.rebuild(frames, AT, np.zeros((1, 3))),
        lambda: correlation.library(AT, BOX[:1]),
        lambda: correlation.library(AT, BOX, 1),
        lambda: centroid.calibration(BEAM, FILM, BOX[:, :2]),
    ):
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(FrameError, match="must be"):
        likelihood.fit(frames[:, :10], AT, BOX)
    with pytest.raises(FrameError, match="must be"):
        correlation.predict(correlation.library(AT, BOX, 3), frames[:, :10])
