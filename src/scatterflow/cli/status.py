"""What is done, running, failed and left, read from the products, the records of shards and the workflow's logs."""

from __future__ import annotations

import csv
import fcntl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scatterflow import manifest, shards
from scatterflow.cli.output import result
from scatterflow.cli.stages import load
from scatterflow.config.model import ModelConfig
from scatterflow.config.regressor import LeanConfig, RegressorConfig
from scatterflow.config.training import PhaseConfig, TrainingConfig
from scatterflow.errors import StoreError
from scatterflow.manifest import STAGE, Place, RunStatus, Shard, ShardRecord
from scatterflow.multilayer import MultilayerStudy
from scatterflow.nanodiffraction import NanodiffractionStudy
from scatterflow.particles import ParticlesStudy
from scatterflow.progress import duration
from scatterflow.report.costs import read_costs
from scatterflow.slurm.summary import Summary, summarise
from scatterflow.stages import has
from scatterflow.study import Study, study_of
from scatterflow.trials import trials

DONE, OUTDATED, RUNNING, FAILED, LEFT = "done", "outdated", "running", "failed", "left"
_LOCK = Path(
    ".snakemake/scatterflow.lock"
)  # held while snakemake is at work in this folder (workflow/rules/common.smk)
_LAST_BYTES = 4000


@dataclass(frozen=True)
class State:
    """Where a stage of a study stands.

    `done` of `total` and `failed` count simulations, models or trials; `running` and `queued` Slurm tasks. `left_s` is
    the time left at the present pace. `error` is the last one, `log` the file that tells more. `detail` is for people.
    """

    study: str
    stage: str
    state: str
    detail: str = ""
    done: int | None = None
    total: int | None = None
    failed: int = 0
    running: int = 0
    queued: int = 0
    left_s: float | None = None
    core_hours: float | None = None
    error: str = ""
    log: str = ""

    def line(self) -> str:
        """All of it for people."""
        parts = [self.detail] if self.detail else []
        if self.core_hours is not None:
            parts.append(f"core time {duration(3600 * self.core_hours)}")
        if self.left_s is not None:
            parts.append(f"{duration(self.left_s)} left")
        if self.error or self.log:
            parts.append(f"last error: {self.error} (see {self.log})" if self.error else f"see {self.log}")
        return f"{self.study:16} {self.stage:12} {self.state:10} {'; '.join(parts)}".rstrip()


def show_status(config: Path, study: str | None, results: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Print the state of every stage of the chosen studies, and of the report."""
    run, chosen = load(config, study, overrides)
    folder = results / run.run
    states = [state for name in chosen for state in _study(study_of(run, name), folder / name)]
    states.append(_product("", "report", folder / "report.html", folder / "logs" / "write_report.log"))
    lines = [f"run {run.run} in {folder}", *(state.line() for state in states)]
    result({"run": run.run, "results": str(folder), "stages": [asdict(state) for state in states]}, lines, as_json)


def _study(study: Study, folder: Path) -> Iterator[State]:
    logs, seconds = folder / "logs", _core_seconds(folder)

    def product(stage: str, name: str, rule: str) -> State:
        state = _product(study.name, stage, folder / stage / name, logs / f"{rule}.log")
        return _with_cost(state, seconds.get(rule))

    yield _sharded(study, folder, STAGE, study.simulation_identity())
    if has("cross-check", study.kind):
        yield product("cross-check", "manifest.json", "compare_engines")
    yield _sharded(study, folder, "preprocess", study.features_identity())
    yield _train(study, folder, seconds)
    if isinstance(study, MultilayerStudy | NanodiffractionStudy | ParticlesStudy) and study.config.sweep is not None:
        yield _sweep(study, folder)
    yield product("baseline", "manifest.json", "run_baselines")
    yield product("infer", "manifest.json", "infer_posterior")
    yield product("evaluate", "metrics.json", "evaluate_study")


def _core_seconds(folder: Path) -> dict[str, float]:
    """Core time of each job, by the name of its benchmark file."""
    costs = read_costs(folder / "benchmarks")
    return {name: cost.core_seconds for name, cost in costs.items() if cost.core_seconds is not None}


def _with_cost(state: State, seconds: float | None) -> State:
    return state if seconds is None or state.state == LEFT else replace(state, core_hours=seconds / 3600)


def _sharded(study: Study, folder: Path, stage: str, identity: str) -> State:
    """A stage whose store is made shard by shard, as it was begun last."""
    wanted, state = study.config.simulate.simulations, State(study.name, stage, LEFT)
    log = folder / "logs" / f"{stage}_study.log"
    last = Place(folder, "", stage).status
    try:
        if not last.is_file():
            return _unfinished(replace(state, detail=f"{wanted} simulations", done=0, total=wanted), log)
        begun = manifest.read(last, RunStatus)
        place = Place(folder, begun.identity, stage)
        records = manifest.read_records(place)
        found = shards.status(place, begun.simulations, records)
    except StoreError as error:
        return replace(state, state=FAILED, detail=f"{error.what} is damaged")
    counts = f"{found['done']} of {found['total']} simulations"
    counts += f", {found['failed']} failed" if found["failed"] else ""
    jobs = summarise(shards.jobs_folder(place))
    state = replace(
        _with_jobs(state, jobs),
        done=found["done"],
        total=found["total"],
        failed=found["failed"],
        core_hours=sum(record.seconds for record in records.values()) / 3600,
        detail=counts + _to_go(records, found["left"]) + (f"; {jobs}" if jobs is not None else ""),
    )
    if found["running"]:
        return replace(state, state=RUNNING, left_s=_pace(begun, records, found["left"]))
    if jobs is not None and jobs.running + jobs.queued:
        detail = f"{state.detail}; nobody follows them: run the same command again"
        return replace(state, state=RUNNING, detail=detail)
    if found["identity"] != identity:
        return replace(state, state=OUTDATED, detail=f"{counts} of another configuration or code")
    if found["failed"]:
        why, where = _why(place, records)
        return replace(state, state=FAILED, error=why, log=where)
    if found["finished"] and found["total"] >= wanted:
        return replace(state, state=DONE)
    state = replace(state, total=wanted, detail=f"{found['done']} of {wanted} simulations")
    return state if found["finished"] else _unfinished(state, log)


def _with_jobs(state: State, jobs: Summary | None) -> State:
    if jobs is None:
        return state
    return replace(state, running=jobs.running, queued=jobs.queued, error=jobs.error, log=jobs.log)


def _to_go(records: Mapping[Shard, ShardRecord], left: int) -> str:
    """Core time of the simulations that are left, at the pace of those that are done."""
    done = [record for record in records.values() if record.state == "ok"]
    rows = sum(record.stop - record.start for record in done)
    if not (rows and left):
        return ""
    return f" (core time to go: {duration(left * sum(record.seconds for record in done) / rows)})"


def _pace(begun: RunStatus, records: Mapping[Shard, ShardRecord], left: int) -> float | None:
    """Time left for `left` simulations at the pace since the run began [s]; None before the first shard."""
    rows = sum(record.stop - record.start for record in records.values() if record.finished > begun.started)
    spent = time.time() - begun.started.timestamp()
    return left * spent / rows if rows and spent > 0 else None


def _why(place: Place, records: Mapping[Shard, ShardRecord]) -> tuple[str, str]:
    """The error of the shard that failed last, and where more of it stands."""
    failed = [record for record in records.values() if record.state == "failed"]
    last = max(failed, key=lambda record: record.finished)
    lines = [line for line in last.error.splitlines() if line.strip()]
    return _printable(lines[-1] if lines else ""), str(place.record(last.shard))


def _train(study: Study, folder: Path, seconds: Mapping[str, float]) -> State:
    """One state for all models: the worst of theirs."""
    parts = {name: _model(study.name, name, config, folder) for name, config in study.config.models.items()}
    worst = next(state for state in (FAILED, RUNNING, LEFT, DONE) if state in {part.state for part in parts.values()})
    done = sum(part.state == DONE for part in parts.values())
    others = "; ".join(f"{name}: {part.detail or part.state}" for name, part in parts.items() if part.state != DONE)
    failed = [part for part in parts.values() if part.state == FAILED]
    left = [part.left_s for part in parts.values() if part.left_s is not None]
    spent = [seconds[f"train_model.{name}"] for name in parts if f"train_model.{name}" in seconds]
    return State(
        study.name,
        "train",
        worst,
        f"{done} of {len(parts)} models" + (f" ({others})" if others else ""),
        done=done,
        total=len(parts),
        failed=len(failed),
        left_s=max(left, default=None),
        core_hours=sum(spent) / 3600 if spent else None,
        error=failed[-1].error if failed else "",
        log=failed[-1].log if failed else "",
    )


def _model(study: str, name: str, config: Any, folder: Path) -> State:
    """One model: how far its training is, by the history beside its checkpoint."""
    log = folder / "logs" / f"train_model.{name}.log"
    state = _product(study, "train", folder / "models" / name / "bundle.json", log)
    try:
        with (folder / "models" / f"{name}.training" / "history.csv").open(encoding="utf-8", newline="") as table:
            row = list(csv.DictReader(table))[-1]
        phase, epoch, spent, ended = row["phase"], int(row["epoch"]), float(row["seconds"]), row["stopped"]
    except (OSError, ValueError, LookupError):
        return state  # not begun
    if state.state == DONE:
        return state
    plan = _plan(config, phase)
    left = 0.0 if ended else (plan.epochs - epoch) * spent / epoch
    if plan.budget_s is not None:
        left = min(left, max(0.0, plan.budget_s - spent))
    more = ", then the flow" if phase == "cvae" else ""
    detail = f"{state.state}, epoch {epoch} of {plan.epochs} of phase {phase}{more}"
    return replace(state, detail=detail, left_s=left if state.state == RUNNING else None)


def _plan(config: ModelConfig | RegressorConfig, phase: str) -> PhaseConfig:
    """Settings of a phase of a training."""
    if isinstance(config.training, TrainingConfig):
        return config.training.cvae if phase == "cvae" else config.training.flow
    return config.frames if phase == "frames" and isinstance(config, LeanConfig) else config.training


def _sweep(study: MultilayerStudy | NanodiffractionStudy | ParticlesStudy, folder: Path) -> State:
    """The trials of a sweep, by their records."""
    found = [trial.read(folder) for trial in trials(study)]
    done = [record for record in found if record is not None and record.state == "ok"]
    failed = [record for record in found if record is not None and record.state == "failed"]
    jobs = summarise(*sorted((folder / "sweep").glob("slurm-*")))
    state = _product(study.name, "sweep", folder / "sweep" / "manifest.json", folder / "logs" / "run_sweep.log")
    if jobs is not None and jobs.running + jobs.queued and state.state != DONE:
        state = replace(state, state=RUNNING)
    detail = f"{len(done)} of {len(found)} trials" + (f", {len(failed)} failed" if failed else "")
    return replace(
        _with_jobs(state, jobs),
        detail=detail + (f"; {jobs}" if jobs is not None else ""),
        done=len(done),
        total=len(found),
        failed=len(failed),
        error=(jobs.error if jobs is not None else "") or (_printable(failed[-1].error) if failed else state.error),
        core_hours=sum(record.seconds for record in done) * study.config.models[_swept(study)].training.threads / 3600
        if done
        else None,
    )


def _swept(study: MultilayerStudy | NanodiffractionStudy | ParticlesStudy) -> str:
    assert study.config.sweep is not None  # `_study` has looked
    return study.config.sweep.model


def _product(study: str, stage: str, path: Path, log: Path) -> State:
    return State(study, stage, DONE) if path.is_file() else _unfinished(State(study, stage, LEFT), log)


def _unfinished(state: State, log: Path) -> State:
    """A stage without product: the workflow has begun it where there is a log."""
    if not log.is_file():
        return state
    if _workflow_runs():
        # the workflow writes its lock anew when it starts: an older log is of an earlier one
        return replace(state, state=RUNNING) if log.stat().st_mtime >= _LOCK.stat().st_mtime else state
    return replace(state, state=FAILED, error=_last_line(log), log=str(log))


def _workflow_runs() -> bool:
    try:
        with _LOCK.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no workflow has run here, or the file system knows no locks
    return False


def _last_line(log: Path) -> str:
    """The last line of a log, however long the log is."""
    try:
        with log.open("rb") as handle:
            handle.seek(max(0, log.stat().st_size - _LAST_BYTES))
            lines = handle.read().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    last = next((line for line in reversed(lines) if line.strip()), "")
    return _printable(last)


def _printable(line: str) -> str:
    return "".join(character for character in line if character.isprintable())[-200:]
