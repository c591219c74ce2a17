"""The lean encoder: where the ring is, then what is left, from few numbers.

A tilt moves the ring on the detector, exactly so for chi (7 pixels within the default box) and nearly for omega (14),
while a frame of 7 counts tells hundredths of a pixel. So the first, small network looks at the sums of rows and columns
only and finds the ring within a fraction of a pixel. The frame is moved there by whole pixels. What a moved frame can
still show is little: its projections on 64 principal components of noiseless ones keep the Cramer-Rao bound to 1.5 %.
They, whitened, feed the second network, which corrects the first and states the error.

Frames are variance-stabilised (square roots, doi:10.2307/2332343) and divided by their mean intensity. Both networks are
trained together with the Gaussian log-likelihood of the labels: no photon has to fall on a predicted ring for a gradient
to exist, which is what the published estimator fails on.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.config.regressor import LeanConfig
from scatterflow.models.nanophysics import Box, Physics

_FIRST = 64  # hidden units of the first network
_PREPARED = 4000  # frames at most that tell the components
_REACH = 1.05  # of the box: as far as the first network moves a frame
_LOG_SD = (-12.0, 2.0)  # limits of the logarithm of an error, in units of the box
_STEP = 0.1  # scale of the second network's corrections, in units of the box
_JITTER_PX = 0.2  # typical error of the first network


class Lean(nn.Module):
    """Frames of counts -> parameters in units of the box, and their standard deviations. `prepare` comes first."""

    def __init__(self, config: LeanConfig, beam: NanobeamConfig, film: FilmConfig, box: Box) -> None:
        super().__init__()
        z, y = beam.shape
        number, latent = min(config.components, z * y), len(box.names)
        pixel = beam.pixel_mm / beam.distance_mm
        sine = beam.wavelength_nm * film.order / (2 * film.lattice_nm)  # of the Bragg angle
        # pixels by which the ring moves: q = 2 k sin(Bragg angle) rotates by the tilt, a pixel is k sin(...) wide along z
        per_deg = (-2 * math.radians(1) / pixel, -2 * sine * math.radians(1) / pixel)
        self.moves = tuple(
            (n * float(box.centre[i]), n * float(box.half[i])) for i, n in zip((1, 2), per_deg, strict=True)
        )
        self.margin = math.ceil(max(abs(at) + _REACH * abs(by) for at, by in self.moves)) + 1
        self.first = _perceptron(z + y, _FIRST, 2, 2 * latent)
        self.second = _perceptron(number + latent + 3, config.hidden, config.layers, 2 * latent)
        self.components = nn.Buffer(torch.zeros(z * y, number))  # whitened
        self.offset = nn.Buffer(torch.zeros(number))

    def prepare(self, expected: Tensor, unit: Tensor, seed: int) -> None:
        """Find the components from expected counts (frame, z, y) of known parameters `unit` (frame, parameter)."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            unit, expected = unit[:_PREPARED].float(), expected[:_PREPARED].float()
            jitter = torch.tensor([0.0, *(_JITTER_PX / abs(by) for _, by in self.moves), 0.0])[: unit.shape[1]]
            images = _stabilised(expected)
            noise = float((1 / expected.mean((1, 2))).mean())  # variance of a pixel, after the division by the mean
            moved = self._move(images, unit + jitter * torch.randn_like(unit))[0].flatten(1)
            mean = moved.mean(0)
            number = min(self.components.shape[1], len(moved))
            _, singular, directions = torch.svd_lowrank(moved - mean, q=min(number + 16, *moved.shape), niter=2)
            sd = (singular[:number] ** 2 / len(moved) + noise).sqrt()
            self.components.zero_()
            self.components[:, :number] = directions[:, :number] / sd
            self.offset.copy_(mean @ self.components)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Values and standard deviations (frame, parameter) in units of the box, of counts (frame, z, y)."""
        values, log_sd, *_ = self._estimates(frames)
        return values, log_sd.exp()

    def loss(self, frames: Tensor, unit: Tensor) -> Tensor:
        """Negative Gaussian log-likelihood (frame,) of `unit` (frame, parameter), of the second and the first network."""
        values, log_sd, first, first_log_sd = self._estimates(frames)
        return _gaussian(values, log_sd, unit) + _gaussian(first, first_log_sd, unit)

    def _estimates(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images = _stabilised(frames)
        first, first_log_sd = _split(self.first(torch.cat([images.mean(2), images.mean(1)], dim=1) - 1))
        start = first.detach().clamp(-_REACH, _REACH)
        moved, rest = self._move(images, start)
        numbers = moved.flatten(1) @ self.components - self.offset
        level = frames.mean((1, 2))[:, None].log()
        change, log_sd = _split(self.second(torch.cat([numbers, start, rest, level], dim=1)), 3)
        return start + _STEP * change, log_sd, first, first_log_sd

    def _move(self, images: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Images with the ring, as `unit` says, within half a pixel of the centre, and what is left to move [pixel]."""
        moves = torch.stack([at + by * unit[:, 1 + number] for number, (at, by) in enumerate(self.moves)], dim=1)
        whole = moves.round()
        row, column = (whole.long() + self.margin).clamp(0, 2 * self.margin).unbind(1)
        padded = pad(images, (self.margin,) * 4)
        number, high, wide = padded.shape
        z, y = images.shape[1:]
        # a row that is moved along y is a window into the padded frames: copied whole, seven times as fast as by pixel
        frame = torch.arange(number, device=images.device)
        first = (frame * high + row) * wide + column
        rows = first[:, None] + wide * torch.arange(z, device=images.device)
        moved = padded.flatten().unfold(0, y, 1).index_select(0, rows.flatten()).view(number, z, y)
        return moved, moves - whole


class LeanOnFrames(nn.Module):
    """A trained lean encoder goes on with frames without labels: variational inference, amortised.

    The loss is the evidence lower bound of a normal posterior with the encoder's values and errors: the likelihood of
    where the photons arrived (multinomial, so the amplitude does not matter) under the forward model and an even
    background, at one draw per frame, and the entropy.
    """

    def __init__(self, encoder: Lean, physics: Physics, background: float) -> None:
        super().__init__()
        self.encoder, self.physics, self.background = encoder, physics, background

    def loss(self, frames: Tensor) -> Tensor:
        """Negative lower bound (frame,) per pixel; 0 would be a model that tells every count."""
        values, sd = self.encoder(frames)
        draw = values + sd * torch.randn_like(sd)
        pixels = frames[0].numel()
        shares = (1 - self.background) * self.physics(draw) + self.background / pixels
        observed = frames / frames.sum((1, 2), keepdim=True)
        surprise = torch.xlogy(frames, observed).sum((1, 2)) - (frames * shares.log()).sum((1, 2))
        outside = (values.abs() - _REACH).clamp_min(0).square().sum(1)  # the prior ends there
        bound: Tensor = (surprise - sd.log().sum(1)) / pixels + outside
        return bound


def _stabilised(frames: Tensor) -> Tensor:
    """Square roots of counts (or expected counts) with variance 1 over the mean count, whatever the intensity."""
    return 2 * (frames / frames.mean((1, 2), keepdim=True)).sqrt()


def _perceptron(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in pairwise([inputs, *[hidden] * layers]):
        parts += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*parts, nn.Linear(hidden, outputs))


def _split(outputs: Tensor, start: float = 0.0) -> tuple[Tensor, Tensor]:
    """Values, and logarithms of standard deviations, `start` lower to begin with."""
    values, log_sd = outputs.chunk(2, dim=1)
    return values, (log_sd - start).clamp(*_LOG_SD)


def _gaussian(values: Tensor, log_sd: Tensor, truth: Tensor) -> Tensor:
    loss: Tensor = (log_sd + 0.5 * ((values - truth) / log_sd.exp()).square()).mean(1)
    return loss
