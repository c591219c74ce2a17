"""What a finished run leaves for its user: complete tables, posteriors inside the prior, a report; and the README's code."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import scatterflow as sf
from scatterflow.exports import read_posterior
from tests.workflow.checkout import BIN, ROOT, Checkout

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]
ESTIMATORS = {"joint.image", "joint.profile", "profile", "abc-kde", "abc-regression"}
FIGURES = ("log_prob", "information_gain", "mae_median", "mae_map", "outside_support_share")


def metrics(finished: Checkout) -> dict:
    return json.loads((finished.results / "evaluate" / "metrics.json").read_text())


def test_every_estimator_has_every_figure_with_its_error(finished: Checkout) -> None:
    found = metrics(finished)
    assert set(found["estimators"]) == ESTIMATORS
    for name, estimator in found["estimators"].items():
        for figure in FIGURES:
            assert estimator[figure]["n"] == found["n_held_back"], (name, figure)
            assert np.isfinite(estimator[figure]["mean"]), (name, figure)
            assert estimator[figure]["se"] >= 0, (name, figure)
        assert len(estimator["coverage"]["joint"]) == len(estimator["coverage"]["levels"])
        assert set(estimator["sbc"]["ks_p"]) == set(
            sf.load_study(finished.folder / "tiny.yaml", "multilayer").prior.names
        )
        assert estimator["seconds_per_observation"] > 0
        if name != "abc-kde":
            assert estimator["wasserstein_to_abc"]["mean"] > 0
    assert set(found["experiment"]) == ESTIMATORS
    assert found["out_of_range"]["false_alarm"]["n"] > 0


def test_gain_is_log_prob_minus_the_exact_priors(finished: Checkout) -> None:
    found = metrics(finished)
    prior = found["prior"]["log_prob"]["mean"]
    for estimator in found["estimators"].values():
        gain = estimator["log_prob"]["mean"] - prior
        assert estimator["information_gain"]["mean"] == pytest.approx(gain, abs=1e-9)


def test_flows_never_leave_the_prior_and_the_published_baseline_does(finished: Checkout) -> None:
    shares = {name: e["outside_support_share"]["mean"] for name, e in metrics(finished)["estimators"].items()}
    assert shares.pop("abc-kde") > 0.1
    assert set(shares.values()) == {0.0}


def test_posteriors_are_stored_with_the_truth_of_the_held_back_rows(finished: Checkout) -> None:
    study = sf.load_study(finished.folder / "tiny.yaml", "multilayer")
    stored = read_posterior(finished.results / "infer" / "joint.image.nc")
    assert stored.samples.shape == (study.config.simulate.held_back, study.config.inference.samples, 12)
    truth = study.prior.sample(study.config.simulate.held_back)
    np.testing.assert_array_equal(stored.observed["parameters"].values, truth.values)


def test_training_never_sees_what_is_held_back(finished: Checkout) -> None:
    """Raising the number of simulations changes neither the held-back nor the validation rows."""
    from scatterflow.stages.preprocess import SPLITS, splits

    small = sf.load_study(finished.folder / "tiny.yaml", "multilayer")
    large = sf.load_study(finished.folder / "tiny.yaml", "multilayer", {"simulate.simulations": 600})
    held_back, validation, train = (SPLITS.index(name) for name in ("held_back", "validation", "train"))
    for study in (small, large):
        roles = splits(study)
        assert (roles[:100] == held_back).all()
        assert (roles[100:150] == validation).all()
        assert (roles[150:] == train).all()


def test_report_and_metrics_of_the_run(finished: Checkout) -> None:
    page = finished.results.parent / "report.html"
    assert 100_000 < page.stat().st_size < 10_000_000
    text = page.read_text()
    assert "<script" not in text
    assert not re.search(r"(src|href)=[\"']?https?:", text)
    run = json.loads((finished.results.parent / "metrics.json").read_text())
    assert run["studies"]["multilayer"]["verdict"]["sentences"]
    assert list((finished.results.parent / "figures").glob("*.svg"))


def test_snakemakes_own_report_holds_ours(finished: Checkout, tmp_path: Path) -> None:
    target = tmp_path / "provenance.html"
    done = finished.snakemake("--report", str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    text = target.read_text()
    for word in ("write_report", "simulate_study", "report.html", "metrics.json", "multilayer-information-gain"):
        assert word in text, word


def test_the_engines_agree_on_stored_simulations(finished: Checkout) -> None:
    found = json.loads((finished.results / "cross-check" / "manifest.json").read_text())
    assert (found["engine"], found["reference"], found["stored"]) == ("dwba", "bornagain", True)
    for view in found["views"].values():
        assert 0 <= view["median"] <= view["largest"] <= found["tolerance"]
    run = json.loads((finished.results.parent / "metrics.json").read_text())
    assert run["studies"]["multilayer"]["cross_check"] == found


def test_what_the_measurement_can_see(finished: Checkout) -> None:
    found = metrics(finished)["sensitivity"]["views"]
    for parameters in found.values():
        assert len(parameters) == 12
        for part in parameters.values():
            assert 0 < part["low"] <= part["median"] <= part["high"] <= 1
    assert found["image"]["layer02_Ta.delta"]["median"] < found["profile"]["layer02_Ta.delta"]["median"]


def in_the_finished_run(text: str) -> str:
    """The README's demo names, replaced by those of the tiny run."""
    return (
        text.replace("config/demo.yaml", "tiny.yaml")
        .replace("results/demo/", "results/tiny/")
        .replace("models/summary-maf", "models/joint")
    )


def test_the_readmes_python_runs(finished: Checkout) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    checks = "\nassert samples.sizes['sample'] == 1000\nassert slopes['d_image'].dims[1] == 'parameter'\n"
    script = in_the_finished_run("\n".join(blocks)) + checks
    done = subprocess.run([sys.executable, "-c", script], cwd=finished.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readmes_commands_run(finished: Checkout) -> None:
    """Every `scatterflow` line of the README that changes nothing, as written."""
    lines = re.findall(r"^\.venv/bin/(scatterflow .*?)(?: +#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        words = in_the_finished_run(line).split()
        if words[1] in ("simulate", "infer"):
            continue  # simulate: tests of the workflow; infer: test_bad_input
        options = ["--config", "tiny.yaml"] if words[1] in ("status", "doctor") else []
        done = subprocess.run(
            [BIN / words[0], *words[1:], *options], cwd=finished.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, line + done.stdout + done.stderr
