"""Frames of nanodiffraction as array tasks of a real Slurm: a task is killed, the store has the bits of a local run.

What clusters do else is the same for every kind of study: test_faults.py.
"""

import os
import signal
from pathlib import Path

import pytest

from scatterflow.progress import quiet
from scatterflow.stages import simulate
from tests.slurm.cluster import Cluster
from tests.slurm.films import films
from tests.slurm.runs import TASKS, Run

pytestmark = [pytest.mark.workflow, pytest.mark.table]


def test_array_of_frames_and_kill_of_a_task(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    simulate.run(films(), tmp_path / "local", quiet)
    run.program, run.undisturbed = "tests.slurm.films", tmp_path / "local"
    run.underway({"memory_mb": "1500"})
    assert {node for _, state, node in cluster.jobs() if state == "RUNNING"} == {"cpu1", "cpu2"}
    assert len(run.starts()) == TASKS
    os.kill(run.starts()[0], signal.SIGKILL)
    assert "submitted again" in run.finish()
    run.check()
