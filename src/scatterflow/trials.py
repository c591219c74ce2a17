"""The trials of a sweep: which settings and seeds are trained, each with an identity of its own.

What a trial is depends on its settings, its data and the code, not on how many there are or in which order: a sweep
that is made larger keeps what is trained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from pydantic import ValidationError

from scatterflow import provenance, seeds
from scatterflow.config.base import Section, option
from scatterflow.config.dualbranch import DualBranchConfig
from scatterflow.config.model import ModelConfig
from scatterflow.config.regressor import RegressorConfig
from scatterflow.config.sweep import RangeConfig, SweepConfig, Value, takes_fractions, varied
from scatterflow.config.training import MACHINE
from scatterflow.errors import ConfigError

if TYPE_CHECKING:
    from scatterflow.multilayer import MultilayerStudy
    from scatterflow.nanodiffraction import NanodiffractionStudy
    from scatterflow.particles import ParticlesStudy
    from scatterflow.study import Study

    AnyStudy: TypeAlias = MultilayerStudy | NanodiffractionStudy | ParticlesStudy

OneStudy = TypeVar("OneStudy", bound="Study")
Settings = dict[str, Value]
RECORD = "trial.json"
_SHORT = 16  # hex digits of an identity that name a folder


class TrialRecord(Section):
    """How a trial ended."""

    identity: str = option(help="hash of what determines the trial")
    settings: dict[str, Value] = option(help="the varied options")
    seed: int = option(help="training.seed")
    state: Literal["ok", "failed"] = option(help="whether there is a bundle")
    mode: str = option("", help="way to infer that the score is of: the model's default; none where there is but one")
    score: float | None = option(None, help="mean information gain on validation rows", unit="nat")
    score_se: float | None = option(None, help="its standard error", unit="nat")
    ratio: dict[str, float] = option(
        {}, help="standard deviation of the error on validation rows over the Cramer-Rao bound, where there is one"
    )
    seconds: float = option(0.0, help="time spent on training", unit="s")
    error: str = option("", help="why it failed, in one line")


class SweepManifest(Section):
    """What a sweep has found."""

    format: Literal[1] = option(1, help="number of this format")
    identity: str = option(help="hash of all trials")
    model: str = option(help="name of the model that was varied")
    search: str = option(help="grid or random")
    best: str = option(help="identity of the trial with the best score; `best/` is a copy of its bundle")
    trials: tuple[TrialRecord, ...] = option(help="in order")


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    settings: Settings
    seed: int  # `training.seed`
    config: ModelConfig | RegressorConfig | DualBranchConfig
    identity: str

    def folder(self, folder: Path) -> Path:
        """Its folder below that of the study."""
        return folder / "sweep" / self.identity[:_SHORT]

    def read(self, folder: Path) -> TrialRecord | None:
        """How it ended; None where there is no record of it."""
        try:
            record = TrialRecord.model_validate_json((self.folder(folder) / RECORD).read_bytes())
        except (OSError, ValidationError):
            return None
        return record if record.identity == self.identity else None


def sweep_of(study: Study) -> SweepConfig:
    """The study's sweep. Raises ConfigError if it has none."""
    if study.config.sweep is None:
        remedy = "add the section `sweep` to the configuration, see config/README.md"
        raise ConfigError(f"sweep of study {study.name}", "must be configured", remedy=remedy)
    return study.config.sweep


def trials(study: AnyStudy) -> list[Trial]:
    """All trials in order, none twice. Raises ConfigError for settings that do not go together."""
    sweep = sweep_of(study)
    model = study.config.models[sweep.model]
    common = _common(study)
    found: dict[str, Trial] = {}
    for settings in _combinations(sweep, model, study.seed):
        for member in range(sweep.seeds):
            own = settings | ({"training.seed": member} if sweep.seeds > 1 else {})
            try:
                config = varied(model, own)
            except ValueError as error:
                raise ConfigError(str(error), "must be valid together", remedy="take other values") from None
            identity = _identity(common, config)
            found.setdefault(identity, Trial(settings, config.training.seed, config, identity))
    return list(found.values())


def study_of_trial(study: OneStudy, trial: Trial) -> OneStudy:
    """The study with the trial's model alone."""
    name = sweep_of(study).model
    config = study.config.model_copy(update={"models": {name: trial.config}, "sweep": None})
    return replace(study, config=config)


def sweep_identity(found: Sequence[Trial]) -> str:
    """Hash of all trials in their order."""
    return provenance.digest([trial.identity for trial in found])


def _common(study: AnyStudy) -> dict[str, Any]:
    """What determines the bundles of all trials, as plain JSON."""
    simulate = study.config.simulate
    options = study.stage_options("train", sweep_of(study).model)
    del options["model"]
    return {
        "features": study.features_identity(),
        "rows": [simulate.simulations, simulate.held_back, simulate.validation],
        **options,
        "seed": study.seed,
        "source": provenance.stage_source("train", study.kind),
    }


def _identity(common: dict[str, Any], config: ModelConfig | RegressorConfig | DualBranchConfig) -> str:
    """Hash of what determines the trial's bundle."""
    return provenance.digest(common | {"model": config.model_dump(mode="json", exclude={"training": set(MACHINE)})})


def _combinations(sweep: SweepConfig, model: Section, seed: int) -> Iterator[Settings]:
    if sweep.trials is None:
        lists = [values for values in sweep.space.values() if not isinstance(values, RangeConfig)]
        for chosen in itertools.product(*lists):
            yield dict(zip(sweep.space, chosen, strict=True))
        return
    columns = {key: _drawn(model, key, values, seed, sweep.trials) for key, values in sweep.space.items()}
    for chosen in zip(*columns.values(), strict=True):
        yield dict(zip(columns, chosen, strict=True))


def _drawn(model: Section, key: str, values: tuple[Value, ...] | RangeConfig, seed: int, number: int) -> list[Value]:
    """Random values of one option; value `i` depends on (seed, option, i) only."""
    uniform = seeds.uniforms(seed, f"sweep of {key}", 0, number, 1)[:, 0].tolist()
    if not isinstance(values, RangeConfig):
        return [values[int(u * len(values))] for u in uniform]
    if takes_fractions(model, key, values):
        return [_between(values.low, values.high, u, values.log) for u in uniform]
    low, high = values.low - 0.5, values.high + 0.5  # each whole number has the share of the axis around it
    drawn = [_between(low, high, u, values.log) for u in uniform]
    return [min(max(round(x), int(values.low)), int(values.high)) for x in drawn]


def _between(low: float, high: float, u: float, log: bool) -> float:
    if log:
        return min(max(low * math.exp(u * math.log(high / low)), low), high)
    return low + u * (high - low)
