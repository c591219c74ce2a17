"""What is done, running, failed and left, read from the products, the records of shards and the workflow's logs."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scatterflow import manifest
from scatterflow.cli.output import result
from scatterflow.cli.stages import load
from scatterflow.errors import StoreError
from scatterflow.manifest import Place
from scatterflow.products import read_json
from scatterflow.progress import duration
from scatterflow.slurm.summary import summarise
from scatterflow.stages import simulate
from scatterflow.study import Study, study_of

DONE, OUTDATED, RUNNING, FAILED, LEFT = "done", "outdated", "running", "failed", "left"
_LOCK = Path(
    ".snakemake/scatterflow.lock"
)  # held while snakemake is at work in this folder (workflow/rules/common.smk)
_LAST_BYTES = 4000


@dataclass(frozen=True)
class State:
    """Where a stage of a study stands. `detail` is for people."""

    study: str
    stage: str
    state: str
    detail: str = ""


def show_status(config: Path, study: str | None, results: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Print the state of every stage of the chosen studies, and of the report."""
    run, chosen = load(config, study, overrides)
    folder = results / run.run
    states = [state for name in chosen for state in _study(study_of(run, name), folder / name)]
    states.append(_product("", "report", folder / "report.html", folder / "logs" / "write_report.log"))
    lines = [f"run {run.run} in {folder}"]
    for state in states:
        lines.append(f"{state.study:16} {state.stage:12} {state.state:10} {state.detail}".rstrip())
    result({"run": run.run, "results": str(folder), "stages": [asdict(state) for state in states]}, lines, as_json)


def _study(study: Study, folder: Path) -> Iterator[State]:
    logs = folder / "logs"
    yield _simulate(study, folder)
    yield _product(study.name, "cross-check", folder / "cross-check" / "manifest.json", logs / "compare_engines.log")
    yield _preprocess(study, folder)
    yield _train(study, folder)
    yield _product(study.name, "baseline", folder / "baseline" / "manifest.json", logs / "run_baselines.log")
    yield _product(study.name, "infer", folder / "infer" / "manifest.json", logs / "infer_posterior.log")
    yield _product(study.name, "evaluate", folder / "evaluate" / "metrics.json", logs / "evaluate_study.log")


def _simulate(study: Study, folder: Path) -> State:
    found = simulate.status(folder)
    wanted = study.config.simulate.simulations
    counts = f"{found['done']} of {found['total'] or wanted} simulations"
    if found["failed"]:
        counts += f", {found['failed']} failed"
    place = Place(folder, found["identity"])
    counts += _cost(place, found["left"])
    jobs = summarise(simulate.jobs_folder(place))
    if jobs is not None:
        counts += f"; {jobs}"
    if found["running"]:
        return State(study.name, "simulate", RUNNING, counts)
    if jobs is not None and jobs.running + jobs.queued:
        return State(study.name, "simulate", RUNNING, f"{counts}; nobody follows them: run the same command again")
    if not found["total"]:
        return _unfinished(study.name, "simulate", folder / "logs" / "simulate_study.log", f"{wanted} simulations")
    if found["identity"] != study.simulation_identity():
        return State(study.name, "simulate", OUTDATED, f"{counts} of another configuration or code")
    if found["failed"]:
        return State(study.name, "simulate", FAILED, f"{counts}; {_why(place)}")
    if found["finished"] and found["total"] >= wanted:
        return State(study.name, "simulate", DONE, counts)
    return State(study.name, "simulate", LEFT, f"{found['done']} of {wanted} simulations")


def _cost(place: Place, left: int) -> str:
    """Core time of the simulations so far, and of those that are left at the same pace."""
    done = [record for record in manifest.read_records(place).values() if record.state == "ok"]
    if not done:
        return ""
    seconds = sum(record.seconds for record in done)
    rows = sum(record.stop - record.start for record in done)
    more = f", {duration(left * seconds / rows)} to go" if left else ""
    return f" ({duration(seconds)} of one core{more})"


def _why(place: Place) -> str:
    """The error of the shard that failed last, and where more of it stands."""
    failed = [record for record in manifest.read_records(place).values() if record.state == "failed"]
    last = max(failed, key=lambda record: record.finished, default=None)
    if last is None:
        return "run the same command again"
    lines = [line for line in last.error.splitlines() if line.strip()]
    return f"{_printable(lines[-1] if lines else '')} (see {place.record(last.shard)})"


def _preprocess(study: Study, folder: Path) -> State:
    path = folder / "preprocess" / "manifest.json"
    state = _product(study.name, "preprocess", path, folder / "logs" / "preprocess_study.log")
    if state.state != DONE:
        return state
    try:
        made = read_json(path, "scatterflow preprocess")
        identity, simulations = made["identity"], made["simulations"]
    except (StoreError, KeyError, TypeError):
        return State(study.name, "preprocess", FAILED, f"{path} is damaged")
    if (identity, simulations) != (study.features_identity(), study.config.simulate.simulations):
        return State(study.name, "preprocess", OUTDATED, f"{simulations} simulations, another configuration or code")
    return State(study.name, "preprocess", DONE, f"{simulations} simulations")


def _train(study: Study, folder: Path) -> State:
    """One state for all models: the worst of theirs."""
    parts = {
        name: _product(
            study.name, "train", folder / "models" / name / "bundle.json", folder / "logs" / f"train_model.{name}.log"
        )
        for name in study.config.models
    }
    worst = next(state for state in (FAILED, RUNNING, LEFT, DONE) if state in {part.state for part in parts.values()})
    done = sum(part.state == DONE for part in parts.values())
    others = "; ".join(f"{name}: {part.detail or part.state}" for name, part in parts.items() if part.state != DONE)
    return State(study.name, "train", worst, f"{done} of {len(parts)} models" + (f" ({others})" if others else ""))


def _product(study: str, stage: str, path: Path, log: Path) -> State:
    return State(study, stage, DONE) if path.is_file() else _unfinished(study, stage, log)


def _unfinished(study: str, stage: str, log: Path, detail: str = "") -> State:
    """A stage without product: the workflow has begun it where there is a log."""
    if not log.is_file():
        return State(study, stage, LEFT, detail)
    if _workflow_runs():
        return State(study, stage, RUNNING, detail)
    return State(study, stage, FAILED, f"{_last_line(log)} (see {log})".strip())


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
