"""Neural estimators of strain and tilt from single frames: what is trained, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from scatterflow.config.base import Section, option
from scatterflow.config.nanodiffraction import DONUT, LUO
from scatterflow.config.training import HardwareConfig, PhaseConfig


class RegressorPhaseConfig(PhaseConfig, HardwareConfig):
    """One optimisation of an estimator, and the hardware that it uses."""

    epochs: int = option(60, ge=1, help="passes over the training frames at most")
    schedule: Literal["steps", "cosine"] = option(
        "cosine",
        help="steps: the learning rate decays by `decay_every` and `decay_factor`; cosine: it rises over 100 steps and "
        "falls to 0 with half a cosine over all epochs, or over the time budget where that ends first",
        source="arXiv 1608.03983",
    )
    weight_decay: float = option(1e-3, ge=0, help="decoupled weight decay of AdamW, on weights but not on biases")
    batch_size: int = option(256, ge=2, help="frames per step and device")
    patience: int = option(1000, ge=1, help="stop after this many epochs without a better validation loss")
    block: int = option(4096, ge=2, help="frames whose counting noise is drawn at a time; memory holds three blocks")


class RegressorTrainingConfig(RegressorPhaseConfig):
    """The optimisation that an estimator begins with."""

    seed: int = option(
        0,
        ge=0,
        lt=2**31,
        help="trains another member of an ensemble: other starting weights, noise and order of the same simulations",
    )


class LeanTrainingConfig(RegressorTrainingConfig):
    """The same for the lean encoder, whose steps cost less than the noise of their frames."""

    epochs: int = option(15, ge=1, help="passes over the training frames at most, each with `looks` at every frame")
    looks: int = option(
        4,
        ge=1,
        le=100,
        help="steps that see a frame, and its mirror image in turns where chi is as likely as -chi, before its counting "
        "noise is drawn anew",
    )
    learning_rate: float = option(2e-3, gt=0, lt=1, help="learning rate at the start")
    batch_size: int = option(128, ge=2, help="frames per step and device")


class LeanFramesConfig(RegressorPhaseConfig):
    """The training that goes on with frames without labels: their likelihood under the forward model."""

    epochs: int = option(20, ge=1, help="passes over the frames at most")
    learning_rate: float = option(1e-4, gt=0, lt=1, help="learning rate at the start")
    batch_size: int = option(64, ge=2, help="frames per step and device")
    patience: int = option(5, ge=1, help="stop after this many epochs without a better validation loss")
    background: float = option(
        0.01,
        gt=0,
        lt=1,
        help="share of a frame's counts that the model spreads evenly: what a stray count costs is finite",
    )


class LeanConfig(Section):
    """A small encoder with an error estimate, trained on labelled simulations and then, if wished, on a scan."""

    network: Literal["lean"] = option("lean", help="which network is trained")
    components: int = option(
        96,
        ge=1,
        help="principal components of centred frames that it sees; 64 of them hold 99 % of the Fisher information",
    )
    hidden: int = option(256, ge=1, help="hidden units of each layer")
    layers: int = option(2, ge=1, help="hidden layers")
    exposure: tuple[float, float] = option(
        (0.7, 1.4),
        help="least and greatest factor on the expected counts of a training frame: how much scans may differ in intensity",
    )
    scoring_steps: Literal[0, 1] = option(
        0, help="steps of Fisher scoring on the frame's likelihood after the network: more precise, and slower"
    )
    training: LeanTrainingConfig = option(LeanTrainingConfig(), help="training on labelled simulations")
    frames: LeanFramesConfig = option(
        LeanFramesConfig(), help="training that goes on with frames without labels, where there are any"
    )

    @model_validator(mode="after")
    def _range(self) -> Self:
        if not 0 < self.exposure[0] <= self.exposure[1]:
            raise ValueError(f"exposure={list(self.exposure)} must be two positive factors, the lesser first")
        return self


class DonutTrainingConfig(RegressorTrainingConfig):
    """The same, as published."""

    epochs: int = option(30, ge=1, help="passes over the training frames at most", source=DONUT)
    learning_rate: float = option(1e-4, gt=0, lt=1, help="learning rate of the encoder", source=DONUT)
    schedule: Literal["steps", "cosine"] = option("steps", help="steps: as published, constant unless `decay_every`")
    weight_decay: float = option(1e-2, ge=0, help="decoupled weight decay of AdamW, its default in PyTorch")
    batch_size: int = option(16, ge=2, help="frames per step and device; the recipe `code` has 256", source=DONUT)


class DonutConfig(Section):
    """DONUT: an auto-encoder whose latent variables also feed the forward model; it needs no labels."""

    network: Literal["donut"] = option("donut", help="which network is trained")
    recipe: Literal["paper", "code"] = option(
        "paper",
        help="paper: mean absolute error, batches of 16, the decoder learns at a tenth of the encoder's rate; code: smooth "
        "absolute error, batches of 256, three tenths, as the authors' program has them",
        source=DONUT,
    )
    channels: tuple[int, ...] = option(
        (16, 32, 64, 128, 256, 256), min_length=1, help="channels of the encoder's blocks", source=DONUT
    )
    dropout: float = option(0.0, ge=0, lt=1, help="share of channels dropped; 0.1 as published for error estimates")
    passes: int = option(
        0, ge=0, help="passes with dropout whose spread is the error estimate (Monte-Carlo dropout); 0: one without"
    )
    decoder_weight: float = option(1.0, ge=0, help="weight of the decoder's error in the loss", source=DONUT)
    physics_weight: float = option(5.0, gt=0, help="weight of the forward model's error in the loss", source=DONUT)
    train_on: Literal["simulated", "frames", "both"] = option(
        "simulated", help="what it sees: simulated frames, frames of a scan without labels, or both", source=DONUT
    )
    training: DonutTrainingConfig = option(DonutTrainingConfig(), help="how it is trained")

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, given: Any) -> Any:
        """The recipe `code` has another size of batches, unless one is given."""
        if not isinstance(given, dict):
            return given
        # what passed through here is no JSON any more, and strict validation wants tuples of Python
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        if given.get("recipe") != "code":
            return given
        training = given.get("training", {})
        if isinstance(training, dict):
            given = {**given, "training": {"batch_size": 256, **training}}
        return given

    @model_validator(mode="after")
    def _spread(self) -> Self:
        if self.passes == 1 or (self.passes and not self.dropout):
            raise ValueError(f"passes={self.passes} must be 0, or at least 2 with dropout above 0")
        return self


class NanobeamNNConfig(Section):
    """NanobeamNN: the supervised predecessor of DONUT."""

    network: Literal["nanobeam"] = option("nanobeam", help="which network is trained", source=LUO)
    training: RegressorTrainingConfig = option(RegressorTrainingConfig(), help="how it is trained")


RegressorConfig = Annotated[LeanConfig | DonutConfig | NanobeamNNConfig, Field(discriminator="network")]
