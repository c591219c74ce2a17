"""Conditional variational auto-encoder of GISAXS images given their profile (arXiv 2210.01543, A.1, equation 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from scatterflow.config.model import CvaeConfig
from scatterflow.models.encoder import Encoder

_LOG_VARIANCE = (-12.0, 4.0)  # range of log variances of z: keeps the first steps of training finite


class Cvae(nn.Module):
    """q(z | image, profile) and p(image | z, profile), Normal with learnt mean and variance, and p(z) = N(0, 1).

    The encoder's blocks halve the image; the decoder mirrors them exactly, whatever the image's size (z, y).
    """

    def __init__(self, points: int, image_shape: tuple[int, int], config: CvaeConfig) -> None:
        super().__init__()
        self.config = config
        self.condition = Encoder(points, 0, config.encoder)
        shapes = [image_shape]
        for _ in config.channels:
            z, y = shapes[-1]
            shapes.append(((z + 1) // 2, (y + 1) // 2))
        widths = (2, *config.channels)  # image and mask, or mean and spread
        down = [_down(widths[i], widths[i + 1]) for i in range(len(config.channels))]
        up = [_up(widths[i + 1], widths[i], shapes[i], last=i == 0) for i in reversed(range(len(config.channels)))]
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)
        self.coarsest = (config.channels[-1], *shapes[-1])
        flat, outputs = math.prod(self.coarsest), config.encoder.outputs
        self.to_latent = nn.Linear(flat + outputs, 2 * config.latent)
        self.from_latent = nn.Linear(config.latent + outputs, flat)

    def encode(self, condition: Tensor, image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (row, latent) of q(z | image, profile); image and valid are (row, z, y)."""
        weight = valid.to(image.dtype)
        features = self.encoder(torch.stack([image * weight, weight], dim=1)).flatten(1)
        mean, log_variance = self.to_latent(torch.cat([features, condition], dim=1)).chunk(2, dim=1)
        return mean, torch.exp(0.5 * log_variance.clamp(*_LOG_VARIANCE))

    def decode(self, condition: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (row, z, y) of p(image | z, profile)."""
        coarse = self.from_latent(torch.cat([latent, condition], dim=1)).reshape(-1, *self.coarsest)
        mean, spread = self.decoder(coarse).unbind(dim=1)
        return mean, self.config.sd_floor + softplus(spread)

    def loss(self, condition: Tensor, image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Negative evidence lower bound [nat] of each row, (row,), and the sample of z it was computed with (row, latent).

        Masked bins are no part of the likelihood.
        """
        mean, sd = self.encode(condition, image, valid)
        latent = mean + sd * torch.randn_like(mean)
        rebuilt, spread = self.decode(condition, latent)
        pixel = 0.5 * ((image - rebuilt) / spread) ** 2 + spread.log() + 0.5 * math.log(2 * math.pi)
        divergence = 0.5 * (mean**2 + sd**2 - 1) - sd.log()
        return (pixel * valid).flatten(1).sum(dim=1) + self.config.kl_weight * divergence.sum(dim=1), latent


def _down(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.SiLU())


def _up(inputs: int, outputs: int, shape: tuple[int, int], last: bool) -> nn.Module:
    """Transposed block that restores `shape` (z, y): an even side lost nothing to rounding and needs one more row."""
    convolution = nn.ConvTranspose2d(
        inputs, outputs, 3, stride=2, padding=1, output_padding=(1 - shape[0] % 2, 1 - shape[1] % 2)
    )
    return convolution if last else nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())
