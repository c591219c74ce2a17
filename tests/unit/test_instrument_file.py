"""Instrument files against pyFAI's geometry, written here from its documentation with scipy's rotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.instrument_file import MAX_DISPLACEMENT_PX, REQUIRED, read_instrument
from scatterflow.errors import ConfigError, FrameError
from scatterflow.instrument import angles, horizon_px

ROWS, COLUMNS, PIXEL_M = 1679, 1475, 172e-6  # Pilatus 2M
PONI = {
    "poni_version": 2.1,
    "Detector": "Pilatus2M",
    "Detector_config": json.dumps({"pixel1": PIXEL_M, "pixel2": PIXEL_M, "orientation": 3}),
    "Distance": 2.565,
    "Poni1": 1311 * PIXEL_M,
    "Poni2": 791.5 * PIXEL_M,
    "Rot1": 0.0,
    "Rot2": 0.0,
    "Rot3": 0.0,
    "Wavelength": 1.033e-10,
}
YAML = {
    "wavelength_nm": 0.1033,
    "incidence_deg": 0.4,
    "distance_mm": 2565.0,
    "pixel_mm": 0.172,
    "shape": [ROWS, COLUMNS],
    "beam": "direct",
    "beam_z_px": 368.0,
    "beam_y_px": 791.5,
}


def write_poni(folder: Path, changes: dict[str, Any] | None = None, name: str = "calibration.poni") -> Path:
    entries = {key: value for key, value in (PONI | (changes or {})).items() if value is not None}
    path = folder / name
    path.write_text("# Nota: C-Order, 1 refers to the Y axis, 2 to the X axis\n"
                    + "".join(f"{key}: {value}\n" for key, value in entries.items()))  # fmt: skip
    return path


def write_yaml(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    path = folder / "instrument.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in (YAML | (changes or {})).items() if value is not None})
    )
    return path


def two_theta_of_pyfai(entries: dict[str, Any], row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Scattering angle [rad] of pixel centres, indices as in the file: the formulae of pyFAI's documentation.

    Axes: 1 along the rows' index, 2 along the columns', 3 along the beam. rot1 and rot2 turn left-handed, rot3
    right-handed. Orientations 1, 2 count the rows, 1, 4 the columns from the other end.
    """
    orientation = json.loads(entries["Detector_config"])["orientation"]
    row = ROWS - 1 - row if orientation in (1, 2) else row
    column = COLUMNS - 1 - column if orientation in (1, 4) else column
    x1 = (row + 0.5) * PIXEL_M - entries["Poni1"]
    x2 = (column + 0.5) * PIXEL_M - entries["Poni2"]
    vectors = np.stack([x1, x2, np.full_like(x1, entries["Distance"])], axis=-1)
    turned = Rotation.from_euler("xyz", [-entries["Rot1"], -entries["Rot2"], entries["Rot3"]]).apply(vectors)
    return np.arctan2(np.hypot(turned[:, 0], turned[:, 1]), turned[:, 2])


def two_theta_of_ours(config: InstrumentConfig, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Angle [rad] between the direct beam and the pixel centres; row 0 of the file is the topmost."""
    alpha, phi = angles(config, config.shape[0] - (row + 0.5), column + 0.5)
    incidence = np.radians(config.incidence_deg)
    outgoing = np.stack([np.cos(alpha) * np.cos(phi), np.cos(alpha) * np.sin(phi), np.sin(alpha)])
    incoming = np.array([np.cos(incidence), 0.0, -np.sin(incidence)])[:, None]
    return np.arctan2(np.linalg.norm(np.cross(outgoing, incoming, axis=0), axis=0), (outgoing * incoming).sum(axis=0))


PIXELS = (np.linspace(0, ROWS - 1, 7).repeat(5), np.tile(np.linspace(0, COLUMNS - 1, 5), 7))


@given(
    distance=st.floats(0.5, 10),
    row=st.floats(600, 1400),
    column=st.floats(-500, 2500),
    orientation=st.sampled_from([1, 2, 3, 4]),
    incidence=st.floats(0.05, 0.6),
)
def test_upright_detector_has_the_angles_of_pyfai(
    tmp_path_factory: pytest.TempPathFactory,
    distance: float,
    row: float,
    column: float,
    orientation: int,
    incidence: float,
) -> None:
    config = json.dumps({"pixel1": PIXEL_M, "pixel2": PIXEL_M, "orientation": orientation})
    from_end = orientation in (1, 2)
    entries = PONI | {
        "Distance": distance,
        "Poni1": (ROWS - row if from_end else row) * PIXEL_M,
        "Poni2": column * PIXEL_M,
        "Detector_config": config,
    }
    instrument = read_instrument(write_poni(tmp_path_factory.mktemp("poni"), entries), incidence)
    expected = two_theta_of_pyfai(entries, *PIXELS)
    np.testing.assert_allclose(two_theta_of_ours(instrument, *PIXELS), expected, rtol=0, atol=1e-9)


@given(
    rotations=st.tuples(st.floats(-0.01, 0.01), st.floats(-0.01, 0.01), st.floats(-1e-3, 1e-3)),
    orientation=st.sampled_from([1, 2, 3, 4]),
)
def test_tilted_detector_is_within_a_pixel_of_pyfai_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rotations: tuple[float, float, float], orientation: int
) -> None:
    entries = PONI | dict(zip(("Rot1", "Rot2", "Rot3"), rotations, strict=True))
    entries["Poni1"] = ROWS / 2 * PIXEL_M
    entries["Detector_config"] = json.dumps({"pixel1": PIXEL_M, "pixel2": PIXEL_M, "orientation": orientation})
    path = write_poni(tmp_path_factory.mktemp("poni"), entries)
    expected = two_theta_of_pyfai(entries, *PIXELS)
    try:
        instrument = read_instrument(path, 0.4)
    except ConfigError:
        return  # refused, which the tests below look at
    error_px = np.abs(two_theta_of_ours(instrument, *PIXELS) - expected) * entries["Distance"] / PIXEL_M
    assert error_px.max() < 1.5 * MAX_DISPLACEMENT_PX  # displaced by up to one pixel in each direction


@pytest.mark.parametrize("tilt", [{"Rot1": 2e-3}, {"Rot2": -2e-3}, {"Rot3": 3e-4}])
def test_rotations_as_calibrations_find_them_are_accepted(tmp_path: Path, tilt: dict[str, float]) -> None:
    assert read_instrument(write_poni(tmp_path, tilt), 0.4).normal == "direct"


def test_direct_beam_of_a_tilted_detector_has_no_scattering_angle(tmp_path: Path) -> None:
    entries = PONI | {"Rot1": 0.001, "Rot2": -0.002}
    instrument = read_instrument(write_poni(tmp_path, entries), 0.4)
    row, column = ROWS - instrument.beam_z_px - 0.5, instrument.beam_y_px - 0.5
    assert two_theta_of_pyfai(entries, np.array([row]), np.array([column]))[0] < 1e-12


@pytest.mark.parametrize("rotation", [{"Rot1": 0.2}, {"Rot2": -0.2}, {"Rot3": 0.1}, {"Rot3": np.pi / 2}])
def test_large_rotations_are_refused_with_the_displacement(tmp_path: Path, rotation: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"rotations in .* must displace no pixel .* got [\d.]+ pixels; resample"):
        read_instrument(write_poni(tmp_path, rotation), 0.4)


def test_detector_that_the_beam_does_not_meet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="direct beam meets"):
        read_instrument(write_poni(tmp_path, {"Rot1": 3.0}), 0.4)


def test_the_three_formats_agree(tmp_path: Path) -> None:
    newest = read_instrument(write_poni(tmp_path), 0.4)
    config = {"pixel1": PIXEL_M, "pixel2": PIXEL_M}
    second = {"poni_version": 2, "Detector_config": json.dumps(config)}
    first = {"poni_version": None, "Detector_config": None}
    generic = {"Detector": "Detector", "Detector_config": json.dumps(config | {"max_shape": [ROWS, COLUMNS]})}
    for changes in (second, first, first | {"PixelSize1": PIXEL_M, "PixelSize2": PIXEL_M}, generic):
        assert read_instrument(write_poni(tmp_path, changes), 0.4) == newest


def test_poni_and_yaml_of_one_instrument_agree(tmp_path: Path) -> None:
    ours = read_instrument(write_yaml(tmp_path)).model_dump()
    theirs = read_instrument(write_poni(tmp_path), 0.4).model_dump()
    for name, value in theirs.items():
        assert ours[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_the_last_calibration_of_a_file_counts(tmp_path: Path) -> None:
    path = write_poni(tmp_path)
    with path.open("a") as file:
        file.write("# Calibration done on Monday\nDistance: 3.0\n")
    assert read_instrument(path, 0.4).distance_mm == pytest.approx(3000.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Distance": None}, "distance .* is missing"),
        ({"Poni1": "far"}, "poni1 .* must be a number, got 'far'"),
        ({"Rot2": "nan"}, "rot2 .* must be a number"),
        ({"Wavelength": None}, "wavelength .* is missing"),
        ({"Wavelength": -1e-10}, "wavelength_nm"),
        ({"Distance": -1.0}, "direct beam meets"),
        ({"poni_version": 3}, "poni_version .* must be 1, 2 or 2.1"),
        ({"Detector": "Xpad_flat"}, "detector .* must be a known one"),
        ({"Detector": "Detector"}, "shape of the detector .* must be known"),
        ({"Detector": "Detector", "Detector_config": '{"max_shape": [true, 2]}'}, "shape"),
        ({"Detector_config": "{"}, "must be a JSON object"),
        ({"Detector_config": "[1]"}, "must be a JSON object"),
        ({"Detector_config": '{"pixel1": 1e-4, "pixel2": 2e-4}'}, "pixels .* must be square"),
        ({"Detector_config": '{"pixel1": 1e-4}'}, "pixelsize2 .* is missing"),
        ({"Detector_config": '{"orientation": 6}'}, "orientation .* must be 1 to 4"),
        ({"Detector_config": None, "poni_version": None, "SplineFile": "a.spline"}, "splinefile .* must be none"),
    ],
)
def test_what_is_wrong_with_a_poni_file_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_instrument(write_poni(tmp_path, changes), 0.4)


def test_poni_needs_the_incidence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --incidence-deg"):
        read_instrument(write_poni(tmp_path))


def test_incidence_given_replaces_that_of_the_file(tmp_path: Path) -> None:
    assert read_instrument(write_yaml(tmp_path)).incidence_deg == YAML["incidence_deg"]
    assert read_instrument(write_yaml(tmp_path), 0.2).incidence_deg == 0.2
    with pytest.raises(ConfigError, match="incidence_deg"):
        read_instrument(write_yaml(tmp_path), -0.2)


def test_real_detectors_are_flat_and_perpendicular_to_the_beam_unless_said(tmp_path: Path) -> None:
    config = read_instrument(write_yaml(tmp_path))
    assert (config.geometry, config.normal, config.views) == ("flat", "direct", {})
    assert read_instrument(write_yaml(tmp_path, {"normal": "surface"})).normal == "surface"


@pytest.mark.parametrize("name", REQUIRED)
def test_an_instrument_file_has_no_default_geometry(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"option {name} in .* is missing"):
        read_instrument(write_yaml(tmp_path, {name: None}))


def test_misspelt_option_of_an_instrument_file_names_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"saturatoin .* is unknown; did you mean 'saturation'"):
        read_instrument(write_yaml(tmp_path, {"saturatoin": 1e6}))


@pytest.mark.parametrize("beam_z_px", [-200.0, 1700.0])
def test_horizon_outside_the_frame_is_named(tmp_path: Path, beam_z_px: float) -> None:
    with pytest.raises(FrameError, match=r"horizon of .* must lie on the frame, between rows 0 and 1679") as caught:
        read_instrument(write_yaml(tmp_path, {"beam_z_px": beam_z_px}))
    assert caught.value.status == "wrong-instrument"
    shown = float(str(caught.value).split("got ")[1].split(";")[0])
    config = InstrumentConfig.model_validate(YAML | {"beam_z_px": beam_z_px, "geometry": "flat", "normal": "direct"})
    assert shown == pytest.approx(horizon_px(config), abs=0.06)


def test_beam_that_counts_from_the_top_is_caught(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="counts upwards"):
        read_instrument(write_poni(tmp_path, {"Poni1": 40 * PIXEL_M}), 0.4)


@pytest.mark.parametrize("name", ["instrument.yaml", "instrument.poni"])
@pytest.mark.parametrize("content", [b"", b"\x00\x01\xff\xfe", b"just text", b"- 1\n- 2\n", b"a: [1,"])
def test_files_that_are_no_instrument_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_instrument(path, 0.4)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["missing.yaml", "missing.poni"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"instrument file .* must exist"):
        read_instrument(tmp_path / name, 0.4)
