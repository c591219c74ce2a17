"""docs/scale.md from docs/scale.json: every number in the document is measured or follows from what was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from scatterflow.progress import duration, size

DOCS = Path(__file__).parents[1] / "docs"
CORES = 1000
TASKS = 200  # `task_tasks` of profiles/slurm
TASK_MINUTES = 60  # `task_minutes` there
SHARD_BYTES = 500_000_000  # the middle of what parallel file systems like: 0.1-1 GB
MAX_FILES = 10_000  # per store, so that listing it stays cheap
TARGETS = (("650,000 full frames", "full", 650_000), ("1e8 view-only simulations", "views", 100_000_000))
Measured = dict[str, Any]


def sizes(number: int, entry: Measured, shard_size: int) -> Measured:
    """Shards, files, bytes, tasks and times of `number` simulations in shards of `shard_size`."""
    shards = math.ceil(number / shard_size)
    stored, decoded = (sum(each[key] for each in entry["arrays"].values()) for key in ("stored", "decoded"))
    core = number * entry["seconds"]
    return {
        "simulations": number,
        "shard_size": shard_size,
        "shards": shards,
        "files": shards * (len(entry["arrays"]) + 1),
        "shard_bytes": shard_size * stored,
        "bytes": number * stored,
        "memory_bytes": 3 * shard_size * decoded,
        "core_s": core,
        "cores_s": core / CORES + shard_size * entry["seconds"],
        "tasks": min(TASKS, shards),
        "task_s": math.ceil(shards / TASKS) * shard_size * entry["seconds"],
        "decoded": number * decoded,
    }


def large_shard(number: int, entry: Measured) -> int:
    """The divisor of `number` whose shards come nearest to SHARD_BYTES from below."""
    stored = sum(each["stored"] for each in entry["arrays"].values())
    return max(n for n in range(1, int(SHARD_BYTES / stored) + 1) if number % n == 0)


def verification_s(found: Measured, measured: Measured) -> float:
    """Time in which one process decodes and hashes a store: by bytes, and by shards."""
    verify = measured["verification"]
    return float(found["decoded"] / verify["bytes_per_s"] + found["shards"] * verify["seconds_per_shard"])


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _inputs(measured: Measured) -> str:
    rows = []
    names = {"full": "full frames", "views": "views", "features": "features of the views"}
    for key, name in names.items():
        entry = measured["sets"][key]
        for array, each in entry["arrays"].items():
            ratio = each["decoded"] / each["stored"]
            rows.append([f"{name}: `{array}`", f"{each['decoded']:,.1f}", f"{each['stored']:,.1f}", f"{ratio:.2f}"])
        total = [sum(each[kind] for each in entry["arrays"].values()) for kind in ("decoded", "stored")]
        rows.append([f"{name}: all", f"{total[0]:,.1f}", f"{total[1]:,.1f}", f"{total[0] / total[1]:.2f}"])
    return _table(["array", "bytes per simulation", "stored", "compression"], rows)


def _times(measured: Measured) -> str:
    sets, verify, planner = measured["sets"], measured["verification"], measured["planner"]
    rows = [
        ["a full frame, one core", f"{1e3 * sets['full']['seconds']:.3g} ms"],
        ["all views of a simulation, one core", f"{1e3 * sets['views']['seconds']:.3g} ms"],
        ["its features, one core", f"{1e3 * sets['features']['seconds']:.3g} ms"],
        ["verification, one process of two threads", f"{size(verify['bytes_per_s'])} decoded per second"],
        ["verification, beside that", f"{1e3 * verify['seconds_per_shard']:.3g} ms per shard"],
        [f"planning and verifying {planner['shards']:,} tiny shards", f"{planner['seconds']:.3g} s"],
        ["memory of that process", f"{planner['memory_mb']:,.0f} MB"],
        ["calls of sbatch for 5,000 tasks (MaxArraySize 1001)", str(measured["slurm"]["sbatch_calls"])],
        ["calls of squeue per 10 s, whatever the number of tasks", f"{10 / measured['slurm']['poll_s']:g}"],
        ["a GPU", "not measured" if measured["gpu"] is None else f"{measured['gpu']} frames per second"],
    ]
    return _table(["what", "measured"], rows)


def _operations(measured: Measured) -> str:
    counts = measured["operations"]
    rows = [[name, f"{number:.3g}"] for name, number in counts.items()]
    rows.append(["all", f"{sum(counts.values()):.3g}"])
    return _table(["operation", "per shard"], rows)


def _target(name: str, kind: str, number: int, measured: Measured) -> str:
    entry = measured["sets"][kind]
    columns = [sizes(number, entry, n) for n in (entry["shard_size"], large_shard(number, entry))]
    operations = sum(measured["operations"].values())
    rows: list[list[str]] = [
        ["simulations per shard", *(f"{each['shard_size']:,}" for each in columns)],
        ["shards", *(f"{each['shards']:,}" for each in columns)],
        ["files (arrays and records)", *(f"{each['files']:,}" for each in columns)],
        ["bytes per shard", *(size(each["shard_bytes"]) for each in columns)],
        ["bytes", *(size(each["bytes"]) for each in columns)],
        ["memory of a process, three decoded shards", *(size(each["memory_bytes"]) for each in columns)],
        ["core-hours", *(f"{each['core_s'] / 3600:,.1f}" for each in columns)],
        [f"{CORES:,} cores", *(duration(each["cores_s"]) for each in columns)],
        [f"Slurm tasks (at most {TASKS})", *(str(each["tasks"]) for each in columns)],
        ["time of such a task on one core", *(duration(each["task_s"]) for each in columns)],
        ["verification by one process", *(duration(verification_s(each, measured)) for each in columns)],
        ["metadata operations", *(f"{each['shards'] * operations:,.0f}" for each in columns)],
        [
            "... per second on 1,000 cores",
            *(f"{each['shards'] * operations / each['cores_s']:,.0f}" for each in columns),
        ],
        ["one GPU", *["not measured" if measured["gpu"] is None else "" for _ in columns]],
    ]
    heads = ["", "`shard_size` of config/paper.yaml" if kind == "views" else "small shards", "large shards"]
    scaled = columns[0]["core_s"] / 3600
    gpu = f"One GPU: not measured. A GPU worth k of these cores takes {scaled:,.1f} h / k.\n"
    return f"## {name}\n\n{_table(heads, rows)}\n{gpu}\n{_breaks(columns, measured)}"


def _breaks(columns: list[Measured], measured: Measured) -> str:
    """What becomes the limit first, by the numbers."""
    small, large = columns
    lines = []
    if small["files"] > MAX_FILES:
        after = f"{large['files']:,} are left with `simulate.shard_size: {large['shard_size']}`"
        lines.append(
            f"- Files: {small['files']:,} in one store, against {MAX_FILES:,} that metadata servers like; {after}."
        )
    verification = verification_s(large, measured)
    if verification > large["cores_s"]:
        lines.append(
            f"- Verification: one process needs {duration(verification)} at the end, where {CORES:,} cores need "
            f"{duration(large['cores_s'])} to simulate. Larger shards do not change that: it reads every byte once, and "
            "features are verified in the same way."
        )
    if large["tasks"] < CORES:
        lines.append(
            f"- Tasks: {large['tasks']} of one core are what profiles/slurm asks for; for {CORES:,} cores set "
            f"`task_tasks: {CORES}`. Above MaxArraySize they become several arrays."
        )
    if large["task_s"] > 0.8 * TASK_MINUTES * 60:
        lines.append(
            f"- Time limit: a task takes {duration(large['task_s'])}, the limit is {TASK_MINUTES} min: what it has not "
            "finished is submitted again; raise `task_minutes` or `task_tasks`."
        )
    if large["memory_bytes"] > 2e9:
        lines.append(
            f"- Memory: {size(large['memory_bytes'])} for large shards, above the 2 GB of `task_memory_mb` in "
            "profiles/slurm: raise it, or take smaller shards."
        )
    return "What breaks first:\n\n" + "\n".join(lines or ["- Nothing of this at this size."]) + "\n"


def document(measured: Measured) -> str:
    """The text of docs/scale.md."""
    machine = measured["machine"]
    parts = [
        "# What scales, and what breaks first\n",
        "Written by `python -m benchmarks.bench_scale` from docs/scale.json, which holds what was measured with it; a test "
        "compares. Nothing here is typed in.\n",
        f"Measured with real simulations of study layers12 of config/paper.yaml (72 parameters, 1024 x 512 pixels) by "
        f"engine dwba on one core of: {machine['cpu']}, {machine['cores']} cores, local disk. "
        f"{', '.join(f'{name} {version}' for name, version in machine['versions'].items())}.\n",
        "## What one simulation takes\n",
        _inputs(measured),
        "## What a process takes\n",
        _times(measured),
        "## Load on a file system\n",
        "Calls that change or open a file, from the stage's start to its manifest (calls of `stat` are not counted):\n",
        _operations(measured),
        "Arithmetic: files = shards x (arrays + 1 record); bytes = simulations x stored bytes; "
        f"core time = simulations x time of one; time on {CORES:,} cores = core time / {CORES:,} + one shard, since a shard "
        "is one core's work; verification = decoded bytes / rate + shards x time per shard.\n",
        *(_target(*target, measured) for target in TARGETS),
    ]
    return "\n".join(parts)


def write(measured: Measured) -> None:
    """docs/scale.json and docs/scale.md."""
    (DOCS / "scale.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (DOCS / "scale.md").write_text(document(measured), encoding="utf-8")
