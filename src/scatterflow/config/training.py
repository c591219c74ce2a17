"""How a model is trained."""

from __future__ import annotations

from typing import Literal

from scatterflow.config.base import Section, option

A2 = "arXiv 2210.01543, A.2"
# options of `training` that say where and how safely a model is trained: another value gives the same model
MACHINE = ("accelerator", "devices", "checkpoint_every", "checkpoint_minutes")


class HardwareConfig(Section):
    """The hardware that a model is trained on, and how safely."""

    accelerator: Literal["auto", "cpu", "gpu"] = option(
        "auto", help="processor that trains; auto: a GPU if there is one"
    )
    devices: int = option(1, ge=1, help="number of processors of this kind that train together")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = option(
        "32-true", help="number format, in Lightning's words"
    )
    threads: int = option(1, ge=1, help="processor threads; the same number gives the same weights bit by bit")
    checkpoint_every: int = option(1, ge=1, help="epochs between checkpoints, from which a killed training continues")
    checkpoint_minutes: float = option(
        10.0, gt=0, unit="min", help="after so long a checkpoint is written in the middle of an epoch, too"
    )


class PhaseConfig(Section):
    """One optimisation with AdamW. The weights with the best validation loss are kept."""

    epochs: int = option(100, ge=1, help="passes over the training rows at most", source=A2)
    learning_rate: float = option(1e-3, gt=0, lt=1, help="learning rate at the start", source=A2)
    decay_every: int = option(
        30, ge=1, help="epochs after which the learning rate is multiplied by `decay_factor`", source=A2
    )
    decay_factor: float = option(0.1, gt=0, le=1, help="factor of the learning rate's decay", source=A2)
    schedule: Literal["steps", "cosine"] = option(
        "steps",
        help="steps: the learning rate decays by `decay_every` and `decay_factor`; cosine: it rises over 100 steps and "
        "falls to 0 with half a cosine over all epochs, or over the time budget where that ends first",
        source=A2 + "; cosine: arXiv 1608.03983",
    )
    weight_decay: float = option(
        1e-2, ge=0, help="decoupled weight decay of AdamW, on weights but not on biases; few simulations want 1", source=A2
    )  # fmt: skip
    batch_size: int = option(32, ge=2, help="simulations per step and device", source=A2)
    patience: int = option(
        10, ge=1, help="stop after this many epochs without a better validation loss (the paper stops early, too)"
    )
    gradient_norm: float = option(5.0, gt=0, help="gradients are scaled down to this norm at most")
    budget_s: float | None = option(
        None,
        gt=0,
        unit="s",
        help="stop when this much time is spent, wherever training stands; where it is short the learning rate decays "
        "with the time spent; none: no limit",
    )


class CvaePhaseConfig(PhaseConfig):
    """The same for the variational auto-encoder, which trains for fewer epochs."""

    epochs: int = option(30, ge=1, help="passes over the training rows at most", source=A2)
    decay_every: int = option(
        10, ge=1, help="epochs after which the learning rate is multiplied by `decay_factor`", source=A2
    )


class TrainingConfig(HardwareConfig):
    """Order of the optimisations, the data that they see and the hardware that they use."""

    mode: Literal["separate", "joint"] = option(
        "separate",
        help="separate: the variational auto-encoder first (equation 3), then the flow (equation 2); joint: the sum of "
        "both losses at once (equation 4), with the settings of `flow`",
        source=A2,
    )
    cvae: CvaePhaseConfig = option(CvaePhaseConfig(), help="training of the variational auto-encoder", source=A2)
    flow: PhaseConfig = option(PhaseConfig(), help="training of the flow, and joint training", source=A2)
    data: Literal["resident", "stream", "fresh_noise", "on_the_fly"] = option(
        "resident",
        help="resident: the features of all training rows in memory; stream: read from the features' store in every "
        "epoch; fresh_noise: the stored expected counts with counting noise drawn anew in every epoch; on_the_fly: "
        "simulations drawn anew in every epoch, too, as many as there are training rows",
    )
    block: int = option(
        5000,
        ge=2,
        help="rows that are read or made at a time, unless resident; memory holds three blocks at most (the one in use, "
        "the one that is being made and the rest of the one before), and rows are shuffled within a block",
    )
    seed: int = option(
        0,
        ge=0,
        lt=2**31,
        help="trains another member of an ensemble: other starting weights and another order of the same data",
    )
