"""One Slurm for the session, idle again before each test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scatterflow.progress import quiet
from scatterflow.stages import simulate
from tests.conftest import _missing
from tests.slurm.cluster import Cluster, can_mount, lacking
from tests.slurm.faults import faulty
from tests.slurm.runs import SIMULATIONS, Run

# The whole table runs twice, each on a cluster (and a worker of pytest-xdist) of its own; the first is in `make test`.
PLAIN = pytest.param(False, id="squeue", marks=pytest.mark.xdist_group("slurm"))
ACCOUNTED = pytest.param(True, id="slurmdbd", marks=pytest.mark.xdist_group("slurmdbd"))
AGAIN = pytest.param(True, id="slurmdbd", marks=[pytest.mark.xdist_group("slurmdbd"), pytest.mark.table])


@pytest.fixture(scope="session", params=[PLAIN, AGAIN])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm whose jobs only squeue shows, and one with accounting."""
    reason = lacking(accounting=request.param)
    if reason:
        _missing(f"no Slurm can be started: {reason}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), accounting=request.param)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """The cluster; what a test does to it is undone."""
    yield running
    running.reset()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an undisturbed local run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    simulate.run(faulty(SIMULATIONS), folder, quiet)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    if not can_mount():
        _missing("no right to mount a file system (CAP_SYS_ADMIN)")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def run(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> Iterator[Run]:
    """A run that has not been started; it ends with the test."""
    new = Run(cluster, tmp_path / "study", undisturbed)
    yield new
    if new.process is not None:
        new.process.kill()
        new.process.communicate()
