"""The geometry of a scan: what its file tells against the study, what its mean frame tells, and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from fabio.edfimage import EdfImage
from scipy import constants

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.config.scan import ScanConfig
from scatterflow.errors import ConfigError, FrameError
from scatterflow.forward.nanodiffraction import intensities, kinematics
from scatterflow.ringfit import estimate_geometry
from scatterflow.scan import apparent_tilt
from scatterflow.scanfile import check_geometry
from tests.unit.test_scan import POINTS, frames, write

TOLD = {
    "monochromator/energy": (9000.0, "eV"),
    "detector/distance": (0.5, "m"),
    "detector/x_pixel_size": (55, "um"),
    "detector/two_theta": (np.radians(20), "rad"),
}


def tell(path: Path, name: str, value: float, unit: str, note: str = "") -> None:
    """Write a quantity of the instrument as NeXus has it."""
    with h5py.File(path, "a") as file:
        group = file.require_group("entry/instrument")
        if name in group:
            del group[name]
        group[name] = value
        group[name].attrs["units"] = unit
        if note:
            group[name].attrs["note"] = note


def as_told() -> tuple[NanobeamConfig, FilmConfig]:
    """Beam and film of TOLD with pixels of 2 x 2; the second order's lattice parameter is from Bragg's law."""
    beam = NanobeamConfig(energy_kev=9.0, distance_mm=500.0, pixel_mm=0.11)
    lattice = 2 * (constants.h * constants.c / constants.e) / 9000 / (2 * np.sin(np.radians(10))) * 1e9
    return beam, FilmConfig(lattice_nm=lattice, order=2)


def test_the_geometry_is_the_study_s_as_the_file_says(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", frames(), scan_shape=POINTS)
    config = ScanConfig(file=str(path), binning=2)
    names = {"energy_kev", "distance_mm", "pixel_mm", "two_theta_deg"}
    # a file that tells nothing contradicts nothing
    assert check_geometry(path, config, NanobeamConfig(), FilmConfig()) == dict.fromkeys(names, "config")
    for name, (value, unit) in TOLD.items():
        tell(path, name, value, unit)
    assert check_geometry(path, config, *as_told()) == dict.fromkeys(names, "config, as the file says")
    tell(path, "monochromator/energy", 9.0, "keV", "ASSUMED")
    origin = check_geometry(f"{path}::/entry/data/data", config, *as_told())
    assert origin["energy_kev"] == "config, as the file says: ASSUMED"
    folder = tmp_path / "edf"
    folder.mkdir()
    EdfImage(frames(1)[0]).write(str(folder / "frame.edf"))
    assert check_geometry(folder, config, NanobeamConfig(), FilmConfig()) == dict.fromkeys(names, "config")


@pytest.mark.parametrize("factor", [0.98, 0.995, 1.005, 1.02])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("energy_kev", r"beam.energy_kev of scan .* must be 9 as the file says, within 1%, got .*; set it to 9,"),
        ("distance_mm", r"beam.distance_mm of scan .* must be 500 as the file says"),
        ("pixel_mm", r"beam.pixel_mm of scan .* must be 0.11 as the file says \(0.055 mm times binning 2\)"),
        ("lattice_nm", r"\(two_theta_deg\) of beam and film of scan .* must be 20 as .* set film.lattice_nm to 0.793"),
    ],
)
def test_a_file_of_another_geometry_is_refused(tmp_path: Path, name: str, message: str, factor: float) -> None:
    """By 2 %, and not by half a percent. At another energy the peak lies elsewhere as well: the lattice goes along."""
    path = write(tmp_path / "scan.h5", frames(), scan_shape=POINTS)
    for where, (value, unit) in TOLD.items():
        tell(path, where, value, unit)
    beam, film = as_told()
    if name != "lattice_nm":
        beam = beam.model_copy(update={name: getattr(beam, name) * factor})
    if name in ("lattice_nm", "energy_kev"):
        power = 1 if name == "lattice_nm" else -1
        film = film.model_copy(update={"lattice_nm": film.lattice_nm * factor**power})
    config = ScanConfig(file=str(path), binning=2)
    if abs(factor - 1) < 0.01:
        assert set(check_geometry(path, config, beam, film).values()) == {"config, as the file says"}
        return
    with pytest.raises(ConfigError, match=message) as found:
        check_geometry(path, config, beam, film)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "value", "unit", "message"),
    [
        ("detector/distance", 0.5, "feet", r"distance_mm of scan .* must have one of the units m, .*got 'feet'"),
        ("detector/distance", -0.5, "m", r"distance_mm of scan .* must be finite and above 0, got -0.5 m"),
        ("detector/x_pixel_size", np.nan, "m", r"pixel_mm of scan .* must be finite and above 0, got nan m"),
        ("monochromator/energy", np.inf, "keV", r"energy_kev of scan .* must be finite and above 0, got inf kev"),
        ("detector/two_theta", 720.0, "deg", r"two_theta_deg of scan .* must be finite and above 0 and below 180 deg"),
    ],
)
def test_a_file_of_no_use_is_refused(tmp_path: Path, name: str, value: float, unit: str, message: str) -> None:
    path = write(tmp_path / "scan.h5", frames(), scan_shape=POINTS)
    for where, told in TOLD.items():
        tell(path, where, *told)
    tell(path, name, value, unit)
    with pytest.raises(ConfigError, match=message):
        check_geometry(path, ScanConfig(file=str(path)), *as_told())


def test_a_reflection_out_of_reach_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", frames(), scan_shape=POINTS)
    beam, film = as_told()
    with pytest.raises(ConfigError, match=r"film.lattice_nm must be above 0.1377\d* nm for order 2 at 9 keV, got 0.1"):
        check_geometry(path, ScanConfig(file=str(path)), beam, film.model_copy(update={"lattice_nm": 0.1}))


@pytest.mark.parametrize("defocus_um", [30.0, 60.0, None])
def test_a_beam_out_of_focus_is_recognised(defocus_um: float | None) -> None:
    """A point's spot lies where the ray through it meets the detector; without defocus, anywhere."""
    beam = NanobeamConfig()
    row, column = (each.ravel() for each in np.indices((12, 12)))
    x, y = 0.03 * column, 0.03 * row
    pixels = beam.distance_mm / beam.pixel_mm
    spots = np.stack([x - x.mean(), y - y.mean()], 1) * pixels / (defocus_um or np.inf) + 31.5
    if defocus_um is None:
        spots += np.random.default_rng(0).normal(0, 5, spots.shape)
    place = np.arange(64)
    profiles = np.exp(-((spots[..., None] - place) ** 2) / 8)
    counts = 100 * profiles[:, 0, :, None] * profiles[:, 1, None, :]
    scan = xr.Dataset(
        {"counts": (("point", "z", "y"), counts)},
        coords={"z": place + 0.5, "y": place + 0.5, "x_um": ("point", x), "y_um": ("point", y)},
    )
    found = apparent_tilt(scan, beam)
    assert found is not None
    if defocus_um is None:
        assert found["explained"] < 0.2
    else:
        assert found["explained"] > 0.99
        assert found["defocus_um"] == pytest.approx(defocus_um, rel=0.02)
    assert apparent_tilt(scan.drop_vars("x_um"), beam) is None
    assert apparent_tilt(scan.isel(point=slice(0, 12)), beam) is None  # one line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map_shape": (0, 3)}, "at least 1 row"),
        ({"step_um": (0.1, 0.0)}, "above 0"),
        ({"centre": (-1, 3)}, "negative"),
        ({"file": ""}, "at least 1 character"),
        ({"exit_angle": "north"}, "up"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScanConfig(**({"file": "scan.h5"} | options))


BEAM = NanobeamConfig(shape=(36, 36), pixel_mm=0.195)
TRUTH = {
    "strain": 1e-3, "omega_deg": 0.02, "chi_deg": -0.03, "film_thickness_nm": 14.0, "peak_width": 0.8,
    "outer_zone_nm": 17.0, "stop_um": 70.0,
}  # fmt: skip


def mean_frame(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """The mean of n frames of a film, and a mask with a gap."""
    beam = BEAM.model_copy(update={"outer_zone_nm": TRUTH["outer_zone_nm"], "stop_um": TRUTH["stop_um"]})
    at = kinematics(beam, FilmConfig(peak_width=TRUTH["peak_width"]), dtype=torch.float64)
    frame = intensities(at, torch.tensor([list(TRUTH.values())[:4]], dtype=torch.float64))[0].numpy()
    mask = np.ones(frame.shape, bool)
    mask[:, 20] = False
    return np.random.default_rng(seed).poisson((2 * frame / frame.max() + 0.05) * n) / n, mask


def test_geometry_is_estimated_within_its_errors() -> None:
    """All seven parameters over 6 mean frames: squares of the deviations in units of the errors, as chi-square has them."""
    pulls = []
    for seed in range(6):
        frame, mask = mean_frame(seed)
        found = estimate_geometry(frame, BEAM, FilmConfig(), mask, tuple(TRUTH), frames=200)
        assert found.misfit == pytest.approx(1, abs=0.15)
        pulls.append([(found.values[name] - truth) / found.sd[name] for name, truth in TRUTH.items()])
    chi_square = float(np.square(pulls).sum())
    assert 42 - 4 * np.sqrt(84) < chi_square < 42 + 4 * np.sqrt(84)


def test_a_frame_that_is_no_film_shows_a_misfit() -> None:
    frame, mask = mean_frame(0)
    sheared = np.stack([np.roll(row, number // 3) for number, row in enumerate(frame)])
    right, wrong = (estimate_geometry(each, BEAM, FilmConfig(), mask, tuple(TRUTH), 200) for each in (frame, sheared))
    assert wrong.misfit > 10 * right.misfit
    assert wrong.sd["chi_deg"] > right.sd["chi_deg"]


def test_what_a_frame_hardly_tells_apart_is_named() -> None:
    """A peak wider than the ring: radii and width all make the same spot."""
    at = kinematics(BEAM, FilmConfig(peak_width=6.0), dtype=torch.float64)
    frame = intensities(at, torch.tensor([[0, 0, 0, 11.7]], dtype=torch.float64))[0].numpy()
    noisy = np.random.default_rng(0).poisson(50 * frame / frame.max() + 1).astype(float)
    mask = np.ones(frame.shape, bool)
    found = estimate_geometry(noisy, BEAM, FilmConfig(peak_width=6.0), mask, ("peak_width", "outer_zone_nm", "stop_um"))
    assert found.degenerate
    assert {name for pair in found.degenerate for name in pair[:2]} <= {"peak_width", "outer_zone_nm", "stop_um"}


@pytest.mark.parametrize(
    ("free", "message"),
    [
        (("energy_kev",), "energy_kev must be told by a frame, got degenerate with outer_zone_nm"),
        (("lattice_nm",), "degenerate with strain"),
        (("colour",), "must be one of strain"),
        ((), "at least one"),
        (("strain", "strain"), "each once"),
    ],
)
def test_what_no_frame_tells_is_refused(free: tuple[str, ...], message: str) -> None:
    frame, mask = mean_frame(0)
    with pytest.raises(ConfigError, match=message):
        estimate_geometry(frame, BEAM, FilmConfig(), mask, free)


def test_mean_frames_without_use_are_refused() -> None:
    frame, mask = mean_frame(0)
    for bad, valid in ((frame[:9], mask[:9]), (frame * 0, mask), (frame * np.nan, mask), (frame, mask & False)):
        with pytest.raises(FrameError, match="mean frame must"):
            estimate_geometry(bad, BEAM, FilmConfig(), valid)
