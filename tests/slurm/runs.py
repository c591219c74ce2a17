"""A run of the stage simulate on the test cluster, in a process of its own, as a user starts it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scatterflow import manifest
from scatterflow.manifest import ShardRecord, StoreManifest
from tests.conftest import ROOT
from tests.slurm.cluster import Cluster
from tests.workflow.checkout import tree_sha256

SIMULATIONS = 60  # in shards of 10
TASKS = 2
WAIT_S = 400


@dataclass
class Run:
    """A folder in which `start` simulates on `cluster`; `finish` waits for the end."""

    cluster: Cluster
    folder: Path
    undisturbed: Path  # what a local run has made
    program: str = "tests.slurm.faults"  # module that simulates
    process: Any = None  # subprocess.Popen of the last start
    before: int = 0  # tasks that had begun then

    def start(self, variables: dict[str, str] | None = None, **faults: Any) -> None:
        """Start the stage; `faults` are those of the program, `variables` options of SCATTERFLOW_SLURM_*."""
        self.before = len(self.starts())
        options = {"poll_s": "0.5", "latency_s": "1", "tasks": str(TASKS), "memory_mb": "1000", "minutes": "15"}
        env = {f"SCATTERFLOW_SLURM_{key.upper()}": value for key, value in (options | (variables or {})).items()}
        self.process = subprocess.Popen(
            # it ends with the tests, however they end
            [
                "setpriv",
                "--pdeathsig=KILL",
                sys.executable,
                "-m",
                self.program,
                str(self.folder),
                json.dumps(faults),
            ],
            cwd=ROOT,
            env=os.environ | self.cluster.env | env | {"SCATTERFLOW_FANOUT": "slurm"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, status: int = 0) -> str:
        """Open the gate and wait for the end, which must be with `status`; returns what was said on stderr."""
        self.gate.touch()
        try:
            _, said = self.process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"{late.stderr!r}\n{self.cluster.state()}") from late
        assert self.process.returncode == status, said
        assert "Traceback" not in said
        return said

    def hear(self, words: str) -> str:
        """Wait until the run says `words` on stderr; returns the line."""
        for line in self.process.stderr:
            if words in line:
                return str(line)
        raise AssertionError(f"the run has ended without saying {words!r}")

    def copy(self, folder: Path) -> None:
        """Begin with what another run has made."""
        shutil.copytree(folder, self.folder)

    def kill(self) -> None:
        """kill -9 of the controlling process."""
        self.process.kill()
        self.process.communicate()

    def starts(self) -> list[int]:
        """Process ids of all tasks that have begun so far."""
        files = self.folder.glob("simulate/slurm-*/*.jsonl")
        lines = [line for path in files for line in path.read_text().splitlines()]
        return [json.loads(line)["process"] for line in lines if "process" in line]

    def records(self) -> list[ShardRecord]:
        return [manifest.read(path, ShardRecord) for path in sorted(self.folder.glob("simulate/shards-*/*.json"))]

    @property
    def gate(self) -> Path:
        """While this file is absent, tasks started by `underway` wait."""
        return self.folder.with_suffix(".gate")

    def begun(self, tasks: int) -> None:
        """Wait until so many tasks have begun since `start`."""
        self.cluster.wait(lambda: len(self.starts()) - self.before == tasks)

    def underway(self, variables: dict[str, str] | None = None) -> None:
        """Start with tasks that wait in a shard until the gate is open; returns when both nodes do so."""
        self.gate.unlink(missing_ok=True)
        self.start(variables, wait_at=(15, 45), gate=str(self.gate))
        self.begun(TASKS)
        self.cluster.wait(lambda: len(self.records()) >= TASKS)

    def check(self) -> None:
        """The store has the bits of an undisturbed local run; nothing is lost, double or left behind."""
        (store,), (expected,) = (each.glob("simulate/store-*.zarr") for each in (self.folder, self.undisturbed))
        assert store.name == expected.name
        assert tree_sha256(store) == tree_sha256(expected)
        made, undisturbed = (
            manifest.read(each / "simulate" / "manifest.json", StoreManifest)
            for each in (self.folder, self.undisturbed)
        )
        assert made.same_content(undisturbed)
        assert [record.shard for record in self.records()] == list(manifest.plan(SIMULATIONS, 10))
        assert {record.state for record in self.records()} == {"ok"}
        assert not list(self.folder.rglob("*.partial"))
        assert not list(self.folder.glob("simulate/slurm-*"))
        self.cluster.wait(lambda: not self.cluster.jobs())
