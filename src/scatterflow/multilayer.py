"""Studies of kind `multilayer`: layer parameters of a rough multilayer from its GISAXS image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from scatterflow import instrument as geometry
from scatterflow import observe as observing
from scatterflow import preprocess as preprocessing
from scatterflow import provenance
from scatterflow.config.sample import SampleConfig, layer_name
from scatterflow.config.study import MultilayerConfig
from scatterflow.forward import derivatives, expected_counts
from scatterflow.forward.layers import LAYER_PARAMETERS
from scatterflow.prior import Parameter, Prior
from scatterflow.study import Study
from scatterflow.units import UNITS

_CAPS = {"beta": "delta", "roughness_nm": "thickness_nm"}

# what determines the numbers in a store and in features, beside the configuration
ENGINE_MODULES = {"bornagain": "scatterflow.forward.bornagain", "dwba": "scatterflow.forward.dwba"}
_PACKAGES = {"bornagain": "bornagain", "dwba": "torch"}
SIMULATION_MODULES = (
    "scatterflow.forward.layers",
    "scatterflow.instrument",
    "scatterflow.prior",
    "scatterflow.seeds",
    "scatterflow.config.sample",
)
_FORWARD = {"bornagain": {"engine"}, "dwba": {"engine", "mode", "batch_bytes"}}  # options that numbers depend on


@dataclass(frozen=True)
class MultilayerStudy(Study):
    """A study of kind `multilayer`."""

    config: MultilayerConfig

    @cached_property
    def prior(self) -> Prior:
        """Prior over the parameters of the free layers."""
        return multilayer_prior(self.config.sample, self.seed)

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views that are simulated and stored."""
        return tuple(self.config.instrument.views)

    def coordinates(self, view: str) -> dict[str, Any]:
        """Coordinates of a view's rows and columns."""
        return geometry.coordinates(self.config.instrument, view)

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
            result = result.assign_coords(self.coordinates(name))
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
            result = result.assign_coords(self.coordinates(name))
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
    def engine(self) -> tuple[str, str]:
        """Engine of the simulations, and the package that computes the counts: BornAgain, or torch for our own."""
        return self.config.forward.engine, _PACKAGES[self.config.forward.engine]

    def engines_hash(self) -> str:
        """Hash of code and versions of all engines: what a comparison of them depends on."""
        versions = provenance.versions(_PACKAGES.values())
        return provenance.digest([versions, provenance.source_hash(*ENGINE_MODULES.values())])

    def simulation_facts(self) -> dict[str, Any]:
        """The options that determine the stored counts."""
        config = self.config
        return {
            "instrument": config.instrument.model_dump(mode="json", exclude={"masked", "saturation"}),
            "sample": config.sample.model_dump(mode="json", exclude={"expert"}),
            "forward": config.forward.model_dump(mode="json", include=_FORWARD[config.forward.engine]),
        }

    def feature_facts(self) -> dict[str, Any]:
        """The options that determine the features, beside those of the simulations."""
        return {
            "masked": self.config.instrument.model_dump(mode="json")["masked"],
            "observe": self.config.observe.model_dump(mode="json"),
            "preprocess": self.config.preprocess.model_dump(mode="json"),
        }

    def stage_options(self, stage: str, model: str | None) -> dict[str, Any]:
        """The options that a stage after `preprocess` reads, as plain JSON: a change in any of them re-runs it."""
        config = self.config
        if stage == "cross-check":
            checked = {name: getattr(config.forward, name) for name in ("cross_check", "tolerance")}
            return {"identity": self.simulation_identity(), "engines": self.engines_hash(), **checked}
        if stage == "sweep":
            from scatterflow.trials import sweep_identity, trials  # they need studies

            return {"trials": sweep_identity(trials(self))}
        if stage == "train":
            assert model is not None
            return {
                "model": config.models[model].model_dump(mode="json"),
                "inference": config.inference.model_dump(mode="json", exclude={"frames", "samples"}),
            }
        expert = config.sample.model_dump(mode="json")["expert"]
        if stage == "infer":
            return {"inference": config.inference.model_dump(mode="json"), "expert": expert}
        if stage == "baseline":
            samples = config.inference.samples
            return {"baseline": config.baselines.model_dump(mode="json"), "samples": samples, "expert": expert}
        return {"evaluation": config.evaluation.model_dump(mode="json")}


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
