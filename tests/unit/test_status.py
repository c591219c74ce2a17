"""What `scatterflow status` says of simulations and trainings that failed or are under way."""

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scatterflow import manifest, shards
from scatterflow.cli import status
from scatterflow.cli.status import State
from scatterflow.config.model import CvaeMafConfig
from scatterflow.errors import SimulationError
from scatterflow.history import Epoch, write_history
from scatterflow.manifest import Place
from scatterflow.progress import quiet
from scatterflow.slurm import campaign
from scatterflow.slurm.summary import summarise
from scatterflow.stages import simulate
from tests.conftest import ROOT
from tests.store_study import Tiny, tiny


def simulating(study: Tiny, folder: Path) -> State:
    return status._sharded(study, folder, "simulate", study.simulation_identity())


def test_failed_shards_say_why_and_where(tmp_path: Path) -> None:
    study = tiny(40, error_at=12)
    with pytest.raises(SimulationError):
        simulate.run(study, tmp_path, quiet)
    state = simulating(study, tmp_path)
    assert (state.state, state.done, state.total, state.failed) == ("failed", 30, 40, 10)
    assert "30 of 40 simulations, 10 failed" in state.line()
    assert "layer01_TaO.delta must be physical" in state.error
    assert state.log.endswith("000000010-000000020.json")
    assert json.loads(Path(state.log).read_text())["state"] == "failed"


def test_core_time_is_that_of_the_records(tmp_path: Path) -> None:
    study = tiny(40)
    simulate.run(study, tmp_path, quiet)
    records = manifest.read_records(Place(tmp_path, study.simulation_identity()))
    state = simulating(study, tmp_path)
    assert state.state == "done"
    assert state.core_hours == pytest.approx(sum(record.seconds for record in records.values()) / 3600)
    assert status._to_go(records, 0) == status._to_go({}, 40) == ""
    assert "core time to go" in status._to_go(records, 40)


def test_a_run_that_is_under_way(tmp_path: Path) -> None:
    """A real process simulates; the same words come from its records and its lock, and later nobody holds it."""
    command = [sys.executable, "-m", "tests.store_study", str(tmp_path)]
    options = json.dumps({"simulations": 200, "delay_s": 0.2})  # 8 s
    with subprocess.Popen(
        [*command, options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        study, end = tiny(200), time.monotonic() + 60
        while simulating(study, tmp_path).done in (None, 0) and time.monotonic() < end:
            time.sleep(0.05)
        state = simulating(study, tmp_path)
        process.kill()
    assert (state.state, state.total) == ("running", 200)
    assert state.done is not None
    assert 0 < state.done < 200
    assert state.left_s is not None
    assert state.left_s > 0
    assert "left" in state.line()
    stopped = simulating(study, tmp_path)
    assert (stopped.state, stopped.left_s) == ("left", None)


def test_how_far_a_training_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs come from the history that a training writes with its checkpoints; running is what the workflow runs."""
    monkeypatch.chdir(tmp_path)
    folder, phase = tmp_path / "study", {"epochs": 20, "budget_s": 100.0}
    log = folder / "logs" / "train_model.joint.log"
    config = CvaeMafConfig.model_validate({"kind": "cvae-maf", "training": {"cvae": {"epochs": 4}, "flow": phase}})

    def state(*epochs: Epoch) -> State:
        work = folder / "models" / "joint.training"
        work.mkdir(parents=True, exist_ok=True)
        write_history(work / "history.csv", epochs)
        return status._model("study", "joint", config, folder)

    first = Epoch("cvae", 1, 3.0, 1.0, 1.0, 1e-3)
    assert state(first).detail == "left, epoch 1 of 4 of phase cvae, then the flow"
    lock = tmp_path / ".snakemake" / "scatterflow.lock"
    lock.parent.mkdir()
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        log.parent.mkdir()
        log.write_text("begin\n")
        running = state(first)
        assert (running.state, running.left_s) == ("running", 9.0)
        assert state(first, Epoch("flow", 5, 20.0, 1.0, 1.0, 1e-3)).left_s == 60.0, "15 epochs of 4 s"
        assert state(first, Epoch("flow", 5, 90.0, 1.0, 1.0, 1e-3)).left_s == 10.0, "what is left of the budget"
        assert state(first, Epoch("flow", 5, 90.0, 1.0, 1.0, 1e-3, "patience")).left_s == 0.0
    assert (state(first).state, state(first).error) == ("failed", "begin")


def test_slurm_tasks_are_told_even_where_slurm_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny(40)
    simulate.run(study, tmp_path, quiet)
    folder = shards.jobs_folder(Place(tmp_path, study.simulation_identity()))
    assert summarise(folder) is None
    assert summarise() is None
    jobs = campaign.load(folder, "simulate")
    jobs.started(jobs.announce([[]]), 17)
    (folder / "17_0_log.err").write_text("Traceback\nMemoryError: too much\nsrun: error: task 0\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    state = simulating(study, tmp_path)
    assert "Slurm does not answer" in state.detail
    assert (state.error, state.log) == ("MemoryError: too much", f"{folder}/17_0_log.err")
    assert str(summarise(tmp_path, folder)) == str(summarise(folder))
