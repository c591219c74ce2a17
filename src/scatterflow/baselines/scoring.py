"""The Poisson likelihood of nanodiffraction frames at given parameters: height, slope and Fisher information.

Amplitude and background are fitted for the parameters at hand; what they cost is taken off the information.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from scatterflow.forward.nanodiffraction import Kinematics, intensities
from scatterflow.forward.nanodiffraction_slopes import slopes

_ALIKE = 1e-5  # squared difference from an even image, over its square: below, float32 tells none, all is background
_LEAST, _DARKEST = 1e-3, 1e-4  # of the counts, in the image and in the background
_ROUNDS = 12  # of Fisher scoring of a concave function: four digits in a few
_NOTHING = 1e-30
_TINY = 1e-7  # relative, what float32 leaves uncertain
BATCH = 16  # frames whose model is held at once: 4 MB each by default, which caches still hold in part


@dataclass(frozen=True)
class Model:
    """The forward model, and in which box (`low`, `width`: (parameter,)) and pixels it is compared with counts."""

    at: Kinematics
    low: Tensor
    width: Tensor
    valid: Tensor | None  # (z, y), 0 or 1
    floor: float  # of the intensity, over its maximum: what a count outside the model costs is finite
    background: bool

    @property
    def least(self) -> float:
        """Maximum below which an image is dark: its light falls beside the detector, and float32 could not square it."""
        return dark(self.at)

    def image(self, intensities: Tensor) -> Tensor:
        """What is compared with counts (frame, z, y), of the forward model's `intensities`."""
        return raised(intensities, self.floor, self.least)


@dataclass
class Point:
    """Log-likelihood, its slope and the information of every frame, at values of the parameters in units of the box."""

    height: Tensor  # (frame,)
    score: Tensor  # (frame, parameter)
    information: Tensor  # (frame, parameter, parameter), less what the nuisances cost
    amplitude: Tensor  # (frame,)
    background: Tensor  # (frame,)


def evaluate(model: Model, counts: Tensor, unit: Tensor) -> Point:
    """Evaluate all frames, `BATCH` at a time."""
    parts = [
        _batch(model, counts[first : first + BATCH], unit[first : first + BATCH])
        for first in range(0, len(unit), BATCH)
    ]
    return Point(*(torch.cat([list(vars(part).values())[number] for part in parts]) for number in range(5)))


def _batch(model: Model, counts: Tensor, unit: Tensor) -> Point:
    image, slope = slopes(model.at, model.low + model.width * unit)
    image = model.image(image)
    slope = slope * model.width.to(slope.dtype)[:, None, None]
    amplitude, background = nuisances(model, counts, image)
    expected = amplitude[:, None, None] * image + background[:, None, None]
    if model.valid is None:
        height = (counts * expected.log() - expected).sum((1, 2), dtype=torch.float64)
        residual = counts / expected - 1
    else:
        height = ((counts * expected.log() - expected) * model.valid).sum((1, 2), dtype=torch.float64)
        residual = (counts / expected - 1) * model.valid
    score = torch.einsum("fpzy,fzy->fp", slope, residual).double() * amplitude.double()[:, None]
    level = background if model.background else None
    information = fisher_information(image, slope, amplitude, level, model.valid)
    return Point(height, score, information, amplitude.double(), background.double())


def nuisances(model: Model, counts: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Most likely amplitude and background (frame,) of given images.

    Together they expect all counts that came. What is left is the share that the image has of them, by Fisher scoring.
    """
    valid = torch.ones_like(image[0]) if model.valid is None else model.valid
    total, bright, pixels = counts.sum((1, 2)), (image * valid).sum((1, 2)), valid.sum()
    if not model.background:
        return total / bright, torch.zeros_like(total)
    even = valid.flatten() / pixels
    shape = (image * valid).flatten(1) / bright[:, None]
    difference = shape - even
    told = difference.square().sum(1) > _ALIKE * shape.square().sum(1)
    products = torch.stack([counts.flatten(1) * difference, total[:, None] * difference**2], dim=1)
    share = torch.full_like(total, 0.95)
    for _ in range(_ROUNDS):
        expected = torch.addcmul(even, share[:, None], difference)
        score, information = (products / expected.clamp_min(_NOTHING)[:, None]).sum(2).unbind(1)
        share = (share + score / information.clamp_min(_NOTHING)).clamp(_LEAST, 1 - _DARKEST)
    share = torch.where(told, share, _LEAST)
    return share * total / bright, (1 - share) * total / pixels


def fisher_information(
    image: Tensor, slope: Tensor, amplitude: Tensor, background: Tensor | None, valid: Tensor | None
) -> Tensor:
    """Fisher information of the parameters (frame, parameter, parameter), less what the nuisances cost; float64.

    All derivatives are over the amplitude: the amplitude's own is the image, the background's 1.
    """
    expected = amplitude[:, None, None] * image
    nuisance = image[:, None]
    if background is not None:
        expected = expected + background[:, None, None]
        nuisance = torch.cat([nuisance, torch.ones_like(nuisance)], dim=1)
    columns = torch.cat([slope * amplitude[:, None, None, None], nuisance], dim=1)
    weight = expected.rsqrt() if valid is None else expected.rsqrt() * valid
    columns = (columns * weight[:, None]).flatten(2)
    full = (columns @ columns.transpose(1, 2)).double()
    n = slope.shape[1]
    cross = full[:, :n, n:]
    own = torch.diagonal(full, dim1=1, dim2=2)[:, n:]
    held = full[:, n:, n:] + torch.diag_embed(
        _TINY * own
    )  # an even image and a background are the same: never singular
    cost: Tensor = cross @ torch.linalg.solve(held, cross.transpose(1, 2))
    return full[:, :n, :n] - cost


def deviations(information: Tensor) -> Tensor:
    """Square root of the diagonal of the inverse (frame, parameter), in units of what `information` is given in."""
    tiny = 1e-9 * torch.diagonal(information, dim1=1, dim2=2).amax(1).clamp_min(1e-300)
    held = information + tiny[:, None, None] * torch.eye(information.shape[1], dtype=information.dtype)
    return torch.diagonal(torch.linalg.inv(held), dim1=1, dim2=2).clamp_min(0).sqrt()


def raised(image: Tensor, floor: float, least: float) -> Tensor:
    """Intensities without what rounding makes negative, and `floor` of their maximum, `least` or more, everywhere."""
    image = image.clamp_min(0)
    return image + floor * image.amax((1, 2), keepdim=True).clamp_min(least)


@lru_cache(maxsize=8)
def dark(at: Kinematics) -> float:
    """A thousandth of the maximum of an unstrained film's image, which lies in the middle of the detector."""
    return 1e-3 * float(intensities(at, torch.zeros(1, 3, dtype=torch.float64)).amax())
