"""The dual-branch network: counts and mask of an image to p(R), to spacing and disorder, and to a posterior of everything.

One trunk turns the image into a vector. The first branch gives the size distribution, the second spacing and disorder
(Zhai et al. 2025), and a conditional flow the posterior of all parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from scatterflow.artefacts import Frame
from scatterflow.config.dualbranch import DualBranchConfig, TrunkConfig
from scatterflow.models.flow import ConditionalFlow
from scatterflow.models.summary import ResidualBlock

SECOND = ("distance_nm", "disorder")  # what the second branch gives, where the prior has it
_KERNEL = 5  # columns that a layer of the trunk `columns` sees
_SMALLEST_SD = 1e-6


class Seen(NamedTuple):
    """What the network sees: log(1 + counts of a full bin), 0 where nothing is valid, and valid shares, (row, z, y) each."""

    log_counts: Tensor
    share: Tensor


@dataclass(frozen=True)
class Reduction:
    """How images of `shape` (z, y) are made small before the network: `folded` about the middle column, then binned.

    `factors` (z, y) bins become one.
    """

    shape: tuple[int, int]
    folded: bool
    factors: tuple[int, int]

    @property
    def result(self) -> tuple[int, int]:
        """Shape (z, y) of what the network sees."""
        rows, columns = self.shape
        if self.folded:
            columns = -(-columns // 2)
        return -(-rows // self.factors[0]), -(-columns // self.factors[1])

    def __call__(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> Seen:
        """What the network sees of counts `image` and where they are `valid`, (row, z, y) each.

        Counts of what is valid in a new bin are scaled up to the whole of it. Takes four times the memory of `image`.
        """
        counts, share = image * valid, valid.astype(np.float32)
        if self.folded:
            counts, share = _folded(counts), _folded(share)
        counts, share = _binned(counts, self.factors), _binned(share, self.factors)
        share /= _binned(np.ones((1, *self._unbinned), np.float32), self.factors) * (2 if self.folded else 1)
        np.divide(counts, share, out=counts, where=share > 0)
        return Seen(torch.from_numpy(np.log1p(counts)), torch.from_numpy(share))

    @property
    def _unbinned(self) -> tuple[int, int]:
        return self.shape[0], -(-self.shape[1] // 2) if self.folded else self.shape[1]


def reduction(of: Frame, config: TrunkConfig) -> Reduction:
    """How images of the view `of` are made small: they are folded only where the view is symmetric about the beam."""
    edges = of.y_edges - of.direct[1]
    folded = config.fold and bool(np.allclose(edges, -edges[::-1], rtol=0, atol=1e-6 * (edges[-1] - edges[0])))
    rows, columns = of.shape
    if folded:
        columns = -(-columns // 2)
    return Reduction(of.shape, folded, (-(-rows // config.pixels[0]), -(-columns // config.pixels[1])))


def _folded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum of both sides, from the middle outwards; a middle column counts twice, so that all are sums of two."""
    columns = values.shape[2]
    return values[:, :, columns // 2 :] + values[:, :, (columns - 1) // 2 :: -1]


def _binned(values: NDArray[np.float32], factors: tuple[int, int]) -> NDArray[np.float32]:
    """Sums of `factors` (z, y) bins; the last ones may have fewer."""
    for axis, factor in zip((1, 2), factors, strict=True):
        if factor > 1:
            values = np.add.reduceat(values, np.arange(0, values.shape[axis], factor), axis=axis, dtype=np.float32)
    return values


class DualBranch(nn.Module):
    """One network: `h` of an image, and what both branches and the flow make of it."""

    mean: Tensor
    scale: Tensor
    second_mean: Tensor
    second_sd: Tensor

    def __init__(
        self, config: DualBranchConfig, shape: tuple[int, int], folded: bool, sizes: int, second: int, parameters: int
    ) -> None:
        super().__init__()
        self.config, self.folded = config, folded
        hidden = config.trunk.hidden
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("second_mean", torch.zeros(second))
        self.register_buffer("second_sd", torch.ones(second))
        self.trunk = _trunk(config.trunk, shape)
        self.level = nn.Linear(1, hidden)
        self.blocks = nn.Sequential(
            *(ResidualBlock(hidden, config.trunk.dropout) for _ in range(config.trunk.blocks)), nn.SiLU()
        )
        self.size_branch = nn.Linear(hidden, sizes)
        self.second_branch = nn.Linear(hidden, second)
        self.flow = ConditionalFlow(parameters, hidden, config.flow)

    def fit_scaling(self, seen: Seen, second: Tensor) -> None:
        """Fix the scaling from training rows; it travels with the weights. `second` (row, quantity) as in `SECOND`."""
        given = seen.share > 0
        mean = (seen.log_counts * given).sum(0) / given.sum(0).clamp(min=1)
        scaled = (seen.log_counts - mean) * given
        level = scaled.sum((1, 2)) / given.sum((1, 2)).clamp(min=1)
        variance = ((scaled - level[:, None, None]) ** 2 * given).sum() / given.sum().clamp(min=1)
        self.mean.copy_(mean)
        self.scale.copy_(1 / variance.sqrt().clamp(min=_SMALLEST_SD))
        self.second_mean.copy_(second.mean(0))
        self.second_sd.copy_(second.std(0).clamp(min=_SMALLEST_SD))

    def describe(self, log_counts: Tensor, share: Tensor) -> Tensor:
        """The vector (row, hidden) of what is seen."""
        share = share.to(log_counts.dtype)
        given = share > 0
        scaled = (log_counts - self.mean) * given
        # what an image has more of everywhere, mostly exposure, is told apart from its shape
        level = scaled.sum((1, 2)) / given.sum((1, 2)).clamp(min=1)
        shape = (scaled - level[:, None, None]) * given * self.scale
        vector: Tensor = self.blocks(self.trunk(shape, share) + self.level(level[:, None]))
        return vector

    def sizes(self, vector: Tensor) -> Tensor:
        """log p(R) (row, radius) of the first branch."""
        return functional.log_softmax(self.size_branch(vector), dim=1)

    def second(self, vector: Tensor) -> Tensor:
        """Spacing [nm] and, where the prior has it, disorder (row, quantity) of the second branch."""
        scaled: Tensor = self.second_branch(vector)
        return self.second_mean + self.second_sd * scaled

    def loss(self, log_counts: Tensor, share: Tensor, normal: Tensor, sizes: Tensor, second: Tensor) -> Tensor:
        """Weighted sum of all losses, (row,): see `DualBranchConfig`. Images that are not folded are mirrored at random."""
        if self.training and not self.folded:
            mirrored = torch.rand(len(log_counts), 1, 1, device=log_counts.device) < 0.5
            log_counts = torch.where(mirrored, log_counts.flip(2), log_counts)
            share = torch.where(mirrored, share.flip(2), share)
        config, vector = self.config, self.describe(log_counts, share)
        log_p = self.sizes(vector)
        entropy = -(sizes * log_p).sum(1)
        apart = (log_p.exp() - sizes).cumsum(1).abs().sum(1)  # 1D Wasserstein distance in bins
        error = (((self.second(vector) - second) / self.second_sd) ** 2).sum(1)
        return (
            config.cross_entropy_weight * entropy
            + config.wasserstein_weight * apart
            + config.second_branch_weight * error
            - self.flow.log_prob(normal, vector)
        )


class Ensemble(nn.Module):
    """Networks that see the same images and start from other weights."""

    def __init__(self, members: list[DualBranch]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def networks(self) -> list[DualBranch]:
        """The members."""
        return [member for member in self.members if isinstance(member, DualBranch)]

    def loss(self, *batch: Tensor) -> Tensor:
        """Mean of the members' losses, (row,)."""
        return torch.stack([network.loss(*batch) for network in self.networks]).mean(0)


def build(config: DualBranchConfig, reduced: Reduction, sizes: int, second: int, parameters: int) -> Ensemble:
    """The untrained networks for p(R) of `sizes` bins, `second` quantities of the second branch and all `parameters`."""
    return Ensemble(
        [DualBranch(config, reduced.result, reduced.folded, sizes, second, parameters) for _ in range(config.members)]
    )


def _trunk(config: TrunkConfig, shape: tuple[int, int]) -> nn.Module:
    kinds = {"columns": Columns, "convolution": Convolutions, "perceptron": Perceptron}
    return kinds[config.kind](config, shape)


class Columns(nn.Module):
    """Every column by the same linear layer, then convolutions of stride 2 along the columns.

    Spacing and sizes show along y, at the same place in all rows; along z it is the film that shows. So y keeps its
    resolution up to the last layer, at a tenth of the price of square kernels.
    """

    def __init__(self, config: TrunkConfig, shape: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = shape
        before, *after = config.channels
        self.column = nn.Conv1d(2 * rows, before, 1)
        layers: list[nn.Module] = [nn.SiLU()]
        for channels in after:
            layers += [nn.Conv1d(before, channels, _KERNEL, 2, _KERNEL // 2), nn.SiLU()]
            before, columns = channels, -(-columns // 2)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * columns, config.hidden))

    def forward(self, scaled: Tensor, share: Tensor) -> Tensor:
        """(row, hidden) of scaled counts and valid shares (row, z, y)."""
        vector: Tensor = self.layers(self.column(torch.cat([scaled, share], dim=1)))
        return vector


class Convolutions(nn.Module):
    """Convolutions of size 3 and stride 2."""

    def __init__(self, config: TrunkConfig, shape: tuple[int, int]) -> None:
        super().__init__()
        before, layers = 2, list[nn.Module]()
        for channels in config.channels:
            layers += [nn.Conv2d(before, channels, 3, 2, 1), nn.SiLU()]
            before = channels
        bins = math.prod(-(-length // 2 ** len(config.channels)) for length in shape)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * bins, config.hidden))

    def forward(self, scaled: Tensor, share: Tensor) -> Tensor:
        """(row, hidden) of scaled counts and valid shares (row, z, y)."""
        image = torch.stack([scaled, share], dim=1).contiguous(memory_format=torch.channels_last)
        vector: Tensor = self.layers(image)
        return vector


class Perceptron(nn.Module):
    """All bins by one linear layer."""

    def __init__(self, config: TrunkConfig, shape: tuple[int, int]) -> None:
        super().__init__()
        self.layer = nn.Linear(2 * math.prod(shape), config.hidden)

    def forward(self, scaled: Tensor, share: Tensor) -> Tensor:
        """(row, hidden) of scaled counts and valid shares (row, z, y)."""
        vector: Tensor = self.layer(torch.cat([scaled.flatten(1), share.flatten(1)], dim=1))
        return vector
