"""A summary network: profile and image to the numbers that condition a flow; the image may be withheld."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scatterflow.config.model import SummaryConfig
from scatterflow.data import Inputs
from scatterflow.models.encoder import principal_components


class Summary(nn.Module):
    """Residual perceptron (He et al. 2016, arXiv 1603.05027) on principal components of profile and image.

    The components are fixed by `fit_scaling` before training and travel with the weights. Masked bins of the image count
    as its mean; holes of the profile's mask start without influence. A withheld image adds nothing at all.
    """

    mean: Tensor
    projection: Tensor
    image_mean: Tensor
    image_projection: Tensor

    def __init__(self, inputs: Inputs, config: SummaryConfig) -> None:
        super().__init__()
        self.config = config
        points, pixels = inputs.points, inputs.image_shape[0] * inputs.image_shape[1]
        kept, image_kept = min(config.profile_components, points), min(config.image_components, pixels)
        self.register_buffer("mean", torch.zeros(points))
        self.register_buffer("projection", torch.eye(points, kept))
        self.register_buffer("image_mean", torch.zeros(pixels))
        self.register_buffer("image_projection", torch.eye(pixels, image_kept))
        self.profile = nn.Linear(kept, config.hidden)
        self.holes = nn.Linear(points, config.hidden, bias=False)
        nn.init.zeros_(self.holes.weight)
        self.image = nn.Linear(image_kept, config.hidden)
        self.blocks = nn.ModuleList(ResidualBlock(config.hidden, config.dropout) for _ in range(config.blocks))
        self.last = nn.Sequential(nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, config.outputs))

    def fit_scaling(self, profile: Tensor, image: Tensor) -> None:
        """Fix the components from training profiles (simulation, point) and images (simulation, z, y)."""
        for name, rows, kept in (("", profile, self.projection), ("image_", image.flatten(1), self.image_projection)):
            mean, projection = principal_components(rows, kept.shape[1])
            getattr(self, f"{name}mean").copy_(mean)
            getattr(self, f"{name}projection").copy_(projection)

    def forward(
        self,
        profile: Tensor,
        valid: Tensor,
        image: Tensor | None = None,
        valid_image: Tensor | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """(row, output) from profile (row, point) and image (row, z, y) with where they are valid.

        Without an image, or where `given` (row,) is False, the answer is that of the profile alone.
        """
        hidden = self.profile((profile - self.mean) @ self.projection) + self.holes((~valid).to(profile.dtype))
        if image is not None and valid_image is not None:
            scaled = ((image.flatten(1) - self.image_mean) * valid_image.flatten(1)) @ self.image_projection
            seen = self.image(scaled)
            hidden = hidden + (seen if given is None else seen * given[:, None])
        for block in self.blocks:
            hidden = block(hidden)
        summary: Tensor = self.last(hidden)
        return summary


class ResidualBlock(nn.Module):
    """Residual block that starts as the identity."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        last = nn.Linear(hidden, hidden)
        nn.init.zeros_(last.weight)
        self.inner = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout), last)

    def forward(self, hidden: Tensor) -> Tensor:
        """(row, hidden) to the same."""
        changed: Tensor = hidden + self.inner(hidden)
        return changed
