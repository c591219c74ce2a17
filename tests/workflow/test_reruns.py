"""What re-runs after which edit: exactly the stages whose products it changes, and what follows them."""

import json
from collections.abc import Callable

import pytest

from tests.workflow.checkout import Checkout

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

AFTER_TRAINING = {"infer_posterior", "evaluate_study", "write_report"}
AFTER_PREPROCESSING = AFTER_TRAINING | {"train_model", "run_baselines"}


def test_after_a_run_nothing_is_to_be_done(finished: Checkout) -> None:
    assert finished.jobs() == {}
    assert finished.jobs("train") == {}


def test_touched_files_and_comments_rerun_nothing(checkout: Checkout) -> None:
    for path in checkout.results.rglob("manifest.json"):
        path.touch()
    for name in ("src/scatterflow/preprocess/__init__.py", "workflow/scripts/preprocess_study.py"):
        path = checkout.folder / name
        path.write_text(path.read_text() + "\n# a comment\n")
    (checkout.folder / "tiny.yaml").write_text("# a comment\n" + (checkout.folder / "tiny.yaml").read_text())
    assert checkout.jobs() == {}


def learning_rate(checkout: Checkout) -> None:
    checkout.configure({"models.joint.training.flow.learning_rate": 0.002})


def acceptance(checkout: Checkout) -> None:
    checkout.configure({"baselines.acceptance": 0.3})


def noise(checkout: Checkout) -> None:
    checkout.configure({"observe.noise": "none"})


def cut(checkout: Checkout) -> None:
    checkout.edit("src/scatterflow/preprocess/scaling.py", "LOWEST_COUNTS = 0.5 ", "LOWEST_COUNTS = 0.25 ")


def diagnostics(checkout: Checkout) -> None:
    path = checkout.folder / "src" / "scatterflow" / "diagnostics.py"
    path.write_text(path.read_text() + "\nEDITED = True\n")


def page(checkout: Checkout) -> None:
    path = checkout.folder / "src" / "scatterflow" / "stages" / "report.py"
    path.write_text(path.read_text() + "\nEDITED = True\n")


def prior(checkout: Checkout) -> None:
    checkout.configure({"sample.materials.Ta.hurst": [0.2, 0.9]})


def tolerance(checkout: Checkout) -> None:
    checkout.configure({"forward.tolerance": 1e-3})


EDITS: list[tuple[Callable[[Checkout], None], set[str]]] = [
    (learning_rate, AFTER_TRAINING | {"train_model"}),
    (acceptance, {"run_baselines", "evaluate_study", "write_report"}),
    (noise, AFTER_PREPROCESSING | {"preprocess_study"}),
    (cut, AFTER_PREPROCESSING | {"preprocess_study"}),
    (diagnostics, {"evaluate_study", "write_report"}),
    (page, {"write_report"}),
    (prior, AFTER_PREPROCESSING | {"simulate_study", "compare_engines", "preprocess_study"}),
    (tolerance, {"compare_engines", "write_report"}),
]


@pytest.mark.parametrize(("edit", "expected"), EDITS, ids=[edit.__name__ for edit, _ in EDITS])
def test_an_edit_reruns_what_it_changes(
    edit: Callable[[Checkout], None], expected: set[str], checkout: Checkout
) -> None:
    edit(checkout)
    assert set(checkout.jobs()) == expected


def test_only_the_edited_model_is_trained_again(checkout: Checkout) -> None:
    learning_rate(checkout)
    assert checkout.jobs()["train_model"] == 1


def test_a_stage_can_be_forced(finished: Checkout) -> None:
    """`-R train` means the work of the stage, although the rule `train` only collects the models."""
    everything = finished.jobs("--forceall")
    forced = finished.jobs("-R", "train")
    assert set(forced) == AFTER_TRAINING | {"train_model"}
    assert forced["train_model"] == everything["train_model"] > 1


def test_raising_the_number_adds_simulations_and_keeps_the_old_ones(checkout: Checkout) -> None:
    manifest = checkout.results / "simulate" / "manifest.json"
    before = json.loads(manifest.read_text())
    shards = {path.name: path.read_bytes() for path in checkout.results.glob("simulate/shards-*/*.json")}
    checkout.configure({"simulate.simulations": before["simulations"] + 40})
    checkout.make("simulate")
    after = json.loads(manifest.read_text())
    assert after["identity"] == before["identity"]
    assert after["simulations"] == before["simulations"] + 40
    kept = {path.name: path.read_bytes() for path in checkout.results.glob("simulate/shards-*/*.json")}
    assert {name: kept[name] for name in shards} == shards
    assert len(kept) == len(shards) + 2


def test_another_run_is_made_from_nothing(checkout: Checkout) -> None:
    """Its results lie beside the first run's, which it does not touch."""
    everything = checkout.jobs("--forceall")
    checkout.edit("tiny.yaml", "run: tiny", "run: other")
    assert checkout.jobs() == everything
