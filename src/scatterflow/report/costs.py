"""What the stages took: files that Snakemake's `benchmark:` writes, records of shards, and what lies on the disk."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from scatterflow import manifest
from scatterflow.errors import StoreError
from scatterflow.manifest import Place, RunStatus
from scatterflow.report.metrics import Cost

# columns of a benchmark file: https://snakemake.readthedocs.io/en/stable/snakefiles/rules.html#benchmark-rules
_COLUMNS = {"seconds": "s", "core_seconds": "cpu_time", "max_rss_mb": "max_rss"}


# the rules that do the work of a study, in order, and their folders below the study's
RULES = {
    "simulate_study": "simulate",
    "compare_engines": "cross-check",
    "preprocess_study": "preprocess",
    "train_model": "models",
    "run_sweep": "sweep",
    "run_baselines": "baseline",
    "infer_posterior": "infer",
    "evaluate_study": "evaluate",
}
_SHARDED = ("simulate_study", "preprocess_study")


def study_costs(folder: Path) -> dict[str, Cost]:
    """Cost of each job of a study (`train_model.<model>`) below `results/<run>/<study>`, empty where nothing was measured.

    A benchmark counts the processes below it, not tasks of Slurm: the time of shards is in their records.
    """
    found = read_costs(folder / "benchmarks")
    for rule in _SHARDED:
        shards, seconds, elsewhere = _records(folder, RULES[rule])
        if shards:
            cost = found.get(rule, Cost())
            measured = cost.core_seconds or 0.0
            core = seconds + measured if elsewhere else max(seconds, measured)
            found[rule] = cost.model_copy(update={"core_seconds": core, "shards": shards})
    for job, cost in found.items():
        rule, _, model = job.partition(".")
        if rule in RULES:
            places = [folder / RULES[rule] / name for name in ((model, f"{model}.training") if model else ("",))]
            found[job] = cost.model_copy(update={"disk_mb": sum(map(_bytes, places)) / 1e6})
    return found


def _records(folder: Path, stage: str) -> tuple[int, float, bool]:
    """Shards that are stored, the core time of all of them [s], and whether tasks elsewhere made them."""
    try:
        begun = manifest.read(Place(folder, "", stage).status, RunStatus)
    except StoreError:
        return 0, 0.0, False
    records = manifest.read_records(Place(folder, begun.identity, stage)).values()
    done = [record for record in records if record.state == "ok"]
    return len(done), sum(record.seconds for record in done), begun.backend != "local"


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_costs(folder: Path) -> dict[str, Cost]:
    """Cost of each rule by the name of its file below `folder`; what a short job left unmeasured is None."""
    found = {}
    for path in sorted(folder.glob("*.tsv")):
        with path.open(encoding="utf-8", newline="") as handle:
            row = next(csv.DictReader(handle, delimiter="\t"), {})
        found[path.stem] = Cost.model_validate({name: _number(row.get(key)) for name, key in _COLUMNS.items()})
    return found


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:  # "NA" or "-"
        return None
    return value if math.isfinite(value) else None
