"""Stage sweep: train a model with varied options, compare the trials on validation rows, keep the best one.

Every trial is trained by the stage train in a folder of its own, `sweep/<identity>/`, and leaves a record there; a trial
that has one is not trained again. They are spread by `fanout`: over processes here, or over tasks of Slurm.
"""

from __future__ import annotations

import csv
import importlib
import io
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scatterflow import fanout
from scatterflow.errors import ScatterflowError, StoreError
from scatterflow.files import disk_errors, exclusive, write_atomic
from scatterflow.manifest import Shard
from scatterflow.multilayer import MultilayerStudy
from scatterflow.products import read_json, replacing, write_json
from scatterflow.progress import duration, quiet, say
from scatterflow.stages import preprocess, stage
from scatterflow.trials import (
    RECORD,
    SweepManifest,
    Trial,
    TrialRecord,
    study_of_trial,
    sweep_identity,
    sweep_of,
    trials,
)

if TYPE_CHECKING:
    from scatterflow.trials import AnyStudy

STAGE = "sweep"
RESULTS, BEST = "results.csv", "best"


def run(study: AnyStudy, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Train what is missing, write `sweep/results.csv`, `sweep/best/` and `sweep/manifest.json`; returns the last's path.

    A trial that fails stands in the table with its error; another run tries it again. Raises ScatterflowError if none
    could be trained, ConfigError without a sweep in the configuration, `fanout.Stopped` on SIGINT and SIGTERM: the same
    command continues.
    """
    found = trials(study)
    backend = fanout.backend_name()
    preprocess.load(study, folder)  # before any process starts: are there features?
    place = folder / STAGE
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        with exclusive(place), fanout.stop_on_signals():
            try:
                _train(study, folder.absolute(), found, backend, tell)
            except fanout.Stopped as stop:
                tell(f"sweep {study.name}: stopped by {stop.signal_name}; what is trained is kept, run it again")
                raise
            return _finish(study, folder, found, tell)


def _train(study: AnyStudy, folder: Path, found: list[Trial], backend: str, tell: Callable[[str], None]) -> None:
    sweep, began = sweep_of(study), time.monotonic()
    every = [Shard(number, number + 1) for number in range(len(found))]
    todo = _missing(folder, found, every)
    if not todo:
        return
    threads = study.config.models[sweep.model].training.threads
    workers = sweep.parallel or max(1, fanout.processes(None) // threads)
    where = f"{min(workers, len(todo))} at a time" if backend == "local" else f"spread by {backend}"
    tell(f"sweep {study.name}: {len(todo)} of {len(found)} trials of model {sweep.model} to train, {where}")
    # a controller that is started anew must not take the trials of another sweep for its own
    identity = sweep_identity(found)
    jobs = folder / STAGE / f"slurm-{identity[:12]}"
    shared = fanout.Shared(jobs, partial(_missing, folder, found), name=STAGE, alone=True)
    work = partial(train_trial, study, folder, identity)
    done = 0
    with closing(fanout.run_shards(todo, work, workers, backend, shared)) as outcomes:
        for outcome in outcomes:
            done += 1
            trial = found[outcome.shard.start]
            if outcome.error:
                _write(trial, folder, state="failed", error=" ".join(outcome.error.split()))
            told = outcome.error or _score(trial.read(folder))
            spent = duration(time.monotonic() - began)
            tell(f"sweep {study.name}: trial {outcome.shard.start + 1} ended, {done} of {len(todo)} in {spent}: {told}")
    shutil.rmtree(jobs, ignore_errors=True)


def train_trial(study: AnyStudy, folder: Path, identity: str, number: Shard) -> None:
    """Train trial `number` of the sweep `identity` and write its record: what a process or a task of Slurm does."""
    found = trials(study)
    if sweep_identity(found) != identity:  # a task may start hours after the run
        raise StoreError("code", "must not change while a sweep is going on", remedy="run the same command again")
    trial = found[number.start]
    name = sweep_of(study).model
    bundle = stage("train", study.kind).run(
        study_of_trial(study, trial),
        name,
        folder,
        lambda text: say(f"trial {number.start + 1}: {text}"),
        quiet,
        trial.folder(folder),
    )
    _write(trial, folder, state="ok", **_scored(study, folder, bundle))


def _scored(study: AnyStudy, folder: Path, bundle: Path) -> dict[str, Any]:
    """What the record says of a trained trial."""
    if not isinstance(study, MultilayerStudy):
        of_kind = importlib.import_module(f"scatterflow.stages.{study.kind}.trial")  # torch is only needed here
        scored: dict[str, Any] = of_kind.score(study, folder, bundle)
        return scored
    content = read_json(bundle, "scatterflow sweep")
    mode, fit = next(iter(content["modes"].items()))
    seconds = content["meta"]["training"]["seconds"]
    return {"mode": mode, "score": fit["gain"], "score_se": fit["gain_se"], "seconds": seconds}


def _write(trial: Trial, folder: Path, **ending: Any) -> None:
    record = TrialRecord(identity=trial.identity, settings=trial.settings, seed=trial.seed, **ending)
    write_json(trial.folder(folder) / RECORD, record.model_dump(mode="json"))


def _missing(folder: Path, found: Sequence[Trial], numbers: Sequence[Shard]) -> list[Shard]:
    """Trials that are not trained yet."""

    def there(trial: Trial) -> bool:
        record = trial.read(folder)
        return record is not None and record.state == "ok" and any(trial.folder(folder).glob("*/bundle.json"))

    return [number for number in numbers if not there(found[number.start])]


def _score(record: TrialRecord | None) -> str:
    if record is None or record.score is None or record.score_se is None:
        return "no score"
    return f"information gain {record.score:.2f} +- {record.score_se:.2f} nat on validation rows"


def _finish(study: AnyStudy, folder: Path, found: list[Trial], tell: Callable[[str], None]) -> Path:
    """Compare the trials, keep the best bundle, write the table and the manifest."""
    records = {trial.identity: record for trial in found if (record := trial.read(folder)) is not None}
    good = [record for record in records.values() if record.state == "ok" and record.score is not None]
    _write_table(folder / STAGE / RESULTS, list(sweep_of(study).space), list(records.values()))
    if not good:
        errors = {record.error for record in records.values()}
        raise ScatterflowError(
            f"{len(found)} trials of the sweep",
            "must be trained at least in part",
            next(iter(errors), "no record"),
            f"see {folder / STAGE / RESULTS}; mend it and run the same command again",
        )
    best = max(good, key=lambda record: record.score or 0.0)
    name, place = sweep_of(study).model, folder / STAGE
    source = next(trial for trial in found if trial.identity == best.identity).folder(folder) / name
    with replacing(place / BEST) as temporary:
        shutil.copytree(source, temporary)
    failed = len(found) - len(good)
    tell(
        f"sweep {study.name}: best of {len(good)} trials{f' ({failed} failed)' if failed else ''}: "
        f"{', '.join(f'{key}={value}' for key, value in best.settings.items())}, {_score(best)}; bundle in {place / BEST}"
    )
    entry = SweepManifest(
        identity=sweep_identity(found),
        model=name,
        search=sweep_of(study).search,
        best=best.identity,
        trials=tuple(records.values()),
    )
    return write_json(place / "manifest.json", entry.model_dump(mode="json"))


def _write_table(path: Path, keys: list[str], records: list[TrialRecord]) -> None:
    """The trials as CSV, one line each, the varied options in columns of their own."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = ("seed", "mode", "score", "score_se", "seconds", "state", "error", "identity")
    table.writerow(["trial", *keys, *columns])
    for number, record in enumerate(records, start=1):
        content = record.model_dump(mode="json")
        table.writerow([number, *(record.settings[key] for key in keys), *(content[column] for column in columns)])
    write_atomic(path, text.getvalue().encode())
