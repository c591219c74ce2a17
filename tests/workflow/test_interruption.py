"""kill -9 in the middle of a stage, then the same command again: it completes, and the store has the same bits."""

from pathlib import Path

import pytest

from tests.workflow.checkout import Checkout, new_checkout, tree_sha256

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


def test_killed_simulation_continues_and_ends_bit_identical(finished: Checkout, tmp_path: Path) -> None:
    checkout = new_checkout(tmp_path / "killed")

    def shards() -> int:
        return len(list(checkout.results.glob("simulate/shards-*/*.json")))

    checkout.kill_when(lambda: shards() > 0, "simulate")
    kept = shards()
    everything = len(list(finished.results.glob("simulate/shards-*/*.json")))
    assert 0 < kept < everything, "killed in the middle"
    assert not (checkout.results / "simulate" / "manifest.json").exists()
    checkout.make("simulate")
    assert shards() == everything
    (undisturbed,) = finished.results.glob("simulate/store-*.zarr")
    (continued,) = checkout.results.glob("simulate/store-*.zarr")
    assert continued.name == undisturbed.name
    assert tree_sha256(continued) == tree_sha256(undisturbed)
    assert not list(checkout.results.rglob("*.partial"))


def test_a_failed_stage_leaves_what_was_there(checkout: Checkout) -> None:
    """The old report stays until a new one is complete, although snakemake deletes outputs before a job."""
    page = checkout.folder / "results" / "tiny" / "report.html"
    before = page.read_bytes()
    checkout.edit("src/scatterflow/stages/report.py", "pages: list[StudyPage] = []", "raise RuntimeError('broken')")
    done = checkout.snakemake()
    assert done.returncode != 0
    assert "write_report: RuntimeError: broken" in done.stderr
    assert page.read_bytes() == before
