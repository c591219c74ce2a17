"""A study: prior, forward model, observation and preprocessing of one section of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scatterflow import instrument as geometry
from scatterflow import observe as observing
from scatterflow import preprocess as preprocessing
from scatterflow import provenance
from scatterflow.config.loading import load_run
from scatterflow.config.sample import SampleConfig, layer_name
from scatterflow.config.study import RunConfig, StudyConfig
from scatterflow.errors import ConfigError
from scatterflow.forward import derivatives, expected_counts
from scatterflow.forward.layers import LAYER_PARAMETERS
from scatterflow.prior import Parameter, Prior
from scatterflow.units import UNITS

_CAPS = {"beta": "delta", "roughness_nm": "thickness_nm"}

# what determines the numbers in a store and in features, beside the configuration
ENGINE_MODULES = {"bornagain": "scatterflow.forward.bornagain", "dwba": "scatterflow.forward.dwba"}
SIMULATION_MODULES = (
    "scatterflow.forward.layers",
    "scatterflow.instrument",
    "scatterflow.prior",
    "scatterflow.seeds",
    "scatterflow.config.sample",
)
_FORWARD = {"bornagain": {"engine"}, "dwba": {"engine", "mode", "batch_bytes"}}  # options that numbers depend on
FEATURE_MODULES = ("scatterflow.observe", "scatterflow.preprocess")


@dataclass(frozen=True)
class Study:
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
    def prior(self) -> Prior:
        """Prior over the parameters of the free layers."""
        return multilayer_prior(self.config.sample, self.seed)

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views that are simulated and stored."""
        return tuple(self.config.instrument.views)

    def simulate(
        self, theta: xr.DataArray, engine: str | None = None, views: tuple[str, ...] | None = None
    ) -> xr.Dataset:
        """Noise-free expected counts: one float32 variable per view, (simulation, z_<view>, y_<view>).

        `theta` is (simulation, parameter) in physical units; `engine` and `views` default to the configuration's; the
        view `full` is the whole detector. Raises SimulationError (naming row and parameter) and ConfigError.
        """
        values = self.prior.values(theta)
        names = self.views if views is None else tuple(views)
        arrays = expected_counts(self.config, values, names, engine or self.config.forward.engine)
        simulation = theta["simulation"].values if "simulation" in theta.coords else np.arange(len(values))
        result = xr.Dataset(coords={"simulation": simulation}, attrs={"study": self.name, "kind": self.kind})
        for name, array in arrays.items():
            result = result.assign_coords(geometry.coordinates(self.config.instrument, name))
            attrs = {"units": "counts", "long_name": f"expected counts of view {name}"}
            result[name] = (("simulation", f"z_{name}", f"y_{name}"), array, attrs)
        return result

    def derivatives(self, theta: xr.DataArray, views: tuple[str, ...] | None = None) -> xr.Dataset:
        """Expected counts and their derivatives `d_<view>` (simulation, parameter, z_<view>, y_<view>) by engine dwba.

        `theta` is (simulation, parameter) in physical units; derivatives are in counts per unit of the parameter. Raises
        SimulationError (naming row and parameter) and ConfigError.
        """
        names = self.views if views is None else tuple(views)
        result = xr.Dataset(coords={"parameter": list(self.prior.names)}, attrs={"study": self.name, "kind": self.kind})
        for name, (counts, slopes) in derivatives(self.config, self.prior.values(theta), names).items():
            dims = (f"z_{name}", f"y_{name}")
            result = result.assign_coords(geometry.coordinates(self.config.instrument, name))
            result[name] = (("simulation", *dims), counts, {"units": "counts"})
            result[f"d_{name}"] = (("simulation", "parameter", *dims), slopes)
        return result

    def observe(self, counts: xr.Dataset, seed: int | None = None, experiment: bool = False) -> xr.Dataset:
        """Recorded counts with noise and `mask_<view>`; `experiment` adds the parasitic scattering of a beam stop."""
        return observing.observe(
            counts,
            self.config.instrument,
            self.config.observe,
            self.seed if seed is None else seed,
            self.config.preprocess.parasitic if experiment else None,
        )

    def preprocess(self, noisy: xr.Dataset) -> xr.Dataset:
        """Features of recorded counts: `profile`, `image` in [0, 1] and their masks."""
        return preprocessing.preprocess(noisy, self.config.instrument, self.config.preprocess)

    def expert(self) -> xr.DataArray | None:
        """Parameters (1, parameter) of the expert's fit; None where the configuration has none."""
        layers = self.config.sample.expert
        if not layers:
            return None
        return self.prior.dataarray([[getattr(layer, name) for layer in layers for name in LAYER_PARAMETERS]])

    @property
    def simulation_modules(self) -> tuple[str, ...]:
        """The modules whose code determines the stored counts."""
        return ENGINE_MODULES[self.config.forward.engine], *SIMULATION_MODULES

    @property
    def engine_version(self) -> str:
        """Version of the package that computes the counts: BornAgain's, or torch's for our own engine."""
        package = {"bornagain": "bornagain", "dwba": "torch"}[self.config.forward.engine]
        found = provenance.versions((package,))
        if package not in found:
            raise ConfigError(
                f"engine {self.config.forward.engine}", "must be installed", f"no {package}", "see envs/README.md"
            )
        return found[package]

    def engines_hash(self) -> str:
        """Hash of code and versions of all engines: what a comparison of them depends on."""
        versions = provenance.versions(("bornagain", "torch"))
        return provenance.digest([versions, provenance.source_hash(*ENGINE_MODULES.values())])

    def simulation_identity(self) -> str:
        """Hash of what determines the stored counts (docs/architecture.md, Identity)."""
        config = self.config
        return provenance.digest(
            {
                "kind": config.kind,
                "seed": self.seed,
                "instrument": config.instrument.model_dump(mode="json", exclude={"masked", "saturation"}),
                "sample": config.sample.model_dump(mode="json", exclude={"expert"}),
                "forward": config.forward.model_dump(mode="json", include=_FORWARD[config.forward.engine]),
                "engine": self.engine_version,
                "source": provenance.source_hash(*self.simulation_modules),
            }
        )

    def features_identity(self) -> str:
        """Hash of what determines the features."""
        return provenance.digest(
            {
                "simulations": self.simulation_identity(),
                "masked": self.config.instrument.model_dump(mode="json")["masked"],
                "observe": self.config.observe.model_dump(mode="json"),
                "preprocess": self.config.preprocess.model_dump(mode="json"),
                "source": provenance.source_hash(*FEATURE_MODULES),
            }
        )


def multilayer_prior(sample: SampleConfig, seed: int) -> Prior:
    """The conditionally uniform prior of the free layers: beta below delta, roughness below thickness."""
    parameters = []
    for index, material in enumerate(sample.layers, start=1):
        layer = layer_name(index, material)
        for name in LAYER_PARAMETERS:
            low, high = getattr(sample.materials[material], name)
            cap = f"{layer}.{_CAPS[name]}" if name in _CAPS else ""
            parameters.append(Parameter(f"{layer}.{name}", low, high, UNITS[name], cap))
    return Prior(tuple(parameters), seed)


def study_of(run: RunConfig, name: str, folder: Path = Path()) -> Study:
    """Study `name` of a run read from `folder`. Raises ConfigError if the run has none of this name."""
    if name not in run.studies:
        raise ConfigError("study", f"must be one of {sorted(run.studies)}", repr(name))
    return Study(name, run.studies[name], run.seed, run.run, folder)


def load_study(path: str | Path, name: str, overrides: Mapping[str, Any] | None = None) -> Study:
    """Study `name` of the configuration file `path`.

    `overrides` replaces single fields of the study by dotted path: {"simulate.simulations": 100}. Raises ConfigError with
    path, value and remedy.
    """
    prefixed = {f"studies.{name}.{key}": value for key, value in (overrides or {}).items()}
    if prefixed:
        study_of(load_run(path), name)  # an override must not invent a study
    return study_of(load_run(path, prefixed), name, Path(path).parent)
