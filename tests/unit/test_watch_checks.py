"""Whether the model describes a watched frame: verdicts, the time that they may take, and that each answer says it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from scatterflow.baselines.likelihood import rebuild
from scatterflow.cli.watch import follow
from scatterflow.models.frames import load_frame_model
from scatterflow.watch import Settings, read_records
from scatterflow.watching.checking import BEHIND, BURST_S, Check, Checks
from tests.watched import Centroid, frame, write_bundle
from tests.watched_calls import Watched
from tests.watched_models import bundle, films


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def mixed(path: Path, number: int) -> set[int]:
    """A file of frames, every third of which shows two spots; their numbers."""
    two = set(range(1, number, 3))
    spots = [frame(i) + (frame(i)[::-1, ::-1] if i in two else 0) for i in range(number)]
    with h5py.File(path, "w") as file:
        file["frames"] = np.stack(spots)
    return two


def test_each_answer_says_whether_the_model_describes_its_frame(watched: Watched, tmp_path: Path) -> None:
    two = mixed(tmp_path / "scan.h5", 25)
    summary = watched(tmp_path / "scan.h5")
    told = {each["number"]: each for each in watched.records()}
    assert {number for number, each in told.items() if each["verdict"] == "outside"} == two
    assert {number for number, each in told.items() if each["verdict"] == "ok"} == set(range(25)) - two
    for number, line in enumerate(watched.lines):
        assert line.split(", ")[0].endswith(": outside" if number in two else ": ok")
        assert f"deviance {told[number]['deviance']:.3g}, " in line
    assert (summary.described, summary.outside, summary.unchecked) == (25 - len(two), len(two), 0)
    assert f"answers: {25 - len(two)} ok, {len(two)} outside, 0 unchecked" in watched.said[-1]
    assert Counter(read_records(watched.output)["verdict"].values) == {"ok": 25 - len(two), "outside": len(two)}


@pytest.mark.parametrize(("checks", "share"), [(False, 1.0), (True, 0.0)])
def test_what_was_not_checked_is_called_so(watched: Watched, tmp_path: Path, checks: bool, share: float) -> None:
    """The model cannot tell, or no time was given."""
    mixed(tmp_path / "scan.h5", 10)
    write_bundle(watched.bundle, checks=checks)
    summary = watched(tmp_path / "scan.h5", check=share)
    assert (summary.ok, summary.unchecked, summary.described, summary.outside) == (10, 10, 0, 0)
    assert all(": unchecked, z_px " in line for line in watched.lines)
    assert {each["deviance"] for each in watched.records()} == {None}


def test_late_frames_have_a_verdict_too(watched: Watched, tmp_path: Path) -> None:
    mixed(tmp_path / "scan.h5", 3)
    watched(tmp_path / "scan.h5", deadline_ms=1e-6)
    assert [line.split(", ")[:2] for line in watched.lines] == [
        [f"scan.h5::/frames[{i}]: late", verdict] for i, verdict in enumerate(["ok", "outside", "ok"])
    ]


def test_checks_take_no_more_than_their_share_of_the_time() -> None:
    """Of a model that needs 2 ms for a check, while one frame after the other comes."""
    spent = longest = 0.0

    def deviance(counts: np.ndarray, values: np.ndarray, valid: object) -> np.ndarray:
        nonlocal spent, longest
        began = time.monotonic()
        time.sleep(0.002 * len(counts))
        took = time.monotonic() - began
        spent, longest = spent + took, max(longest, took)
        return np.zeros(len(counts))

    began = time.monotonic()
    checks = Checks(0.25)
    counts, values = np.ones((3, 4, 4), np.float32), np.zeros((3, 2))
    found = [checks.deviances(Check(1.0, deviance), counts, values, None, 0) for _ in range(40)]
    assert sum(map(len, found)) < 120
    assert spent - longest <= 0.25 * (time.monotonic() - began) + BURST_S  # what was begun is finished
    for _ in range(10_000):  # until all is paid back
        if checks.deviances(Check(1.0, deviance), counts, values, None, 0):
            break
        time.sleep(0.01)
    else:
        pytest.fail("checks do not go on")


def test_checks_give_way_to_frames_that_wait() -> None:
    model = Centroid()
    counts = np.stack([frame(i) for i in range(BEHIND)]).astype(np.float32)
    values, _ = model.predict(counts)
    assert not Checks(0.5).deviances(model.check, counts, values, None, waiting=BEHIND + 1)
    assert Checks(0.5).deviances(model.check, counts, values, None, waiting=BEHIND)
    assert set(Checks(1.0).deviances(model.check, counts, values, None, waiting=BEHIND + 1)) == set(range(BEHIND))
    some = Checks(0.5).deviances(model.check, counts, values, None, waiting=0)
    assert 0 < len(some) < BEHIND
    assert np.ptp(np.diff([*sorted(some), BEHIND])) <= 1, "they are spread over the frames"


def test_the_command_s_verdict_is_that_of_the_likelihood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = films(12)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["frames"] = counts
    model = load_frame_model(bundle(tmp_path / "lean"))
    values, _ = model.regressor.predict(counts.astype(np.float32))
    _, expected = rebuild(counts, model.study.kinematics, values, background=True)
    threshold = float(np.median(expected))
    bundle(tmp_path / "lean", threshold)
    status = follow(str(tmp_path / "scan.h5"), tmp_path / "lean", tmp_path / "out", Settings(check=1.0), False)
    assert status == 0
    told = [line.split(", ")[0].split(": ")[1] for line in capsys.readouterr().out.splitlines()]
    assert told == ["outside" if each > threshold else "ok" for each in expected]
    assert set(told) == {"ok", "outside"}
