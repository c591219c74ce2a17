"""The conditional encoder: a profile and its mask to the numbers that condition a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scatterflow.config.model import EncoderConfig

ROWS = 20_000  # rows that fix the scaling: more change nothing
_SMALLEST_SD = 1e-4  # a point that varies less (profiles lie in [0, 1]) is not blown up


class Encoder(nn.Module):
    """Two-layer perceptron on the scaled profile, the mask's holes and `extra` numbers (latent variables).

    The scaling (standardised points, or whitened principal components) is fixed by `fit_scaling` before training and
    travels with the weights. Holes of the mask start without influence: a mask that training never saw changes nothing.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, points: int, extra: int, config: EncoderConfig) -> None:
        super().__init__()
        kept = min(config.components or points, points)
        self.register_buffer("mean", torch.zeros(points))
        self.register_buffer("projection", torch.eye(points, kept))
        self.profile = nn.Linear(kept, config.hidden)
        self.holes = nn.Linear(points, config.hidden, bias=False)
        nn.init.zeros_(self.holes.weight)
        self.extra = nn.Linear(extra, config.hidden, bias=False) if extra else None
        self.last = nn.Sequential(nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, config.outputs))
        self.components = config.components

    def fit_scaling(self, profile: Tensor) -> None:
        """Fix the scaling from training profiles (simulation, point)."""
        if self.components is None:
            rows = profile[:ROWS].double()
            mean, projection = rows.mean(dim=0), torch.diag(1 / rows.std(dim=0).clamp(min=_SMALLEST_SD))
        else:
            mean, projection = principal_components(profile, self.projection.shape[1])
        self.mean.copy_(mean)
        self.projection.copy_(projection)

    def forward(self, profile: Tensor, valid: Tensor, extra: Tensor | None = None) -> Tensor:
        """(row, output) from profile (row, point), valid (row, point) and extra (row, number)."""
        return self.combine(self.describe(profile, valid), extra)

    def describe(self, profile: Tensor, valid: Tensor) -> Tensor:
        """The hidden layer's share of the profile (row, hidden): computed once for any number of `extra`."""
        scaled = (profile - self.mean) @ self.projection
        described: Tensor = self.profile(scaled) + self.holes((~valid).to(profile.dtype))
        return described

    def combine(self, described: Tensor, extra: Tensor | None = None) -> Tensor:
        """(..., output) from a described profile (..., hidden) and extra (..., number), broadcast."""
        hidden = described if self.extra is None else described + self.extra(extra)
        outputs: Tensor = self.last(hidden)
        return outputs


def principal_components(values: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Mean (number,) of `values` (row, number) and projection (number, kept) on whitened components of the rest."""
    rows = values[:ROWS]
    mean, sd = rows.double().mean(dim=0), rows.double().std(dim=0).clamp(min=_SMALLEST_SD)
    variance, axes = torch.linalg.eigh(torch.cov(((rows - mean) / sd).T))
    scale = variance.flip(0)[:kept].clamp(min=1e-6 * float(variance[-1])).sqrt()
    return mean, axes.flip(1)[:, :kept] / sd[:, None] / scale
