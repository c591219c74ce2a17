"""A store that is made shard by shard: what is missing, how it is spread, recorded, verified and mended.

The stages simulate and preprocess differ in what they compute for a shard; all else about their stores is here.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from os import getpid
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scatterflow import fanout, manifest, provenance, store
from scatterflow.errors import SimulationError, StoreError
from scatterflow.files import disk_errors, exclusive, is_held, sweep
from scatterflow.manifest import Place, RunStatus, Shard, ShardRecord, StoredShard, StoreManifest
from scatterflow.progress import Tracker, duration, say
from scatterflow.verify import Report, verify, verify_shards

if TYPE_CHECKING:
    from scatterflow.study import Study

R = TypeVar("R")
_MENDS = 2  # damaged shards are made anew; damage that comes back is the disk's


@dataclass(frozen=True)
class Job:
    """A stage's work on one store. `make` (picklable) does one shard: it ends with `write`."""

    study: Study
    place: Place
    make: Callable[[Shard], ShardRecord]
    modules: tuple[str, ...]  # whose code determines the numbers
    remedy: str  # when a shard cannot be made

    @property
    def label(self) -> str:
        """The stage and the study, for people."""
        return f"{self.place.stage} {self.study.name}"


def holding(place: Place, label: str, work: Callable[[str], R]) -> R:
    """`work(backend)` as the only writer of the stage's folder; a signal ends it with a word, and `fanout.Stopped`."""
    backend = fanout.backend_name()
    with disk_errors(place.folder):
        place.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(place.folder), fanout.stop_on_signals():
            try:
                return work(backend)
            except fanout.Stopped as stop:
                say(f"{label}: stopped by {stop.signal_name}; finished shards are kept, run it again")
                raise


def begin(place: Place, simulations: int, shard_size: int, backend: str) -> None:
    """Note what was begun, for `status`."""
    status = RunStatus(
        identity=place.identity,
        simulations=simulations,
        shard_size=shard_size,
        backend=backend,
        host=socket.gethostname(),
        process=getpid(),
        started=datetime.now(UTC),
    )
    manifest.write(place.status, status)


def missing(place: Place, shards: Iterable[Shard], records: Mapping[Shard, ShardRecord] | None = None) -> list[Shard]:
    """Shards without a valid record of this identity that says ok, or without their files."""
    wanted = list(shards)
    done = manifest.hashes(manifest.read_records(place, wanted) if records is None else records)
    where = store.layout(place.store)
    return [shard for shard in wanted if shard not in done or not where.is_there(shard)]


def jobs_folder(place: Place) -> Path:
    """Where the fan-out `slurm` keeps logs and what it has submitted, until all is done."""
    return place.folder / f"slurm-{place.identity[:12]}"


def write(
    study: Study, place: Place, modules: Sequence[str], shard: Shard, compute: Callable[[Shard], store.Arrays]
) -> ShardRecord:
    """Compute one shard, write it to the store, then its record; what is stored already is left alone."""
    began = time.perf_counter()
    if ready := _finished(place, shard):
        return ready  # by a task that was lost and has come back
    arrays = compute(shard)
    if ready := _finished(place, shard):
        return ready
    with disk_errors(place.store):
        written = store.write_shard(place.store, shard, arrays)
        record = _record(study, place, modules, shard, time.perf_counter() - began, sha256=written)
        manifest.write(place.record(shard), record)
    return record


def _finished(place: Place, shard: Shard) -> ShardRecord | None:
    """The record that says that a shard is stored; `forget` has removed those that are wrong."""
    record = manifest.read_records(place, [shard]).get(shard)
    return record if record and record.state == "ok" and store.layout(place.store).is_there(shard) else None


def forget(place: Place, shards: Iterable[Shard]) -> None:
    """Remove the records of shards that are to be made although they may say ok: their data are damaged or gone."""
    for shard in shards:
        place.record(shard).unlink(missing_ok=True)


def _record(
    study: Study, place: Place, modules: Sequence[str], shard: Shard, seconds: float, **ending: Any
) -> ShardRecord:
    return ShardRecord(
        identity=place.identity,
        start=shard.start,
        stop=shard.stop,
        state="failed" if "error" in ending else "ok",
        seed=study.seed,
        engine=study.engine[0],
        source=provenance.source_hash(*modules),
        versions=provenance.versions(),
        seconds=seconds,
        host=socket.gethostname(),
        finished=datetime.now(UTC),
        **ending,
    )


def complete(
    job: Job, simulations: int, todo: list[Shard], workers: int, backend: str, progress: Tracker
) -> tuple[Report, dict[Shard, ShardRecord]]:
    """Make `todo`, verify the first `simulations` rows of the store, make anew what is damaged; returns the records, too.

    Raises SimulationError for shards that failed (the others are kept), StoreError for damage that comes back.
    """
    place = job.place
    where = store.layout(place.store)
    forget(place, [shard for shard in todo if not where.is_there(shard)])  # others a Slurm task may just have finished
    for mend in range(_MENDS + 1):
        spread(job, todo, workers, backend, progress)
        records = manifest.read_records(place)
        report = verify_shards(place, manifest.hashes(records), simulations, progress)
        if report.ok:
            return report, records
        todo = [damage.shard for damage in report.damaged]
        forget(place, todo)
        if mend < _MENDS:
            first = report.damaged[0]
            say(f"{job.label}: {len(todo)} damaged shards are made anew ({first.shard}: {first.reason})")
    raise _comes_back(report)


def _comes_back(report: Report) -> StoreError:
    damage = report.damaged[0]
    what = f"shard {damage.shard} of {report.store}"
    return StoreError(what, "must read as written", damage.reason, "check the disk")


def spread(job: Job, todo: list[Shard], workers: int, backend: str, progress: Tracker) -> None:
    """Spread shards over processes. Raises SimulationError when all have ended, if some failed; StoreError at once."""
    if not todo:
        return
    place, failed = job.place, list[fanout.Outcome[ShardRecord]]()
    shared = fanout.Shared(jobs_folder(place), partial(missing, place), name=place.stage)
    with (
        progress(job.label, sum(shard.stop - shard.start for shard in todo)) as advance,
        closing(fanout.run_shards(todo, job.make, workers, backend, shared)) as outcomes,
    ):
        for outcome in outcomes:
            if outcome.fatal:
                raise StoreError(outcome.error)
            if outcome.error:
                failed.append(outcome)
                store.mark_failed(place.store, outcome.shard)
                error = outcome.details or outcome.error
                record = _record(job.study, place, job.modules, outcome.shard, 0.0, error=error)
                manifest.write(place.record(outcome.shard), record)
            advance(outcome.shard.stop - outcome.shard.start)
    for outcome in failed:
        say(f"{job.label}: shard {outcome.shard} failed: {outcome.error}")
    if failed:
        raise SimulationError(
            f"{len(failed)} of {len(todo)} shards",
            "must be simulated" if place.stage == manifest.STAGE else "must become features",
            failed[0].error,
            f"the others are kept; details in {place.record(failed[0].shard)}; {job.remedy}",
        )


def finish(
    job: Job, shards: Sequence[Shard], report: Report, records: Mapping[Shard, ShardRecord], **more: Any
) -> None:
    """Sweep and consolidate the store, then write the manifest that says that it is finished."""
    study, place = job.study, job.place
    shutil.rmtree(jobs_folder(place), ignore_errors=True)
    store.finalise(place.store)
    sweep(place.records)
    used = [records[shard] for shard in shards]
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
        engine=study.engine[0],
        source=used[0].source,
        core_seconds=round(sum(record.seconds for record in used), 3),
        wall_seconds=round(manifest.wall_seconds(used), 3),
        versions=provenance.versions(),
        **more,
    )
    if place.manifest.is_file():
        try:
            if manifest.read(place.manifest, StoreManifest).same_content(entry):
                return  # later stages compare it by checksum: mended shards must not re-run them
        except StoreError:
            pass  # damaged: it is written anew
    manifest.write(place.manifest, entry)


def repair(job: Job, damaged: Sequence[Shard], progress: Tracker) -> Report:
    """Make these shards anew and verify the whole store again; nothing else in it is touched.

    Raises what `complete` raises; damage that comes back is in the report.
    """

    def mend(backend: str) -> Report:
        forget(job.place, damaged)
        spread(job, list(damaged), fanout.processes(job.study.config.simulate.workers), backend, progress)
        shutil.rmtree(jobs_folder(job.place), ignore_errors=True)
        return verify(job.place.store, progress)

    return holding(job.place, job.label, mend)


def say_what_was_made(job: Job, report: Report, began: float) -> None:
    """The last line of a stage; `began` is on the monotonic clock."""
    spent = duration(time.monotonic() - began)
    say(f"{job.label}: {report.simulations} simulations, checksum {report.checksum[:12]}, {spent}")


def status(place: Place, total: int, records: Mapping[Shard, ShardRecord] | None = None) -> dict[str, Any]:
    """Counts of simulations of a store of `total`: done, failed, left, and whether a run is going on.

    Raises StoreError for a damaged manifest.
    """
    counts = {"ok": 0, "failed": 0}
    for shard, record in (manifest.read_records(place) if records is None else records).items():
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
