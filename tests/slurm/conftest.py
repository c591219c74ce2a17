"""One Slurm for the session, idle again before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scatterflow.progress import quiet
from scatterflow.stages import simulate
from tests.conftest import _missing
from tests.slurm.cluster import Cluster, lacking
from tests.slurm.faults import faulty
from tests.slurm.runs import SIMULATIONS, Run


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = lacking()
    if reason:
        _missing(f"no Slurm can be started: {reason}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
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
def run(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> Iterator[Run]:
    """A run that has not been started; it ends with the test."""
    new = Run(cluster, tmp_path / "study", undisturbed)
    yield new
    if new.process is not None:
        new.process.kill()
        new.process.communicate()
