"""A study and a run: all sections together, and the checks across them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from scatterflow.config.artefacts import ArtefactsConfig
from scatterflow.config.base import Section, option
from scatterflow.config.baselines import AbcMethod, BaselinesConfig
from scatterflow.config.dualbranch import DualBranchConfig
from scatterflow.config.evaluation import EvaluationConfig
from scatterflow.config.forward import ForwardConfig
from scatterflow.config.inference import FramesConfig, InferenceConfig
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.model import ModelConfig
from scatterflow.config.nanodiffraction import (
    CountsConfig,
    FilmConfig,
    FilmPriorConfig,
    KinematicConfig,
    MapBaselinesConfig,
    NanobeamConfig,
    SimulatedScanConfig,
)
from scatterflow.config.observe import ObserveConfig
from scatterflow.config.particle_stages import (
    ParticleBaselinesConfig,
    ParticleEvaluationConfig,
    ParticleForwardConfig,
    ParticleInferenceConfig,
    ParticleMethod,
)
from scatterflow.config.particles import ParticleSampleConfig
from scatterflow.config.preprocess import PreprocessConfig
from scatterflow.config.regressor import RegressorConfig
from scatterflow.config.sample import SampleConfig
from scatterflow.config.scan import ScanConfig
from scatterflow.config.simulate import SimulateConfig
from scatterflow.config.sweep import SweepConfig
from scatterflow.instrument import horizon_px, valid_share

# infer/<model>.nc lies beside these, and the evaluation's tables hold models and baselines together
RESERVED_FOR_PARTICLES = ("frames", "manifest", "sets", *get_args(ParticleMethod))
GEOMETRY = ("wavelength_nm", "incidence_deg", "distance_mm", "pixel_mm", "shape", "beam", "beam_z_px", "beam_y_px")
RESERVED = ("examples", "experiment", "frames", "manifest", *get_args(AbcMethod))


class StudyConfig(Section):
    """What studies of every kind have."""

    kind: str = option(help="technique of the study")
    simulate: SimulateConfig = option(help="number of simulations and how they are stored")
    models: Mapping[str, Section] = option(min_length=1, help="models to train, by name")
    sweep: SweepConfig | None = option(None, help="trainings of a model with varied options; none: no sweep")

    @property
    def frames(self) -> tuple[FramesConfig, ...]:
        """Sets of measured frames, each with its instrument file."""
        return ()

    @property
    def real_files(self) -> tuple[str, ...]:
        """Measured files of the study, below the folder of real frames."""
        return tuple(name for frames in self.frames for name in frames.files)

    @property
    def instrument_files(self) -> tuple[str, ...]:
        """Instrument files of the measured ones, relative to the configuration."""
        return tuple(frames.instrument for frames in self.frames)

    @property
    def sources(self) -> tuple[tuple[str, str], ...]:
        """Names of the sets of measured files, and where they come from."""
        return tuple((frames.name, frames.source) for frames in self.frames)

    @model_validator(mode="after")
    def _sweep(self) -> Self:
        if self.sweep is not None:
            self.sweep.check(self.models)
        return self


class MultilayerConfig(StudyConfig):
    """Layers of a rough multilayer from its GISAXS image: what is measured, how it is simulated, what is learnt."""

    kind: Literal["multilayer"] = option("multilayer", help="technique of the study")
    instrument: InstrumentConfig = option(InstrumentConfig(), help="beam, detector and views")
    sample: SampleConfig = option(help="layers and their prior")
    forward: ForwardConfig = option(ForwardConfig(), help="forward model")
    observe: ObserveConfig = option(ObserveConfig(), help="noise and artefacts")
    preprocess: PreprocessConfig = option(PreprocessConfig(), help="from frames to features")
    models: dict[str, ModelConfig] = option(min_length=1, help="models to train, by name")
    baselines: BaselinesConfig = option(BaselinesConfig(), help="methods to compare with")
    inference: InferenceConfig = option(InferenceConfig(), help="posterior samples, verdict, real frames")
    evaluation: EvaluationConfig = option(EvaluationConfig(), help="figures of merit on held-back simulations")

    @property
    def frames(self) -> tuple[FramesConfig, ...]:
        """Sets of measured frames."""
        return self.inference.frames

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


class NanodiffractionConfig(StudyConfig):
    """Strain and tilts of a crystalline film at each point of a scanned X-ray nanodiffraction measurement."""

    kind: Literal["nanodiffraction"] = option("nanodiffraction", help="technique of the study")
    beam: NanobeamConfig = option(NanobeamConfig(), help="focused beam and detector")
    film: FilmConfig = option(FilmConfig(), help="film and reflection")
    prior: FilmPriorConfig = option(FilmPriorConfig(), help="ranges of strain, tilts and thickness")
    forward: KinematicConfig = option(KinematicConfig(), help="forward model")
    observe: CountsConfig = option(CountsConfig(), help="noise")
    models: dict[str, RegressorConfig] = option(min_length=1, help="estimators to train, by name")
    baselines: MapBaselinesConfig = option(MapBaselinesConfig(), help="methods to compare with")
    test_scans: tuple[SimulatedScanConfig, ...] = option((), help="simulated scans on which all methods are judged")
    scans: tuple[ScanConfig, ...] = option((), help="measured scans of this run")

    @property
    def real_files(self) -> tuple[str, ...]:
        """Measured files of the study, below the folder of real frames."""
        return tuple(scan.file for scan in self.scans)

    @property
    def sources(self) -> tuple[tuple[str, str], ...]:
        """Names of the sets of measured files, and where they come from."""
        return tuple((Path(scan.file).stem, scan.source) for scan in self.scans)

    @model_validator(mode="after")
    def _names(self) -> Self:
        scans = [scan.name for scan in self.test_scans] + [scan.name for scan in self.scans]
        twice = sorted({name for name in scans if scans.count(name) > 1})
        if twice:
            raise ValueError(f"test_scans and scans: the name {twice[0]!r} is given twice; choose another")
        if "centroid" in self.models:
            raise ValueError("models: the name 'centroid' is taken by a baseline; choose another")
        return self

    @model_validator(mode="after")
    def _thickness(self) -> Self:
        if self.prior.sampling == "grid" and self.prior.film_thickness_nm is not None:
            raise ValueError("prior.film_thickness_nm: the library has three parameters; use sampling: random")
        return self

    @model_validator(mode="after")
    def _slopes(self) -> Self:
        steps = self.film.peak_shape == "box" and self.forward.ring_upsampling is not None
        if steps and ("likelihood" in self.baselines.methods or self.test_scans):
            raise ValueError(
                "film.peak_shape: a box on a ring of points has no slopes, which likelihood and test_scans need; leave "
                "forward.ring_upsampling out, or both of them"
            )
        return self


class ParticlesConfig(StudyConfig):
    """Sizes, spacing and disorder of nanoparticles on or in layers, from a GISAXS image."""

    kind: Literal["particles"] = option("particles", help="technique of the study")
    instrument: InstrumentConfig = option(help="beam, detector and the view `image`")
    sample: ParticleSampleConfig = option(help="particles, layers and their prior")
    forward: ParticleForwardConfig = option(ParticleForwardConfig(), help="forward model")
    artefacts: ArtefactsConfig = option(ArtefactsConfig(), help="what a detector makes of expected counts")
    models: dict[str, DualBranchConfig] = option(min_length=1, help="models to train, by name")
    baselines: ParticleBaselinesConfig = option(ParticleBaselinesConfig(), help="methods to compare with")
    inference: ParticleInferenceConfig = option(
        ParticleInferenceConfig(), help="posterior samples, verdict, real frames"
    )
    evaluation: ParticleEvaluationConfig = option(
        ParticleEvaluationConfig(), help="simulated images on which methods are judged"
    )

    @property
    def frames(self) -> tuple[FramesConfig, ...]:
        """Sets of measured frames."""
        return self.inference.frames

    @property
    def methods(self) -> tuple[ParticleMethod, ...]:
        """Methods to compare with, less those that know nothing of particles inside a layer."""
        unknown = ("cut-fit", "peak") if self.sample.layer else ()
        return tuple(method for method in self.baselines.methods if method not in unknown)

    @model_validator(mode="after")
    def _view(self) -> Self:
        instrument = self.instrument
        lacking = [name for name in GEOMETRY if name not in instrument.model_fields_set]
        if lacking:
            raise ValueError(
                f"instrument must give {', '.join(lacking)}: the geometry of kind {self.kind} has no defaults"
            )
        if set(instrument.views) != {"image"}:
            raise ValueError(f"instrument.views must define 'image' alone for kind {self.kind}")
        view = instrument.views["image"]
        if len(view.rows) > 1 or view.sampling[1] == "gauss3":
            raise ValueError("instrument.views.image must be one range of rows, sampled by integers")
        if instrument.geometry != "bornagain":
            raise ValueError("instrument.geometry must be bornagain: real frames, which are flat, are resampled to it")
        if instrument.background:
            raise ValueError("instrument.background must be 0: artefacts.background adds it")
        error = self.artefacts.geometry.incidence_deg
        if not error < instrument.incidence_deg:
            must = f"must be below the incidence, {instrument.incidence_deg:g} deg, got {error:g}"
            raise ValueError(f"artefacts.geometry.incidence_deg {must}")
        tilted = ({"incidence_deg": instrument.incidence_deg + sign * error} for sign in (-1, 1))
        horizon = max(horizon_px(instrument.model_copy(update=each)) for each in tilted)
        if not 0 <= horizon < instrument.shape[0]:
            raise ValueError(
                f"instrument: the horizon, row {horizon:.1f}, must lie on the detector of {instrument.shape[0]} rows; "
                "check beam_z_px, incidence_deg, distance_mm and pixel_mm"
            )
        first = view.rows[0][0]
        if not horizon <= first:
            raise ValueError(
                f"instrument.views.image must lie above the horizon, row {horizon:.1f}{' at its highest' if error else ''}, "
                f"but begins at row {first}; below it nothing of the sample is seen"
            )
        return self

    @model_validator(mode="after")
    def _unmasked(self) -> Self:
        least = self.artefacts.min_valid_share
        if self.instrument.masked and (valid_share(self.instrument, "image") < least).all():
            raise ValueError(
                f"instrument.masked must leave bins of instrument.views.image with {least:.0%} valid pixels, got none; move "
                "or shrink the rectangles"
            )
        return self

    @model_validator(mode="after")
    def _model_names(self) -> Self:
        for name in self.models:
            if name in RESERVED_FOR_PARTICLES:
                raise ValueError(f"models: the name {name!r} is taken by a file of the results; choose another")
        return self


class RunConfig(Section):
    """One configuration file is one run."""

    run: str = option(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", help="name of the run; results go to results/<run>/<study>/"
    )
    seed: int = option(0, ge=0, lt=2**31, help="seed of every random number of the run")
    studies: dict[
        str, Annotated[MultilayerConfig | NanodiffractionConfig | ParticlesConfig, Field(discriminator="kind")]
    ] = option(min_length=1, help="studies by name")

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in self.studies:
            if not name.replace("-", "_").replace("_", "a").isalnum():
                raise ValueError(f"study name {name!r} must consist of letters, digits, - and _")
        return self
