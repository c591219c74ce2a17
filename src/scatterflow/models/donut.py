"""DONUT: an auto-encoder whose three or four latent variables also feed the forward model of the experiment.

Trained without labels: the decoder's frame and the forward model's must both equal the frame that came in (DONUT,
Methods). Two recipes are known, the paper's and the one in its authors' program; both are here under their names.

Why it is fragile: its bounded output reaches 3.4 times as far as the frames of its training set do (1.7159 on a scale on
which they fill +-0.5). Out there the modelled ring hardly overlaps with the measured one: the slope of the physics term is
a tenth of what it is within the box, and as often points the wrong way, while a dark frame would cost less than any such
ring. `lean` starts from labels instead.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss, smooth_l1_loss
from torch.nn.utils.parametrize import register_parametrization

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.config.regressor import DonutConfig
from scatterflow.errors import ConfigError
from scatterflow.models.nanophysics import Box, Physics

# latent variables times this are parameters in units of the box: the paper's strain/100, omega/10, chi/5 on its ranges
SCALE = 2.0
DECODER_RATE = {"paper": 0.1, "code": 0.3}  # learning rate of the decoder over the encoder's


class Donut(nn.Module):
    """Encoder (per block two convolutions of size 3 and pooling), linear layer, and the mirrored decoder.

    Frames come in with equal sums, chosen so that a frame in the middle of the box has a maximum of 1: so simulated and
    measured ones have the same intensity.
    """

    def __init__(self, config: DonutConfig, beam: NanobeamConfig, film: FilmConfig, box: Box) -> None:
        """Raises ConfigError where the frames are too small for the blocks."""
        super().__init__()
        self.config, self.physics = config, Physics(beam, film, box)
        channels, sizes = config.channels, [beam.shape]
        for _ in channels:
            sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
        if min(sizes[-1]) < 1:
            need = 2 ** len(channels)
            raise ConfigError("shape of the frames", f"must be at least {need} pixels for DONUT", beam.shape)
        blocks: list[nn.Module] = []
        for before, after in pairwise((1, *channels)):
            blocks += [*_convolution(before, after), *_convolution(after, after)]
            blocks += [nn.Dropout(config.dropout), nn.MaxPool2d(2)]
        latent, flat = len(box.names), channels[-1] * math.prod(sizes[-1])
        self.encoder = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(flat, latent))
        up: list[nn.Module] = [nn.Linear(latent, flat), nn.Unflatten(1, (channels[-1], *sizes[-1]))]
        for before, after, size in zip(channels[::-1], (*channels[-2::-1], 0), sizes[-2::-1], strict=True):
            up += [_Upsample(size), nn.Dropout(config.dropout), *_convolution(before, after or before)]
            up += _convolution(after, after) if after else [nn.Conv2d(before, 1, 3, padding=1)]
        self.decoder = nn.Sequential(*up)
        for layer in self.decoder:
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                for name in ("weight", "bias"):
                    register_parametrization(layer, name, _Slower(DECODER_RATE[config.recipe]))
        self._sum: float | None = None

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Values and their spread (frame, parameter) in units of the box, of counts (frame, z, y).

        The spread is that of passes with dropout, or 1.
        """
        scaled = self._scaled(frames)
        if not self.config.passes:
            values = self._encode(scaled)
            return values, torch.ones_like(values)
        dropouts = [layer for layer in self.encoder if isinstance(layer, nn.Dropout)]
        for layer in dropouts:
            layer.train()
        passes = torch.stack([self._encode(scaled) for _ in range(self.config.passes)])
        for layer in dropouts:
            layer.train(self.training)
        return passes.mean(0), passes.std(0)

    def loss(self, frames: Tensor, _unit: Tensor | None = None) -> Tensor:
        """Weighted errors (frame,) of decoder and forward model; labels are not looked at."""
        scaled = self._scaled(frames)
        unit = self._encode(scaled)
        decoded = self.decoder(unit / SCALE)[:, 0]
        modelled = self.physics(unit) * self._sum_of_frame()
        error = l1_loss if self.config.recipe == "paper" else smooth_l1_loss
        errors = [error(each, scaled, reduction="none").mean((1, 2)) for each in (decoded, modelled)]
        return self.config.decoder_weight * errors[0] + self.config.physics_weight * errors[1]

    def _scaled(self, frames: Tensor) -> Tensor:
        return frames * (self._sum_of_frame() / frames.sum((1, 2), keepdim=True))

    def _encode(self, scaled: Tensor) -> Tensor:
        # channels last are faster on a CPU
        outputs = self.encoder(scaled[:, None].to(memory_format=torch.channels_last))
        unit: Tensor = SCALE * 1.7159 * torch.tanh(outputs * 2 / 3)
        return unit

    def _sum_of_frame(self) -> float:
        """Sum of a frame in the middle of the box whose maximum is 1."""
        if self._sum is None:
            with torch.no_grad():
                self._sum = 1 / float(self.physics(torch.zeros(1, len(self.physics.box.names))).max())
        return self._sum


def _convolution(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]


class _Upsample(nn.Module):
    """Nearest neighbours, to the size that the encoder's pooling began with."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return interpolate(images, self.size)


class _Slower(nn.Module):
    """A weight that learns at `rate` times the optimizer's learning rate.

    Adam's steps do not depend on the scale of the gradient: a weight that is `rate` times what is optimised moves `rate`
    times as far.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, optimised: Tensor) -> Tensor:
        return optimised * self.rate

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is optimised, for a given weight."""
        return weight / self.rate
