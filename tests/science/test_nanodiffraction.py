"""The separable forward model of nanodiffraction against the published sum over all ring points."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scatterflow.baselines import likelihood
from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.errors import ConfigError
from scatterflow.forward import fields
from scatterflow.forward.nanodiffraction import (
    NODES,
    Kinematics,
    columns,
    intensities,
    kinematics,
    near_edges,
    near_rows,
    patterns,
)
from scatterflow.forward.nanodiffraction_slopes import slopes

pytestmark = pytest.mark.science
BEAM, FILM = NanobeamConfig(), FilmConfig()
BOX_FILM = FilmConfig(peak_shape="box", peak_width=0.675)
RANGES = np.array([[-5e-3, -0.05, -0.1, 9.0], [5e-3, 0.05, 0.1, 15.0]])
MAX_COUNTS = 7
THETA = [[0.0, 0.0, 0.0, 11.7], [4.1e-3, -0.031, 0.083, 11.7], [-5e-3, 0.05, -0.1, 12.4], [1e-3, -0.05, 0.004, 55.0]]


def published_sum(theta: list[float]) -> np.ndarray:
    """DONUT, Methods: every ring point of a grid of half pixels times every pixel, in angstrom.

    The differences of cosines lose digits (1e-16 of the wave vector is 1e-11 of the peak's width), so they are formed in
    extended precision.
    """
    strain, omega, chi = (
        np.longdouble(theta[0]),
        np.radians(np.longdouble(theta[1])),
        np.radians(np.longdouble(theta[2])),
    )
    wavelength, lattice, order, thickness = (
        np.longdouble(12.398419843320026) / 11.3,
        np.longdouble(4.013),
        2,
        10 * theta[3],
    )
    k, px, distance = 2 * np.pi / wavelength, 110e-6, 0.85
    alf = np.arcsin(wavelength * order / (2 * lattice))
    y, x = np.mgrid[:64, :64] - 31.5
    gam = np.arctan(x * px / distance) + np.arcsin(wavelength * order / lattice - np.sin(alf))
    detector = k * (np.cos(alf) - np.cos(gam)), k * y * px / distance, k * (np.sin(gam) + np.sin(alf))
    focus = 149e-6 * 16e-9 / (wavelength * 1e-10)
    oy, ox = (np.mgrid[:128, :128] - 63.5) * 0.5
    radius = np.hypot(oy, ox) * px / distance
    ring = (radius > 77e-6 / 2 / focus) & (radius < 149e-6 / 2 / focus)
    oy, ox = oy[ring] * k * px / distance, ox[ring] * k * px / distance
    zone = -ox * np.sin(alf), oy, ox * np.cos(alf)
    g = 2 * np.pi * order / (lattice * (1 + strain))
    width = k * px / (10 * distance)
    image = np.zeros((64, 64))
    for first in range(0, len(ox), 500):
        part = slice(first, first + 500)
        qx, qy, qz = (
            (side[..., None] + shift - each[part]).astype(float)
            for side, shift, each in zip(detector, (g * omega, g * chi, -g), zone, strict=True)
        )
        peak = thickness * np.sinc(thickness * qz / (2 * np.pi)) ** 2
        width = float(width)
        image += (peak * np.exp(-(qx**2) / width**2) * np.exp(-(qy**2) / width**2)).sum(-1)
    return image.T / 10  # (z, y), as the exit angle ascends along the published x; thickness in nm


def test_the_ring_is_the_published_one() -> None:
    assert int((kinematics(BEAM, FILM, 2).ring > 0).sum()) == 6456


@pytest.mark.parametrize("theta", THETA)
def test_equal_to_the_published_sum(theta: list[float]) -> None:
    expected = published_sum(theta)
    double = intensities(kinematics(BEAM, FILM, 2, torch.float64), torch.tensor([theta], dtype=torch.float64))[
        0
    ].numpy()
    single = intensities(kinematics(BEAM, FILM, 2), torch.tensor([theta], dtype=torch.float64))[0].numpy()
    deviations = [np.abs(each - expected).max() / expected.max() for each in (double, single)]
    print(f"nanodiffraction {theta} against the published sum: {deviations[0]:.1e}, in float32 {deviations[1]:.1e}")
    assert deviations[0] <= 1e-12
    assert deviations[1] <= 1e-5


@settings(max_examples=10, deadline=None)
@given(
    st.floats(-5e-3, 5e-3),
    st.floats(-0.05, 0.05),
    st.floats(-0.1, 0.1),
    st.floats(8, 20),
    st.sampled_from([2, 3, None]),
)
def test_gradients(strain: float, omega: float, chi: float, thickness: float, upsampling: int | None) -> None:
    beam = BEAM.model_copy(update={"shape": (6, 5)})
    at = kinematics(beam, FILM, upsampling, torch.float64)
    scale = torch.tensor([1e-3, 1e-2, 1e-2, 1.0], dtype=torch.float64)

    def frame(unit: torch.Tensor) -> torch.Tensor:
        return intensities(at, unit * scale) * 10

    theta = torch.tensor([[strain, omega, chi, thickness]], dtype=torch.float64) / scale
    assert torch.autograd.gradcheck(frame, theta.requires_grad_(), eps=1e-6, atol=1e-4, rtol=1e-4)


def test_frames_do_not_change_in_jerks() -> None:
    """The total of a frame in the middle of the detector hardly depends on chi; on the published grid it does."""
    chi = torch.linspace(-0.02, 0.02, 41, dtype=torch.float64)
    theta = torch.stack([torch.full_like(chi, 1e-3), torch.zeros_like(chi), chi], dim=1)
    published = kinematics(BEAM, FILM, 2, torch.float64)
    default, fine = (kinematics(BEAM, FILM, None, torch.float64, nodes=nodes) for nodes in (NODES, 40))
    frames = [intensities(at, theta) for at in (published, default, fine)]
    totals = [each.sum((1, 2)) for each in frames]
    swings = [float(total.max() / total.min()) - 1 for total in totals]
    deviation = float((frames[1] - frames[2]).abs().max() / frames[2].max())
    print(f"nanodiffraction, total against chi swings by {swings[0]:.2g} as published, by {swings[1]:.1e} by default")
    print(f"nanodiffraction, default against 8 times as many nodes: {deviation:.1e} of the maximum")
    assert swings[0] > 0.1
    assert abs(swings[1] - swings[2]) < 1e-3  # what is left is the edge of the ring on the pixels
    assert deviation < 3e-3


def test_a_frame_does_not_depend_on_its_batch_beyond_rounding() -> None:
    theta = torch.tensor(THETA, dtype=torch.float64)
    at = kinematics(BEAM, FILM)
    together = intensities(at, theta)
    for number in range(len(theta)):
        alone = intensities(at, theta[number : number + 1])[0]
        assert float((together[number] - alone).abs().max() / alone.max()) < 1e-6


@pytest.mark.parametrize(("dtype", "deviation"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_what_is_left_out_of_narrow_peaks_is_nothing(dtype: torch.dtype, deviation: float) -> None:
    """Frames that are to be differentiated are computed in full; the tilts go beyond the borders of the detector."""
    at = kinematics(BEAM, FILM, dtype=dtype)
    theta = torch.tensor([*THETA, [0.0, 0.3, 0.5, 11.7], [0.0, -0.3, -0.5, 11.7]], dtype=torch.float64)
    assert near_rows(at, theta) is not None
    assert near_edges(at, columns(at, theta)) is not None
    frames = intensities(at, theta)
    full = intensities(at, theta.clone().requires_grad_()).detach()
    torch.testing.assert_close(frames, full, rtol=0, atol=deviation * float(full.max()))


def nanobeamnn_sum(theta: list[float]) -> np.ndarray:
    """NanobeamNN's library (simulation.py of its repository, upsampling 2), pixel after pixel, in angstrom.

    The exit angle is an arcsine, and each ring point counts whose wave vector differs by less than 5e-4 / angstrom in both
    directions along the surface.
    """
    strain, thickness = theta[0], 10 * theta[3]
    omega, chi = np.radians(theta[1:3])
    wavelength, lattice, order = 12.398419843320026 / 11.3, 4.013, 2
    k, px, distance, focus, precision = 2 * np.pi / wavelength, 110e-6, 0.85, 21.874e-3, 5e-4
    alf = np.arcsin(wavelength * order / 2 / lattice)
    across, along = np.meshgrid(*[(np.arange(128) - 63.5) / 2 * px / distance] * 2, indexing="ij")
    angle = np.hypot(across, along)
    ring = (angle < 149e-6 / 2 / focus) & (angle > 77e-6 / 2 / focus)
    across, along = across[ring] * k, along[ring] * k
    g = 2 * np.pi / lattice * order
    image = np.zeros((64, 64))
    for row, column in np.ndindex(image.shape):
        gam = np.arcsin((row - 31.5) * px / distance) + alf
        qx = k * (np.cos(alf) - np.cos(gam)) + g / (1 + strain) * omega + along * np.sin(alf)
        qy = k * (column - 31.5) * px / distance + g / (1 + strain) * chi - across
        qz = k * (np.sin(gam) + np.sin(alf)) - g / (1 + strain) - along * np.cos(alf)
        lit = (np.abs(qx) < precision) & (np.abs(qy) < precision)
        image[row, column] = (thickness * np.sinc(thickness * qz[lit] / np.pi / 2) ** 2).sum()
    return image / 10  # thickness in nm


def nanobeamnn() -> tuple[NanobeamConfig, FilmConfig]:
    """Its focal length is not quite the one of its zone plate, and its box has a width in wave vectors."""
    pixel = 2 * np.pi / BEAM.wavelength_nm * BEAM.pixel_mm / BEAM.distance_mm
    outer = 21.874e6 * BEAM.wavelength_nm / (BEAM.zone_plate_um * 1e3)
    beam = BEAM.model_copy(update={"outer_zone_nm": outer, "exit_angle_rule": "sine"})
    return beam, FilmConfig(peak_shape="box", peak_width=5e-3 / pixel)


@pytest.mark.parametrize("theta", THETA)
def test_the_box_is_the_one_of_nanobeamnn(theta: list[float]) -> None:
    """Its ring is a grid of points, each within the box or not: one on the border, by rounding, may count or not."""
    beam, film = nanobeamnn()
    assert film.peak_width == pytest.approx(0.675, rel=1e-3)
    expected = nanobeamnn_sum(theta)
    found = intensities(kinematics(beam, film, 2, torch.float64), torch.tensor([theta], dtype=torch.float64))[0].numpy()
    deviation = np.abs(found - expected) / expected.max()
    print(
        f"nanodiffraction {theta} against NanobeamNN's sum: {deviation.max():.1e}, box of {film.peak_width:.4f} pixels"
    )
    assert deviation.max() <= 1e-11


def box_integral(theta: list[float], row: int, column: int, step: float) -> float:
    """A pixel's integral of the box over the ring, by points a `step` [pixel] apart where the box is."""
    k, pixel = 2 * np.pi / BEAM.wavelength_nm, BEAM.pixel_mm / BEAM.distance_mm
    alf = np.arcsin(BEAM.wavelength_nm * FILM.order / (2 * FILM.lattice_nm))
    g = 2 * np.pi * FILM.order / FILM.lattice_nm / (1 + theta[0])
    width = BOX_FILM.peak_width * k * pixel
    gam = alf + np.arctan((row - 31.5) * pixel)
    side, up = k * (np.cos(alf) - np.cos(gam)), k * (np.sin(alf) + np.sin(gam))
    cell = np.arange(-1 + step / 2, 1, step)
    o_y = (column - 31.5) + g * np.radians(theta[2]) / (k * pixel) + width / (k * pixel) * cell
    o_x = (-side - g * np.radians(theta[1]) + width * cell) / (k * pixel * np.sin(alf))
    radius = np.hypot(o_y[:, None], o_x)
    inner, outer = BEAM.ring_px
    lit = ((radius > inner) & (radius < outer)).mean(axis=0)
    peak = theta[3] * np.sinc(theta[3] * (up - g - k * pixel * o_x * np.cos(alf)) / (2 * np.pi)) ** 2
    area = (2 * width / (k * pixel)) * (2 * width / (k * pixel * np.sin(alf)))
    return float((lit * peak).mean() * area) * 4  # as much as 4 points per pixel


@pytest.mark.parametrize("theta", THETA)
def test_the_box_integrated_over_the_ring(theta: list[float]) -> None:
    """Against points 1/500 of the box apart, in every fifth pixel of the frame."""
    places = [(row, column) for row in range(2, 64, 5) for column in range(1, 64, 5)]
    expected = np.array([box_integral(theta, *place, 4e-3) for place in places])
    frame = intensities(kinematics(BEAM, BOX_FILM, None, torch.float64), torch.tensor([theta]).double())[0].numpy()
    deviation = np.abs([frame[place] for place in places] - expected).max() / expected.max()
    print(f"nanodiffraction {theta}, box: {deviation:.1e} of the maximum off a direct sum")
    assert np.count_nonzero(expected) > 20
    assert deviation < 2e-3


def test_the_box_has_slopes_where_it_is_an_integral_only() -> None:
    """Those of automatic differentiation, and of differences but where a corner lies between both sides."""
    at = kinematics(BEAM.model_copy(update={"shape": (24, 22)}), BOX_FILM, None, torch.float64)
    steps = torch.diag(torch.tensor([1e-9, 1e-8, 1e-8, 1e-6], dtype=torch.float64))
    for theta in torch.tensor(np.random.default_rng(2).uniform(*RANGES, (4, 4))):
        image, slope = slopes(at, theta[None])
        jacobian = torch.autograd.functional.jacobian(lambda each: intensities(at, each[None])[0], theta)
        scale = jacobian.abs().amax((0, 1))
        torch.testing.assert_close(image[0], intensities(at, theta[None])[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slope[0].permute(1, 2, 0) / scale, jacobian / scale, rtol=0, atol=1e-9)
        up, down = intensities(at, theta + steps), intensities(at, theta - steps)
        differences = ((up - down) / (2 * steps.diag()[:, None, None])).permute(1, 2, 0)
        assert (((differences - jacobian) / scale).abs() < 1e-4).double().mean() > 0.999
    beam, film = nanobeamnn()
    steps_of_tilts = kinematics(beam, film, 2)
    with pytest.raises(ConfigError, match=r"film.peak_shape must have slopes, got box on a ring of points: .*; leave"):
        slopes(steps_of_tilts, torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="ring_upsampling"):
        likelihood.bound(np.zeros((1, 3)), steps_of_tilts, MAX_COUNTS)


def noisy(at: Kinematics, theta: np.ndarray, seed: int) -> np.ndarray:
    """Poisson counts of frames whose brightest pixel expects MAX_COUNTS."""
    frames = patterns(at, theta)
    expected = MAX_COUNTS * frames / frames.max(axis=(1, 2), keepdims=True)
    return np.random.default_rng(seed).poisson(expected).astype(np.float32)


def judged(at: Kinematics, truth: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bias over the sd, sd over the bound, and coverage of the stated errors of maximum likelihood, per parameter."""
    found = likelihood.fit(noisy(at, truth, seed), at, RANGES[:, : truth.shape[1]])
    error, bound = found.theta - truth, likelihood.bound(truth, at, MAX_COUNTS)
    spread = error.std(axis=0)
    return (
        error.mean(axis=0) / spread,
        spread / np.sqrt((bound**2).mean(axis=0)),
        (np.abs(error) < found.sd).mean(axis=0),
    )


def test_maximum_likelihood_with_a_box() -> None:
    """Corners of the piecewise linear model cost some percent more than its information says: so do stated errors."""
    truth = np.random.default_rng(0).permutation(fields.test_scan((64, 64), "flat").reshape(-1, 4))[:512, :3]
    bias, ratio, inside = judged(kinematics(BEAM, BOX_FILM), truth, 1)
    print(f"nanodiffraction, box, likelihood: bias {bias} sd, sd {ratio} of the bound, covered {inside}")
    assert (np.abs(bias) < 0.2).all()
    assert (ratio < 1.2).all()
    assert (inside > 0.55).all()
    assert (inside < 0.75).all()


@settings(max_examples=15, deadline=None)
@given(st.floats(-5e-3, 5e-3), st.floats(-0.05, 0.05), st.floats(-0.1, 0.1), st.floats(2, 80))
def test_slopes_of_any_thickness(strain: float, omega: float, chi: float, thickness: float) -> None:
    """Against central differences of fourth order."""
    at = kinematics(BEAM.model_copy(update={"shape": (32, 8)}), FILM, None, torch.float64)
    theta = torch.tensor([strain, omega, chi, thickness], dtype=torch.float64)
    _, slope = slopes(at, theta[None])
    steps = torch.tensor([2e-6, 2e-5, 2e-5, 2e-3], dtype=torch.float64)
    sides = {n: intensities(at, theta + n * torch.diag(steps)) for n in (-2, -1, 1, 2)}
    expected = (8 * (sides[1] - sides[-1]) - (sides[2] - sides[-2])) / (12 * steps[:, None, None])
    scale = expected.abs().amax((1, 2), keepdim=True)
    assert float(((slope[0] - expected) / scale).abs().max()) < 1e-5


def test_maximum_likelihood_of_four_parameters() -> None:
    """The published scan whose thickness varies by 0.8 nm: all four parameters and the amplitude are free.

    The bound on the thickness is 0.152 nm. The 0.11 nm that one finds elsewhere is the bound for frames that are scaled to
    a brightest pixel of exactly 7 expected counts, when this is known: then the total of the counts, which grows as the
    fringes get narrower, tells the thickness as well. No experiment knows it; `test_bound_of_the_thickness` has both.
    """
    truth = np.random.default_rng(0).permutation(fields.test_scan((64, 64), "wavy").reshape(-1, 4))[:1024]
    bias, ratio, inside = judged(kinematics(BEAM, FILM), truth, 1)
    print(f"nanodiffraction, 4 parameters, likelihood: bias {bias} sd, sd {ratio} of the bound, covered {inside}")
    assert (np.abs(bias) < 0.2).all()
    assert (ratio <= 1.1).all()
    assert (np.abs(inside - 0.68) < 4 * np.sqrt(0.68 * 0.32 / len(truth))).all()


def test_bound_of_the_thickness() -> None:
    """1.5 angstrom with a free amplitude, 1.1 where the brightest pixel's expected counts are known to be 7."""
    truth = np.random.default_rng(0).permutation(fields.test_scan((64, 64), "wavy").reshape(-1, 4))[:64]
    free = np.median(likelihood.bound(truth, kinematics(BEAM, FILM), MAX_COUNTS)[:, 3])
    image, slope = slopes(kinematics(BEAM, FILM, None, torch.float64), torch.tensor(truth))
    image = image.clamp_min(0) + 1e-6 * image.amax((1, 2), keepdim=True)
    brightest, frame = image.flatten(1).argmax(1), torch.arange(len(truth))
    highest = image.flatten(1)[frame, brightest]
    relative = slope.flatten(2)[frame, :, brightest] / highest[:, None]  # by how much the scale follows each parameter
    scaled = (slope - image[:, None] * relative[:, :, None, None]) * (MAX_COUNTS / highest)[:, None, None, None]
    expected = image * (MAX_COUNTS / highest)[:, None, None]
    unit = torch.tensor(RANGES[1] - RANGES[0])
    design = (scaled * unit[:, None, None] / expected.sqrt()[:, None]).flatten(2)
    covariance = torch.linalg.inv(design @ design.transpose(1, 2))
    known = float((covariance[:, 3, 3].sqrt() * unit[3]).median())
    print(f"nanodiffraction, bound on the thickness: {free:.3f} nm, at a known scale {known:.3f} nm")
    assert known == pytest.approx(0.11, abs=0.005)
    assert free == pytest.approx(0.15, abs=0.005)
