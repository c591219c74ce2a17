"""Watching a measurement: real files, a real SWMR writer in a process of its own, and all that goes wrong with them."""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scatterflow.cli.watch import follow
from scatterflow.config.scan import ExitAngle, ScanConfig
from scatterflow.errors import BundleError, ConfigError, FrameError
from scatterflow.fanout import Stopped
from scatterflow.forward.nanodiffraction import PARAMETERS
from scatterflow.models.regressor import load_regressor
from scatterflow.scan import read_scan
from scatterflow.watch import Settings, as_scanned, read_records
from scatterflow.watching.answers import Named
from scatterflow.watching.arrivals import Arrival, Block, Queue
from scatterflow.watching.records import Latencies
from tests.watched import DATASET, SHAPE, frame, write_bundle, writer
from tests.watched_calls import Watched, check_answers
from tests.watched_models import bundle, films


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


@pytest.mark.parametrize("chunk", [1, 8])
def test_a_growing_file_is_answered_frame_by_frame_until_it_is_closed(
    watched: Watched, tmp_path: Path, chunk: int
) -> None:
    path = tmp_path / "scan.h5"
    with writer(path, range(500), chunk=chunk):
        summary = watched(path)
    assert (summary.frames, summary.ok, summary.died) == (500, 500, False)
    assert summary.ended == "the writer closed the file"
    records = watched.records()
    assert [each["number"] for each in records] == list(range(500))
    assert [each["frame"] for each in records] == [f"scan.h5::{DATASET}[{i}]" for i in range(500)]
    check_answers(records)
    assert len(watched.lines) == 500
    assert watched.lines[3].startswith(f"scan.h5::{DATASET}[3]: ok, z_px ")
    assert json.loads((watched.output / "summary.json").read_text()) == summary.as_json()
    table = read_records(watched.output)
    np.testing.assert_array_equal(table["number"], np.arange(500))
    np.testing.assert_array_equal(table["estimate"][5], list(records[5]["estimate"].values()))
    assert summary.p50_ms is not None
    assert summary.p50_ms == pytest.approx(np.quantile(table["latency_ms"], 0.5, method="inverted_cdf"), rel=0.02)


def test_a_finished_file_is_answered_and_ends_at_once(watched: Watched, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5", "w") as file:  # of an older format, which knows no SWMR
        file["frames"] = np.stack([frame(i) for i in range(70)])
    summary = watched(tmp_path / "old.h5")
    assert (summary.ok, summary.ended) == (70, "the writer closed the file")
    check_answers(watched.records())


def test_a_writer_that_dies_is_told_and_what_was_written_is_kept(watched: Watched, tmp_path: Path) -> None:
    with writer(tmp_path / "scan.h5", [*range(100), "kill"]) as process:
        summary = watched(tmp_path / "scan.h5", idle_s=3.0)
    assert process.returncode == -signal.SIGKILL
    assert summary.died
    assert summary.ended == "no new frame came, and the file is still open for writing"
    assert [each["number"] for each in watched.records()] == list(range(100))


@pytest.mark.parametrize("size", [0, 30], ids=["growing", "full-size"])
def test_places_that_are_written_later_or_never(watched: Watched, tmp_path: Path, size: int) -> None:
    events = [*range(10), *range(12, 20), "wait 3", 10, *range(20, 30)]
    with writer(tmp_path / "scan.h5", events, size=size):
        summary = watched(tmp_path / "scan.h5")
    records = watched.records()
    in_time = [each["number"] for each in records if each["status"] == "ok"]
    assert in_time == [*range(10), *range(12, 30)]
    (late,) = (each for each in records if each["status"] == "late")
    assert late["number"] == 10
    assert late["why"].startswith("written after frame ")
    (missing,) = (each for each in records if each["status"] == "missing")
    assert (missing["number"], missing["estimate"], missing["why"]) == (11, None, "never written")
    check_answers([each for each in records if each["estimate"]])
    assert (summary.frames, summary.late, summary.missing) == (29, 1, 1)
    assert any("[10]: not written, frames after it are: going on without 2 frames" in line for line in watched.said)


def test_an_aborted_scan_of_full_size_ends_with_missing_frames(watched: Watched, tmp_path: Path) -> None:
    with writer(tmp_path / "scan.h5", range(90), size=100):
        summary = watched(tmp_path / "scan.h5")
    assert (summary.ok, summary.missing) == (90, 10)


def test_a_damaged_frame_of_a_file_is_broken_and_the_others_are_answered(watched: Watched, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("frames", (9, *SHAPE), "uint16", chunks=(1, *SHAPE), compression="gzip")
        data[:] = np.stack([frame(i) for i in range(9)])
        place = data.id.get_chunk_info_by_coord((4, 0, 0))
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(content)
    summary = watched(path)
    assert (summary.ok, summary.broken) == (8, 1)
    assert [each["number"] for each in watched.records()] == list(range(9))
    status, why = watched.statuses()["scan.h5::/frames[4]"]
    assert status == "broken"
    assert why.startswith("unreadable: ")


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_bitshuffle_chunk_whose_sizes_are_wrong_is_broken(
    watched: Watched, tmp_path: Path, compression: str, chunk: int
) -> None:
    """The filter would write beyond its memory, and end the process."""
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "frames", (12, *SHAPE), "uint16", chunks=(chunk, *SHAPE), **hdf5plugin.Bitshuffle(cname=compression)
        )
        data[:] = np.stack([frame(i) for i in range(12)])
        place = data.id.get_chunk_info_by_coord((4, 0, 0)).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 6] ^= 64  # of its size when unpacked
    path.write_bytes(content)
    summary = watched(path)
    assert (summary.ok, summary.broken) == (12 - chunk, chunk)
    assert [each["number"] for each in watched.records()] == list(range(12))
    status, why = watched.statuses()["scan.h5::/frames[4]"]
    assert status == "broken"
    assert "a compressed chunk whose sizes do not add up" in why


@pytest.mark.parametrize("exit_angle", ["up", "down", "left", "right"])
def test_frames_are_cut_turned_and_binned_as_those_of_a_scan(
    watched: Watched, tmp_path: Path, exit_angle: ExitAngle
) -> None:
    """What the estimator gets of a stored frame is what `read_scan` made of it."""
    rng = np.random.default_rng(2)
    row, column = np.mgrid[:48, :60]
    peaks = 40 * np.exp(-((row - 20) ** 2 + (column - 31 - rng.normal(size=(12, 1, 1))) ** 2) / 8)
    frames = (rng.poisson(peaks) + 1).astype(np.uint16)
    frames[:, 22, 33] = 2000  # hot: its binned pixel means nothing
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["frames"] = frames
    config = ScanConfig(file=str(tmp_path / "scan.h5"), map_shape=(3, 4), exit_angle=exit_angle)
    scan = read_scan(tmp_path / "scan.h5", config, (10, 8))
    assert np.count_nonzero(~scan["mask"]) == 1
    got: list[np.ndarray] = []

    def predict(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        got.extend(frames)
        return np.zeros((len(frames), 1)), np.ones((len(frames), 1))

    summary = watched(tmp_path / "scan.h5", load=lambda _: Named(("p",), (10, 8), predict), cut=as_scanned(scan))
    assert summary.ok == 12
    np.testing.assert_array_equal(got[1:], scan["counts"])  # the first was asked about when the model was loaded


def test_a_slow_model_makes_the_source_wait_and_nothing_is_dropped(watched: Watched, tmp_path: Path) -> None:
    write_bundle(watched.bundle, sleep_s=0.02)
    with writer(tmp_path / "scan.h5", range(300)):
        summary = watched(tmp_path / "scan.h5", queue=8, batch=5)
    assert [each["number"] for each in watched.records()] == list(range(300))
    check_answers(watched.records())
    assert summary.largest_lag > 8
    assert any("the queue is full, " in line for line in watched.said)
    latency = read_records(watched.output)["latency_ms"].values
    assert latency[-50:].mean() > latency[:50].mean(), "waiting in the file counts, too"


def test_a_refreshed_bundle_is_used_from_a_batch_on_and_a_bad_one_never(watched: Watched, tmp_path: Path) -> None:
    steps: list[tuple[Callable[[], object], str]] = [  # what happens to the bundle, and what must be said then
        (lambda: (watched.bundle / "bundle.json").write_text('{"offset": 1.'), "cannot be used"),  # half written
        (lambda: write_bundle(watched.bundle, offset=float("nan")), "cannot be used"),
        (lambda: write_bundle(watched.bundle, offset=1.0), "answers from now on"),
        (lambda: (watched.bundle / "bundle.json").unlink() or write_bundle(watched.bundle, offset=2.0), "from now on"),
    ]
    done = 0  # steps
    told_after: dict[int, int] = {}  # number of answers when the words on a step were there; batches after it obey

    def heard(lines: int) -> None:
        nonlocal done
        told = [line for line in watched.said if line.startswith(("bundle ", "the new bundle "))]
        if done and (len(told) < done or lines < told_after.setdefault(done, lines) + 20):
            return
        if done:
            assert steps[done - 1][1] in told[done - 1]
        if done == len(steps):
            signal.raise_signal(signal.SIGTERM)
        else:
            steps[done][0]()
            done += 1

    watched.heard = heard
    with writer(tmp_path / "scan.h5", range(20_000), rate=200) as process:
        try:
            with pytest.raises(Stopped):
                watched(tmp_path / "scan.h5")
        finally:
            process.kill()
    records = watched.records()
    assert [each["number"] for each in records] == list(range(len(records)))
    summary = json.loads((watched.output / "summary.json").read_text())
    assert (summary["ok"], summary["bundles"], summary["refused"]) == (len(records), 3, 2)
    groups = [(bundle, list(group)) for bundle, group in itertools.groupby(records, lambda each: each["bundle"])]
    assert len(groups) == 3
    for offset, (_, group) in enumerate(groups):
        check_answers(group, offset)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_batch_and_the_same_call_continues(
    watched: Watched, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = np.stack([frame(i) for i in range(200)])
    watched.heard = lambda lines: signal.raise_signal(number) if lines < 100 else None
    with pytest.raises(Stopped) as stopped:
        watched(path, batch=20)
    assert stopped.value.code == 128 + number
    assert json.loads((watched.output / "summary.json").read_text())["ended"] == "stopped by a signal"
    assert 0 < len(watched.records()) < 200
    with (watched.output / "frames.jsonl").open("a") as file:
        file.write('{"frame": "scan.h5::/fra')  # as after a power cut
    watched.heard = lambda _: None
    summary = watched(path)
    assert [each["number"] for each in watched.records()] == list(range(200))
    assert summary.continued + summary.frames == 200


def test_what_cannot_be_watched_is_refused(watched: Watched, tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="must be a folder or an HDF5 file, got nothing there"):
        watched(tmp_path / "nowhere")
    with pytest.raises(FrameError, match="must be readable while they are written, got no such file"):
        watched(tmp_path / "coming.h5", idle_s=1.5)  # a first look must fit into it, on a busy machine too
    assert watched.said[0].endswith("coming.h5: no such file")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = np.ones((3, *SHAPE)), np.ones((3, *SHAPE))
    with pytest.raises(FrameError, match="must name their dataset, got 2: /a, /b"):
        watched(tmp_path / "two.h5")
    with writer(tmp_path / "plain.h5", [0, "wait 60"], swmr=False) as process:  # open, but not in SWMR mode
        while not (tmp_path / "plain.h5").exists():
            time.sleep(0.01)
        try:
            with pytest.raises(FrameError, match="swmr_mode = True"):
                watched(tmp_path / "plain.h5", idle_s=0.1)
        finally:
            process.kill()
    write_bundle(watched.bundle, offset=float("inf"))
    with pytest.raises(BundleError, match="must answer a frame with 2 finite values"):
        watched(tmp_path / "two.h5::/a")


def test_the_command_answers_as_the_trained_estimator_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = films(5)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["frames"] = counts
    model = bundle(tmp_path / "lean")
    assert follow(str(tmp_path / "scan.h5"), model, tmp_path / "out", Settings(check=0), False) == 0
    out, err = capsys.readouterr()
    assert [line.split(",")[0] for line in out.splitlines()] == [f"scan.h5::/frames[{i}]: unchecked" for i in range(5)]
    assert "scan.h5 have the model's 32 x 32 pixels: taken as they are" in err
    table = read_records(tmp_path / "out")
    assert tuple(table["parameter"].values) == PARAMETERS[:3]
    values, sd = load_regressor(model).predict(counts.astype(np.float32))
    np.testing.assert_allclose(table["estimate"], values, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(table["sd"], sd, rtol=1e-4)


@pytest.mark.parametrize(
    "option",
    [
        {"frames": 0},
        {"idle_s": 0},
        {"gap_s": -1},
        {"queue": -3},
        {"idle_s": float("nan")},
        {"check": 1.5},
        {"check": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(option))} of a watch must be"):
        Settings(**option)


@given(st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_quantiles_of_latencies_are_those_of_numpy_within_a_percent(seconds: list[float], q: float) -> None:
    latencies = Latencies()
    for part in np.array_split(seconds, 3):
        latencies.add(part.tolist())
    expected = np.quantile(seconds, q, method="inverted_cdf")
    assert latencies.quantile_ms(q) == pytest.approx(1e3 * expected, rel=0.0101)


@given(
    st.lists(st.integers(1, 60), max_size=40), st.integers(1, 9), st.integers(1, 100), st.integers(1, 9)
)  # sizes of frames [bytes]
def test_the_queue_keeps_order_and_its_limits(sizes: list[int], frames: int, size: int, most: int) -> None:
    queue = Queue(frames, size)
    offered = iter(range(len(sizes)))

    def source() -> Any:
        for i in offered:
            while not queue.room(sizes[i]):
                yield Block([], 1)
                held[0] = queue.take(most, 0.0)
                taken.extend(each.number for each in held[0])
            yield Block([Arrival(str(i), i, 0.0, np.ones(sizes[i], np.uint8))], 0)
            inside = [n for n in range(i + 1) if n not in taken]
            assert len(inside) <= frames
            assert sum(sizes[n] for n in inside) <= max(size, sizes[i])
        return "end"

    taken: list[int] = []
    held: list[list[Arrival]] = [[]]
    with closing(source()) as blocks:
        queue.fill(blocks)
    while not queue.over():
        taken += [each.number for each in queue.take(most, 0.0)]
    assert taken == list(range(len(sizes)))
    assert queue.ended == "end"
