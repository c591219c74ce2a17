"""The command line when things go wrong: bugs, signals, readers that go away, closed streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ("--config", str(ROOT / "tests" / "workflow" / "tiny.yaml"))


def process(code: str) -> list[str]:
    """A Python that runs `code` with the command line at hand."""
    return [sys.executable, "-c", f"import sys\nfrom scatterflow.cli.running import run\n{code}"]


CRASH = """
from scatterflow.cli.app import app
@app.command()
def crash(json: bool = False):
    raise RuntimeError('first line\\nsecond line')
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", [["crash"], ["crash", "--json"]])
def test_a_bug_is_one_line_with_the_traceback_in_a_file(tmp_path: Path, arguments: list[str]) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([*process(CRASH), *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("scatterflow: internal error, RuntimeError: first line second line; please report it with ")
    (log,) = tmp_path.iterdir()
    assert line.endswith(str(log))
    assert "Traceback" in log.read_text()
    if "--json" in arguments:
        assert json.loads(done.stdout)["error"]["message"] == line.removeprefix("scatterflow: ")


WAIT = """
import signal, time
from scatterflow.cli.app import app
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it, and so do its children
@app.command()
def wait(json: bool = False):
    print('a library prints this', flush=True)
    print('ready', file=sys.stderr, flush=True)
    time.sleep(60)
sys.exit(run(sys.argv[1:]))
"""


def test_an_interrupt_is_one_line_and_status_130() -> None:
    with subprocess.Popen(
        [*process(WAIT), "wait", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "a library prints this\n"
        assert waiting.stderr.readline() == "ready\n"
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert err.startswith("scatterflow: interrupted; what is finished is kept")
    assert len(err.splitlines()) == 1
    assert json.loads(out) == {"error": {"message": err.removeprefix("scatterflow: ").strip()}}


def test_a_stopped_simulation_can_be_continued(tmp_path: Path) -> None:
    """SIGTERM in the middle, as a scheduler sends it."""
    many = [*CONFIG, "--results", str(tmp_path), "--set", "simulate.simulations=20000", "--set", "simulate.workers=1"]
    command = [*process("sys.exit(run(sys.argv[1:]))"), "simulate", *many, "--json"]
    records = tmp_path / "tiny" / "multilayer" / "simulate"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not list(records.glob("shards-*/*.json")):
            assert running.poll() is None, running.stderr
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    assert json.loads(out)["error"]["message"] == f"stopped by signal {int(signal.SIGTERM)}"


FLOOD = """
from scatterflow.cli.app import app
@app.command()
def flood():
    for number in range(100_000):
        print('frame', number, flush=True)
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", [["flood"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    command = [*process(FLOOD), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writing:
        assert writing.stdout is not None
        assert writing.stderr is not None
        writing.stdout.close()
        err = writing.stderr.read()
        writing.wait(timeout=30)
    assert (writing.returncode, err) == (141, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("json_option", ["", "--json"])
def test_closed_streams_are_no_bug(tmp_path: Path, closed: str, json_option: str) -> None:
    program = Path(sys.executable).with_name("scatterflow")
    command = f"exec {program} train --config nowhere.yaml {json_option} {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
