"""Stage simulate: from the prior to a verified store of expected counts, resumed where it was left."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scatterflow import fanout, manifest, shards, store
from scatterflow.errors import ConfigError, SimulationError, StoreError
from scatterflow.manifest import Place, RunStatus, Shard, ShardRecord
from scatterflow.progress import Tracker, duration, say, size, track
from scatterflow.shards import Job

if TYPE_CHECKING:
    from scatterflow.study import Study
    from scatterflow.verify import Report


def run(study: Study, folder: str | Path, progress: Tracker = track) -> Path:
    """Simulate what is missing, verify everything, write `simulate/manifest.json`; returns its path.

    `folder` is `results/<run>/<study>`. A second run continues a killed one and ends with the same bits. Raises
    SimulationError for shards that failed (the others are kept), StoreError for a disk or store that cannot be used,
    and `fanout.Stopped` on SIGINT and SIGTERM.
    """
    place = Place(Path(folder), study.simulation_identity())
    job = _job(study, place)
    return shards.holding(place, job.label, lambda backend: _run(job, backend, progress))


def repair(study: Study, folder: str | Path, damaged: Sequence[Shard], progress: Tracker = track) -> Report:
    """Simulate these shards anew and verify the whole store again; nothing else in it is touched.

    Raises what `run` raises; damage that comes back is in the report.
    """
    return shards.repair(_job(study, Place(Path(folder), study.simulation_identity())), damaged, progress)


def _job(study: Study, place: Place) -> Job:
    # a task may start in another folder
    work = partial(simulate_shard, study, place._replace(study_folder=place.study_folder.absolute()))
    return Job(study, place, work, study.simulation_modules, "mend it and run the same command again")


def _run(job: Job, backend: str, progress: Tracker) -> Path:
    study, place = job.study, job.place
    records = manifest.read_records(place)
    planned = _prepare(study, place, records, backend)
    todo = shards.missing(place, planned, records)
    if todo:
        _announce(study, place, records, planned, todo, backend)
    began = time.monotonic()
    workers = fanout.processes(study.config.simulate.workers)
    report, records = shards.complete(job, study.config.simulate.simulations, todo, workers, backend, progress)
    shards.finish(job, planned, report, records)
    shards.say_what_was_made(job, report, began)
    return place.manifest


def _prepare(study: Study, place: Place, records: Mapping[Shard, ShardRecord], backend: str) -> tuple[Shard, ...]:
    """Create, extend or mend the store; returns the shards that hold the simulations asked for."""
    config = study.config.simulate
    place.records.mkdir(exist_ok=True)
    shard_size = manifest.shard_size_of(records, config.shard_size)
    if shard_size % config.chunk_size:
        what = f"simulate.chunk_size={config.chunk_size}"
        must = f"must divide the shard size {shard_size} with which {place.store} was begun"
        raise ConfigError(what, must, remedy=f"use {shard_size}")
    stored = max((shard.stop for shard in records), default=0)  # a store never shrinks
    theta = study.prior.sample(1)
    rows = max(config.simulations, stored)
    store.create(place.store, study.simulate(theta), theta, rows, shard_size, store_attributes(study))
    shards.begin(place, config.simulations, shard_size, backend)
    return manifest.plan(config.simulations, shard_size)


def store_attributes(study: Study) -> dict[str, Any]:
    """What a store says of itself: only what determines its content, no time and no machine."""
    return {
        "identity": study.simulation_identity(),
        "kind": study.kind,
        "engine": study.engine[0],
        "engine_version": study.engine_version,
        "seed": study.seed,
        **study.simulation_facts(),
    }


def simulate_shard(study: Study, place: Place, shard: Shard) -> ShardRecord:
    """Simulate one shard, write it to the store, then its record: what a worker or a Slurm array task does.

    What it computes depends on nothing but the study and the range. Raises SimulationError and StoreError.
    """
    if study.simulation_identity() != place.identity:  # a task may start hours after the run
        remedy = "run the same command again: it starts a new store"
        raise StoreError("code or engine", "must not change while a run is going on", remedy=remedy)
    return shards.write(study, place, study.simulation_modules, shard, partial(_compute, study))


def _compute(study: Study, shard: Shard) -> store.Arrays:
    """Parameters (simulation, parameter) and counts (simulation, z, y) of a shard, chunk by chunk of fixed size."""
    rows, step = shard.stop - shard.start, study.config.simulate.chunk_size
    theta = study.prior.sample(rows, start=shard.start)
    arrays: store.Arrays = {store.PARAMETERS: theta.values}
    for first in range(0, rows, step):
        try:
            counts = study.simulate(theta[first : first + step])
        except SimulationError as error:
            begin = shard.start + first
            raise SimulationError(
                f"simulations {begin} to {begin + step - 1}, counted from {begin}: {error}"
            ) from error
        for name, values in counts.items():
            whole = arrays.setdefault(str(name), np.empty((rows, *values.shape[1:]), np.float32))
            whole[first : first + step] = values.values
    return arrays


def _announce(
    study: Study,
    place: Place,
    records: Mapping[Shard, ShardRecord],
    planned: Sequence[Shard],
    todo: Sequence[Shard],
    backend: str,
) -> None:
    """Say what the run will cost before it starts."""
    stored = [record for record in records.values() if record.state == "ok"]
    done = sum(record.stop - record.start for record in stored)
    seconds = sum(record.seconds for record in stored) / done if done else _probe(study)
    workers = min(fanout.processes(study.config.simulate.workers), len(todo))
    shard_size = todo[0].stop - todo[0].start
    rows, total = len(todo) * shard_size, sum(shard.stop - shard.start for shard in planned)
    wall = -(-len(todo) // workers) * shard_size * seconds
    where = f"about {duration(wall)} on {workers}" if backend == "local" else f"spread by {backend}"
    arrays = store.layout(place.store).arrays.values()
    row_bytes = sum(int(np.prod(row)) * dtype.itemsize for row, dtype in arrays)
    say(
        f"simulate {study.name}: {rows} of {total} simulations to do, in {len(todo)} shards; one takes "
        f"{seconds * 1e3:.3g} ms, all {duration(rows * seconds)} of one core, {where}; "
        f"up to {size(rows * row_bytes)} on disk, where {size(shutil.disk_usage(place.folder).free)} are free"
    )


def _probe(study: Study) -> float:
    """Seconds per simulation, from one chunk (the first call also loads libraries: `_prepare` has made it)."""
    theta = study.prior.sample(study.config.simulate.chunk_size)
    began = time.perf_counter()
    try:
        study.simulate(theta)
    except SimulationError:
        return time.perf_counter() - began  # its shard will say why; until then this is a guess
    return (time.perf_counter() - began) / len(theta)


def status(folder: str | Path, study: Study | None = None) -> dict[str, Any]:
    """Counts of simulations in `results/<run>/<study>`: total, done, failed, left, and whether a run is going on.

    With `study`: of what it asks for; without: of what was begun last (zeros if nothing was). Raises StoreError for a
    damaged status file or manifest.
    """
    last = Place(Path(folder), "").status
    if study is not None:
        return shards.status(Place(Path(folder), study.simulation_identity()), study.config.simulate.simulations)
    if last.is_file():
        begun = manifest.read(last, RunStatus)
        return shards.status(Place(Path(folder), begun.identity), begun.simulations)
    return shards.status(Place(Path(folder), ""), 0)
