"""kill -9 in the middle of a stage, then the same command again: it completes, and the store has the same bits."""

import re
from pathlib import Path

import pandas as pd
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


def test_killed_training_continues_and_ends_with_the_same_weights(checkout: Checkout, tmp_path: Path) -> None:
    epochs = 40
    phase = {"epochs": epochs, "patience": epochs, "budget_s": None}
    checkout.configure({f"models.profile.training.flow.{name}": value for name, value in phase.items()})
    undisturbed = checkout.copy(tmp_path / "undisturbed")
    undisturbed.make("train")
    model = checkout.results / "models" / "profile"
    checkout.kill_when(lambda: any(checkout.results.rglob("flow.ckpt")), "train")
    assert not (model / "bundle.json").exists(), "killed in the middle"
    checkout.make("train")
    log = (checkout.results / "logs" / "train_model.profile.log").read_text()
    assert re.search(rf"continues: flow, after epoch \d+ of {epochs}", log)
    same = undisturbed.results / "models" / "profile"
    assert (model / "weights.safetensors").read_bytes() == (same / "weights.safetensors").read_bytes()
    columns = [pd.read_csv(folder / "history.csv").filter(like="loss") for folder in (model, same)]
    assert len(columns[0]) == epochs
    assert columns[0].equals(columns[1])


def test_a_failed_stage_runs_again(checkout: Checkout) -> None:
    """No product of older code or options passes as current after the stage that should replace it failed."""
    checkout.edit(
        "src/scatterflow/stages/report.py", "pages: dict[int, StudyPage] = {}", "raise RuntimeError('broken')"
    )
    for _ in range(2):
        done = checkout.snakemake()
        assert done.returncode != 0
        assert "write_report: RuntimeError: broken" in done.stderr
    assert checkout.jobs() == {"write_report": 1}


@pytest.mark.parametrize("target", ["all", "evaluate"])
def test_a_failed_stage_in_the_middle_runs_again(checkout: Checkout, target: str) -> None:
    """Although all that was made from its old product is still there."""
    checkout.configure({"models.joint.training.flow.learning_rate": 0.002})
    checkout.edit("src/scatterflow/stages/train.py", "start = time.monotonic()", "raise RuntimeError('broken')")
    done = checkout.snakemake(target)
    assert done.returncode != 0
    assert "RuntimeError: broken" in done.stderr
    assert (checkout.folder / "results" / "tiny" / "report.html").is_file()
    jobs = checkout.jobs(target)
    assert jobs["train_model"] == 2
    assert {"infer_posterior", "evaluate_study"} < set(jobs)


def test_engines_that_disagree_stop_the_run(checkout: Checkout) -> None:
    checkout.configure({"forward.tolerance": 1e-12})
    done = checkout.snakemake()
    assert done.returncode != 0
    line = next(line for line in done.stderr.splitlines() if "must agree with bornagain" in line)
    for word in ("compare_engines", "simulation ", "forward.tolerance=1e-12", "layer02_Ta.hurst="):
        assert word in line, line
    assert checkout.jobs() == {"compare_engines": 1, "write_report": 1}
