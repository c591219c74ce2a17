"""Watching a folder: real files of every format, and all that goes wrong with them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scatterflow.errors import ConfigError, FrameError, StoreError
from scatterflow.watch import Cut, read_records
from tests.watched import SHAPE, Centroid, frame
from tests.watched_calls import Watched, check_answers, save


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "frames").mkdir()
    return tmp_path / "frames"


def test_files_that_appear_in_a_folder(watched: Watched, folder: Path) -> None:
    def measure() -> None:
        for i, kind in zip(range(40), itertools.cycle(["tif", "edf", "cbf", "h5"]), strict=False):
            save(folder / f"{kind}_{i // 4:03d}.{kind}", frame(i // 4, "int32"))
            time.sleep(0.005)
        (folder / "notes.txt").write_text("a shift")

    thread = threading.Thread(target=measure)
    thread.start()
    summary = watched(folder, frames=40)
    thread.join()
    assert (summary.ok, summary.ended) == (40, "40 frames are done")
    records = watched.records()
    check_answers(records)
    for kind in ("tif", "edf", "cbf", "h5"):
        names = [each["frame"] for each in records if each["frame"].startswith(kind)]
        assert names == [f"{kind}_{i:03d}.{kind}" for i in range(10)]


def test_broken_frames_say_why_and_the_others_are_answered(watched: Watched, folder: Path) -> None:
    bad: dict[str, tuple[Callable[[Path], object], str]] = {
        "cut.cbf": (lambda path: path.write_bytes(whole[: len(whole) * 3 // 4]), "the file is cut off"),
        "empty.tif": (lambda path: path.write_bytes(b""), "an empty file"),
        "words.tif": (lambda path: path.write_text("counts: many\n" * 30), "must be a CBF, TIFF, EDF or HDF5"),
        "other.tif": (lambda path: save(path, frame(0)[:-1]), "must have the 16 x 12 pixels of the model, got 15 x 12"),
        "zero.tif": (lambda path: save(path, np.zeros_like(frame(0))), "zero in every pixel"),
        "bright.tif": (lambda path: save(path, np.where(frame(0) > 1500, 65535, frame(0)).astype("u2")), "saturated"),
        "gap.edf": (lambda path: save(path, np.where(frame(0) > 1500, -1, frame(0, "int32"))), "negative pixels"),
        "nan.tif": (lambda path: save(path, np.where(frame(0) > 1500, np.nan, frame(0, "f4"))), "not finite pixels"),
        "stack.h5": (lambda path: save(path, np.stack([frame(0)] * 3)), "must hold one frame"),
    }
    save(folder / "whole.cbf", frame(3, "int32"))
    whole = (folder / "whole.cbf").read_bytes()
    save(folder / "good_3.tif", frame(3))
    for name, (make, _) in bad.items():
        make(folder / name)
    summary = watched(folder, idle_s=2.0)
    assert (summary.ok, summary.broken, summary.frames) == (2, len(bad), len(bad) + 2)
    told = watched.statuses()
    for name, (_, why) in bad.items():
        status, reason = told[name]
        assert status == "broken"
        assert why in reason, (name, reason)
    assert told["good_3.tif"] == ("ok", "")
    table = read_records(watched.output)
    assert np.isnan(table["estimate"].sel(frame="zero.tif")).all()
    assert table["status"].sel(frame="zero.tif") == "broken"


def test_excluded_pixels_and_preparation(watched: Watched, folder: Path) -> None:
    """A frame as stored by a detector: twice as fine, turned, and with a defect that is always saturated."""
    stored = np.repeat(np.repeat(frame(5), 2, 0), 2, 1).T.copy()
    stored[0, 0] = 65535
    defects = np.zeros(stored.shape, dtype=bool)
    defects[0, 0] = True
    save(folder / "raw_5.tif", stored)

    def prepare(raw: np.ndarray) -> np.ndarray:
        return raw.T.reshape(SHAPE[0], 2, SHAPE[1], 2).sum((1, 3))

    assert watched(folder, frames=1, cut=Cut(prepare=prepare, excluded=defects)).ok == 1
    check_answers(watched.records())


def test_a_file_in_the_making_is_waited_for(watched: Watched, folder: Path) -> None:
    save(folder / ".whole.edf", frame(0, "int32"))
    content = (folder / ".whole.edf").read_bytes()

    def measure() -> None:
        with (folder / "slow_0.edf").open("wb", buffering=0) as file:
            for part in range(4):
                file.write(content[part * len(content) // 4 : (part + 1) * len(content) // 4])
                time.sleep(0.15)

    thread = threading.Thread(target=measure)
    thread.start()
    summary = watched(folder, frames=1, gap_s=5.0)  # no longer than its writer sleeps, on a busy machine
    thread.join()
    assert summary.ok == 1
    check_answers(watched.records())


def test_order_is_kept_and_what_comes_behind_its_successors_is_late(watched: Watched, folder: Path) -> None:
    def measure() -> None:
        for i in (0, 1, 3, 2, 4, 5, 7, 9):  # 2 in time, since 3 waits for it
            save(folder / f"img_{i:04d}.tif", frame(i))

    watched.heard = lambda lines: save(folder / "img_0006.tif", frame(6)) if lines == 8 else None
    thread = threading.Thread(target=measure)
    thread.start()
    summary = watched(folder, idle_s=3.0, gap_s=1.5)
    thread.join()
    came = [(each["number"], each["status"], each["why"]) for each in watched.records()]
    in_time = [(i, "ok", "") for i in (0, 1, 2, 3, 4, 5, 7, 9)]
    assert came == [*in_time, (6, "late", "came after img_0009.tif"), (8, "missing", "never came")]
    assert watched.records()[-1]["frame"] == "img_0008.tif"
    assert (summary.ok, summary.late, summary.missing) == (8, 1, 1)


def test_answers_after_the_deadline_are_late(watched: Watched, folder: Path) -> None:
    save(folder / "img_0.tif", frame(0))
    summary = watched(folder, frames=1, deadline_ms=1e-6)
    assert summary.late == 1
    assert "the deadline is 1e-06 ms" in watched.records()[0]["why"]
    check_answers(watched.records())


def test_a_folder_is_continued(watched: Watched, folder: Path) -> None:
    for i in range(6):
        save(folder / f"img_{i}.tif", frame(i))
    watched(folder, frames=4)
    (folder / "img_0.tif").unlink()
    summary = watched(folder, idle_s=2.0)
    assert (summary.continued, summary.frames) == (4, 2)
    assert [each["number"] for each in watched.records()] == list(range(6))


def test_records_of_something_else_are_refused(watched: Watched, folder: Path, tmp_path: Path) -> None:
    save(folder / "img_0.tif", frame(0))
    watched(folder, frames=1)
    before = (watched.output / "frames.jsonl").read_bytes()
    (tmp_path / "others").mkdir()
    with pytest.raises(ConfigError, match="must hold records of this source, got those of "):
        watched(tmp_path / "others", idle_s=0.1)
    assert (watched.output / "frames.jsonl").read_bytes() == before
    (watched.output / "frames.jsonl").write_text("{}\n")
    with pytest.raises(StoreError, match="must hold records of a watch"):
        watched(folder, idle_s=0.1)


class Picky(Centroid):
    """Refuses a frame, and has no finite answer to another."""

    def predict(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if (frames == frame(2)).all((1, 2)).any():
            raise FrameError("frame 2", "must be another", "this one")
        values, sd = super().predict(frames)
        values[(frames == frame(4)).all((1, 2))] = np.nan
        return values, sd


def test_a_frame_that_the_model_cannot_answer_leaves_the_others_alone(watched: Watched, folder: Path) -> None:
    for i in range(6):
        save(folder / f"img_{i}.tif", frame(i))
    summary = watched(folder, load=lambda _: Picky(), frames=6)
    assert (summary.ok, summary.broken) == (4, 2)
    told = [each["why"] for each in watched.records()]
    assert told == ["", "", "frame 2 must be another, got this one", "", "the model's answer is not finite", ""]
