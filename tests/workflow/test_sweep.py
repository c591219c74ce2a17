"""The sweep that the README describes, through snakemake: in the run where it is configured, and only there."""

import re
from typing import Any

import pytest
import yaml

import scatterflow as sf
from scatterflow.trials import SweepManifest
from tests.workflow.checkout import ROOT, Checkout

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


def readme() -> dict[str, Any]:
    """The README's sweep, of the tiny run's smallest model."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    content: dict[str, Any] = yaml.safe_load(block)["sweep"]
    return content | {
        "model": "profile",
        "space": {key: list(map(float, values)) for key, values in content["space"].items()},
    }


def test_without_a_sweep_there_is_none(finished: Checkout) -> None:
    assert not (finished.results / "sweep").exists()
    done = finished.snakemake("sweep")
    assert done.returncode != 0
    assert "tiny.yaml has a section `sweep`" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_readmes_sweep_runs(checkout: Checkout) -> None:
    sweep = readme()
    checkout.configure({"sweep": sweep})
    assert checkout.jobs("sweep") == {"run_sweep": 1}
    assert checkout.jobs() == {"run_sweep": 1, "write_report": 1}
    checkout.make()
    assert checkout.jobs() == {}
    (key,) = sweep["space"]
    found = SweepManifest.model_validate_json((checkout.results / "sweep" / "manifest.json").read_bytes())
    assert [trial.settings[key] for trial in found.trials] == sweep["space"][key]
    assert {trial.state for trial in found.trials} == {"ok"}
    assert sf.load_model(checkout.results / "sweep" / "best").name == "profile"
    assert "Trials of the sweep" in (checkout.results.parent / "report.html").read_text()
    checkout.configure({"sweep": sweep | {"seeds": 2}})
    assert checkout.jobs("sweep") == {"run_sweep": 1}
