"""The literal `snakemake --profile slurm` from a checkout's root: arrays on both nodes, training on the GPU partition."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import PLAIN
from tests.workflow.checkout import BIN, Checkout, new_checkout, tree_sha256

pytestmark = pytest.mark.workflow

# only the waiting is shortened: the plugin's first look at a job comes after 40 s otherwise
COMMAND = (
    "--profile",
    "slurm",
    "--slurm-init-seconds-before-status-checks",
    "3",
    "--seconds-between-status-checks",
    "2",
)


def start(checkout: Checkout, cluster: Cluster, target: str, to: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["setpriv", "--pdeathsig=TERM", str(BIN / "snakemake"), target, *COMMAND, "--configfile", "tiny.yaml"],
        cwd=checkout.folder,
        env=os.environ | cluster.env | {"SCATTERFLOW_SLURM_POLL_S": "1", "SCATTERFLOW_SLURM_TASKS": "4"},
        stdout=to,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.parametrize("running", [PLAIN], indirect=True)
def test_snakemake_is_killed_and_run_again(cluster: Cluster, tmp_path: Path) -> None:
    checkout = new_checkout(tmp_path / "checkout")
    (checkout.folder / "slurm").symlink_to(Path("profiles") / "slurm")
    first = start(checkout, cluster, "simulate")
    try:
        cluster.wait(lambda: len(cluster.jobs("RUNNING")) == 4)
        arrays = cluster.jobs("RUNNING")
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert len({job.split("_")[0] for job, _, _ in arrays}) == 1
    assert all("_" in job for job, _, _ in arrays)
    assert {node for _, _, node in arrays} == {"cpu1", "cpu2"}
    assert not (checkout.results / "simulate" / "manifest.json").exists()

    seen: set[str] = set()
    with (tmp_path / "said").open("w+") as said:
        second = start(checkout, cluster, "train", to=said)
        while second.poll() is None:
            running = cluster.run("squeue", "--noheader", "--states=RUNNING", "--format=%P %N %b")
            seen.update(running.stdout.splitlines())
            time.sleep(0.5)
    assert second.returncode == 0, (tmp_path / "said").read_text()
    assert any(line.split() == ["gpu", "gpu1", "gres:gpu:1"] for line in seen), seen
    assert len(list(checkout.results.glob("models/*/bundle.json"))) == 2

    local = (str(BIN / "scatterflow"), "simulate", "--config", "tiny.yaml", "--results", "local")
    subprocess.run(local, cwd=checkout.folder, check=True, capture_output=True, timeout=300)
    (expected,) = checkout.folder.glob("local/tiny/multilayer/simulate/store-*.zarr")
    (store,) = checkout.results.glob("simulate/store-*.zarr")
    assert store.name == expected.name
    assert tree_sha256(store) == tree_sha256(expected)
    assert not list(checkout.results.glob("simulate/slurm-*"))


@pytest.mark.table
def test_only_snakemake_itself_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    """What it has started does not go on without it: its jobs are cancelled, and the next run finds nobody at work."""
    checkout = new_checkout(tmp_path / "checkout")
    (checkout.folder / "slurm").symlink_to(Path("profiles") / "slurm")
    first = start(checkout, cluster, "simulate")
    cluster.wait(lambda: len(cluster.jobs("RUNNING")) == 4)
    asked = (str(BIN / "scatterflow"), "status", "--config", "tiny.yaml", "--json")
    told = subprocess.run(asked, cwd=checkout.folder, env=os.environ | cluster.env, check=True, capture_output=True)
    (simulating,) = (stage for stage in json.loads(told.stdout)["stages"] if stage["stage"] == "simulate")
    assert simulating["state"] == "running"
    assert (simulating["running"], simulating["queued"]) == (4, 0)
    first.kill()
    first.wait()
    cluster.wait(lambda: not cluster.jobs())
    with (tmp_path / "said").open("w+") as said:
        assert start(checkout, cluster, "simulate", to=said).wait() == 0, (tmp_path / "said").read_text()
    assert not list(checkout.results.glob("simulate/slurm-*"))
