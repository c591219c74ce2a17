"""The separable forward model of nanodiffraction against the published sum over all ring points."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.forward.nanodiffraction import NODES, intensities, kinematics

pytestmark = pytest.mark.science
BEAM, FILM = NanobeamConfig(), FilmConfig()
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
