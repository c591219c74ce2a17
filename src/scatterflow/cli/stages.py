"""Commands that run a stage or check its store."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scatterflow.cli.output import complain, result
from scatterflow.config.loading import load_run, parse_yaml
from scatterflow.config.study import RunConfig
from scatterflow.errors import ConfigError, StoreError
from scatterflow.manifest import STAGE, stage_of
from scatterflow.progress import duration, track
from scatterflow.stages import has, stage

if TYPE_CHECKING:
    from scatterflow.study import Study
    from scatterflow.verify import Damage, Report


def load(config: Path, study: str | None, overrides: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """The run of a configuration with its overrides, and the names of the chosen studies."""
    run = load_run(config)
    if study is not None and study not in run.studies:
        raise ConfigError("--study", f"must be one of {sorted(run.studies)}", repr(study))
    chosen = [study] if study is not None else list(run.studies)
    values = {path: value for text in overrides for path, value in _override(text, chosen, sorted(run.studies)).items()}
    return (load_run(config, values) if values else run), chosen


def _override(text: str, studies: Sequence[str], known: Sequence[str]) -> dict[str, object]:
    """`key=value` by full dotted path: a key that is none of the run's own belongs to each study."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not (equals and key):
        raise ConfigError("--set", "must be KEY=VALUE", repr(text), "e.g. --set simulate.simulations=8000")
    content = parse_yaml(value, f"value of --set {key}")
    first, *rest = key.split(".")
    if first == "studies" and rest and rest[0] not in known:
        raise ConfigError(f"study of --set {key}", f"must be one of {known}", repr(rest[0]))
    if first in RunConfig.model_fields:
        return {key: content}
    return {f"studies.{study}.{key}": content for study in studies}


def run_stage(
    name: str, config: Path, study: str | None, results: Path, overrides: Sequence[str], as_json: bool
) -> None:
    """Run stage `name` of the chosen studies, as the workflow's rule does; the report covers the whole run."""
    run, chosen = load(config, study, overrides)
    from scatterflow.study import study_of  # after `load`: a mistake in the configuration is told at once

    folder = results / run.run
    began = time.monotonic()
    if name == "report":
        if study is not None:
            raise ConfigError("--study", "is not an option of report", repr(study), "the report covers all studies")
        products = [importlib.import_module("scatterflow.stages.report").run(run, folder)]
    else:
        chosen = [each for each in chosen if study is not None or has(name, run.studies[each].kind)]
        if name == "sweep" and study is None:  # of those that have one; without any, the first says what is missing
            chosen = [each for each in chosen if run.studies[each].sweep is not None] or chosen[:1]
        products = [
            path for each in chosen for path in _products(name, study_of(run, each, config.parent), folder / each)
        ]
    paths = [str(path) for path in products]
    seconds = round(time.monotonic() - began, 3)
    result({"command": name, "run": run.run, "products": paths, "seconds": seconds}, paths, as_json)


def _products(name: str, study: Study, folder: Path) -> Iterator[Path]:
    """Run a stage of one study; training makes one product per model."""
    if not has(name, study.kind):
        raise ConfigError("--study", f"must be of a kind that has a stage {name}", repr(study.name))
    module = stage(name, study.kind)
    if name == "train":
        for model in study.config.models:
            yield module.run(study, model, folder)
    else:
        yield module.run(study, folder)


def verify_store(
    store: Path, repair: bool, config: Path, study: str | None, overrides: Sequence[str], as_json: bool
) -> int:
    """Check every shard of a store and, with `repair`, make bad ones anew; returns the exit status."""
    from scatterflow.verify import verify

    began = time.monotonic()
    report = verify(store, track)
    mended = report.damaged if repair else ()
    if mended:
        report = _repair(report, config, study, overrides)
    bad = {each.shard for each in report.damaged}
    lines = [_line(each, "made anew") for each in mended if each.shard not in bad]
    lines += [_line(each) for each in report.damaged]
    if report.ok:
        took = duration(time.monotonic() - began)
        lines.append(f"{report.store}: {report.simulations} simulations in {report.shards} shards, all whole ({took})")
        lines.append(f"checksum {report.checksum}")
    repaired = [
        {"start": d.shard.start, "stop": d.shard.stop, "reason": d.reason} for d in mended if d.shard not in bad
    ]
    result(report.as_json() | {"repaired": repaired}, lines, as_json)
    if not report.ok:
        number, made_by = len(report.damaged), stage_of(report.store)
        got = f"{number} damaged shard{'s' if number > 1 else ''} of {report.shards}"
        remedy = "check the disk" if repair else f"add --repair, or run `scatterflow {made_by}`, to make them anew"
        complain(StoreError(f"store {report.store}", "must be whole", got, remedy))
    return 0 if report.ok else 2


def _line(damage: Damage, *more: str) -> str:
    text = f"simulations {damage.shard.start} to {damage.shard.stop - 1}: {damage.reason}"
    return "; ".join([text, *more])


def _repair(report: Report, config: Path, study: str | None, overrides: Sequence[str]) -> Report:
    """Make the damaged shards anew with the study of the configuration that the store is of; the report afterwards."""
    from scatterflow.study import study_of

    run, chosen = load(config, study, overrides)
    made_by = stage_of(report.store)
    for name in chosen:
        found = study_of(run, name, config.parent)
        identity = found.simulation_identity() if made_by == STAGE else found.features_identity()
        if identity == report.identity:
            module = importlib.import_module(f"scatterflow.stages.{made_by}")
            damaged = [each.shard for each in report.damaged]
            repaired: Report = module.repair(found, report.store.parent.parent, damaged)
            return repaired
    raise StoreError(
        f"store {report.store}",
        f"must be of {'study ' + study if study else 'a study'} of {config}, to be repaired",
        f"identity {report.identity[:12]}",
        "give its --config, --study and --set; what other code has made cannot be repaired",
    )
