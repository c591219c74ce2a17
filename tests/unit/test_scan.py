"""From the file of a scan to cut and binned frames: what is kept, what is masked, what is refused."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from fabio.edfimage import EdfImage
from fabio.tifimage import TifImage
from hypothesis import given, settings
from hypothesis import strategies as st

from scatterflow.config.scan import ExitAngle, ScanConfig
from scatterflow.errors import ConfigError, FrameError
from scatterflow.preprocess.bragg import bin_mask, bin_sums, centroid, defects, find_peak, module_gaps
from scatterflow.scan import OVERVIEW, map_coordinates, overview, read_scan, turned

SHAPE, POINTS = (60, 52), (3, 4)
PEAK = (33, 20)  # row and column as stored
CUT = (12, 10)


def frames(points: int = 12, seed: int = 0, peak: tuple[int, int] = PEAK) -> np.ndarray:
    """Counts (frame, row, column): a peak 5 pixels wide that moves a little, on a background of 0.5."""
    rows, columns = np.indices(SHAPE)
    shift = np.linspace(-1, 1, points)[:, None, None]
    blob = np.exp(-((rows - peak[0] - shift) ** 2 + (columns - peak[1]) ** 2) / (2 * 2.5**2))
    return np.random.default_rng(seed).poisson(20 * blob + 0.5).astype(np.uint16)


def write(path: Path, values: np.ndarray, **attrs: Any) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("/entry/data/data", data=values)
        data.parent.attrs.update(attrs)
    return path


def read(path: Path, **options: Any) -> xr.Dataset:
    shape = options.pop("shape", CUT)
    return read_scan(path, ScanConfig(file=str(path), **({"map_shape": POINTS} | options)), shape)


@pytest.mark.parametrize("binning", [1, 2, 3])
def test_frames_are_cut_and_summed(tmp_path: Path, binning: int) -> None:
    values = frames()
    scan = read(write(tmp_path / "scan.h5", values), centre=PEAK, binning=binning, gaps=False)
    rows, columns = (slice(n, m + 1) for n, m in (scan.attrs["roi_rows"], scan.attrs["roi_columns"]))
    assert PEAK[0] - rows.start in (6 * binning - 1, 6 * binning)
    cut = xr.DataArray(values[:, rows, columns][:, ::-1], dims=("point", "z", "y"))
    expected = cut.coarsen(z=binning, y=binning).sum()
    assert scan["mask"].all()
    np.testing.assert_array_equal(scan["counts"], expected)
    assert scan["counts"].dtype == np.float32
    assert scan["counts"].sum() == values[:, rows, columns].sum()
    np.testing.assert_allclose(scan["overview"], values.mean(0)[::-1], rtol=1e-6)
    np.testing.assert_array_equal(scan["row"] * POINTS[1] + scan["column"], np.arange(12))
    assert set(scan["status"].values) == {"ok"}
    assert scan.attrs["frames_ok"] == 12


@pytest.mark.parametrize(("exit_angle", "turns"), [("up", 0), ("right", -1), ("down", -2), ("left", -3)])
def test_turned_frames_give_the_same_counts(tmp_path: Path, exit_angle: str, turns: int) -> None:
    values = frames()
    upright = read(write(tmp_path / "up.h5", values))
    turned = read(write(tmp_path / "turned.h5", np.rot90(values, turns, axes=(1, 2))), exit_angle=exit_angle)
    np.testing.assert_array_equal(turned["counts"], upright["counts"])
    np.testing.assert_array_equal(turned["overview"], upright["overview"])
    centre = (np.mean(turned.attrs["roi_rows"]), np.mean(turned.attrs["roi_columns"]))
    marked = np.zeros(SHAPE, bool)
    marked[PEAK] = True
    np.testing.assert_allclose(centre, np.argwhere(np.rot90(marked, turns))[0], atol=2)
    given_ = tuple(int(n) for n in centre)
    again = read(tmp_path / "turned.h5", exit_angle=exit_angle, centre=given_)
    assert again.attrs["roi_found"] == "given"
    assert abs(np.mean(again.attrs["roi_rows"]) - given_[0]) <= 0.5


@pytest.mark.parametrize("exit_angle", ["up", "down", "left", "right"])
def test_z_ascends_with_the_exit_angle(tmp_path: Path, exit_angle: str) -> None:
    """Moving the peak towards the exit angle's side raises its row."""
    step = {"up": (-3, 0), "down": (3, 0), "left": (0, -3), "right": (0, 3)}[exit_angle]
    values = np.concatenate([frames(1), frames(1, peak=(PEAK[0] + step[0], PEAK[1] + step[1]))])
    scan = read(write(tmp_path / "scan.h5", values), exit_angle=exit_angle, centre=PEAK, map_shape=(1, 2), binning=1)
    rows = (scan["counts"] * scan["z"]).sum(("z", "y")) / scan["counts"].sum(("z", "y"))
    assert float(rows[1] - rows[0]) > 1


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 50), st.integers(8, 40), st.integers(0, 99))
def test_the_peak_is_found_wherever_it_is(row: int, column: int, seed: int) -> None:
    total = frames(6, seed, (row, column)).sum(0).astype(float)
    peak = find_peak(total, np.ones(SHAPE, bool), (16, 14))
    assert peak is not None
    assert peak.z + 2 <= row < peak.z + 14
    assert peak.y + 2 <= column < peak.y + 12
    assert peak.fraction > 0.9


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_binning_preserves_sums_and_masks_whole_pixels(binning: int, rows: int, columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 1000, (2, rows * binning, columns * binning))
    valid = generator.random(values.shape[1:]) > 0.1
    assert bin_sums(values, binning).sum() == values.sum()
    assert bin_mask(valid, binning).sum() * binning**2 <= valid.sum()
    assert (bin_sums(valid[None], binning)[0] == binning**2)[bin_mask(valid, binning)].all()


def test_defects_and_gaps_are_masked(tmp_path: Path) -> None:
    values = frames(48)
    values[:, :, 24:27] = np.random.default_rng(1).poisson(0.1, values[:, :, 24:27].shape)  # a gap beside the peak
    values[:, 30, 18] = 500  # hot
    values[:, 36, 22] = 0  # dead, in the peak
    total, valid = values.sum(0).astype(float), np.ones(SHAPE, bool)
    hot, dead = defects(total, valid, 5.0)
    assert np.argwhere(hot).tolist() == [[30, 18]]
    assert [36, 22] in np.argwhere(dead).tolist()
    gaps = module_gaps(total, valid & ~hot)
    assert np.flatnonzero(gaps.any(0)).tolist() == [24, 25, 26]
    assert not module_gaps(frames(48).sum(0).astype(float), valid).any()  # the flank of a peak is no gap
    scan = read(write(tmp_path / "scan.h5", values), map_shape=(6, 8), binning=1, shape=(20, 16), centre=PEAK)
    masked = np.zeros(SHAPE, bool)
    masked[:, 24:27] = masked[30, 18] = masked[36, 22] = True
    rows, columns = (slice(n, m + 1) for n, m in (scan.attrs["roi_rows"], scan.attrs["roi_columns"]))
    np.testing.assert_array_equal(scan["mask"], ~masked[rows, columns][::-1])
    assert not scan["counts"].where(~scan["mask"], 0).any()
    assert (scan.attrs["masked_hot"], scan.attrs["masked_dead"]) == (1, 1)
    assert scan.attrs["masked_gap"] == 3 * 20


def test_status_of_every_frame(tmp_path: Path) -> None:
    values = frames()
    values[3] = 0
    values[5, PEAK[0], PEAK[1]] = 65535
    values[7, 2, 2] = 65535  # outside the cut
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        data = file.create_dataset("entry/data/data", values.shape, values.dtype, chunks=(1, *SHAPE))
        for index in set(range(12)) - {9}:  # a frame that was never written
            data[index] = values[index]
    scan = read(tmp_path / "scan.h5")
    expected = np.full(12, "ok", dtype="U10")
    expected[[3, 5, 9]] = "empty", "saturated", "unreadable"
    np.testing.assert_array_equal(scan["status"], expected)
    assert not scan["counts"][[3, 9]].any()
    assert "frame 9" in scan.attrs["reasons"]
    assert scan["mask"].all()  # one saturated frame does not mask the pixel for all
    assert scan.attrs["frames_unreadable"] == 1
    lower = read(tmp_path / "scan.h5", saturation=20)
    assert (lower["status"] == "saturated").sum() > 3


def test_pixels_that_measure_nothing_are_masked(tmp_path: Path) -> None:
    """Gaps as -1, pixels that are not finite or always at the limit, and those of a mask file; the frames stay ok."""
    values = frames().astype(np.float32)
    values[:, 30, 15] = -1
    values[2, 31, 16] = np.nan
    values[:, 32, 17] = 1000
    mask = np.zeros(SHAPE, np.uint8)
    mask[34, 24] = 1
    write(tmp_path / "mask.h5", mask)
    options = {"mask_file": str(tmp_path / "mask.h5"), "saturation": 1000, "binning": 1, "centre": PEAK}
    scan = read(write(tmp_path / "scan.h5", values), shape=(20, 16), **options)
    rows, columns = scan.attrs["roi_rows"], scan.attrs["roi_columns"]
    masked = [(rows[1] - z, columns[0] + y) for z, y in np.argwhere(~scan["mask"].values).tolist()]
    assert sorted(masked) == [(30, 15), (31, 16), (32, 17), (34, 24)]
    assert [scan.attrs[f"masked_{cause}"] for cause in ("invalid", "stuck", "file", "hot")] == [2, 1, 1, 0]
    assert (scan["status"] == "ok").all()
    assert np.isfinite(scan["counts"]).all()
    assert np.isfinite(scan["overview"]).all()


def test_stacks_of_every_format_and_folders_agree(tmp_path: Path) -> None:
    values = frames()
    expected = read(write(tmp_path / "scan.h5", values))
    stack = EdfImage(values[0])
    for image in values[1:]:
        stack.append_frame(data=image)
    stack.write(str(tmp_path / "scan.edf"))
    for name, kind in (("edf", EdfImage), ("tif", TifImage)):
        (tmp_path / name).mkdir()
        for number, image in enumerate(values):  # their numbers do not sort as text
            kind(image).write(str(tmp_path / name / f"frame_{number}.{name}"))
    (tmp_path / "edf" / "notes.txt").write_text("no frame")
    write(tmp_path / "map.h5", values.reshape(*POINTS, *SHAPE))
    for path, shape in (("scan.edf", POINTS), ("edf", POINTS), ("tif", POINTS), ("map.h5", None)):
        scan = read(tmp_path / path, map_shape=shape)
        xr.testing.assert_equal(scan, expected)
        assert scan.attrs["sha256"] == expected.attrs["sha256"]


def test_a_broken_file_of_a_folder_is_one_unreadable_frame(tmp_path: Path) -> None:
    for number, image in enumerate(frames()):
        EdfImage(image).write(str(tmp_path / f"frame_{number:02}.edf"))
    whole = (tmp_path / "frame_04.edf").read_bytes()
    (tmp_path / "frame_04.edf").write_bytes(whole[: len(whole) // 2])
    EdfImage(frames(1)[0][:30]).write(str(tmp_path / "frame_06.edf"))  # of another detector
    scan = read(tmp_path)
    assert np.flatnonzero(scan["status"] == "unreadable").tolist() == [4, 6]


def test_the_map_is_from_the_file_or_the_config(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", frames(), scan_shape=POINTS)
    with h5py.File(path, "a") as file:
        for name, values, unit in (("x", np.arange(4) * 2.0, "nm"), ("y", [5, 6, 7], "mm")):
            file[f"entry/sample/{name}"] = values
            file[f"entry/sample/{name}"].attrs["units"] = unit
    scan = read(path, map_shape=None)
    assert scan.attrs["map_shape"] == list(POINTS)
    np.testing.assert_allclose(scan["x_um"], np.tile([0, 2e-3, 4e-3, 6e-3], 3))
    np.testing.assert_allclose(scan["y_um"], np.repeat([5e3, 6e3, 7e3], 4))
    coords = map_coordinates(scan)
    np.testing.assert_allclose(coords["y_um"][1], [5e3, 6e3, 7e3])
    stepped = read(path, map_shape=(4, 3), step_um=(0.5, 0.1))
    np.testing.assert_allclose(map_coordinates(stepped)["x_um"][1], [0, 0.1, 0.2])
    assert "x_um" not in read(write(tmp_path / "bare.h5", frames())).coords


def test_one_of_several_datasets_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", frames())
    with h5py.File(path, "a") as file:
        file["entry/other/data"] = frames()[:, :30]
    with pytest.raises(FrameError, match="must name its dataset, got 2 candidates"):
        read(path)
    named = read(path, dataset="/entry/data/data")
    xr.testing.assert_identical(named["counts"], read(Path(f"{path}::/entry/data/data"))["counts"])


def test_bad_scans_are_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", frames())
    rng = np.random.default_rng(0)
    cases: list[tuple[Path, dict[str, Any], type[Exception], str]] = [
        (path, {"map_shape": None}, ConfigError, "must be given, got neither config nor file tell it; set map_shape"),
        (
            path,
            {"map_shape": (4, 4)},
            FrameError,
            "must hold 4 x 4 = 16 frames, got 12; .* the 4 frames that are missing",
        ),
        (path, {"map_shape": (2, 3)}, FrameError, "must hold 2 x 3 = 6 frames, got 12; correct map_shape"),
        (path, {"shape": (64, 64)}, ConfigError, "must fit into the frames of 60 x 52 pixels"),
        (path, {"centre": (2, 20)}, ConfigError, "must leave room for 24 x 20 pixels"),
        (path, {"centre": (99, 99)}, ConfigError, "must leave room"),
        (path, {"mask_file": str(path)}, ConfigError, "must hold one image, got 12 of them"),
        (write(tmp_path / "dark.h5", frames() * 0), {}, FrameError, "must hold counts, got zero in every frame"),
        (write(tmp_path / "flat.h5", rng.poisson(3.0, (12, *SHAPE))), {}, FrameError, "must show a Bragg peak"),
        (write(tmp_path / "gone.h5", -np.ones((12, *SHAPE))), {}, FrameError, "must have a valid pixel"),
        (tmp_path / "no.h5", {}, FrameError, "must exist"),
    ]
    (tmp_path / "empty").mkdir()
    cases.append((tmp_path / "empty", {}, FrameError, "must hold frames, got a folder without any"))
    for each, options, kind, message in cases:
        with pytest.raises(kind, match=message) as found:
            read(each, **options)
        assert "\n" not in str(found.value)


WRITER = """
import sys, h5py, numpy as np
file = h5py.File(sys.argv[1], "w", libver="latest")
data = file.create_dataset("entry/data/data", data=np.ones((12, 60, 52), np.uint16), chunks=(1, 60, 52))
if sys.argv[2] == "swmr":
    file.swmr_mode = True
file.flush()
print("written", flush=True)
sys.stdin.read()
import os; os._exit(0)
"""


@pytest.mark.parametrize("mode", ["swmr", "plain"])
def test_a_file_still_being_written_is_refused(tmp_path: Path, mode: str) -> None:
    """While its writer lives, and after it died without closing it."""
    path = tmp_path / "scan.h5"
    command = [sys.executable, "-c", WRITER, str(path), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        with pytest.raises(FrameError, match="must be complete, got a file that is still being written; wait"):
            read(path)
    with pytest.raises(FrameError, match="h5clear"):
        read(path)


def test_memory_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    """Of 300 frames of 0.5 MB, only the cuts are held, and a few whole frames in double precision."""
    values = np.tile(np.pad(frames(1), ((0, 0), (200, 240), (200, 248))), (300, 1, 1))
    path = write(tmp_path / "scan.h5", values)
    config = ScanConfig(file=str(path), map_shape=(15, 20), centre=(233, 220), gaps=False)
    whole = values[0].size
    tracemalloc.start()
    read_scan(path, config, CUT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * whole + 8 * 300 * 120 < values.nbytes / 4


@pytest.mark.parametrize("shape", [(450, 310), (61, 200), (33, 40)])
def test_the_overview_is_the_mean_frame_in_blocks(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    cause = rng.choice(np.array([0, 0, 0, 1, 2], dtype=np.int8), shape)
    cause[:6, :6] = 1  # a block without any valid pixel
    dims = ("z_frame", "y_frame")
    whole = xr.Dataset(
        {"overview": (dims, rng.random(shape)), "overview_mask": (dims, cause == 0), "overview_cause": (dims, cause)},
        attrs={"roi": [10, 29, 8, 31]},
    )
    whole["overview_cause"].attrs["flag_meanings"] = "valid hot gap"
    found = xr.Dataset(overview(whole))
    block = found["overview"].attrs["block"]
    assert max(found["overview"].shape) <= OVERVIEW
    parts = dict.fromkeys(dims, block)
    mean = whole["overview"].where(whole["overview_mask"]).coarsen(parts, boundary="pad").mean()
    np.testing.assert_allclose(found["overview"], mean, rtol=1e-6)
    assert np.isnan(found["overview"][0, 0])
    np.testing.assert_array_equal(found["overview_cause"], whole["overview_cause"].coarsen(parts, boundary="pad").max())
    places = xr.DataArray(np.arange(shape[0]), dims="z_frame").coarsen(z_frame=block, boundary="trim").mean()
    np.testing.assert_allclose(found["z_overview"][: len(places)], places)
    assert 10 <= found["overview"].attrs["centre"][0] <= 29
    assert 8 <= found["overview"].attrs["centre"][1] <= 31


@pytest.mark.parametrize("exit_angle", ["up", "left"])
def test_the_overview_shows_what_the_cut_holds(tmp_path: Path, exit_angle: ExitAngle) -> None:
    values = frames(48)
    values[:, :, 24:27] = np.random.default_rng(1).poisson(0.1, values[:, :, 24:27].shape)  # a gap beside the peak
    values[:, 30, 18] = 500  # hot
    scan = read(write(tmp_path / "scan.h5", values), map_shape=(6, 8), binning=1, exit_angle=exit_angle)
    first_z, last_z, first_y, last_y = scan.attrs["roi"]
    window = {"z_frame": slice(first_z, last_z + 1), "y_frame": slice(first_y, last_y + 1)}
    cut = {name: scan[name].isel(window).values for name in ("overview", "overview_mask", "overview_cause")}
    np.testing.assert_allclose(
        np.where(cut["overview_mask"], cut["overview"], 0), scan["counts"].mean("point"), rtol=1e-6
    )
    names = scan["overview_cause"].attrs["flag_meanings"].split()
    found = {name: int((cut["overview_cause"] == number).sum()) for number, name in enumerate(names) if number}
    assert found == {name: scan.attrs[f"masked_{name}"] for name in found}
    assert found["hot"] == 1
    assert found["gap"] > 0
    shown = overview(scan)["overview"].attrs
    peak = np.zeros(SHAPE)
    peak[PEAK] = 1
    z, y = np.argwhere(turned(peak, exit_angle))[0]
    assert shown["centre"] == pytest.approx([z, y], abs=1.0)
    assert shown["roi"] == [first_z, last_z, first_y, last_y]


def test_a_cut_without_counts_above_background_has_its_centre_in_the_middle() -> None:
    assert centroid(np.full((20, 20), -1.0), (2, 4), (5, 7)).tolist() == [4.0, 7.0]
