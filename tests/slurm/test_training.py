"""Training on a partition that takes its jobs back: warned, requeued and preempted, it ends with the same weights."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from scatterflow.multilayer import MultilayerStudy
from scatterflow.progress import quiet
from scatterflow.stages import preprocess, simulate, sweep, train
from scatterflow.study import load_study
from scatterflow.trials import SweepManifest
from tests.slurm.cluster import Cluster
from tests.slurm.test_profile import start
from tests.workflow.checkout import BIN, Checkout, new_checkout

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("slurm")]

WAIT_S = 240
EPOCHS = 500  # long enough to be interrupted twice
MODEL = {
    "kind": "maf-profile",
    "flow": {"transforms": 2, "hidden": 16, "layers": 1, "encoder": {"hidden": 16, "outputs": 8}},
    "training": {"flow": {"epochs": EPOCHS, "patience": EPOCHS, "schedule": "cosine"}, "checkpoint_every": 7},
}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with features and one model to train. Not to be changed: `copy` it."""
    new = new_checkout(tmp_path_factory.mktemp("features") / "checkout")
    (new.folder / "slurm").symlink_to(Path("profiles") / "slurm")
    new.configure({"models": {"profile": MODEL}, "simulate.workers": 1})
    chosen = study(new)
    simulate.run(chosen, new.results, quiet)
    preprocess.run(chosen, new.results, quiet)
    return new


def study(checkout: Checkout) -> MultilayerStudy:
    return load_study(checkout.folder / "tiny.yaml", "multilayer")


@pytest.fixture
def checkout(features: Checkout, tmp_path: Path) -> Checkout:
    return features.copy(tmp_path / "checkout")


@pytest.fixture
def local(features: Checkout, tmp_path: Path) -> Path:
    """The features once more, for what is trained undisturbed in this process."""
    return shutil.copytree(features.results, tmp_path / "local")


def test_requeued_before_its_time_limit_then_preempted(
    checkout: Checkout, local: Path, cluster: Cluster, tmp_path: Path
) -> None:
    work = checkout.results / "models" / "profile.training" / "flow.ckpt"
    log = checkout.results / "logs" / "train_model.profile.log"

    def continued() -> bool:
        return log.exists() and "continues: flow, after epoch" in log.read_text()

    with (tmp_path / "said").open("w") as said:
        running = start(checkout, cluster, "train", to=said)
    try:
        cluster.wait(work.exists, WAIT_S)
        ((job, _, node),) = cluster.jobs("RUNNING")
        assert node == "gpu1"
        assert "GPUS=0), but torch finds none: training on the CPU" in log.read_text()
        cluster.run("scancel", "--signal=URG", job)  # what slurm_extra makes Slurm send before the time limit
        cluster.wait(continued, WAIT_S)
        log.unlink()
        urgent = ("--partition=gpu-urgent", "--exclusive", "--mem=100", "--output=/dev/null", "--chdir=/")
        assert cluster.run("sbatch", *urgent, "--wrap=sleep 1").returncode == 0
        cluster.wait(continued, WAIT_S)
        assert [each for each, _, _ in cluster.jobs()] == [job]
        assert "Restarts=2 " in cluster.run("scontrol", "show", "job", job).stdout
        expected = train.run(study(checkout), "profile", local, lambda _: None, quiet)
        running.wait(WAIT_S)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert running.returncode == 0, (tmp_path / "said").read_text()
    weights = checkout.results / "models" / "profile" / "weights.safetensors"
    assert weights.read_bytes() == expected.with_name(weights.name).read_bytes()
    assert not work.parent.exists()


def test_a_sweep_is_an_array_on_the_gpu_partition(
    checkout: Checkout, local: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """One trial is warned of its time limit: it goes on in another task, and every trial ends as trained alone."""
    checkout.configure({"models.profile.training.flow.epochs": EPOCHS // 4})
    space = {"training.flow.learning_rate": [1e-3, 2e-3]}
    checkout.configure({"sweep": {"model": "profile", "space": space, "parallel": 1}})
    options = {"partition": "gpu", "gres": "gpu:1", "poll_s": "0.5", "latency_s": "1", "memory_mb": "1000"}
    env = {f"SCATTERFLOW_SLURM_{key.upper()}": value for key, value in options.items()}
    with (tmp_path / "said").open("w") as said:
        running = subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", str(BIN / "scatterflow"), "sweep", "--config", "tiny.yaml"],
            cwd=checkout.folder,
            env=os.environ | cluster.env | env | {"SCATTERFLOW_FANOUT": "slurm"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        cluster.wait(lambda: any(checkout.results.glob("sweep/*/profile.training/flow.ckpt")), WAIT_S)
        jobs = cluster.jobs()
        assert {job.split("_")[0] for job, _, _ in jobs} == {jobs[0][0].split("_")[0]}
        assert len(jobs) == 2
        ((job, _, node),) = cluster.jobs("RUNNING")  # the node has one GPU
        assert node == "gpu1"
        cluster.run("scancel", "--signal=USR2", job)
        running.wait(WAIT_S)
    finally:
        running.kill()
        running.wait()
    told = (tmp_path / "said").read_text()
    assert running.returncode == 0, told
    assert "1 shard submitted again (the time limit was near)" in told
    expected = sweep.run(study(checkout), local, lambda _: None)
    found, undisturbed = (
        SweepManifest.model_validate_json(path.read_bytes())
        for path in (checkout.results / "sweep" / "manifest.json", expected)
    )
    assert [trial.score for trial in found.trials] == [trial.score for trial in undisturbed.trials]
    assert found.best == undisturbed.best
