"""A study and a run: all sections together, and the checks across them."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import model_validator

from scatterflow.config.base import Section, option
from scatterflow.config.baselines import AbcMethod, BaselinesConfig
from scatterflow.config.evaluation import EvaluationConfig
from scatterflow.config.forward import ForwardConfig
from scatterflow.config.inference import InferenceConfig
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.model import ModelConfig
from scatterflow.config.observe import ObserveConfig
from scatterflow.config.preprocess import PreprocessConfig
from scatterflow.config.sample import SampleConfig
from scatterflow.config.simulate import SimulateConfig
from scatterflow.config.sweep import SweepConfig

# infer/<model>.nc lies beside these, and the evaluation's tables hold models and baselines together
RESERVED = ("examples", "experiment", "frames", "manifest", *get_args(AbcMethod))


class StudyConfig(Section):
    """One study: what is measured, how it is simulated, what is learnt from it."""

    kind: Literal["multilayer"] = option("multilayer", help="technique of the study")
    instrument: InstrumentConfig = option(InstrumentConfig(), help="beam, detector and views")
    sample: SampleConfig = option(help="layers and their prior")
    forward: ForwardConfig = option(ForwardConfig(), help="forward model")
    simulate: SimulateConfig = option(help="number of simulations and how they are stored")
    observe: ObserveConfig = option(ObserveConfig(), help="noise and artefacts")
    preprocess: PreprocessConfig = option(PreprocessConfig(), help="from frames to features")
    models: dict[str, ModelConfig] = option(min_length=1, help="models to train, by name")
    baselines: BaselinesConfig = option(BaselinesConfig(), help="methods to compare with")
    inference: InferenceConfig = option(InferenceConfig(), help="posterior samples, verdict, real frames")
    evaluation: EvaluationConfig = option(EvaluationConfig(), help="figures of merit on held-back simulations")
    sweep: SweepConfig | None = option(None, help="trainings of a model with varied options; none: no sweep")

    @model_validator(mode="after")
    def _views(self) -> Self:
        for name in ("profile", "image"):
            if name not in self.instrument.views:
                raise ValueError(f"instrument.views must define {name!r} for kind {self.kind}")
        if self.instrument.views["profile"].bins[1] != 1:
            raise ValueError("instrument.views.profile must have one bin in y: its bins must be [rows, 1]")
        return self

    @model_validator(mode="after")
    def _model_names(self) -> Self:
        for name in self.models:
            if name in RESERVED:
                raise ValueError(f"models: the name {name!r} is taken by a file of the results; choose another")
        return self

    @model_validator(mode="after")
    def _sweep(self) -> Self:
        if self.sweep is not None:
            self.sweep.check(self.models)
        return self


class RunConfig(Section):
    """One configuration file is one run."""

    run: str = option(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", help="name of the run; results go to results/<run>/<study>/"
    )
    seed: int = option(0, ge=0, lt=2**31, help="seed of every random number of the run")
    studies: dict[str, StudyConfig] = option(min_length=1, help="studies by name")

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in self.studies:
            if not name.replace("-", "_").replace("_", "a").isalnum():
                raise ValueError(f"study name {name!r} must consist of letters, digits, - and _")
        return self
