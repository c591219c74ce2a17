"""The networks of the multilayer study, and what each training minimises."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scatterflow.config.model import CvaeMafConfig, MafProfileConfig, ModelConfig
from scatterflow.data import Features, Inputs, Rows
from scatterflow.models.cvae import Cvae
from scatterflow.models.encoder import Encoder
from scatterflow.models.flow import ConditionalFlow

_ROWS = 1024  # rows encoded at once: bounds memory


class Networks(nn.Module):
    """Flow with the encoder of its condition; with a CVAE, the condition is (profile, z)."""

    def __init__(self, config: ModelConfig, inputs: Inputs, parameters: int) -> None:
        super().__init__()
        self.cvae = Cvae(inputs.points, inputs.image_shape, config.cvae) if isinstance(config, CvaeMafConfig) else None
        self.latent = self.cvae.config.latent if self.cvae is not None else 0
        self.encoder = Encoder(inputs.points, self.latent, config.flow.encoder)
        self.flow = ConditionalFlow(parameters, config.flow.encoder.outputs, config.flow)

    def fit_scaling(self, profile: Tensor) -> None:
        """Fix the scaling of all encoders from training profiles (simulation, point)."""
        self.encoder.fit_scaling(profile)
        if self.cvae is not None:
            self.cvae.condition.fit_scaling(profile)

    @torch.no_grad()
    def encode(self, features: Features) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | image, profile), (row, latent) each."""
        assert self.cvae is not None
        self.eval()
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
    if isinstance(task, JointTask):
        return Rows((normal, *profile, *image))
    return Rows((normal, *profile, *(networks.encode(features) if networks.cvae is not None else ())))


def tasks(config: ModelConfig) -> tuple[str, ...]:
    """Phases of a training, in order."""
    if isinstance(config, MafProfileConfig):
        return ("flow",)
    return ("joint",) if config.training.mode == "joint" else ("cvae", "flow")


def make_task(name: str, networks: Networks) -> nn.Module:
    """The task of a phase."""
    kinds: dict[str, type[CvaeTask | FlowTask | JointTask]] = {"cvae": CvaeTask, "flow": FlowTask, "joint": JointTask}
    return kinds[name](networks)
