"""The networks of the multilayer study, and what each training minimises."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scatterflow.config.model import CvaeMafConfig, MafProfileConfig, ModelConfig, SummaryMafConfig
from scatterflow.data import Features, Inputs, Rows
from scatterflow.models.cvae import Cvae
from scatterflow.models.encoder import Encoder
from scatterflow.models.flow import ConditionalFlow
from scatterflow.models.summary import Summary

_ROWS = 1024  # rows encoded at once: bounds memory


class Networks(nn.Module):
    """Flow with the network of its condition: an encoder of the profile (and of z of a CVAE), or a summary network."""

    encoder: Encoder | Summary

    def __init__(self, config: ModelConfig, inputs: Inputs, parameters: int) -> None:
        super().__init__()
        cvae = None if isinstance(config, MafProfileConfig) else config.cvae
        self.cvae = Cvae(inputs.points, inputs.image_shape, cvae) if cvae is not None else None
        self.latent = config.cvae.latent if isinstance(config, CvaeMafConfig) else 0  # numbers that the flow sees
        if isinstance(config, SummaryMafConfig):
            self.encoder, outputs = Summary(inputs, config.summary), config.summary.outputs
        else:
            outputs = config.flow.encoder.outputs
            self.encoder = Encoder(inputs.points, self.latent, config.flow.encoder)
        self.flow = ConditionalFlow(parameters, outputs, config.flow)

    def fit_scaling(self, features: Features) -> None:
        """Fix the scaling of all encoders from training rows."""
        if isinstance(self.encoder, Summary):
            self.encoder.fit_scaling(features.profile, features.image)
        else:
            self.encoder.fit_scaling(features.profile)
        if self.cvae is not None:
            self.cvae.condition.fit_scaling(features.profile)

    @torch.no_grad()
    def describe(self, features: Features, image: bool) -> Tensor:
        """What the profile, and with `image` the image, says: the flow's condition, or with a CVAE all of it but z."""
        self.eval()
        parts = []
        for start in range(0, len(features), _ROWS):
            rows = slice(start, start + _ROWS)
            profile = (features.profile[rows], features.valid_profile[rows])
            if isinstance(self.encoder, Summary):
                seen = (features.image[rows], features.valid_image[rows]) if image else ()
                parts.append(self.encoder(*profile, *seen))
            else:
                parts.append(self.encoder.describe(*profile) if self.latent else self.encoder(*profile))
        return torch.cat(parts)

    @torch.no_grad()
    def encode(self, features: Features) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | image, profile), (row, latent) each."""
        assert self.cvae is not None
        self.cvae.eval()  # not the flow, which may be training
        parts = []
        for start in range(0, len(features), _ROWS):
            rows = slice(start, start + _ROWS)
            condition = self.cvae.condition(features.profile[rows], features.valid_profile[rows])
            parts.append(self.cvae.encode(condition, features.image[rows], features.valid_image[rows]))
        means, sds = zip(*parts, strict=True)
        return torch.cat(means), torch.cat(sds)


class CvaeTask(nn.Module):
    """Train the CVAE alone; rows are (profile, valid, image, valid)."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        assert networks.cvae is not None
        self.cvae = networks.cvae

    def loss(self, profile: Tensor, valid: Tensor, image: Tensor, valid_image: Tensor) -> Tensor:
        """Negative evidence lower bound (equation 3), (row,)."""
        return self.cvae.loss(self.cvae.condition(profile, valid), image, valid_image)[0]


class FlowTask(nn.Module):
    """Train the flow and the encoder of its condition; rows are (normal, profile, valid[, mean and sd of z])."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.encoder, self.flow = networks.encoder, networks.flow

    def loss(self, normal: Tensor, profile: Tensor, valid: Tensor, *latent: Tensor) -> Tensor:
        """Negative log density with a fresh z ~ q(z | image, profile) (equation 2), (row,)."""
        z = latent[0] + latent[1] * torch.randn_like(latent[0]) if latent else None
        return -self.flow.log_prob(normal, self.encoder(profile, valid, z))


class SummaryTask(nn.Module):
    """Train the summary network with the flow; rows are (normal, profile, valid, image, valid)."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        assert isinstance(networks.encoder, Summary)
        self.encoder, self.flow = networks.encoder, networks.flow

    def loss(self, normal: Tensor, profile: Tensor, valid: Tensor, image: Tensor, valid_image: Tensor) -> Tensor:
        """Negative log density, (row,): with the image or without it at random, while validating the mean over both."""
        withheld = self.encoder.config.withheld
        if self.training:
            given = torch.rand(len(normal), device=normal.device) >= withheld
            return -self.flow.log_prob(normal, self.encoder(profile, valid, image, valid_image, given))
        loss = -self.flow.log_prob(normal, self.encoder(profile, valid, image, valid_image))
        if withheld:
            alone = -self.flow.log_prob(normal, self.encoder(profile, valid))
            loss = (1 - withheld) * loss + withheld * alone
        return loss


class JointTask(nn.Module):
    """Train everything at once; rows are (normal, profile, valid, image, valid)."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        assert networks.cvae is not None
        self.cvae, self.encoder, self.flow = networks.cvae, networks.encoder, networks.flow

    def loss(self, normal: Tensor, profile: Tensor, valid: Tensor, image: Tensor, valid_image: Tensor) -> Tensor:
        """Sum of both losses (equation 4), (row,)."""
        bound, latent = self.cvae.loss(self.cvae.condition(profile, valid), image, valid_image)
        return bound - self.flow.log_prob(normal, self.encoder(profile, valid, latent))


def rows_of(task: nn.Module, networks: Networks, normal: Tensor, features: Features) -> Rows:
    """The rows that `task` is trained on; `normal` (row, parameter) are the parameters in the normal coordinate."""
    profile = (features.profile, features.valid_profile)
    image = (features.image, features.valid_image)
    if isinstance(task, CvaeTask):
        return Rows((*profile, *image))
    if isinstance(task, JointTask | SummaryTask):
        return Rows((normal, *profile, *image))
    return Rows((normal, *profile, *(networks.encode(features) if networks.latent else ())))


def tasks(config: ModelConfig) -> tuple[str, ...]:
    """Phases of a training, in order."""
    if isinstance(config, SummaryMafConfig):
        return ("summary",) if config.cvae is None else ("cvae", "summary")
    if isinstance(config, MafProfileConfig):
        return ("flow",)
    return ("joint",) if config.training.mode == "joint" else ("cvae", "flow")


def make_task(name: str, networks: Networks) -> nn.Module:
    """The task of a phase."""
    kinds: dict[str, type[CvaeTask | FlowTask | JointTask | SummaryTask]] = {
        "cvae": CvaeTask, "flow": FlowTask, "joint": JointTask, "summary": SummaryTask,
    }  # fmt: skip
    return kinds[name](networks)
