"""What the estimators of nanodiffraction share: the box of their parameters, and the forward model inside a network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.errors import ConfigError
from scatterflow.forward.nanodiffraction import PARAMETERS, Kinematics, intensities, kinematics


@dataclass(frozen=True)
class Box:
    """Ranges of the parameters, in the order of `forward.nanodiffraction.PARAMETERS`: 3 of them, or 4.

    Raises ConfigError for other names or an empty range.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.names not in (PARAMETERS[:3], PARAMETERS):
            raise ConfigError("parameters", f"must be {', '.join(PARAMETERS[:3])}[, {PARAMETERS[3]}]", self.names)
        if not len(self.names) == len(self.low) == len(self.high):
            raise ConfigError("ranges", "must be one per parameter", (self.low, self.high))
        if not all(0 < high - low < float("inf") for low, high in zip(self.low, self.high, strict=True)):
            raise ConfigError("ranges", "must have low < high", (self.low, self.high))

    @property
    def centre(self) -> Tensor:
        """Middle of each range (parameter,), float64, on the CPU."""
        return self._middle_and_half[0]

    @property
    def half(self) -> Tensor:
        """Half the width of each range (parameter,), float64, on the CPU."""
        return self._middle_and_half[1]

    @cached_property
    def _middle_and_half(self) -> tuple[Tensor, Tensor]:
        # kept: a prediction may ask first, and what is made in inference mode could never be part of a training
        with torch.inference_mode(False):
            low, high = (torch.tensor(each, dtype=torch.float64, device="cpu") for each in (self.low, self.high))
            return (low + high) / 2, (high - low) / 2

    def to_unit(self, theta: Tensor) -> Tensor:
        """Parameters (frame, parameter) on the scale on which the box is [-1, 1]; float64."""
        return (theta.double() - self.centre.to(theta.device)) / self.half.to(theta.device)

    def from_unit(self, unit: Tensor) -> Tensor:
        """The inverse of `to_unit`; float64."""
        return self.centre.to(unit.device) + self.half.to(unit.device) * unit.double()


class Physics(nn.Module):
    """The forward model as a layer without weights: (frame, parameter) in units of the box -> (frame, z, y), sum 1."""

    def __init__(self, beam: NanobeamConfig, film: FilmConfig, box: Box) -> None:
        super().__init__()
        self.beam, self.film, self.box = beam, film, box
        self._at: dict[torch.device, Kinematics] = {}

    def at(self, device: torch.device) -> Kinematics:
        """The constants of the model on a device."""
        if device not in self._at:
            self._at[device] = kinematics(self.beam, self.film, device=device)
        return self._at[device]

    def forward(self, unit: Tensor) -> Tensor:
        """Where the photons of a frame arrive; what rounding makes negative is 0."""
        with torch.autocast(unit.device.type, enabled=False):  # differences of wave vectors need all digits
            frames = intensities(self.at(unit.device), self.box.from_unit(unit)).clamp_min(0)
            shares: Tensor = frames / frames.sum((1, 2), keepdim=True).clamp_min(1e-20)
        return shares
