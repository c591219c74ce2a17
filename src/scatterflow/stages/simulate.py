"""Stage simulate: from the prior to a verified store of expected counts, resumed where it was left."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from os import getpid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scatterflow import fanout, manifest, provenance, store
from scatterflow.errors import ConfigError, SimulationError, StoreError
from scatterflow.files import disk_errors, exclusive, is_held, sweep
from scatterflow.manifest import Place, RunStatus, Shard, ShardRecord, StoredShard, StoreManifest
from scatterflow.progress import Tracker, duration, say, size, track
from scatterflow.verify import Report, verify_shards

if TYPE_CHECKING:
    from scatterflow.study import Study

_MENDS = 2  # damaged shards are made anew; damage that comes back is the disk's


def run(study: Study, folder: str | Path, progress: Tracker = track) -> Path:
    """Simulate what is missing, verify everything, write `simulate/manifest.json`; returns its path.

    `folder` is `results/<run>/<study>`. A second run continues a killed one and ends with the same bits. Raises
    SimulationError for shards that failed (the others are kept), StoreError for a disk or store that cannot be used,
    and `fanout.Stopped` on SIGINT and SIGTERM.
    """
    place = Place(Path(folder), study.simulation_identity())
    backend = fanout.backend_name()
    with disk_errors(place.folder):
        place.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(place.folder), fanout.stop_on_signals():
            try:
                return _run(study, place, backend, progress)
            except fanout.Stopped as stop:
                say(f"simulate {study.name}: stopped by {stop.signal_name}; finished shards are kept, run it again")
                raise


def _run(study: Study, place: Place, backend: str, progress: Tracker) -> Path:
    shards = _prepare(study, place, backend)
    todo = missing(place, shards)
    if todo:
        _announce(study, place, shards, todo, backend)
    began = time.monotonic()
    where = store.layout(place.store)
    _forget(place, [shard for shard in todo if not where.is_there(shard)])  # others a Slurm task may just have finished
    for mend in range(_MENDS + 1):
        _simulate(study, place, todo, backend, progress)
        report = verify_shards(place, _hashes(place), study.config.simulate.simulations, progress)
        if report.ok:
            _finish(study, place, shards, report)
            spent = f", {duration(time.monotonic() - began)}"
            say(f"simulate {study.name}: {report.simulations} simulations, checksum {report.checksum[:12]}{spent}")
            return place.manifest
        todo = [damage.shard for damage in report.damaged]
        _forget(place, todo)
        if mend < _MENDS:
            first = report.damaged[0]
            say(f"simulate {study.name}: {len(todo)} damaged shards are made anew ({first.shard}: {first.reason})")
    raise StoreError(
        f"shard {todo[0]} of {place.store}", "must read as written", report.damaged[0].reason, "check the disk"
    )


def _prepare(study: Study, place: Place, backend: str) -> tuple[Shard, ...]:
    """Create, extend or mend the store; returns the shards that hold the simulations asked for."""
    config = study.config.simulate
    place.records.mkdir(exist_ok=True)
    records = manifest.read_records(place)
    shard_size = manifest.shard_size_of(records, config.shard_size)
    if shard_size % config.chunk_size:
        what = f"simulate.chunk_size={config.chunk_size}"
        must = f"must divide the shard size {shard_size} with which {place.store} was begun"
        raise ConfigError(what, must, remedy=f"use {shard_size}")
    shards = manifest.plan(config.simulations, shard_size)
    stored = max((shard.stop for shard in records), default=0)  # a store never shrinks
    theta = study.prior.sample(1)
    rows = max(config.simulations, stored)
    store.create(place.store, study.simulate(theta), theta, rows, shard_size, store_attributes(study))
    status = RunStatus(
        identity=place.identity,
        simulations=config.simulations,
        shard_size=shard_size,
        backend=backend,
        host=socket.gethostname(),
        process=getpid(),
        started=datetime.now(UTC),
    )
    manifest.write(place.status, status)
    return shards


def store_attributes(study: Study) -> dict[str, Any]:
    """What a store says of itself: only what determines its content, no time and no machine."""
    config = study.config
    return {
        "identity": study.simulation_identity(),
        "kind": study.kind,
        "engine": config.forward.engine,
        "engine_version": study.engine_version,
        "seed": study.seed,
        "instrument": config.instrument.model_dump(mode="json", exclude={"masked", "saturation"}),
        "sample": config.sample.model_dump(mode="json", exclude={"expert"}),
    }


def missing(place: Place, shards: Iterable[Shard]) -> list[Shard]:
    """Shards without a valid record of this identity that says ok, or without their files."""
    done = _hashes(place)
    where = store.layout(place.store)
    return [shard for shard in shards if shard not in done or not where.is_there(shard)]


def _hashes(place: Place) -> dict[Shard, dict[str, str]]:
    return {shard: record.sha256 for shard, record in manifest.read_records(place).items() if record.state == "ok"}


def jobs_folder(place: Place) -> Path:
    """Where the fan-out `slurm` keeps logs and what it has submitted, until all is done."""
    return place.folder / f"slurm-{place.identity[:12]}"


def simulate_shard(study: Study, place: Place, shard: Shard) -> ShardRecord:
    """Simulate one shard, write it to the store, then its record: what a worker or a Slurm array task does.

    What it computes depends on nothing but the study and the range. Raises SimulationError and StoreError.
    """
    began = time.perf_counter()
    if study.simulation_identity() != place.identity:  # a task may start hours after the run
        remedy = "run the same command again: it starts a new store"
        raise StoreError("code or engine", "must not change while a run is going on", remedy=remedy)
    if ready := _finished(place, shard):
        return ready  # by a task that was lost and has come back
    arrays = _compute(study, shard)
    if ready := _finished(place, shard):
        return ready
    with disk_errors(place.store):
        hashes = store.write_shard(place.store, shard, arrays)
        record = _record(study, place, shard, time.perf_counter() - began, sha256=hashes)
        manifest.write(place.record(shard), record)
    return record


def _finished(place: Place, shard: Shard) -> ShardRecord | None:
    """The record that says that a shard is stored; `_forget` has removed those that are wrong."""
    try:
        record = manifest.read(place.record(shard), ShardRecord)
    except StoreError:
        return None
    whole = record.state == "ok" and (record.identity, record.shard) == (place.identity, shard)
    return record if whole and store.layout(place.store).is_there(shard) else None


def _forget(place: Place, shards: Iterable[Shard]) -> None:
    """Remove the records of shards that are to be made although they say ok: their data are damaged or gone."""
    for shard in _hashes(place).keys() & set(shards):
        place.record(shard).unlink(missing_ok=True)


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


def _record(study: Study, place: Place, shard: Shard, seconds: float, **ending: Any) -> ShardRecord:
    return ShardRecord(
        identity=place.identity,
        start=shard.start,
        stop=shard.stop,
        state="failed" if "error" in ending else "ok",
        seed=study.seed,
        engine=study.config.forward.engine,
        source=provenance.source_hash(*study.simulation_modules),
        versions=provenance.versions(),
        seconds=seconds,
        host=socket.gethostname(),
        finished=datetime.now(UTC),
        **ending,
    )


def _announce(study: Study, place: Place, shards: Iterable[Shard], todo: list[Shard], backend: str) -> None:
    """Say what the run will cost before it starts."""
    records = [record for record in manifest.read_records(place).values() if record.state == "ok"]
    done = sum(record.stop - record.start for record in records)
    seconds = sum(record.seconds for record in records) / done if done else _probe(study)
    workers = min(fanout.processes(study.config.simulate.workers), len(todo))
    shard_size = todo[0].stop - todo[0].start
    rows, total = len(todo) * shard_size, sum(shard.stop - shard.start for shard in shards)
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


def _simulate(study: Study, place: Place, todo: list[Shard], backend: str, progress: Tracker) -> None:
    """Spread shards over processes. Raises SimulationError when all have ended, if some failed; StoreError at once."""
    if not todo:
        return
    failed: list[fanout.Outcome[ShardRecord]] = []
    place = Place(place.study_folder.absolute(), place.identity)  # a task may start in another folder
    work = partial(simulate_shard, study, place)
    shared = fanout.Shared(jobs_folder(place), partial(missing, place))
    workers = fanout.processes(study.config.simulate.workers)
    label = f"simulate {study.name}"
    with (
        progress(label, sum(shard.stop - shard.start for shard in todo)) as advance,
        closing(fanout.run_shards(todo, work, workers, backend, shared)) as outcomes,
    ):
        for outcome in outcomes:
            if outcome.fatal:
                raise StoreError(outcome.error)
            if outcome.error:
                failed.append(outcome)
                store.mark_failed(place.store, outcome.shard)
                record = _record(study, place, outcome.shard, 0.0, error=outcome.details or outcome.error)
                manifest.write(place.record(outcome.shard), record)
            advance(outcome.shard.stop - outcome.shard.start)
    for outcome in failed:
        say(f"{label}: shard {outcome.shard} failed: {outcome.error}")
    if failed:
        raise SimulationError(
            f"{len(failed)} of {len(todo)} shards",
            "must be simulated",
            failed[0].error,
            f"the others are kept; details in {place.record(failed[0].shard)}; mend it and run the same command again",
        )


def _finish(study: Study, place: Place, shards: tuple[Shard, ...], report: Report) -> None:
    """Sweep and consolidate the store, then say that it is finished."""
    shutil.rmtree(jobs_folder(place), ignore_errors=True)
    store.finalise(place.store)
    sweep(place.records)
    records = manifest.read_records(place)
    used: list[ShardRecord] = [records[shard] for shard in shards]
    entry = StoreManifest(
        identity=place.identity,
        study=study.name,
        kind=study.kind,
        store=place.store.name,
        simulations=report.simulations,
        shard_size=shards[0].stop,
        views=study.views,
        parameters=study.prior.names,
        shards=tuple(StoredShard(start=r.start, stop=r.stop, sha256=r.sha256) for r in used),
        checksum=report.checksum,
        seed=study.seed,
        engine=study.config.forward.engine,
        source=used[0].source,
        core_seconds=round(sum(record.seconds for record in used), 3),
        wall_seconds=round(manifest.wall_seconds(used), 3),
        versions=provenance.versions(),
    )
    if place.manifest.is_file():
        try:
            if manifest.read(place.manifest, StoreManifest).same_content(entry):
                return  # later stages compare it by checksum: mended shards must not re-run them
        except StoreError:
            pass  # damaged: it is written anew
    manifest.write(place.manifest, entry)


def status(folder: str | Path, study: Study | None = None) -> dict[str, Any]:
    """Counts of simulations in `results/<run>/<study>`: total, done, failed, left, and whether a run is going on.

    With `study`: of what it asks for; without: of what was begun last (zeros if nothing was). Raises StoreError for a
    damaged status file or manifest.
    """
    last = Place(Path(folder), "").status
    if study is not None:
        place, total = Place(Path(folder), study.simulation_identity()), study.config.simulate.simulations
    elif last.is_file():
        begun = manifest.read(last, RunStatus)
        place, total = Place(Path(folder), begun.identity), begun.simulations
    else:
        place, total = Place(Path(folder), ""), 0
    counts = {"ok": 0, "failed": 0}
    for shard, record in manifest.read_records(place).items():
        counts[record.state] += max(0, min(shard.stop, total) - shard.start)
    entry = manifest.read(place.manifest, StoreManifest) if place.manifest.is_file() else None
    return {
        "identity": place.identity,
        "total": total,
        "done": counts["ok"],
        "failed": counts["failed"],
        "left": total - sum(counts.values()),
        "running": is_held(place.folder),
        "finished": entry is not None and entry.identity == place.identity and entry.simulations >= total,
    }
