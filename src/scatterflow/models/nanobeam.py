"""NanobeamNN, the supervised predecessor of DONUT (Luo et al. 2025, Sci. Rep. 15, 21736)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scatterflow.errors import ConfigError

_LEAST = 36  # pixels each way: three pairs of convolutions without padding, each with a pooling


class NanobeamNN(nn.Module):
    """Six convolutions of size 3 without padding, pooling after every second, one linear layer: 27,771 weights.

    Trained with the mean squared error of the parameters in units of the box.
    """

    def __init__(self, shape: tuple[int, int], parameters: int) -> None:
        """For frames (z, y) of `shape`. Raises ConfigError where they are too small."""
        super().__init__()
        if min(shape) < _LEAST:
            raise ConfigError("shape of the frames", f"must be at least {_LEAST} pixels for NanobeamNN", shape)
        layers: list[nn.Module] = []
        for first, second, third in ((1, 2, 4), (4, 8, 16), (16, 32, 64)):
            layers += [nn.Conv2d(first, second, 3), nn.ReLU(), nn.Conv2d(second, third, 3), nn.ReLU(), nn.MaxPool2d(2)]
        z, y = shape
        for _ in range(3):
            z, y = (z - 4) // 2, (y - 4) // 2
        self.network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * z * y, parameters))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Values and a spread of 1 (frame, parameter) in units of the box, of counts (frame, z, y)."""
        scaled = frames / frames.mean((1, 2), keepdim=True)
        values: Tensor = self.network(scaled[:, None])
        return values, torch.ones_like(values)

    def loss(self, frames: Tensor, unit: Tensor) -> Tensor:
        """Mean squared error (frame,) of counts with known parameters `unit` (frame, parameter)."""
        errors: Tensor = (self(frames)[0] - unit).square().mean(1)
        return errors
