"""Conditional masked autoregressive flow (nflows) in the normal coordinate; untrained, it is the exact prior.

Papamakarios et al. 2017, arXiv 1705.07057; architecture of arXiv 2210.01543, A.1.
"""

from __future__ import annotations

import math

import torch
from nflows.distributions.normal import ConditionalDiagonalNormal
from nflows.transforms import (
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    RandomPermutation,
    ReversePermutation,
)
from torch import Tensor, nn

from scatterflow.config.model import MafConfig

SCALE_FLOOR = 1e-3  # nflows' MaskedAffineAutoregressiveTransform: scale = softplus(raw) + 1e-3


class ConditionalFlow(nn.Module):
    """Density over u (row, parameter) given a condition (row, number).

    Its last layers start at zero, so that q(u | condition) = N(0, 1) in every direction: the prior, whatever the
    condition. Training can only add information to it.
    """

    def __init__(self, parameters: int, condition: int, config: MafConfig) -> None:
        super().__init__()
        transforms: list[nn.Module] = []
        for index in range(config.transforms):
            if index:
                order = RandomPermutation if config.permutation == "random" else ReversePermutation
                transforms.append(order(parameters))
            transforms.append(_autoregressive(parameters, condition, config))
        self.transform = CompositeTransform(transforms)
        to_base = nn.Linear(condition, 2 * parameters)
        nn.init.zeros_(to_base.weight)
        nn.init.zeros_(to_base.bias)
        self.base = ConditionalDiagonalNormal([parameters], to_base)

    def log_prob(self, normal: Tensor, condition: Tensor) -> Tensor:
        """Natural log density of `normal` (row, parameter), (row,)."""
        noise, log_determinant = self.transform(normal, condition)
        density: Tensor = self.base.log_prob(noise, condition) + log_determinant
        return density

    def forward(self, normal: Tensor, condition: Tensor) -> Tensor:
        """The same as `log_prob`."""
        return self.log_prob(normal, condition)


def log_prior(normal: Tensor) -> Tensor:
    """Natural log density of the prior in the normal coordinate, (row,)."""
    return -0.5 * (normal**2).sum(dim=-1) - 0.5 * normal.shape[-1] * math.log(2 * math.pi)


def _autoregressive(parameters: int, condition: int, config: MafConfig) -> nn.Module:
    layer = MaskedAffineAutoregressiveTransform(
        parameters,
        config.hidden,
        condition,
        num_blocks=config.layers,
        dropout_probability=config.dropout,
    )
    final = layer.autoregressive_net.final_layer
    with torch.no_grad():
        final.weight.zero_()
        final.bias.zero_()
        final.bias[0::2] = math.log(math.expm1(1 - SCALE_FLOOR))  # raw scale of 1; shifts are the odd rows
    found: nn.Module = layer
    return found
