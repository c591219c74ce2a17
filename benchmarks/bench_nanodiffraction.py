"""Nanodiffraction against what is published: the forward sum and the correlation fit as their authors write them.

Same run, one thread, float32. pytest benchmarks/bench_nanodiffraction.py -s
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import asin, cos, pi, sin

import numpy as np
import pytest
import torch

from scatterflow.baselines import centroid, correlation, likelihood
from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.forward import fields
from scatterflow.forward.nanodiffraction import Kinematics, intensities, kinematics

pytestmark = pytest.mark.usefixtures("one_thread")
BEAM, FILM = NanobeamConfig(), FilmConfig()
BOX = np.array([[-5e-3, -0.05, -0.1], [5e-3, 0.05, 0.1]])
MAX_COUNTS = 7
FORWARD, CORRELATION = 1000, 500  # times faster, at least
DONUT_MS = {"correlation fit, GPU": 5.6, "encoder, CPU": 0.27}  # published, per frame


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Shortest CPU time of a run; the first one, which warms up, is left out."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times[1:])


def published_sum() -> Callable[[torch.Tensor], torch.Tensor]:
    """DONUT, Methods: every point of the ring times every pixel, (point, y, x), with the coordinates made beforehand."""
    k, pixel = 2 * pi / BEAM.wavelength_nm, BEAM.pixel_mm / BEAM.distance_mm
    angle = asin(BEAM.wavelength_nm * FILM.order / (2 * FILM.lattice_nm))
    y, x = np.mgrid[: BEAM.shape[1], : BEAM.shape[0]] - 31.5
    exit_angle = np.arctan(x * pixel) + angle
    o_y, o_x = (np.mgrid[:128, :128] - 63.5) / 2
    radius = np.hypot(o_y, o_x)
    ring = (radius > BEAM.ring_px[0]) & (radius < BEAM.ring_px[1])
    o_y, o_x = (each[ring][:, None, None] * k * pixel for each in (o_y, o_x))
    arrays = (
        k * (cos(angle) - np.cos(exit_angle)) + o_x * sin(angle),
        k * y * pixel - o_y,
        k * (np.sin(exit_angle) + np.sin(angle)) - o_x * cos(angle),
    )
    qx0, qy0, qz0 = (torch.as_tensor(array, dtype=torch.float32) for array in arrays)
    width = FILM.peak_width * k * pixel

    def run(theta: torch.Tensor) -> torch.Tensor:
        strain, omega, chi = theta[0], torch.deg2rad(theta[1]), torch.deg2rad(theta[2])
        g = 2 * pi * FILM.order / (FILM.lattice_nm * (1 + strain))
        t = FILM.thickness_nm
        peak = t * torch.sinc(t * (qz0 - g) / (2 * pi)) ** 2
        along = torch.exp(-((qx0 + g * omega) ** 2) / width**2)
        across = torch.exp(-((qy0 + g * chi) ** 2) / width**2)
        return (peak * along * across).sum(0)

    return run


def expected(at: Kinematics, theta: np.ndarray) -> np.ndarray:
    images = torch.cat([intensities(at, torch.tensor(part)) for part in np.array_split(theta, len(theta) // 16 + 1)])
    images = images.clamp_min(0) / images.amax((1, 2), keepdim=True)
    return (MAX_COUNTS * images.double()).numpy()


def test_forward() -> None:
    theta = torch.tensor(np.random.default_rng(0).uniform(BOX[0], BOX[1], (8, 3)))
    published, at = published_sum(), kinematics(BEAM, FILM, 2)
    one, ours = published(theta[0].float()).T, intensities(at, theta)[0]
    deviation = float((one - ours).abs().max() / one.max())
    peer = seconds(lambda: published(theta[0].float()), 2)
    points, default = (
        seconds(lambda at=at: intensities(at, theta), 30) / len(theta) for at in (at, kinematics(BEAM, FILM))
    )
    print(
        f"\nforward, one frame: published sum {1e3 * peer:.0f} ms; the same separated {1e3 * points:.2f} ms: "
        f"{peer / points:.0f} times (needed {FORWARD}), {deviation:.0e} of the maximum apart; integral over the ring "
        f"(default) {1e3 * default:.2f} ms: {peer / default:.0f} times"
    )
    assert deviation < 5e-3  # the published order of operations loses digits in float32
    assert peer / points >= FORWARD


def test_correlation_fit() -> None:
    """The library of 41^3 patterns (1.1 GB), a frame at a time: more at once only takes more memory."""
    at = kinematics(BEAM, FILM, 2)
    axes = [torch.linspace(*BOX[:, number].tolist(), correlation.VALUES, dtype=torch.float64) for number in range(3)]
    grid = torch.cartesian_prod(*axes)
    library = torch.empty(len(grid), *BEAM.shape)
    for first in range(0, len(grid), 1024):
        library[first : first + 1024] = intensities(at, grid[first : first + 1024])
    library /= library.sum((1, 2), keepdim=True)
    library = library.reshape(*(correlation.VALUES,) * 3, *BEAM.shape)
    truth = fields.test_scan((64, 64), "flat")[..., :3].reshape(-1, 3)
    frames = np.random.default_rng(1).poisson(expected(at, truth)).astype(np.float32)

    def broadcast(frame: torch.Tensor) -> list[float]:
        scores, found = (frame * library).sum((3, 4)), []
        for number, axis in enumerate(axes):
            kept = scores.sum([other for other in range(3) if other != number])
            kept = kept - kept.min()
            found.append(float((kept * torch.arange(len(axis))).sum() / kept.sum()))
        return found

    start = time.process_time()
    patterns = correlation.library(at, BOX)
    prepared = time.process_time() - start
    peer = seconds(lambda: broadcast(torch.from_numpy(frames[0])), 2)
    ours = seconds(lambda: correlation.predict(patterns, frames), 3) / len(frames)
    steps = np.array([broadcast(torch.from_numpy(frame)) for frame in frames[:4]]) / (correlation.VALUES - 1)
    values, _ = correlation.predict(patterns, frames)
    deviation = np.abs((values[:4] - BOX[0]) / np.ptp(BOX, axis=0) - steps).max()
    error = values - truth
    print(
        f"\ncorrelation fit, one frame: broadcast {1e3 * peer:.0f} ms, collapsed with its errors {1e3 * ours:.3f} ms: "
        f"{peer / ours:.0f} times (needed {CORRELATION}), {deviation:.0e} of the range apart; library in {prepared:.1f} s; "
        f"published on a GPU {DONUT_MS['correlation fit, GPU']} ms\n"
        f"errors on the test scan: mean {error.mean(0)}, sd {error.std(0)}"
    )
    assert deviation < 1e-5  # the broadcast sum itself is float32
    assert peer / ours >= CORRELATION


@pytest.mark.parametrize("upsampling", [None, 2], ids=["integral", "published"])
def test_maximum_likelihood(upsampling: int | None) -> None:
    """The whole test scan: 4,096 frames."""
    at = kinematics(BEAM, FILM, upsampling)
    truth = fields.test_scan((64, 64), "flat")[..., :3].reshape(-1, 3)
    frames = np.random.default_rng(2).poisson(expected(at, truth)).astype(np.float32)
    bound = likelihood.bound(truth, at, MAX_COUNTS)
    middle = centroid.calibration(BEAM, FILM, BOX)
    near = np.clip(truth + 2 * bound * np.random.default_rng(3).standard_normal(truth.shape), BOX[0], BOX[1])
    answers = {
        "maximum likelihood": lambda: (lambda found: (found.theta, found.sd))(likelihood.fit(frames, at, BOX)),
        "centroid": lambda: centroid.predict(middle, frames),
    }
    if upsampling is None:
        answers["one scoring step from 2 sd"] = lambda: likelihood.step(frames, at, near, BOX)
    print()
    for name, answer in answers.items():
        start = time.process_time()
        theta, sd = answer()
        spent = 1e3 * (time.process_time() - start) / len(frames)
        error = theta - truth
        inside = (np.abs(error) < sd).mean(axis=0)
        print(f"{name}: {spent:.2g} ms per frame; mean {error.mean(0)}, sd {error.std(0)}, covered {inside}", end="")
        ratio = error.std(axis=0) / np.sqrt((bound**2).mean(axis=0))
        print(f", sd over bound {ratio}" if upsampling is None else "")
        if upsampling is None and name == "maximum likelihood":
            assert (np.abs(error.mean(axis=0)) < 0.2 * error.std(axis=0)).all()
            assert (ratio <= 1.1).all()
            assert (np.abs(inside - 0.68) < 0.03).all()
