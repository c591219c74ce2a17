"""Nodes that lack what tasks need: they are left out, and where no other is left the run ends with the reason."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import _missing
from tests.slurm.cluster import Cluster, can_mount
from tests.slurm.runs import Run

pytestmark = [pytest.mark.workflow, pytest.mark.table]
Hide = Callable[[str, Path], None]


@pytest.fixture
def hide(cluster: Cluster) -> Iterator[Hide]:
    """A function that takes a folder away from a node."""
    if not can_mount():
        _missing("no right to mount a file system (CAP_SYS_ADMIN)")
    changed = []

    def without(node: str, folder: Path) -> None:
        cluster.end(node)
        cluster.start_node(node, hidden=folder)
        changed.append(node)
        cluster.wait(cluster.idle)

    yield without
    for node in changed:
        cluster.end(node)


@pytest.mark.parametrize("lacking", ["python", "folder"])
def test_a_node_without(run: Run, hide: Hide, lacking: str) -> None:
    run.folder.mkdir()
    hide("cpu2", Path(sys.prefix) if lacking == "python" else run.folder)
    run.start()
    said = run.finish()
    assert "node cpu2 is left out from now on" in said
    assert ("No such file or directory" if lacking == "python" else "visible there?") in said
    run.check()


def test_the_only_node_without_python(run: Run, hide: Hide) -> None:
    hide("gpu1", Path(sys.prefix))
    run.start({"partition": "gpu"})
    line = run.finish(2).splitlines()[-1]
    assert "Slurm nodes must be able to start tasks" in line
    assert "on gpu1: failed" in line
    assert "No such file or directory" in line
