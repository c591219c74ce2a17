"""What array tasks on a real Slurm cost beside the simulations, and what a second node gains; sacct is the clock.

pytest benchmarks/bench_cluster.py -s

Two one-core nodes against one, on this machine: two idle cores are needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from scatterflow import manifest
from scatterflow.manifest import Place, StoreManifest
from tests.conftest import ROOT
from tests.slurm.cluster import Cluster, lacking

TASK_S = 60.0  # what each of two tasks simulates
OVERHEAD, SPEEDUP, CPU = 1.05, 1.7, 1.05  # targets: wall over simulation; two nodes over one, wall and CPU time
SCATTERFLOW = str(Path(sys.executable).with_name("scatterflow"))


class Cost(NamedTuple):
    """Of one run [s]."""

    wall: float  # of the whole command
    tasks: float  # elapsed time of the tasks, summed
    cpu: float  # processor time of the tasks, summed
    simulating: float  # in simulations, summed
    checksum: str


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := lacking(accounting=True):
        pytest.skip(reason)  # names the Slurm packages that this machine lacks: only this benchmark needs them
    new = Cluster(tmp_path_factory.mktemp("slurm"), accounting=True)
    try:
        new.start()
        yield new
    finally:
        new.stop()


def simulate(folder: Path, engine: str, simulations: int, shard: int, variables: dict[str, str]) -> tuple[float, Place]:
    """Run `scatterflow simulate` on the demo's study; returns its wall time [s] and where the store is."""
    options = {"simulate.simulations": simulations, "simulate.shard_size": shard, "forward.engine": engine}
    options |= {"simulate.held_back": 10, "simulate.validation": 10}
    chosen = [text for key, value in options.items() for text in ("--set", f"{key}={value}")]
    command = [SCATTERFLOW, "simulate", "--results", str(folder), "--json", *chosen]
    env = os.environ | variables | {"OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    wall = time.perf_counter() - began
    study = folder / "demo" / "multilayer"
    return wall, Place(study, manifest.read(study / "simulate" / "manifest.json", StoreManifest).identity)


def seconds(place: Place) -> float:
    return sum(record.seconds for record in manifest.read_records(place).values())


def clock(text: str) -> float:
    """Seconds of sacct's [days-][hours:]minutes:seconds."""
    days, _, rest = text.rpartition("-")
    parts = [float(part) for part in rest.split(":")]
    return 86400 * float(days or 0) + sum(part * 60**power for power, part in enumerate(reversed(parts)))


def cost(cluster: Cluster, folder: Path, engine: str, simulations: int, shard: int, nodes: int) -> Cost:
    """Simulate on `nodes` nodes, one task on each."""
    before = accounted(cluster)
    options = {"tasks": nodes, "poll_s": 1, "memory_mb": 4000, "latency_s": 20}
    variables = {f"SCATTERFLOW_SLURM_{key.upper()}": str(value) for key, value in options.items()}
    wall, place = simulate(
        folder, engine, simulations, shard, cluster.env | variables | {"SCATTERFLOW_FANOUT": "slurm"}
    )
    tasks = {job: value for job, value in accounted(cluster).items() if job not in before}
    assert len(tasks) == nodes, tasks
    entry = manifest.read(place.manifest, StoreManifest)
    elapsed, cpu = (sum(each) for each in zip(*tasks.values(), strict=True))
    return Cost(wall, elapsed, cpu, seconds(place), entry.checksum)


def accounted(cluster: Cluster) -> dict[str, tuple[float, float]]:
    """Elapsed and processor time [s] of every task that has ended, by its id."""
    cluster.wait(lambda: not cluster.jobs())
    time.sleep(3)  # slurmctld tells slurmdbd in batches
    shown = cluster.run("sacct", "--noheader", "--parsable2", "--format=jobid,elapsedraw,totalcpu,state").stdout
    rows = [line.split("|") for line in shown.splitlines() if "." not in line.split("|")[0]]
    return {job: (float(elapsed), clock(cpu)) for job, elapsed, cpu, state in rows if state == "COMPLETED"}


@pytest.mark.parametrize("engine", ["dwba", "bornagain"])
def test_overhead_and_second_node(cluster, tmp_path, engine):
    _, place = simulate(tmp_path / "probe", engine, 2000, 500, {})  # compiling takes part of the first only
    each = min(record.seconds for record in manifest.read_records(place).values()) / 500
    shard = max(100, round(TASK_S / each / 20 / 100) * 100)  # 20 of them in a task
    simulations = 2 * 20 * shard
    one = cost(cluster, tmp_path / "one", engine, simulations, shard, 1)
    two = cost(cluster, tmp_path / "two", engine, simulations, shard, 2)
    assert one.checksum == two.checksum
    print(
        f"\n{engine}: {simulations} simulations of {each * 1e3:.2f} ms, {two.simulating / 2:.0f} s in each of two tasks"
    )
    print(f"  tasks' wall time over time in simulations: {two.tasks / two.simulating:.3f} (target {OVERHEAD})")
    print(f"  one node over two, wall time of the command: {one.wall / two.wall:.2f} (target {SPEEDUP})")
    print(f"  two nodes over one, processor time: {two.cpu / one.cpu:.3f} (target {CPU})")
