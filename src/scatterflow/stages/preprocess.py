"""Stage preprocess: stored counts to features, with noise and masks, shard by shard."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import fanout, manifest, shards, store
from scatterflow.errors import StoreError
from scatterflow.manifest import Place, Shard, ShardRecord, StoreManifest
from scatterflow.progress import Tracker, track
from scatterflow.shards import Job
from scatterflow.store import open_store
from scatterflow.study import FEATURE_MODULES, Study

if TYPE_CHECKING:
    from scatterflow.verify import Report

STAGE = "preprocess"
SPLITS = ("held_back", "validation", "train")
_BLOCK_BYTES = 64_000_000  # of counts in double precision; the work on them takes some times as much
_WORTH_BYTES = 200_000_000  # of counts: with less, starting processes takes longer than they save


def run(study: Study, folder: Path, progress: Tracker = track) -> Path:
    """Make the features that are missing, verify all, write `preprocess/manifest.json` below `folder`; returns its path.

    A shard of features holds the rows of one shard of simulations. Each process holds one decoded shard of both, and
    some hundred MB more to work on a block of its rows. A second run continues a killed one and ends with the same bits.
    Raises StoreError for simulations that are missing or of another identity, SimulationError for shards that have no
    features (the others are kept), and `fanout.Stopped` on SIGINT and SIGTERM.
    """
    job = _job(study, folder)
    return shards.holding(job.place, job.label, lambda backend: _run(job, backend, progress))


def repair(study: Study, folder: Path, damaged: Sequence[Shard], progress: Tracker = track) -> Report:
    """Make the features of these shards anew and verify the whole store again; nothing else in it is touched.

    Raises what `run` raises; damage that comes back is in the report.
    """
    return shards.repair(_job(study, folder), damaged, progress)


def _job(study: Study, folder: Path) -> Job:
    source = _simulations(study, Path(folder).absolute())  # a task may start in another folder
    place = Place(Path(folder), study.features_identity(), STAGE)
    work = partial(preprocess_shard, study, source, place._replace(study_folder=place.study_folder.absolute()))
    return Job(study, place, work, FEATURE_MODULES, "see `scatterflow verify` for the simulations")


def _run(job: Job, backend: str, progress: Tracker) -> Path:
    study, place, number = job.study, job.place, job.study.config.simulate.simulations
    began = time.monotonic()
    source = store.layout(_simulations(study, place.study_folder).store)
    planned, records = _prepare(study, place, source, backend)
    todo = shards.missing(place, planned, records)
    alone = sum(shard.stop - shard.start for shard in todo) * _row_bytes(study, source) < _WORTH_BYTES
    workers = 1 if alone else fanout.processes(study.config.simulate.workers)
    report, records = shards.complete(job, number, todo, workers, backend, progress)
    shards.finish(job, planned, report, records, splits=_roles(study))
    shards.say_what_was_made(job, report, began)
    return place.manifest


def _prepare(
    study: Study, place: Place, source: store.Layout, backend: str
) -> tuple[tuple[Shard, ...], dict[Shard, ShardRecord]]:
    """Create, extend or mend the store of features; returns the shards that hold the rows asked for, and the records."""
    number = study.config.simulate.simulations
    records = manifest.read_records(place)
    if manifest.shard_size_of(records, source.shard_size) != source.shard_size:
        records = {}  # the simulations were made anew in other shards
        shutil.rmtree(place.store, ignore_errors=True)
        shutil.rmtree(place.records)
    place.records.mkdir(exist_ok=True)
    first = store.lazy(source).isel(simulation=slice(0, 1)).load()
    features = _features(study, {view: first[view].values for view in study.views}, 0)
    rows = max(number, max((shard.stop for shard in records), default=0))  # a store never shrinks
    attrs = {"identity": place.identity, "study": study.name, "kind": study.kind}
    store.create(place.store, features, first[store.PARAMETERS], rows, source.shard_size, attrs)
    shards.begin(place, number, source.shard_size, backend)
    return manifest.plan(number, source.shard_size), records


def preprocess_shard(study: Study, source: Place, place: Place, shard: Shard) -> ShardRecord:
    """Features of one shard, from the store at `source` to that at `place`, then its record: what a worker does.

    What it computes depends on nothing but the study and the range. Raises FrameError, SimulationError and StoreError.
    """
    if study.features_identity() != place.identity:  # a task may start hours after the run
        remedy = "run the same command again: it starts a new store"
        raise StoreError("code", "must not change while a run is going on", remedy=remedy)
    return shards.write(study, place, FEATURE_MODULES, shard, partial(_compute, study, source))


def _compute(study: Study, source: Place, shard: Shard) -> store.Arrays:
    """Features and parameters of a shard, a block of rows at a time: their size bounds the memory."""
    where = store.layout(source.store)
    counts = store.read_shard(where, shard)
    unfinished = int((counts[store.STATUS] != store.OK).sum())
    if unfinished:
        got = f"{unfinished} missing or failed simulations in shard {shard}"
        raise StoreError(f"store {source.store}", "must be complete", got, "run `scatterflow simulate` again")
    arrays: store.Arrays = {store.PARAMETERS: counts[store.PARAMETERS]}
    rows = shard.stop - shard.start
    step = max(1, _BLOCK_BYTES // _row_bytes(study, where))
    for first in range(0, rows, step):
        block = {view: counts[view][first : first + step] for view in study.views}
        for name, values in _features(study, block, shard.start + first).items():
            whole = arrays.setdefault(str(name), np.empty((rows, *values.shape[1:]), values.dtype))
            whole[first : first + step] = values.values
    return arrays


def _row_bytes(study: Study, where: store.Layout) -> int:
    """Bytes of the counts of one simulation in double precision."""
    return sum(8 * math.prod(row) for name, (row, _) in where.arrays.items() if name in study.views)


def _features(study: Study, counts: store.Arrays, start: int) -> xr.Dataset:
    """Features of consecutive simulations from `start`, given the counts of each view (simulation, z, y)."""
    index = np.arange(start, start + len(next(iter(counts.values()))))
    dataset = xr.Dataset(coords={"simulation": index})
    for name, values in counts.items():
        dataset = dataset.assign_coords(study.coordinates(name))
        dataset[name] = (("simulation", f"z_{name}", f"y_{name}"), values)
    return study.preprocess(study.observe(dataset))


def simulations(study: Study, folder: Path) -> xr.Dataset:
    """Stored parameters and expected counts, lazy. Raises StoreError if they are missing or of another identity."""
    place = _simulations(study, folder)
    return open_store(place.manifest).isel(simulation=slice(0, study.config.simulate.simulations))


def _simulations(study: Study, folder: Path) -> Place:
    """Where the finished simulations of a study are."""
    return _finished(Place(folder, study.simulation_identity()), study)


def _finished(place: Place, study: Study) -> Place:
    """The place, if its manifest says that it holds what the study asks for."""
    entry = manifest.read(place.manifest, StoreManifest)
    if entry.identity != place.identity or entry.simulations < study.config.simulate.simulations:
        raise StoreError(
            f"{place.manifest}",
            "must be of this configuration, code and number",
            remedy=f"run `scatterflow {place.stage}`",
        )
    return place


def splits(study: Study) -> NDArray[np.intp]:
    """Role of each simulation as an index of SPLITS: held back first, then validation, then training rows."""
    config = study.config.simulate
    borders = [config.held_back, config.held_back + config.validation]
    return np.searchsorted(borders, np.arange(config.simulations), side="right")


def _roles(study: Study) -> dict[str, int]:
    return dict(zip(SPLITS, np.bincount(splits(study), minlength=len(SPLITS)).tolist(), strict=True))


def load(study: Study, folder: Path) -> xr.Dataset:
    """Features as written by `run`, lazy, with coordinate `split`. Raises StoreError if missing or of another identity."""
    place = _finished(Place(folder, study.features_identity(), STAGE), study)
    features = open_store(place.manifest).drop_vars(store.STATUS)
    roles = np.array(SPLITS)[splits(study)]
    return features.isel(simulation=slice(0, len(roles))).assign_coords(split=("simulation", roles))


def rows(features: xr.Dataset, *split: str) -> xr.Dataset:
    """The simulations of one or more splits."""
    return features.isel(simulation=np.flatnonzero(np.isin(features["split"].values, split)))
