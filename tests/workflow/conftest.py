"""One finished tiny run for all tests of the workflow; those that change it work on copies."""

from pathlib import Path

import pytest

from tests.workflow.checkout import ROOT, Checkout, new_checkout


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose tiny run is complete. Not to be changed: `copy` it."""
    checkout = new_checkout(tmp_path_factory.mktemp("workflow") / "finished")
    checkout.make()
    return checkout


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    """A copy of the finished run, to change."""
    return finished.copy(tmp_path / "checkout")


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which nothing has run; only for dry runs and refused calls."""
    return new_checkout(tmp_path_factory.mktemp("workflow") / "untouched")


@pytest.fixture(scope="session")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose run of particles.yaml is complete. Not to be changed: `copy` it."""
    run = "particles.yaml"
    checkout = new_checkout(tmp_path_factory.mktemp("particles") / "finished")
    (checkout.folder / run).write_text((ROOT / "tests" / "workflow" / run).read_text())
    done = checkout.snakemake(configfile=run)
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout
