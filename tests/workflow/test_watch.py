"""The command that watches, as a process of its own beside a writer: streams, exit statuses, signals, kill -9."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.watched import DATASET, ROOT, frame, write_bundle, writer
from tests.workflow.checkout import BIN

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

# `scatterflow` with one more command: the watch, with the estimator of the tests
COMMAND = """
import sys
from pathlib import Path
from scatterflow.cli.app import app
from scatterflow.cli.running import run
from scatterflow.cli.watch import follow
from scatterflow.watch import Settings
from tests.watched import load
@app.command('watch')
def watch(source: str, model: Path, output: Path, idle_s: float = 120.0, mask: Path = None, json: bool = False) -> int:
    return follow(source, model, output, Settings(idle_s=idle_s, gap_s=0.3), json, mask=mask, load=load)
sys.exit(run(['watch', *sys.argv[1:]]))
"""


class Watching:
    """One measurement, one model, one folder of results."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "scan.h5"
        self.output = folder / "out"
        self.bundle = write_bundle(folder / "bundle", offset=0.0)

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", COMMAND, str(self.source), str(self.bundle), str(self.output), *options]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def numbers(self) -> list[int]:
        """Frames of the complete records so far."""
        path = self.output / "frames.jsonl"
        lines = path.read_text().split("\n")[1:-1] if path.exists() else []
        return [json.loads(line)["number"] for line in lines]

    def after(self, frames: int, watching: subprocess.Popen[str]) -> None:
        """Wait until so many frames are answered."""
        while len(self.numbers()) < frames:
            assert watching.poll() is None, watching.communicate()
            time.sleep(0.02)


@pytest.fixture
def measurement(tmp_path: Path) -> Watching:
    return Watching(tmp_path)


def test_one_line_per_frame_while_they_are_written(measurement: Watching) -> None:
    with measurement.start() as watching, writer(measurement.source, range(600)):
        out, err = watching.communicate(timeout=300)
    assert watching.returncode == 0, err
    lines = out.splitlines()
    assert [line.split(":: ")[0].split(": ")[0] for line in lines] == [f"scan.h5::{DATASET}[{i}]" for i in range(600)]
    assert err.splitlines()[-1].startswith(f"{measurement.source}: 600 frames: 600 ok, 0 late, 0 broken, 0 missing; ")
    assert measurement.numbers() == list(range(600))


def test_a_writer_that_dies_is_one_line_and_status_2(measurement: Watching) -> None:
    with (
        writer(measurement.source, [*range(50), "kill"]),
        measurement.start("--idle-s", "3", "--json") as watching,
    ):
        out, err = watching.communicate(timeout=300)
    assert watching.returncode == 2
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert "must be closed by their writer, got no new frame came" in last
    assert "the 50 frames that came are answered" in last
    summary = json.loads(out)
    assert (summary["command"], summary["frames"], summary["died"]) == ("infer", 50, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_is_done(measurement: Watching, number: signal.Signals) -> None:
    events = [*range(100), "until never"]
    with writer(measurement.source, events) as process, measurement.start() as watching:
        try:
            measurement.after(50, watching)
            watching.send_signal(number)
            out, err = watching.communicate(timeout=300)
        finally:
            process.kill()
    assert watching.returncode == 128 + number
    assert "Traceback" not in err
    numbers = measurement.numbers()
    assert numbers == list(range(len(numbers)))
    assert len(out.splitlines()) == len(numbers)
    summary = json.loads((measurement.output / "summary.json").read_text())
    assert (summary["frames"], summary["ended"]) == (len(numbers), "stopped by a signal")


def test_kill_9_loses_nothing_and_the_same_command_continues(measurement: Watching) -> None:
    killed = measurement.output.with_name("killed")
    with writer(measurement.source, [*range(150), f"until {killed}", *range(150, 900)]):
        with measurement.start() as watching:
            measurement.after(100, watching)
            watching.kill()
            watching.communicate()
        assert watching.returncode == -signal.SIGKILL
        killed.touch()
        with measurement.start() as watching:
            _, err = watching.communicate(timeout=300)
    assert watching.returncode == 0, err
    assert err.startswith("continues: ")
    assert measurement.numbers() == list(range(900))


def test_frames_without_an_answer_are_status_2(measurement: Watching, tmp_path: Path) -> None:
    import fabio

    measurement.source = tmp_path / "frames"
    measurement.source.mkdir()
    fabio.tifimage.TifImage(data=frame(0)).write(measurement.source / "img_0.tif")
    (measurement.source / "img_1.tif").write_bytes(b"II*\0")
    fabio.tifimage.TifImage(data=frame(2)).write(measurement.source / "img_2.tif")
    with measurement.start("--idle-s", "2") as watching:
        out, err = watching.communicate(timeout=300)
    assert watching.returncode == 2
    told = [line.split(",")[0] for line in out.splitlines()]
    assert told == ["img_0.tif: ok", "img_1.tif: broken", "img_2.tif: ok"]
    assert err.splitlines()[-1] == "scatterflow: 1 of 3 frames got no answer (1 broken)"


def test_a_bad_model_source_or_mask_is_one_line(measurement: Watching, tmp_path: Path) -> None:
    for change, words in (
        ("source", "must be a folder or an HDF5 file"),
        ("bundle", "must be readable, got No such file or directory; give the folder of a trained model"),
    ):
        before = getattr(measurement, change)
        setattr(measurement, change, tmp_path / "nowhere")
        with measurement.start("--idle-s", "0.2") as watching:
            _, err = watching.communicate(timeout=300)
        assert (watching.returncode, len(err.splitlines())) == (2, 1), err
        assert words in err
        setattr(measurement, change, before)
    with measurement.start("--mask", str(tmp_path / "nowhere.tif")) as watching:
        _, err = watching.communicate(timeout=300)
    assert (watching.returncode, len(err.splitlines())) == (2, 1)
    assert "nowhere.tif must exist" in err


def test_importing_the_command_line_imports_no_torch() -> None:
    code = "import sys, scatterflow.cli.app, scatterflow.cli.watch; sys.exit('torch' in sys.modules)"
    subprocess.run([BIN / "python", "-c", code], check=True, timeout=300)
