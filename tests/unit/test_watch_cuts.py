"""Whole frames of a detector are cut as the study's scans are, by the first of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scatterflow.cli.watch import follow
from scatterflow.config.scan import ScanConfig
from scatterflow.errors import ConfigError, FrameError, StoreError
from scatterflow.models.regressor import load_regressor
from scatterflow.scan import read_scan
from scatterflow.watch import Settings, read_records
from scatterflow.watching.cutting import FILE, FIRST, MOST
from tests.watched_calls import save
from tests.watched_models import BEAM, bundle, films, on_detector

SHAPE = BEAM.shape


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Of a study whose scans are binned 2 x 2."""
    return bundle(tmp_path / "lean", scans=(ScanConfig(file="scan.h5"),))


def write(path: Path, frames: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = frames
    return str(path)


def watch(source: str | Path, model: Path, output: Path, **options: Any) -> int:
    mask = options.pop("mask", None)
    settings = Settings(**{"idle_s": 5.0, "check": 1.0} | options)
    return follow(str(source), model, output, settings, False, mask=mask)


def expected(frames: np.ndarray, model: Path, folder: Path, **options: Any) -> np.ndarray:
    """What the model answers to the frames as `read_scan` cuts the first of them."""
    first = write(folder / "first.h5", frames[:FIRST])
    config = ScanConfig(file=first, map_shape=(1, min(FIRST, len(frames))), **options)
    scan = read_scan(first, config, SHAPE)
    given = config.model_copy(update={"map_shape": (1, len(frames)), "centre": centre(scan.attrs), "gaps": False})
    counts = read_scan(write(folder / "all.h5", frames), given, SHAPE)["counts"] * scan["mask"]
    return load_regressor(model).predict(counts.values)[0]


def centre(attrs: dict[str, Any]) -> tuple[int, int]:
    """Of the cut, which begins half its size before it (z downwards)."""
    (top, bottom), (left, right) = attrs["roi_rows"], attrs["roi_columns"]
    return (top + bottom) // 2, (left + right + 1) // 2


def test_whole_frames_are_answered_as_those_of_a_scan(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = on_detector(films(50), (14, 20))
    assert watch(write(tmp_path / "scan.h5", frames), model, tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 50
    table = read_records(tmp_path / "out")
    np.testing.assert_allclose(table["estimate"], expected(frames, model, tmp_path), rtol=1e-4, atol=1e-7)
    (told,) = (line for line in err.splitlines() if "scan.h5: cut to rows" in line)
    assert f"around the Bragg peak of the first {FIRST} frames (" in told
    assert "binned 2 x 2" in told


def test_the_cut_stays_when_the_same_call_continues(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the first frames are gone, and those that come show the peak elsewhere."""
    folder = tmp_path / "frames"
    folder.mkdir()
    frames = np.concatenate([on_detector(films(22), (14, 20)), on_detector(films(22), (4, 30))])
    for i in range(22):
        save(folder / f"img_{i}.tif", frames[i])
    watch(folder, model, tmp_path / "out", frames=22)
    for i in range(22, 44):
        (folder / f"img_{i - 22}.tif").unlink()
        save(folder / f"img_{i}.tif", frames[i])
    watch(folder, model, tmp_path / "out", idle_s=1.0)
    assert "as before, cut to rows" in capsys.readouterr().err
    table = read_records(tmp_path / "out")
    np.testing.assert_array_equal(table["number"], np.arange(44))
    np.testing.assert_allclose(table["estimate"], expected(frames, model, tmp_path), rtol=1e-4, atol=1e-7)
    (tmp_path / "out" / FILE).write_bytes(b"PK\x03\x04")
    with pytest.raises(StoreError, match=f"{FILE} must hold the cut of a watch, got .*; give another folder"):
        watch(folder, model, tmp_path / "out", idle_s=0.1)


def test_fewer_frames_than_usual_are_cut_when_no_more_come(tmp_path: Path, model: Path) -> None:
    frames = on_detector(films(5), (14, 20))
    assert watch(write(tmp_path / "scan.h5", frames), model, tmp_path / "out", frames=5) == 0
    table = read_records(tmp_path / "out")
    np.testing.assert_allclose(table["estimate"], expected(frames, model, tmp_path), rtol=1e-4, atol=1e-7)


def test_dark_frames_at_the_beginning_are_waited_through(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dark = np.random.default_rng(1).poisson(0.25, (FIRST, 90, 100)).astype(np.uint16)
    frames = np.concatenate([dark, on_detector(films(FIRST), (14, 20))])
    assert watch(write(tmp_path / "scan.h5", frames), model, tmp_path / "out") == 0
    assert f"around the Bragg peak of the first {2 * FIRST} frames" in capsys.readouterr().err
    assert read_records(tmp_path / "out").sizes["frame"] == 2 * FIRST


def test_a_frame_of_another_shape_is_broken(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, values in enumerate(on_detector(films(6), (14, 20))):
        save(folder / f"img_{i}.tif", values[:, :80] if i == 3 else values)
    assert watch(folder, model, tmp_path / "out", frames=6) == 2
    table = read_records(tmp_path / "out")
    assert list(table["status"].values) == ["ok", "ok", "ok", "broken", "ok", "ok"]
    assert table["why"].values[3] == "90 x 80 pixels, the cut is for 90 x 100"


def test_masks_apply_to_whole_frames(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a module of the detector whose pixels hold the largest value, now and then."""
    frames = on_detector(films(30), (14, 20))
    frames[25:, 40:44, 30:40] = np.iinfo(frames.dtype).max
    excluded = np.zeros(frames.shape[1:], np.uint8)
    excluded[40:44, 30:40] = 1
    save(tmp_path / "mask.tif", excluded)
    source = write(tmp_path / "scan.h5", frames)
    assert watch(source, model, tmp_path / "plain") == 2
    assert list(read_records(tmp_path / "plain")["status"].values).count("broken") == 5
    assert watch(source, model, tmp_path / "masked", mask=tmp_path / "mask.tif") == 0
    assert "binned pixels masked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (
            np.random.default_rng(2).poisson(1.0, (MOST + 5, 70, 70)).astype(np.uint16), {},
            f"the first {MOST} frames of .*scan.h5 must show a Bragg peak, got none above the background",
        ),
        (np.ones((30, 60, 50), np.uint16), {}, r"must fit into the frames of 60 x 50 pixels \(z, y\), got 64 x 64 before"),
        (np.ones((30, 90, 90), np.uint16), {"centre": (10, 10)}, "centre of the first 20 frames of .* must leave room"),
        (np.ones((30, 90, 90), np.uint16), {"mask_file": "nowhere.tif"}, "nowhere.tif must exist"),
    ],
)  # fmt: skip
def test_frames_that_cannot_be_cut_are_one_line(
    tmp_path: Path, frames: np.ndarray, options: dict[str, Any], message: str
) -> None:
    model = bundle(tmp_path / "lean", scans=(ScanConfig(file="scan.h5", **options),))
    with pytest.raises((FrameError, ConfigError), match=message) as error:
        watch(write(tmp_path / "scan.h5", frames), model, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob(f"*{FILE}*"))
