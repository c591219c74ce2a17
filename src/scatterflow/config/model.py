"""What is learnt: a flow, with a conditional variational auto-encoder, a summary network, or on the profile alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scatterflow.config.base import Section, option
from scatterflow.config.training import TrainingConfig

A1 = "arXiv 2210.01543, A.1"


class EncoderConfig(Section):
    """The conditional encoder: a perceptron with one hidden layer (two layers of weights) on the profile and its mask."""

    components: int | None = option(
        None,
        ge=1,
        help="principal components of the training profiles, whitened, that it sees; none: every point, standardised. "
        "With few simulations 40 generalise better",
    )
    hidden: int = option(128, ge=1, help="hidden units", source=A1)
    outputs: int = option(96, ge=1, help="numbers that describe a profile (the context)", source="the authors' code")
    dropout: float = option(0.0, ge=0, lt=1, help="share of the hidden units that is dropped while training")


class CvaeConfig(Section):
    """Conditional variational auto-encoder p(image | z, profile), q(z | image, profile), p(z) = N(0, 1)."""

    latent: int = option(4, ge=1, le=64, help="latent variables z", source="the authors' code")
    channels: tuple[int, ...] = option(
        (16, 32, 32, 64, 64, 64),
        min_length=1,
        help="output channels of the encoder's blocks (convolution of size 3 and stride 2, batch normalisation, SiLU); "
        "the decoder is their mirror image",
        source=A1 + ": six blocks",
    )
    encoder: EncoderConfig = option(EncoderConfig(), help="conditional encoder", source=A1)
    sd_floor: float = option(
        0.01, gt=0, lt=1, help="least standard deviation of a pixel of the rebuilt image (on its scale of 0 to 1)"
    )
    kl_weight: float = option(
        1.0,
        gt=0,
        help="weight of the Kullback-Leibler term of equation 3. With few simulations 20 keeps q(z) at p(z), which the "
        "profile-only mode relies on",
        source=A1,
    )  # fmt: skip


class MafConfig(Section):
    """Conditional masked autoregressive flow in the normal coordinate; it starts as the exact prior."""

    family: Literal["maf"] = option("maf", help="masked autoregressive flow of the nflows library", source=A1)
    transforms: int = option(8, ge=1, help="autoregressive transforms", source=A1)
    hidden: int = option(128, ge=1, help="hidden units of each transform", source=A1)
    layers: int = option(2, ge=1, help="residual layers of each transform", source=A1)
    dropout: float = option(0.0, ge=0, lt=1, help="share of the hidden units that is dropped while training")
    permutation: Literal["random", "reverse"] = option("random", help="order of the parameters between transforms")
    recalibrate: bool = option(
        True,
        help="replace the flow's normal base distribution by a mixture of wider and narrower ones, with the shares that "
        "are best on the validation rows; they are stored with the model, and the density stays exact",
        source="scale mixture, Andrews & Mallows 1974, doi:10.1111/j.2517-6161.1974.tb00989.x",
    )
    mix_prior: bool = option(
        True,
        help="mix the prior into the posterior, with the share that is best on the validation rows: no density is far "
        "below the prior's, however wrong the flow is (a defensive mixture)",
        source="Hesterberg 1995, doi:10.1080/00401706.1995.10484303",
    )


class FlowConfig(MafConfig):
    """The same, with the encoder of its condition."""

    encoder: EncoderConfig = option(EncoderConfig(), help="encoder of the flow's condition", source=A1)


class CvaeMafConfig(Section):
    """CVAE and flow p(parameters | profile, z): equation 1 with image and profile, or with the profile alone."""

    kind: Literal["cvae-maf"] = option("cvae-maf", help="what is trained")
    cvae: CvaeConfig = option(CvaeConfig(), help="conditional variational auto-encoder")
    flow: FlowConfig = option(FlowConfig(), help="conditional flow")
    training: TrainingConfig = option(TrainingConfig(), help="how it is trained")


class SummaryConfig(Section):
    """Summary network: a residual perceptron on principal components of profile and image, trained with the flow."""

    profile_components: int = option(
        24, ge=1, help="principal components of the training profiles, whitened, that it sees; more are counting noise"
    )
    image_components: int = option(48, ge=1, help="the same of the training images")
    hidden: int = option(256, ge=1, help="hidden units")
    blocks: int = option(2, ge=0, help="residual blocks of two layers each", source="arXiv 1603.05027")
    outputs: int = option(96, ge=1, help="numbers that describe an observation (the context)")
    dropout: float = option(0.0, ge=0, lt=1, help="share of the hidden units that is dropped while training")
    withheld: float = option(
        0.5,
        ge=0,
        lt=1,
        help="share of the training rows whose image is withheld, so that the same network answers with the profile alone",
    )


class SummaryMafConfig(Section):
    """Flow p(parameters | summary), the summary network being trained with it: image and profile, or the profile alone."""

    kind: Literal["summary-maf"] = option("summary-maf", help="what is trained")
    summary: SummaryConfig = option(SummaryConfig(), help="summary network")
    cvae: CvaeConfig | None = option(
        None, help="also train a variational auto-encoder that rebuilds images from profiles; the flow does not use it"
    )
    flow: MafConfig = option(MafConfig(), help="conditional flow")
    training: TrainingConfig = option(TrainingConfig(), help="how it is trained")


class MafProfileConfig(Section):
    """Flow p(parameters | profile) without latent variables: the control of the profile-only mode."""

    kind: Literal["maf-profile"] = option("maf-profile", help="what is trained")
    flow: FlowConfig = option(FlowConfig(), help="conditional flow")
    training: TrainingConfig = option(TrainingConfig(), help="how it is trained")


ModelConfig = Annotated[CvaeMafConfig | SummaryMafConfig | MafProfileConfig, Field(discriminator="kind")]
