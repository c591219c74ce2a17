"""With slurmdbd: accounts and limits are enforced, sacct remembers every task, and nothing else changes."""

import pytest

from scatterflow.cli.doctor_slurm import slurm
from tests.slurm.cluster import ACCOUNT, Cluster
from tests.slurm.conftest import ACCOUNTED
from tests.slurm.runs import TASKS, Run

pytestmark = [pytest.mark.workflow, pytest.mark.parametrize("running", [ACCOUNTED], indirect=True)]


def test_account(run: Run, cluster: Cluster) -> None:
    run.start({"account": "moon"})
    line = run.finish(2).splitlines()[-1]
    assert "Invalid account" in line
    assert "(account moon)" in line
    assert "sacctmgr show associations" in line
    assert not cluster.jobs()
    run.start({"account": ACCOUNT, "latency_s": "20"})
    run.finish()
    run.check()
    shown = cluster.run("sacct", "--noheader", "--allocations", "--format=account%20,state%20", f"--accounts={ACCOUNT}")
    assert [line.split() for line in shown.stdout.splitlines()] == [[ACCOUNT, "COMPLETED"]] * TASKS


def test_limit_of_jobs(run: Run, cluster: Cluster) -> None:
    """More tasks than a user may submit: one line, nothing in the queue."""
    limit = ("--immediate", "modify", "user", f"name={cluster.user}", "set")
    cluster.run("sacctmgr", *limit, "MaxSubmitJobs=1")
    try:
        run.start()
        line = run.finish(2).splitlines()[-1]
    finally:
        cluster.run("sacctmgr", *limit, "MaxSubmitJobs=-1")
    assert "sbatch must be accepted by Slurm" in line
    assert "lower SCATTERFLOW_SLURM_TASKS" in line
    assert not cluster.jobs()


def test_doctor(cluster: Cluster, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    (accounting,) = (finding for finding in slurm(tmp_path) if finding.what == "Slurm accounting")
    assert accounting.state == "ok"
