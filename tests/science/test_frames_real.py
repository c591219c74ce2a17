"""The real frames: what is known about them must come out of the reader and the instrument files."""

from __future__ import annotations

import itertools
from pathlib import Path

import fabio
import h5py
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.instrument_file import read_instrument
from scatterflow.errors import FrameError
from scatterflow.frames import read_frame, read_frames
from scatterflow.instrument import angles, horizon_px, rows_px, scattering_vector

pytestmark = [pytest.mark.science, pytest.mark.frames]

INSTRUMENTS = Path(__file__).parents[2] / "config" / "instruments"
# Radius [pixel] of the in-plane peak in frames 5, 33 and 45, known to 1.5 %: README.md beside the frames
PEAKS_PX = {5: 202.0, 33: 195.0, 45: 192.0}
RELATIVE_ERROR = 0.015


def instrument(name: str = "p03_pilatus2m") -> InstrumentConfig:
    return read_instrument(INSTRUMENTS / f"{name}.yaml")


@pytest.fixture(scope="module")
def paths(frames_dir: Path) -> dict[int, Path]:
    return {int(path.stem[-5:]): path for path in sorted((frames_dir / "p03_pilatus2m").glob("*.cbf"))}


@pytest.fixture(scope="module")
def frames(paths: dict[int, Path]) -> dict[int, xr.Dataset]:
    return {number: read_frame(path, instrument=instrument()) for number, path in paths.items()}


def mean(frame: xr.Dataset, over: str) -> xr.DataArray:
    """Mean of the valid counts along a dimension, NaN where most pixels are masked."""
    valid = frame["mask"].sum(over)
    return (frame["counts"].sum(over) / valid.where(valid > frame.sizes[over] / 2)).dropna(*set(valid.dims))


def test_values_and_validity_are_those_of_fabio(paths: dict[int, Path]) -> None:
    bare = {number: read_frame(path) for number, path in paths.items()}
    for number, frame in bare.items():
        raw = np.flipud(fabio.open(str(paths[number])).data)
        mask = frame["mask"].values
        np.testing.assert_array_equal(frame["counts"].values[mask], raw[mask])
        assert (raw[mask] >= 0).all()
        assert not mask[(raw < 0) | (raw >= 4e6)].any()  # gaps, bad and hot pixels as README.md has them
        assert np.count_nonzero(~mask & (raw >= 0) & (raw < 4e6)) == frame.attrs["masked_hot"] < 10
        assert frame.attrs["exposure_time_s"] == 0.995
    hot = [~frame["mask"].values for frame in bare.values()]
    assert np.count_nonzero(hot[0] ^ hot[1]) < 10  # defects stay where they are, noise would not


def test_checksums_are_those_of_the_collection(frames_dir: Path, frames: dict[int, xr.Dataset]) -> None:
    lines = (frames_dir / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    expected = {Path(name).name: digest for digest, name in (line.split() for line in lines)}
    assert [frame.attrs["sha256"] for frame in frames.values()] == [expected[f.attrs["file"]] for f in frames.values()]


def test_the_correlation_peak_moves_inwards(frames: dict[int, xr.Dataset]) -> None:
    found = {}
    for number, frame in frames.items():
        yoneda = mean(frame.sel(z=slice(484, 519)), "z")
        sides = []
        for sign in (-1, 1):
            radius = sign * (yoneda["y"].values - instrument().beam_y_px)
            near = abs(radius - np.mean(list(PEAKS_PX.values()))) < 35
            square, linear, _ = np.polyfit(radius[near], yoneda.values[near], 2)
            sides.append(-linear / (2 * square))
        assert abs(sides[0] - sides[1]) < 2  # so the column of the beam is right to a pixel
        found[number] = np.mean(sides)
    assert found == pytest.approx(PEAKS_PX, rel=RELATIVE_ERROR)
    assert found[5] > found[33] > found[45]


def smooth(values: NDArray[np.float64], size: int = 5) -> NDArray[np.float64]:
    """Running mean."""
    return np.convolve(values, np.ones(size) / size, mode="valid")


def test_horizon_and_yoneda_line_fit_the_default_geometry(frames: dict[int, xr.Dataset]) -> None:
    seen, other = {}, instrument("p03_pilatus2m_3230mm")
    for number, frame in frames.items():
        rows = mean(frame.sel(y=slice(700, 760), z=slice(420, 560)), "y")
        profile, z = smooth(rows.values), rows["z"].values[2:-2]
        below = np.median(profile[z < 455])  # transmitted and parasitic scattering only
        onset = z[np.argmax(profile > below + 0.05 * (profile.max() - below))]
        seen[number] = (onset - instrument().beam_z_px, z[np.argmax(profile)])
    for onset, yoneda in seen.values():
        assert onset == pytest.approx(108, abs=3)  # README.md; the computed one differs by the uncertainty of 0.40 deg
        assert abs(onset - (horizon_px(instrument()) - instrument().beam_z_px)) < 6
        assert abs(onset - (horizon_px(other) - other.beam_z_px)) > 20
        alpha, phi = angles(instrument(), np.array(yoneda), np.array(instrument().beam_y_px))
        assert scattering_vector(instrument(), alpha, phi)[2] == pytest.approx(0.57, abs=0.03)


def test_the_stop_on_the_specular_beam_stands_at_the_specular_row(paths: dict[int, Path]) -> None:
    config = instrument()
    specular = float(rows_px(config, np.radians(config.incidence_deg)))
    assert specular - config.beam_z_px == pytest.approx(205, abs=5)
    frame = read_frame(paths[5])
    shadow = mean(frame.sel(y=slice(800, 815), z=slice(540, 618)), "y")
    dark = shadow["z"].values[shadow.values < shadow.values.max() / 10]
    assert dark.min() < specular < dark.max()
    masked = read_frame(paths[5], instrument=config)["mask"]
    assert not masked.sel(z=slice(dark.min(), dark.max()), y=slice(800, 815)).any()


def test_outside_the_aperture_nothing_is_valid(frames: dict[int, xr.Dataset]) -> None:
    z, y = np.meshgrid(frames[5]["z"], frames[5]["y"], indexing="ij")
    outside = np.hypot(z - (1679 - 1170), y - 800) > 660
    for frame in frames.values():
        assert not frame["mask"].values[outside].any()
        assert frame["mask"].values[~outside].mean() > 0.5


def test_a_truncated_frame_is_refused(paths: dict[int, Path], tmp_path: Path) -> None:
    whole = paths[5].read_bytes()
    for size in (600, 1200, 5000, len(whole) // 2, len(whole) - 6000):
        (tmp_path / "cut.cbf").write_bytes(whole[:size])
        with pytest.raises(FrameError, match="cut off"):
            read_frame(tmp_path / "cut.cbf")


def test_frames_of_another_detector_are_refused(frames_dir: Path) -> None:
    with pytest.raises(
        FrameError, match="must have the 1679 rows x 1475 columns of its instrument, got 516 rows x 516"
    ):
        read_frame(frames_dir / "sxdm_26idc" / "scan294.h5", 0, instrument())


def test_a_scan_of_diffraction_frames(frames_dir: Path) -> None:
    path = frames_dir / "sxdm_26idc" / "scan294.h5"
    with h5py.File(path) as file:
        raw = file["/entry/data/data"][:5]
    for (name, frame), values in zip(itertools.islice(read_frames(path), 5), raw, strict=True):
        assert name.startswith(f"{path}::/entry/data/data[")
        assert isinstance(frame, xr.Dataset)
        mask = frame["mask"].values
        np.testing.assert_array_equal(frame["counts"].values[mask], np.flipud(values)[mask])
        assert frame.attrs["masked_hot"] == np.count_nonzero(~mask) == 2  # the same two pixels in every frame
        assert frame.attrs["exposure_time_s"] == 1.0
