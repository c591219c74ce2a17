"""What a shard costs, and what many of them cost: sizes, seconds, files, calls; docs/scale.md follows from it.

python -m pytest benchmarks/bench_scale.py     the limits of the planner
python -m benchmarks.bench_scale               measures all and writes docs/scale.json and docs/scale.md (2 min)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import scale_document
from benchmarks.scale_document import Measured
from scatterflow import manifest, provenance, shards, store
from scatterflow.config.simulate import SimulateConfig
from scatterflow.manifest import Place, Shard
from scatterflow.multilayer import MultilayerStudy
from scatterflow.progress import quiet, say
from scatterflow.slurm import campaign, commands, options
from scatterflow.stages import preprocess, simulate
from scatterflow.study import load_study
from scatterflow.verify import verify_shards

PAPER = Path(__file__).parents[1] / "config" / "paper.yaml"
FULL = {"rows": [[0, 1024]], "columns": [0, 512], "bins": [1024, 512], "sampling": [1, 1]}
SHARDS, SECONDS, MEMORY_MB = 10_000, 60.0, 500.0  # the planner's limits
TASKS, SBATCH_CALLS = 5_000, 6
_CREATE = os.O_CREAT | os.O_WRONLY | os.O_RDWR


def study_of(simulations: int, shard_size: int, views: dict[str, Any] | None = None) -> MultilayerStudy:
    """The paper's study of 12 layers with these numbers, in one process."""
    paper = load_study(PAPER, "layers12", {f"instrument.views.{name}": view for name, view in (views or {}).items()})
    numbers = SimulateConfig(
        simulations=simulations, held_back=1, validation=1, shard_size=shard_size, chunk_size=min(shard_size, 50),
        workers=1,
    )  # fmt: skip
    return replace(paper, config=paper.config.model_copy(update={"simulate": numbers}))


def per_simulation(place: Place, rows: int) -> Measured:
    """Bytes of each array, decoded and stored, and seconds of one simulation, from a finished store and its records."""
    where = store.layout(place.store)
    arrays = {}
    for index, (name, (row, dtype)) in enumerate(where.arrays.items()):
        decoded = dtype.itemsize
        for length in row:
            decoded *= length
        stored = sum(where.files(shard)[index].stat().st_size for shard in manifest.plan(rows, where.shard_size))
        arrays[name] = {"decoded": decoded, "stored": stored / rows}
    records = manifest.read_records(place).values()
    return {"arrays": arrays, "seconds": min(record.seconds for record in records) / where.shard_size}


def measure_sets(folder: Path) -> Measured:
    """Full frames, the paper's views and their features, and how fast they are verified."""
    study = study_of(24, 8, {"image": FULL})
    say("full frames")
    simulate.run(study, folder / "full", quiet)
    full = per_simulation(Place(folder / "full", study.simulation_identity()), 24)
    full["arrays"].pop("profile")  # a part of the frame
    say("views and features")
    study = study_of(4000, 2000)
    simulate.run(study, folder / "views", quiet)
    preprocess.run(study, folder / "views", quiet)
    place = Place(folder / "views", study.simulation_identity())
    views = per_simulation(place, 4000)
    features = per_simulation(Place(folder / "views", study.features_identity(), "preprocess"), 4000)
    hashes = manifest.hashes(manifest.read_records(place))
    began = time.perf_counter()
    verify_shards(place, hashes, 4000)
    rate = 4000 * sum(each["decoded"] for each in views["arrays"].values()) / (time.perf_counter() - began)
    sizes = {"full": 250, "views": load_study(PAPER, "layers12").config.simulate.shard_size}
    sets = {"full": full, "views": views, "features": features}
    for name, entry in sets.items():
        entry["shard_size"] = sizes.get(name, sizes["views"])
    return {"sets": sets, "bytes_per_s": rate}


@contextmanager
def counted(below: Path) -> Iterator[Counter[str]]:
    """Count the calls of this process that open, create, rename or remove something below a folder."""
    counts: Counter[str] = Counter()
    active, prefix = True, str(below)
    names = {"os.rename": "rename", "os.mkdir": "create a folder", "os.remove": "remove", "os.scandir": "list a folder"}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not active or not arguments or not str(arguments[0]).startswith(prefix):
            return
        if event == "open":
            counts["create or write a file" if arguments[2] & _CREATE else "open to read or to sync"] += 1
        elif event in names:
            counts[names[event]] += 1

    sys.addaudithook(hook)
    try:
        yield counts
    finally:
        active = False  # a hook cannot be taken away


def measure_operations(folder: Path) -> dict[str, float]:
    """Calls per shard of a whole run: what twenty shards more add."""
    found = []
    for number in (10, 30):
        place = folder / f"operations-{number}"
        with counted(place) as counts:
            simulate.run(study_of(number, 1), place, quiet)
        found.append(counts)
    return {name: (found[1][name] - found[0][name]) / 20 for name in sorted(found[1])}


def planner(folder: Path) -> Measured:
    """Plan, look what is missing, verify, write the manifest: `simulate.run` on a store of 10,000 tiny shards.

    The shards are copies (links) of one real shard, each with its record. Runs in a process of its own: the memory is
    that of the planner.
    """
    code = f"from pathlib import Path; from benchmarks.bench_scale import plan; plan(Path({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PAPER.parents[1], capture_output=True, text=True, check=True
    )
    seconds, memory = map(float, done.stdout.split())
    return {"shards": SHARDS, "seconds": seconds, "memory_mb": memory}


def plan(folder: Path) -> None:
    """The process of `planner`: prints seconds and MB."""
    from tests.store_study import tiny  # views of a few bins

    first, study = tiny(10), tiny(10 * SHARDS)
    simulate.run(first, folder, quiet)
    place = Place(folder, study.simulation_identity())
    made = manifest.read_records(place)
    began = time.perf_counter()
    planned = simulate._prepare(study, place, made, "local")
    assert len(shards.missing(place, planned)) == SHARDS - 1
    spent = time.perf_counter() - began
    record, where = made[planned[0]], store.layout(place.store)
    for shard in planned[1:]:
        for file, copy in zip(where.files(planned[0]), where.files(shard), strict=True):
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, copy)
        text = record.model_copy(update={"start": shard.start, "stop": shard.stop}).model_dump_json(indent=2)
        place.record(shard).write_text(text)
    began = time.perf_counter()
    simulate.run(study, folder, quiet)
    spent += time.perf_counter() - began
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # ru_maxrss would count the parent's memory, too
    peak_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(spent, 1.024e-3 * peak_kb)


def sbatch_calls() -> int:
    """How often sbatch is called for 5,000 tasks where arrays have at most 1,001."""
    tasks = [[Shard(number, number + 1)] for number in range(TASKS)]
    return len(list(campaign.batches(tasks, commands.max_array_size({"MaxArraySize": "1001"}))))


def measure() -> Measured:
    """Everything, as docs/scale.json holds it."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "unknown")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sets = measure_sets(folder)
        say("operations")
        operations = measure_operations(folder)
        say(f"{SHARDS} shards")
        found = planner(folder / "planner")
    return {
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "versions": provenance.versions(("numpy", "torch", "zarr"))},
        "sets": sets["sets"],
        "verification": {
            "bytes_per_s": sets["bytes_per_s"],
            "seconds_per_shard": found["seconds"] / found["shards"],
        },
        "operations": operations,
        "planner": found,
        "slurm": {"sbatch_calls": sbatch_calls(), "poll_s": options.SlurmOptions().poll_s},
        "gpu": None,
    }


def test_planner_of_many_shards(tmp_path: Path) -> None:
    found = planner(tmp_path / "planner")
    assert found["seconds"] < SECONDS
    assert found["memory_mb"] < MEMORY_MB


def test_calls_of_sbatch() -> None:
    assert sbatch_calls() <= SBATCH_CALLS


if __name__ == "__main__":
    scale_document.write(measure())
