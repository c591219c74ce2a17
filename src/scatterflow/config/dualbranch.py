"""The dual-branch network: from a GISAXS image to p(R), spacing and disorder, with a posterior."""

from __future__ import annotations

from typing import Literal

from scatterflow.config.base import Section, option
from scatterflow.config.model import MafConfig
from scatterflow.config.training import HardwareConfig, PhaseConfig

ZHAI = "Zhai et al. 2025: one trunk, one branch for the sizes, one for spacing and disorder"


class DualBranchTrainingConfig(PhaseConfig, HardwareConfig):
    """How the network is trained: all its parts and all members together."""

    epochs: int = option(60, ge=1, help="passes over the training simulations at most")
    learning_rate: float = option(3e-3, gt=0, lt=1, help="learning rate at the start")
    schedule: Literal["steps", "cosine"] = option(
        "cosine",
        help="steps: the learning rate decays by `decay_every` and `decay_factor`; cosine: it rises over 100 steps and "
        "falls to 0 with half a cosine over all epochs, or over the time budget where that ends first",
        source="arXiv 1608.03983",
    )
    weight_decay: float = option(1e-2, ge=0, help="decoupled weight decay of AdamW, on weights but not on biases")
    batch_size: int = option(64, ge=2, help="images per step and device")
    patience: int = option(1000, ge=1, help="stop after this many epochs without a better validation loss")
    fresh_every: int = option(
        4,
        ge=1,
        help="epochs after which every simulation is recorded anew, with other artefacts and noise. From 2 on, what the "
        "network sees of all of them is kept in memory, twice, since a thread records the next ones meanwhile",
    )
    block: int = option(1000, ge=2, help="simulations that are recorded at a time, and shuffled together")
    seed: int = option(
        0,
        ge=0,
        lt=2**31,
        help="trains another one: other starting weights, artefacts and order of the same simulations",
    )


class TrunkConfig(Section):
    """What both branches share: image and mask to a vector."""

    kind: Literal["columns", "convolution", "perceptron"] = option(
        "columns",
        help="columns: the same layer for every column of the image, then convolutions of stride 2 along y; convolution: "
        "convolutions of size 3 and stride 2 in both directions; perceptron: one layer on all bins",
    )
    fold: bool = option(
        True,
        help="both sides of the beam are added up where they are valid before the first layer: the sample has no side. "
        "Not where the view is not symmetric about the beam; then images are mirrored at random while training",
    )
    pixels: tuple[int, int] = option(
        (64, 80),
        help="bins (z, y) that the network sees at most, after folding: finer images are binned, mask included",
    )
    channels: tuple[int, ...] = option(
        (48, 64, 64, 64),
        min_length=1,
        max_length=8,
        help="channels of the layers: the first is that of a column, for `columns`; unused by the perceptron",
    )
    hidden: int = option(256, ge=1, help="units of the residual layers, and length of the vector")
    blocks: int = option(2, ge=0, help="residual layers at the end")
    dropout: float = option(0.0, ge=0, lt=1, help="share of the hidden units that is dropped while training")


class ImageFlowConfig(MafConfig):
    """Conditional masked autoregressive flow in the normal coordinate, smaller than that of profiles."""

    transforms: int = option(4, ge=1, help="autoregressive transforms")
    hidden: int = option(64, ge=1, help="hidden units of each transform")


class DualBranchConfig(Section):
    """Trunk, branch of the sizes, branch of spacing and disorder, and a flow on the trunk's vector: the posterior."""

    kind: Literal["dual-branch"] = option("dual-branch", help="what is trained", source=ZHAI)
    trunk: TrunkConfig = option(TrunkConfig(), help="the shared part")
    flow: ImageFlowConfig = option(ImageFlowConfig(), help="posterior of all parameters given the trunk's vector")
    members: int = option(1, ge=1, le=20, help="networks of the ensemble; their answers are mixed with equal weights")
    refine_steps: int = option(
        0,
        ge=0,
        le=50,
        help="Gauss-Newton steps on the image itself, with the exact forward model, after the networks: several times as "
        "precise, and tens of ms slower per image",
    )
    cross_entropy_weight: float = option(1.0, ge=0, help="weight of p(R)'s cross-entropy in the loss")
    wasserstein_weight: float = option(
        1.0, ge=0, help="weight of p(R)'s Wasserstein distance, in bins of the grid, in the loss"
    )
    second_branch_weight: float = option(
        1.0,
        ge=0,
        help="weight of the squared errors of spacing and disorder, each over its prior's deviation, in the loss",
    )
    artefacts: bool = option(
        True, help="train on images with artefacts; false: with counting noise alone, to see what that costs (ablation)"
    )
    training: DualBranchTrainingConfig = option(DualBranchTrainingConfig(), help="how it is trained")
