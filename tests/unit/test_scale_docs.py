"""docs/scale.md follows from docs/scale.json, its arithmetic from the measured inputs, its limits from the profile."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from benchmarks import bench_scale, scale_document
from scatterflow import load_study
from tests.conftest import ROOT

MEASURED = json.loads((ROOT / "docs" / "scale.json").read_text(encoding="utf-8"))
TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def cells(heading: str, row: str) -> list[str]:
    """The cells of one row of the table below a heading."""
    section = TEXT[TEXT.index(f"## {heading}") :]
    line = next(line for line in section.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def number(text: str) -> float:
    return float(re.sub(r"[^\d.]", "", text))


def test_the_document_is_what_the_measurement_gives() -> None:
    assert scale_document.document(MEASURED) == TEXT


@pytest.mark.parametrize(("name", "kind", "simulations"), scale_document.TARGETS)
def test_arithmetic(name: str, kind: str, simulations: int) -> None:
    entry = MEASURED["sets"][kind]
    stored = sum(array["stored"] for array in entry["arrays"].values())
    units = {"MB": 1e6, "GB": 1e9, "TB": 1e12}
    shard_sizes, shards = cells(name, "simulations per shard"), cells(name, "shards")
    files, total = cells(name, "files (arrays and records)"), cells(name, "bytes")
    for column in range(2):
        assert number(shard_sizes[column]) * number(shards[column]) == simulations
        assert number(files[column]) == number(shards[column]) * (len(entry["arrays"]) + 1)
        value, unit = total[column].split()
        assert float(value) * units[unit] == pytest.approx(simulations * stored, rel=0.006), "three digits are shown"
    hours = simulations * entry["seconds"] / 3600
    assert number(cells(name, "core-hours")[0]) == pytest.approx(hours, abs=0.051)
    assert number(files[1]) <= scale_document.MAX_FILES
    assert number(shard_sizes[1]) * stored <= scale_document.SHARD_BYTES


def test_limits_are_those_of_the_profile_and_the_configuration() -> None:
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())["set-resources"]
    assert profile["simulate_study"]["task_tasks"] == scale_document.TASKS
    assert profile["simulate_study"]["task_minutes"] == scale_document.TASK_MINUTES
    paper = load_study(ROOT / "config" / "paper.yaml", "layers12")
    assert paper.config.simulate.shard_size == MEASURED["sets"]["views"]["shard_size"]


def test_what_was_measured_is_within_the_limits() -> None:
    assert MEASURED["planner"]["shards"] == bench_scale.SHARDS
    assert MEASURED["planner"]["seconds"] < bench_scale.SECONDS
    assert MEASURED["planner"]["memory_mb"] < bench_scale.MEMORY_MB
    assert MEASURED["slurm"]["sbatch_calls"] == bench_scale.sbatch_calls() <= bench_scale.SBATCH_CALLS
    assert 10 / MEASURED["slurm"]["poll_s"] <= 1
