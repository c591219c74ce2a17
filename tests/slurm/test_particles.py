"""A study of kind particles by `snakemake --profile slurm`, from nothing to the report on a measured frame.

Beside it the stages run once more in this process.
"""

import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from scatterflow import manifest
from scatterflow.manifest import StoreManifest
from scatterflow.particles import ParticlesStudy
from scatterflow.progress import quiet
from scatterflow.stages import preprocess, simulate
from scatterflow.stages.particles import baseline, evaluate, infer, train
from scatterflow.study import load_study
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import PLAIN
from tests.slurm.test_profile import COMMAND
from tests.workflow.checkout import BIN, ROOT, Checkout, new_checkout, tree_sha256

pytestmark = [pytest.mark.workflow, pytest.mark.table]

RUN = "particles.yaml"
MODEL = "dual-branch"
# job, state, partition, node, cores, memory, time limit, other resources, and the rule that Snakemake notes
SHOWN = "%i|%T|%P|%N|%C|%m|%l|%b|%k"
WAIT_S = 900


@pytest.mark.parametrize("running", [PLAIN], indirect=True)
def test_from_nothing_to_the_report(
    cluster: Cluster, frames_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCATTERFLOW_DATA", str(frames_dir))
    checkout = new_checkout(tmp_path / "checkout")
    text = (ROOT / "tests" / "workflow" / RUN).read_text()
    (checkout.folder / RUN).write_text(text.replace("chunk_size: 50", "chunk_size: 50, workers: 1"))
    (checkout.folder / "slurm").symlink_to(Path("profiles") / "slurm")
    before = set(jobs(cluster))
    with (tmp_path / "said").open("w+") as said:
        running = start(checkout, cluster, said)
        try:
            run_here(load_study(checkout.folder / RUN, "gold"), tmp_path / "here")
            running.wait(WAIT_S)
        finally:
            running.terminate()
            running.wait()
    assert running.returncode == 0, (tmp_path / "said").read_text()
    made = {job: each for job, each in jobs(cluster).items() if job not in before}
    assert {state for state, *_ in made.values()} == {"COMPLETED"}
    assert {node for _, _, node, *_ in made.values()} == {"cpu1", "cpu2", "gpu1"}
    asked = Counter((partition, *resources) for _, partition, _, *resources in made.values())
    assert asked == stated(checkout, shards=3)
    results = checkout.folder / "results" / "clusters"
    check_products(results / "gold", tmp_path / "here")
    page = (results / "report.html").read_text()
    assert all(frame["file"] in page for frame in check_frames(results / "gold"))
    assert not [*results.rglob("*.partial"), *results.glob("gold/*/slurm-*")]

    with (tmp_path / "said").open("w+") as said:
        assert start(checkout, cluster, said).wait(WAIT_S) == 0
    assert "Nothing to be done" in (tmp_path / "said").read_text()
    assert set(jobs(cluster)) == before | set(made)


def start(checkout: Checkout, cluster: Cluster, said: Any) -> subprocess.Popen[bytes]:
    """The literal command for the whole run."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig=TERM", str(BIN / "snakemake"), *COMMAND, "--configfile", RUN],
        cwd=checkout.folder,
        env=os.environ | cluster.env | {"SCATTERFLOW_SLURM_POLL_S": "1"},
        stdout=said,
        stderr=subprocess.STDOUT,
    )


def run_here(study: ParticlesStudy, folder: Path) -> None:
    """The stages in this process, but for cross-check and report."""
    simulate.run(study, folder, quiet)
    preprocess.run(study, folder, quiet)
    train.run(study, MODEL, folder, lambda _: None, quiet)
    for stage in (baseline, infer, evaluate):
        stage.run(study, folder, lambda _: None)


def jobs(cluster: Cluster) -> dict[str, list[str]]:
    """State, partition, node and what was asked for, of every job that Slurm still knows, by its id."""
    told = cluster.run("squeue", "--states=all", "--noheader", "--array", f"--format={SHOWN}").stdout
    rows = [line.split("|") for line in told.splitlines()]
    return {job: [*rest, re.sub("_wildcards_.*", "", rule)] for job, *rest, rule in rows}


def stated(checkout: Checkout, shards: int) -> Counter[tuple[str, ...]]:
    """What rules and profile say that the jobs ask for: partition, cores, memory, time limit, others, rule."""
    profile = yaml.safe_load((checkout.folder / "profiles" / "slurm" / "config.yaml").read_text())
    found: Counter[tuple[str, ...]] = Counter()
    for path in sorted((checkout.folder / "workflow" / "rules").glob("*.smk")):
        for rule, text in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", path.read_text(), re.MULTILINE):
            options: dict[str, Any] = profile["set-resources"].get(rule, {})
            if "mem_mb" not in text or rule == "run_sweep":
                continue  # collects what others make; this study has no sweep
            if "fanout" in options:
                cores, memory, minutes = (options[f"task_{name}"] for name in ("cpus", "memory_mb", "minutes"))
                found["cpu", str(cores), f"{memory * cores}M", clock(minutes), "N/A", "(null)"] += shards
                continue
            memory, minutes = (int(re.findall(rf"{name}=(\d+)", text)[0]) for name in ("mem_mb", "runtime"))
            cores = options.get("cpus_per_task", profile["set-threads"].get(rule, 1))
            partition, others = (options.get("slurm_partition", "cpu"), "gres:gpu:1" if "gres" in options else "N/A")
            found[partition, str(cores), f"{memory}M", clock(minutes), others, f"rule_{rule}"] += 1
    return found


def clock(minutes: int) -> str:
    """A time limit of an hour or more as squeue writes it."""
    hours, rest = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02}:{rest:02}:00" if hours >= 24 else f"{hours}:{rest:02}:00"


def check_products(folder: Path, expected: Path) -> None:
    """Simulations, features and weights have the bits of the run here; answers and figures of merit are the same."""
    for stage, pattern in (("simulate", "store-*.zarr"), ("preprocess", "features-*.zarr")):
        (store,), (other,) = (each.glob(f"{stage}/{pattern}") for each in (folder, expected))
        assert store.name == other.name
        assert tree_sha256(store) == tree_sha256(other)
        found, wanted = (manifest.read(each / stage / "manifest.json", StoreManifest) for each in (folder, expected))
        assert found.same_content(wanted)
    weights = Path("models", MODEL, "weights.safetensors")
    assert (folder / weights).read_bytes() == (expected / weights).read_bytes()
    for name in ("infer/frames.json", "evaluate/metrics.json"):
        found, wanted = (numbers(json.loads((each / name).read_bytes())) for each in (folder, expected))
        assert found == pytest.approx(wanted, rel=1e-6)


def check_frames(folder: Path) -> list[dict[str, Any]]:
    """The measured frame has an answer, and the one that is not there is listed as missing."""
    measured, absent = json.loads((folder / "infer" / "frames.json").read_bytes())
    assert measured["status"] in ("ok", "outside")
    distance = measured["estimates"]["distance_nm"]
    assert distance["low"] < distance["value"] < distance["high"]
    assert absent["status"] == "missing"
    return [measured, absent]


def numbers(content: Any, name: str = "") -> dict[str, Any]:
    """Every number by its place in a JSON document, but for seconds, which no two runs share."""
    if isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        return {key: value for at, each in pairs for key, value in numbers(each, f"{name}/{at}").items()}
    return {name: content} if isinstance(content, int | float) and "second" not in name else {}
