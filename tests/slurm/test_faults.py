"""What clusters do to simulations, each on a real Slurm: the store ends with the bits of an undisturbed local run.

A run that ends with an error is run again, and then meets the next trouble: every start of a process costs seconds.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.slurm.cluster import NODES, Cluster
from tests.slurm.runs import TASKS, Run

pytestmark = pytest.mark.workflow


def test_array_on_both_nodes_and_kill_of_a_task(run: Run, cluster: Cluster) -> None:
    run.underway()
    array, indices = zip(*(job.split("_") for job, _, _ in cluster.jobs()), strict=True)
    assert len(set(array)) == 1
    assert sorted(indices) == [str(index) for index in range(TASKS)]
    assert {node for _, state, node in cluster.jobs() if state == "RUNNING"} == {"cpu1", "cpu2"}
    os.kill(run.starts()[0], signal.SIGKILL)
    assert "submitted again" in run.finish()
    run.check()


def test_node_down_and_back(run: Run, cluster: Cluster) -> None:
    run.underway()
    cluster.run("scontrol", "update", "nodename=cpu1", "state=down", "reason=test")
    cluster.run("scontrol", "update", "nodename=cpu1", "state=resume")
    run.finish()
    run.check()


def test_two_writers(run: Run, cluster: Cluster) -> None:
    """slurmd is killed, its task lives on, and the copy that Slurm starts elsewhere writes the same shards."""
    run.underway()
    cluster.end("cpu1", signal.SIGKILL)
    cluster.run("scontrol", "update", "nodename=cpu1", "state=down", "reason=test")
    run.begun(TASKS + 1)
    assert all(Path(f"/proc/{process}").exists() for process in run.starts())
    run.finish()
    run.check()


def test_controller_killed_and_restarted(run: Run, cluster: Cluster) -> None:
    """It takes up the tasks that run and submits nothing twice."""
    run.underway()
    run.kill()
    before = {job for job, _, _ in cluster.jobs()}
    assert len(before) == TASKS
    run.start()
    run.hear("going on with tasks that were submitted before: 2")
    assert {job for job, _, _ in cluster.jobs()} == before
    run.finish()
    run.check()


@pytest.mark.table
def test_one_task_requeued_the_other_cancelled(run: Run, cluster: Cluster) -> None:
    """With two processes each: both get Slurm's signals, only the parent heeds them."""
    run.underway({"cpus": "2"})
    requeued, cancelled = (job for job, _, _ in cluster.jobs("RUNNING"))
    cluster.run("scontrol", "requeue", requeued)
    cluster.run("scancel", cancelled)
    assert "submitted again" in run.finish()
    run.check()


@pytest.mark.table
def test_preemption(run: Run, cluster: Cluster) -> None:
    run.underway()
    for node in NODES[:2]:
        arguments = ("--partition=urgent", "--exclusive", "--mem=100", f"--nodelist={node}", "--output=/dev/null")
        assert cluster.run("sbatch", *arguments, "--chdir=/", "--wrap=sleep 1").returncode == 0
    cluster.wait(lambda: "PENDING" in {state for _, state, _ in cluster.jobs()})
    run.finish()
    run.check()


@pytest.mark.table
def test_time_limit(run: Run, cluster: Cluster) -> None:
    """On the node with the GPU, which one task takes after the other."""
    run.start({"minutes": "1", "partition": "gpu", "gres": "gpu:1"}, wait_at=(15, 45), gate=str(run.gate))
    run.begun(1)
    assert cluster.run("squeue", "--noheader", "--states=RUNNING", "--format=%P %b").stdout.split() == [
        "gpu",
        "gres:gpu:1",
    ]
    told = run.hear("submitted again")
    assert "timeout" in told or "slurmstepd" in told, "Slurm's state, or what its daemon wrote where the job still ends"
    run.finish()
    run.check()


@pytest.mark.table
def test_stop_cancels_the_jobs_then_the_array_is_cancelled(run: Run, cluster: Cluster) -> None:
    run.underway()
    run.process.send_signal(signal.SIGTERM)
    run.process.wait()
    cluster.wait(lambda: not cluster.jobs())
    assert "stopped by SIGTERM" in run.finish(128 + signal.SIGTERM)
    run.underway()
    cluster.run("scancel", cluster.jobs("RUNNING")[0][0].split("_")[0])
    assert "submitted again" in run.finish()
    run.check()


@pytest.mark.table
def test_full_disk_then_freed_while_slurmctld_restarts(run: Run, cluster: Cluster, small_disk: Path) -> None:
    run.folder = small_disk / "study"
    run.underway()
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert "no space left on device" in run.finish(2)
    cluster.wait(lambda: not cluster.jobs())
    filler.unlink()
    run.underway()
    cluster.end("slurmctld", signal.SIGKILL)
    run.hear("no answer")
    cluster.start_controller()
    run.finish()
    run.check()


@pytest.mark.table
def test_a_shard_that_cannot_be_computed_then_munge_stops(run: Run, cluster: Cluster) -> None:
    run.start(error_at=15)
    assert "layer01_TaO.delta must be physical" in run.finish(2)
    assert sorted(record.shard.start for record in run.records() if record.state == "ok") == [0, 20, 30, 40, 50]
    run.gate.unlink()
    run.start(wait_at=(15,), gate=str(run.gate))
    run.begun(1)
    cluster.end("munged")
    run.hear("no answer")
    time.sleep(30)
    cluster.start_munge()
    run.finish()
    run.check()


@pytest.mark.table
def test_a_shard_that_always_kills_its_task_then_takes_all_memory(run: Run, tmp_path: Path) -> None:
    """Tried a few times, then given up with its reason; all others are finished, and kept."""
    run.start(kill_at=15)
    said = run.finish(2)
    assert "1 of 6 shards must be simulated, got Slurm task" in said
    assert "Killed" in said
    assert sorted(record.shard.start for record in run.records() if record.state == "ok") == [0, 20, 30, 40, 50]
    run.start(eat_at=15, once=str(tmp_path / "once"))
    said = run.finish()
    assert "submitted again" in said
    assert "memory" in said
    run.check()


def test_damage_leftovers_and_clocks(run: Run, undisturbed: Path) -> None:
    """A flipped bit, a cut file, a missing one, files of killed writers, and clocks that are an hour wrong."""
    run.copy(undisturbed)
    (store,) = run.folder.glob("simulate/store-*.zarr")
    flipped, cut, gone = (next(store.glob(f"image/c/{shard}/*/*")) for shard in (1, 3, 4))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 3] ^= 16
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-9])
    gone.unlink()
    (store / "image" / "c" / "x.partial").write_text("left by a killed writer")
    (next(run.folder.glob("simulate/shards-*")) / "y.partial").write_text("left by a killed writer")
    for number, path in enumerate(path for path in run.folder.rglob("*") if path.is_file()):
        skewed = time.time() + (3600 if number % 2 else -3600)
        os.utime(path, (skewed, skewed))
    before = {record.shard: record.finished for record in run.records()}
    run.start()
    run.finish()
    changed = [record.shard.start for record in run.records() if record.finished != before[record.shard]]
    assert changed == [10, 30, 40]
    run.check()


@pytest.mark.table
def test_tasks_in_a_container(run: Run, tmp_path: Path) -> None:
    """What starts Python in a task may be a command of its own, as `apptainer exec IMAGE python`."""
    wrapper, noted = tmp_path / "container", tmp_path / "noted"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {noted}\nshift\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    run.start({"python": f"{wrapper} image"})
    run.finish()
    assert [line.split()[:4] for line in noted.read_text().splitlines()] == [
        ["image", "-u", "-m", "submitit.core._submit"]
    ] * TASKS
    run.check()
