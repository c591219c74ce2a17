"""A study: prior, forward model, observation and preprocessing of one section of the configuration.

The kinds are in `multilayer.py`, `nanodiffraction.py` and `particles.py`; what the stages need of every kind is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xarray as xr

from scatterflow import provenance
from scatterflow.config.loading import load_run
from scatterflow.config.study import MultilayerConfig, NanodiffractionConfig, RunConfig, StudyConfig
from scatterflow.errors import ConfigError
from scatterflow.prior import Prior

FEATURE_MODULES = ("scatterflow.observe", "scatterflow.preprocess")


@dataclass(frozen=True)
class Study(ABC):
    """One study of a run. Frozen and picklable; built by `load_study`."""

    name: str
    config: StudyConfig
    seed: int
    run: str
    folder: Path = Path()  # where the configuration lies: relative paths in it start there

    @property
    def kind(self) -> str:
        """Technique of the study."""
        return self.config.kind

    @cached_property
    @abstractmethod
    def prior(self) -> Prior:
        """Prior over the parameters."""

    @property
    @abstractmethod
    def views(self) -> tuple[str, ...]:
        """Names of the views that are simulated and stored."""

    @abstractmethod
    def coordinates(self, view: str) -> dict[str, Any]:
        """Coordinates of a view's rows and columns."""

    @abstractmethod
    def simulate(
        self, theta: xr.DataArray, engine: str | None = None, views: tuple[str, ...] | None = None
    ) -> xr.Dataset:
        """Noise-free expected counts: one float32 variable per view, (simulation, z_<view>, y_<view>).

        `theta` is (simulation, parameter) in physical units; `engine` and `views` default to the configuration's. Raises
        SimulationError (naming row and parameter) and ConfigError.
        """

    @abstractmethod
    def observe(self, counts: xr.Dataset, seed: int | None = None) -> xr.Dataset:
        """Recorded counts with noise and `mask_<view>`."""

    @abstractmethod
    def preprocess(self, noisy: xr.Dataset) -> xr.Dataset:
        """What models eat, of recorded counts."""

    @property
    @abstractmethod
    def simulation_modules(self) -> tuple[str, ...]:
        """The modules whose code determines the stored counts."""

    @property
    @abstractmethod
    def engine(self) -> tuple[str, str]:
        """Engine of the simulations, and the package that computes the counts."""

    @abstractmethod
    def simulation_facts(self) -> dict[str, Any]:
        """The options that determine the stored counts."""

    @abstractmethod
    def feature_facts(self) -> dict[str, Any]:
        """The options that determine the features, beside those of the simulations."""

    @abstractmethod
    def stage_options(self, stage: str, model: str | None) -> dict[str, Any]:
        """The options that a stage after `preprocess` reads, as plain JSON: a change in any of them re-runs it."""

    @property
    def engine_version(self) -> str:
        """Version of the package that computes the counts. Raises ConfigError if it is not installed."""
        engine, package = self.engine
        found = provenance.versions((package,))
        if package not in found:
            raise ConfigError(f"engine {engine}", "must be installed", f"no {package}", "see envs/README.md")
        return found[package]

    def simulation_identity(self) -> str:
        """Hash of what determines the stored counts (docs/architecture.md, Identity)."""
        return provenance.digest(
            {
                "kind": self.kind,
                "seed": self.seed,
                "engine": self.engine_version,
                "source": provenance.source_hash(*self.simulation_modules),
                **self.simulation_facts(),
            }
        )

    def features_identity(self) -> str:
        """Hash of what determines the features."""
        return provenance.digest(
            {
                "simulations": self.simulation_identity(),
                "source": provenance.source_hash(*FEATURE_MODULES),
                **self.feature_facts(),
            }
        )


def study_of(run: RunConfig, name: str, folder: Path = Path()) -> Study:
    """Study `name` of a run read from `folder`. Raises ConfigError if the run has none of this name."""
    from scatterflow.multilayer import MultilayerStudy  # the kinds need this module
    from scatterflow.nanodiffraction import NanodiffractionStudy
    from scatterflow.particles import ParticlesStudy

    if name not in run.studies:
        raise ConfigError("study", f"must be one of {sorted(run.studies)}", repr(name))
    config = run.studies[name]
    if isinstance(config, MultilayerConfig):
        return MultilayerStudy(name, config, run.seed, run.run, folder)
    if isinstance(config, NanodiffractionConfig):
        return NanodiffractionStudy(name, config, run.seed, run.run, folder)
    return ParticlesStudy(name, config, run.seed, run.run, folder)


def load_study(path: str | Path, name: str, overrides: Mapping[str, Any] | None = None) -> Study:
    """Study `name` of the configuration file `path`.

    `overrides` replaces single fields of the study by dotted path: {"simulate.simulations": 100}. Raises ConfigError with
    path, value and remedy.
    """
    prefixed = {f"studies.{name}.{key}": value for key, value in (overrides or {}).items()}
    if prefixed:
        study_of(load_run(path), name)  # an override must not invent a study
    return study_of(load_run(path, prefixed), name, Path(path).parent)
