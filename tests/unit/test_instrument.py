"""Pixels to angles to q, against vector geometry written out here, and the views."""

import numpy as np
import pytest
from pydantic import ValidationError

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import ConfigError
from tests.examples import instrument

PAPER = InstrumentConfig()


def test_the_papers_numbers() -> None:
    """The specular pixel reflects at the incidence angle, and row 464 lies at qz > 0.99 (physics of table 2)."""
    alpha, phi = geometry.angles(PAPER, np.array(413.0), np.array(215.0))
    assert np.degrees(alpha) == pytest.approx(0.64, abs=1e-12)
    assert phi == 0
    qx, qy, qz = geometry.scattering_vector(PAPER, alpha, phi)
    assert qz == pytest.approx(4 * np.pi / 0.14073 * np.sin(np.radians(0.64)))
    assert (qx, qy) == (pytest.approx(0, abs=1e-12), 0)
    assert geometry.horizon_px(PAPER) == pytest.approx(413 - 1277 / 0.05 * np.tan(np.radians(0.64)))


@pytest.mark.parametrize("normal", ["surface", "direct", "reflected"])
@pytest.mark.parametrize("beam", ["specular", "direct"])
def test_flat_detector_is_vector_geometry(normal: str, beam: str) -> None:
    """Rotate a plane in the laboratory and look from the sample: the angles must be those of the pixel's position."""
    config = instrument(geometry="flat", normal=normal, beam=beam)
    incidence = np.radians(config.incidence_deg)
    tilt = {"surface": 0.0, "direct": -incidence, "reflected": incidence}[normal]
    n = np.array([np.cos(tilt), 0, np.sin(tilt)])
    up = np.array([-np.sin(tilt), 0, np.cos(tilt)])
    foot_z, foot_y = geometry.foot_px(config)
    z, y = np.array([3.5, 30.0, 59.5]), np.array([0.5, 20.0, 33.25])
    position = (
        config.distance_mm * n
        + (z[:, None, None] - foot_z) * config.pixel_mm * up
        + (y[None, :, None] - foot_y) * config.pixel_mm * np.array([0, 1, 0])
    )
    alpha, phi = geometry.angles(config, z[:, None], y[None, :])
    direction = position / np.linalg.norm(position, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.sin(alpha), direction[..., 2], atol=1e-14)
    np.testing.assert_allclose(np.tan(phi), direction[..., 1] / direction[..., 0], atol=1e-14)
    # the configured beam is where it was said to be
    at_beam, _ = geometry.angles(config, np.array(config.beam_z_px), np.array(config.beam_y_px))
    assert at_beam == pytest.approx(incidence if beam == "specular" else -incidence, abs=1e-14)
    # and the scattering vector is elastic
    k = 2 * np.pi / config.wavelength_nm
    q = np.stack(geometry.scattering_vector(config, alpha, phi), axis=-1)
    ki = k * np.array([np.cos(incidence), 0, -np.sin(incidence)])
    np.testing.assert_allclose(np.linalg.norm(q + ki, axis=-1), k)


@pytest.mark.parametrize("normal", ["surface", "direct", "reflected"])
def test_rows_and_columns_invert_the_angles(normal: str) -> None:
    config = instrument(geometry="flat", normal=normal)
    z = np.linspace(1, 59, 7)
    alpha, _ = geometry.angles(config, z, np.array(config.beam_y_px))
    np.testing.assert_allclose(geometry.rows_px(config, alpha), z)
    beam_row = geometry.rows_px(config, np.radians(config.incidence_deg))
    y = np.linspace(1, 39, 7)
    _, phi = geometry.angles(config, beam_row, y)
    np.testing.assert_allclose(geometry.columns_px(config, phi), y)


def test_bornagain_and_flat_geometry_agree_near_the_axis() -> None:
    for z, y, tolerance in ((413.0, 215.0, 1e-15), (1000.0, 500.0, 1e-5)):
        a, _ = geometry.angles(PAPER, np.array(z), np.array(y))
        b, _ = geometry.angles(PAPER.model_copy(update={"geometry": "flat"}), np.array(z), np.array(y))
        assert abs(a - b) <= tolerance


def test_binning_sums_every_count_once() -> None:
    config = instrument()
    frame = np.random.default_rng(0).poisson(50, config.shape).astype(float)
    np.testing.assert_array_equal(geometry.bin_counts(frame, config, "full"), frame)
    image = geometry.bin_counts(frame, config, "image")
    np.testing.assert_allclose(image, frame[:, 4:36].reshape(30, 2, 8, 4).sum(axis=(1, 3)))
    profile = geometry.bin_counts(frame, config, "profile")
    rows = np.r_[20:24, 28:50]
    np.testing.assert_allclose(profile[:, 0], frame[rows, 16:24].sum(axis=1))


def test_fractional_bins_share_pixels_by_area() -> None:
    weights = geometry.overlap(np.array([[0.5, 2.25], [2.25, 4.0]]), 4)
    np.testing.assert_allclose(weights, [[0.5, 1, 0.25, 0], [0, 0, 0.75, 1]])


def test_valid_share_counts_masked_pixels() -> None:
    config = instrument(masked=({"z": (0, 1), "y": (4, 8)},))
    share = geometry.valid_share(config, "image")
    assert share[0, 0] == 0.5
    assert share.sum() == 30 * 8 - 0.5


def test_q_map_has_units_and_ascends() -> None:
    q = geometry.q_map(instrument(), "image")
    assert q["qz"].dims == ("z_image", "y_image")
    assert q["qz"].attrs["units"] == "nm^-1"
    assert (np.diff(q["qz"].values, axis=0) > 0).all()
    assert (np.diff(q["qy"].values, axis=1) > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": "bornagain", "normal": "reflected"}, "knows only normal: surface"),
        ({"views": {"full": {"rows": ((0, 5),), "columns": (0, 5), "bins": (5, 5)}}}, "choose another name"),
        ({"views": {"a": {"rows": ((0, 61),), "columns": (0, 5), "bins": (61, 5)}}}, "must lie on the detector"),
        ({"views": {"a": {"rows": ((0, 10),), "columns": (0, 5), "bins": (3, 5)}}}, "must divide"),
        ({"views": {"a": {"rows": ((5, 0),), "columns": (0, 5), "bins": (5, 5)}}}, "lower pixel first"),
        ({"views": {"a": {"rows": ((0, 5), (3, 8)), "columns": (0, 5), "bins": (10, 5)}}}, "without overlap"),
        ({"views": {"a": {"rows": ((0, 5),), "columns": (0, 5), "bins": (5, 6)}}}, "must not exceed"),
        ({"views": {"a": {"rows": ((0, 5),), "columns": (0, 5), "bins": (5, 5), "sampling": (1, "gauss3")}}}, "gauss3"),
        ({"masked": ({"z": (0, 61), "y": (0, 1)},)}, "masked rectangle"),
        ({"wavelength_nm": 0.0}, "greater than 0"),
        ({"incidence_deg": 90.0}, "less than 90"),
    ],
)
def test_impossible_instruments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        instrument(**options)


def test_unknown_view_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"full.*profile.*image"):
        geometry.view(instrument(), "imag")
