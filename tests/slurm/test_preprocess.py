"""Features as array tasks of a real Slurm: one task is killed, the store has the bytes of a local run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scatterflow.progress import quiet
from scatterflow.stages import preprocess, simulate
from tests.conftest import ROOT
from tests.features_study import features
from tests.slurm.cluster import Cluster
from tests.slurm.runs import WAIT_S
from tests.workflow.checkout import tree_sha256

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("slurm")]
OPTIONS = {"FANOUT": "slurm"} | {
    f"SLURM_{name}": text
    for name, text in (("POLL_S", "0.5"), ("LATENCY_S", "1"), ("TASKS", "2"), ("MEMORY_MB", "1000"))
}


def tasks(folder: Path) -> list[int]:
    """Process ids of the tasks that have begun."""
    lines = [line for file in folder.glob("preprocess/slurm-*/*.jsonl") for line in file.read_text().splitlines()]
    return [json.loads(line)["process"] for line in lines if "process" in line]


@pytest.fixture
def started(cluster: Cluster, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The stage under way in two tasks, which wait for the gate; it ends with the test."""
    simulate.run(features(), tmp_path / "local", quiet)
    shutil.copytree(tmp_path / "local", tmp_path / "study")
    options = {"wait_at": (15, 45), "gate": str(tmp_path / "gate"), "torch_at": 15}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.features_study", str(tmp_path / "study"), json.dumps(options)],
        cwd=ROOT,
        env=os.environ | cluster.env | {f"SCATTERFLOW_{name}": text for name, text in OPTIONS.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_array_of_features_and_kill_of_a_task(started: subprocess.Popen[str], cluster: Cluster, tmp_path: Path) -> None:
    study = tmp_path / "study"
    cluster.wait(lambda: len(tasks(study)) == 2 and len(list(study.glob("preprocess/shards-*/*.json"))) == 2)
    assert {node for _, state, node in cluster.jobs() if state == "RUNNING"} == {"cpu1", "cpu2"}
    os.kill(tasks(study)[0], signal.SIGKILL)
    (tmp_path / "gate").touch()
    _, said = started.communicate(timeout=WAIT_S)
    assert started.returncode == 0, said
    assert "submitted again" in said
    preprocess.run(features(), tmp_path / "local", quiet)
    made, local = (next(each.glob("preprocess/features-*.zarr")) for each in (study, tmp_path / "local"))
    assert tree_sha256(made) == tree_sha256(local)
    assert not list(study.glob("preprocess/slurm-*"))
