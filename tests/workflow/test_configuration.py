"""What a dry run announces for a configuration, and how a wrong one is refused: one line, exit status 2."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow.checkout import Checkout

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

OF_EACH_STUDY = (
    "simulate_study", "compare_engines", "preprocess_study", "run_baselines", "infer_posterior", "evaluate_study"
)  # fmt: skip


def expected_jobs(path: Path) -> dict[str, int]:
    """Jobs of a run from nothing: one per study and stage, one per model, one report; engines where there are two."""
    studies = yaml.safe_load(path.read_text())["studies"]
    jobs = dict.fromkeys(OF_EACH_STUDY, len(studies))
    jobs["compare_engines"] = sum(study["kind"] != "nanodiffraction" for study in studies.values())
    return jobs | {"train_model": sum(len(study["models"]) for study in studies.values()), "write_report": 1}


def test_the_demo_is_the_default(untouched: Checkout) -> None:
    assert untouched.jobs(configfile=None) == expected_jobs(untouched.folder / "config" / "demo.yaml")


def test_paper_replaces_the_demo(untouched: Checkout) -> None:
    """All seven studies, and none of the demo's options: --configfile never merges."""
    paper = untouched.folder / "config" / "paper.yaml"
    kinds = [study["kind"] for study in yaml.safe_load(paper.read_text())["studies"].values()]
    assert [kinds.count(kind) for kind in ("multilayer", "nanodiffraction", "particles")] == [4, 2, 1]
    assert untouched.jobs(configfile="config/paper.yaml") == expected_jobs(paper)


def test_a_stage_is_a_target(untouched: Checkout) -> None:
    """The stage with what it needs, left to right; the baseline does not depend on training, nor training on it."""
    everything = expected_jobs(untouched.folder / "tiny.yaml")
    train = ("simulate_study", "preprocess_study", "train_model")
    assert untouched.jobs("train") == {name: everything[name] for name in train}
    baseline = ("simulate_study", "preprocess_study", "run_baselines")
    assert untouched.jobs("baseline") == {name: everything[name] for name in baseline}
    assert untouched.jobs("simulate") == {"simulate_study": 1}


def test_lint_is_clean(untouched: Checkout) -> None:
    done = untouched.snakemake("--lint", configfile=None)
    assert done.returncode == 0, done.stdout + done.stderr


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "misspelt key": ({"simulate.simulatoins": 400}, ["simulatoins", "did you mean 'simulations'?"]),
    "range reversed": (
        {"sample.materials.Ta.hurst": [0.9, 0.1]},
        ["materials.Ta", "hurst must ascend", "write the lower bound first"],
    ),
    "thickness negative": ({"sample.materials.Ta.thickness_nm": [-1.0, 4.0]}, ["thickness_nm"]),
    "shard size": ({"simulate.shard_size": 40}, ["shard_size=40", "simulations=300"]),
    "not a number": ({"simulate.simulations": float("nan")}, ["simulations"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_option_is_refused_in_one_line(name: str, untouched: Checkout, tmp_path: Path) -> None:
    values, words = WRONG[name]
    wrong = untouched.copy(tmp_path / "wrong")
    wrong.configure(values)
    _refused(wrong.snakemake("--dry-run"), *words)


def test_wrong_calls_are_refused_in_one_line(untouched: Checkout) -> None:
    """What snakemake would merge silently."""
    _refused(untouched.snakemake("--dry-run", "--config", "seed=1"), "--config", "--configfile")
    _refused(
        untouched.snakemake("--dry-run", "--configfile", "config/demo.yaml", "tiny.yaml", configfile=None), "one file"
    )


def _refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    said = [line for line in done.stderr.splitlines() if not line.startswith("Using workflow specific profile")]
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(said) == 1, said
    assert said[0].startswith("scatterflow: ")
    for word in words:
        assert word in said[0]
