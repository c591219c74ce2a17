"""What a user or a site can get wrong: one line, exit status 2, nothing left in the queue."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scatterflow import fanout
from scatterflow.cli.doctor_slurm import slurm
from scatterflow.manifest import Shard, plan
from scatterflow.slurm.summary import summarise
from tests.conftest import ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.runs import TASKS, Run

pytestmark = pytest.mark.workflow

REFUSED = {
    "unknown partition": ({"partition": "moon"}, "invalid partition name specified (partition moon)", "sinfo"),
    "too much memory": ({"memory_mb": "999999"}, "not available", "SCATTERFLOW_SLURM_MEMORY_MB"),
    "misspelt variable": ({"partiton": "cpu"}, "partiton", "did you mean 'partition'?"),
    "not a number": ({"cpus": "many"}, "cpus", "many"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(run: Run, cluster: Cluster, name: str) -> None:
    variables, problem, remedy = REFUSED[name]
    run.start(variables)
    line = run.finish(2).splitlines()[-1]
    assert problem in line.lower()
    assert remedy in line
    assert not cluster.jobs()


def test_slurm_does_not_answer_then_takes_no_arrays(run: Run, cluster: Cluster) -> None:
    cluster.end("slurmctld")
    run.start()
    assert "Slurm must answer" in run.finish(2).splitlines()[-1]
    cluster.configure(MaxArraySize="2")
    cluster.start_controller()
    try:
        run.start()
        run.begun(TASKS)
        assert not any("_" in job for job, _, _ in cluster.jobs())
        run.finish()
        run.check()
    finally:
        cluster.end("slurmctld")
        cluster.configure()


def test_status_of_running_and_failed_tasks(run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    run.underway()
    (folder,) = run.folder.glob("simulate/slurm-*")
    running = summarise(folder)
    assert running is not None
    assert (running.running, running.queued, running.error) == (TASKS, 0, "")
    cluster.end("slurmctld")
    silent = summarise(folder)
    assert silent is not None
    assert "Slurm does not answer" in str(silent)
    cluster.start_controller()
    run.kill()
    cluster.run("scancel", *{job.split("_")[0] for job, _, _ in cluster.jobs()})
    cluster.wait(lambda: not cluster.jobs())
    failed = summarise(folder)
    assert failed is not None
    assert failed.running == 0
    assert "error" in failed.error
    assert Path(failed.log).is_file()


def test_doctor(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    found = {finding.what: finding for finding in slurm(tmp_path)}
    assert "cluster test" in found["Slurm"].found
    assert found["Slurm accounting"].state == ("ok" if cluster.accounting else "warning")
    assert "up to 1000 tasks" in found["Slurm arrays"].found
    assert found["Slurm MinJobAge"].state == "ok"
    assert all(name in found["Slurm partitions"].found for name in ("cpu*: up, 2 nodes", "gpu: up, 1 nodes"))
    assert found["Slurm GPUs"].found.startswith("gpu (gpu:1")
    monkeypatch.setenv("SCATTERFLOW_SLURM_POLL_S", "2000")
    (age,) = (finding for finding in slurm(tmp_path) if finding.what == "Slurm MinJobAge")
    assert (age.state, bool(age.remedy)) == ("warning", True)
    cluster.end("slurmctld")
    (only,) = slurm(tmp_path)
    assert (only.state, bool(only.remedy)) == ("warning", True)
    assert "does not answer" in only.found


def nothing(shard: Shard) -> None:
    """Work that takes no time."""


def none_missing(shards: Any) -> list[Shard]:
    return []


def test_5000_tasks_are_six_calls_at_most(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that takes nothing keeps them all in the queue."""
    options = {"FANOUT": "slurm", "SLURM_TASKS": "5000", "SLURM_PARTITION": "gpu", "SLURM_POLL_S": "0.1"}
    for name, value in ({f"SCATTERFLOW_{key}": each for key, each in options.items()} | cluster.env).items():
        monkeypatch.setenv(name, value)
    cluster.run("scontrol", "update", "nodename=gpu1", "state=drain", "reason=test")
    shared = fanout.Shared(tmp_path, none_missing)
    outcomes = fanout.run_shards(plan(10_000, 1), nothing, 1, "slurm", shared)
    asked: list[int] = []

    def stop(_: float) -> None:
        asked.append(len(cluster.jobs()))
        raise fanout.Stopped(15)

    # The controller's first pause is after the submission. Its own name only: everything else sleeps through the module.
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=stop)
    monkeypatch.setattr("scatterflow.slurm.controller.time", clock)
    with pytest.raises(fanout.Stopped):
        next(outcomes)
    monkeypatch.undo()
    assert asked == [5000]
    assert len(list(tmp_path.glob("*_submission.sh"))) <= 6
    cluster.wait(lambda: not cluster.jobs())


def test_10000_shards_in_two_tasks(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"FANOUT": "slurm", "SLURM_TASKS": "2", "SLURM_POLL_S": "1", "SLURM_MEMORY_MB": "500"}
    for name, value in ({f"SCATTERFLOW_{key}": each for key, each in options.items()} | cluster.env).items():
        monkeypatch.setenv(name, value)
    shards = plan(10_000, 1)
    outcomes = list(fanout.run_shards(shards, nothing, 1, "slurm", fanout.Shared(tmp_path / "jobs", none_missing)))
    assert sorted(outcome.shard for outcome in outcomes) == list(shards)
    assert not any(outcome.error for outcome in outcomes)
    assert not (tmp_path / "jobs").exists()


def test_neither_task_nor_controller_needs_torch() -> None:
    code = (
        "import sys, scatterflow.stages.simulate, scatterflow.slurm.controller, submitit; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
