"""Features as torch tensors in memory, split by index, in batches whose order depends on seed and epoch only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from scatterflow import seeds
from scatterflow.errors import BundleError, StoreError

VIEWS = ("profile", "image")


@dataclass(frozen=True)
class Inputs:
    """Shape of what a network sees: profile points, and image bins (z, y)."""

    points: int
    image_shape: tuple[int, int]


@dataclass(frozen=True)
class Features:
    """One row per simulation: profile (row, point), image (row, z, y), and where they are valid."""

    profile: Tensor
    valid_profile: Tensor
    image: Tensor
    valid_image: Tensor

    @property
    def inputs(self) -> Inputs:
        """Shape of one row."""
        return Inputs(self.profile.shape[1], (self.image.shape[1], self.image.shape[2]))

    def __len__(self) -> int:
        return len(self.profile)


def to_tensors(features: xr.Dataset, inputs: Inputs | None = None) -> Features:
    """Tensors of `features` (variables profile, image, mask_profile, mask_image; dim simulation first).

    Raises BundleError where a variable is missing, not finite or, given `inputs`, of another shape.
    """
    arrays = {}
    for view in VIEWS:
        for name, kind in ((view, np.float32), (f"mask_{view}", np.bool_)):
            if name not in features or features[name].dims[0] != "simulation":
                raise BundleError(
                    "features", f"must hold {name} (simulation, ...)", list(features), "use study.preprocess"
                )
            values = np.ascontiguousarray(features[name].values, dtype=kind)
            if not np.isfinite(values).all():
                raise BundleError(f"features {name}", "must be finite", remedy="preprocess the frames again")
            arrays[name] = torch.from_numpy(values.copy() if not values.flags.writeable else values)
    result = Features(arrays["profile"], arrays["mask_profile"], arrays["image"], arrays["mask_image"])
    if inputs is not None and result.inputs != inputs:
        raise BundleError(
            "features", f"must have the model's shape {inputs}", result.inputs, "use the model's own study"
        )
    return result


def split(features: xr.Dataset, role: str) -> xr.Dataset:
    """Rows with coordinate `split` equal to `role` ("train", "validation", "held_back"). Raises StoreError if none."""
    if "split" not in features.coords:
        raise StoreError(
            "features", "must have a coordinate `split` along simulation", remedy="run `scatterflow preprocess`"
        )
    index = np.flatnonzero(features["split"].values == role)
    if not len(index):
        raise StoreError("features", f"must hold {role} rows", 0, "raise simulate.simulations")
    return features.isel(simulation=index)


@dataclass(frozen=True)
class Rows:
    """Tensors with the same first dimension, the row."""

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The tensors' `rows`: a whole batch in one gather."""
        return tuple(tensor[rows] for tensor in self.tensors)


@dataclass(frozen=True)
class Batches:
    """Batches of one epoch.

    Shuffled (with a seed), the order depends on (seed, epoch) only, so a resumed training sees what an undisturbed one
    would have seen; the incomplete last batch is left out. Each of `world` processes gets every `world`-th row.
    """

    rows: Rows
    size: int
    epoch: Callable[[], int]
    seed: int | None = None
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        share = self._share()
        size = min(self.size, share)
        return share // size if self.seed is not None else -(-share // size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = torch.arange(len(self.rows))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(seeds.integer(self.seed, f"order of epoch {self.epoch()}"))
            order = torch.randperm(len(self.rows), generator=generator)
        own = order[self.rank :: self.world][: self._share()]
        size = min(self.size, len(own))
        for step in range(len(self)):
            yield self.rows.take(own[step * size : (step + 1) * size])

    def _share(self) -> int:
        """Rows of this process: the same number for all while training, each row once while validating."""
        rows = len(self.rows)
        return rows // self.world if self.seed is not None else -(-(rows - self.rank) // self.world)
