"""Features as torch tensors, split by index, in batches whose rows depend on seed and epoch only.

Training rows are in memory (`Rows`) or come block by block (`Blocks`): read from the features' store, observed anew from
stored counts, or simulated anew. Simulations are independent draws, so shuffling within blocks loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from scatterflow import seeds
from scatterflow.errors import BundleError, StoreError

if TYPE_CHECKING:
    from scatterflow.multilayer import MultilayerStudy

VIEWS = ("profile", "image")
Loader = Callable[[int, slice], xr.Dataset]  # epoch and rows -> features with `parameters`, in memory


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


def stored(features: xr.Dataset) -> Loader:
    """Loader of `features` (with `parameters`) as they are, in memory or lazy: the same in every epoch."""
    return lambda _, rows: features.isel(simulation=rows).load()


def fresh_noise(study: MultilayerStudy, counts: xr.Dataset, seed: int) -> Loader:
    """Loader of stored expected `counts` (with `parameters`), observed and preprocessed anew in every epoch.

    The noise of simulation `i` depends on (seed, epoch, i) only.
    """

    def load(epoch: int, rows: slice) -> xr.Dataset:
        part = counts.isel(simulation=rows).load()
        noisy = study.observe(part[list(study.views)], seed=seeds.integer(seed, f"noise of epoch {epoch}"))
        return study.preprocess(noisy).assign(parameters=part["parameters"])

    return load


def on_the_fly(study: MultilayerStudy, seed: int) -> Loader:
    """Loader that draws, simulates, observes and preprocesses; row `i` depends on (seed, epoch, i) only."""

    def load(epoch: int, rows: slice) -> xr.Dataset:
        own = seeds.integer(seed, f"simulations of epoch {epoch}")
        theta = study.prior.sample(rows.stop - rows.start, seed=own, start=rows.start)
        noisy = study.observe(study.simulate(theta), seed=own)
        return study.preprocess(noisy).assign(parameters=theta)

    return load


class Source(Protocol):
    """Rows to train on, in blocks."""

    def __len__(self) -> int:
        """Number of rows."""

    def borders(self) -> list[int]:
        """Borders of the blocks along the rows: 0, ..., number of rows."""

    def block(self, epoch: int, number: int) -> Rows:
        """Rows of one block in an epoch."""


@dataclass(frozen=True)
class Rows:
    """Tensors in memory with the same first dimension, the row: one block, the same in every epoch."""

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The tensors' `rows`: a whole batch in one gather."""
        return tuple(tensor[rows] for tensor in self.tensors)

    def borders(self) -> list[int]:
        """See `Source`."""
        return [0, len(self)]

    def block(self, _epoch: int, _number: int) -> Rows:
        """See `Source`."""
        return self


@dataclass(frozen=True)
class Blocks:
    """Rows that are loaded `size` at a time, and made to tensors by `make`."""

    rows: int
    size: int
    load: Loader
    make: Callable[[xr.Dataset], Rows]

    def __len__(self) -> int:
        return self.rows

    def borders(self) -> list[int]:
        """See `Source`."""
        return [*range(0, self.rows, self.size), self.rows]

    def block(self, epoch: int, number: int) -> Rows:
        """See `Source`."""
        return self.make(self.load(epoch, slice(*self.borders()[number : number + 2])))


@dataclass(frozen=True)
class Batches:
    """Batches of one epoch.

    Shuffled (with a seed), the order depends on (seed, epoch) only, so a resumed training sees what an undisturbed one
    would have seen, also from the middle of an epoch (`after`): blocks in random order, rows in random order within a
    block, what is left of a block before the next. The incomplete last batch is left out. Each of `world` processes gets
    every `world`-th row of a block. A thread loads the next block meanwhile: memory holds two blocks and a batch.
    """

    rows: Source
    size: int
    epoch: Callable[[], int]
    seed: int | None = None
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        share = sum(self._share(int(rows)) for rows in np.diff(self.rows.borders()))
        size = min(self.size, share)
        return share // size if self.seed is not None else -(-share // size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self.after(0)

    def after(self, done: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches that follow the first `done` of the epoch; blocks that only these needed are not loaded."""
        epoch, rows = self.epoch(), np.diff(self.rows.borders()).tolist()
        order = list(range(len(rows)))
        if self.seed is not None:
            order = self._shuffled(f"order of epoch {epoch}", len(rows)).tolist()
        shares = [self._share(rows[block]) for block in order]
        size = min(self.size, sum(shares))
        start = done * size  # rows that were used before
        while order and start >= shares[0]:
            start, order, shares = start - shares[0], order[1:], shares[1:]
        left: tuple[Tensor, ...] = ()  # rows of earlier blocks that did not fill a batch
        for number, block in zip(order, self._blocks(epoch, order), strict=True):
            own = torch.arange(len(block))
            if self.seed is not None:
                own = self._shuffled(f"block {number} of epoch {epoch}", len(block))
            own = own[self.rank :: self.world][: self._share(len(block))]
            while (missing := size - (len(left[0]) if left else 0)) <= len(own) - start:
                batch = block.take(own[start : start + missing])
                yield tuple(map(torch.cat, zip(left, batch, strict=True))) if left else batch
                start, left = start + missing, ()
            if start < len(own):
                rest = block.take(own[start:])
                left = tuple(map(torch.cat, zip(left, rest, strict=True))) if left else rest
            start = 0
        if left and self.seed is None:
            yield left

    def _shuffled(self, name: str, number: int) -> Tensor:
        """The numbers below `number` in random order."""
        assert self.seed is not None
        return torch.randperm(number, generator=torch.Generator().manual_seed(seeds.integer(self.seed, name)))

    def _blocks(self, epoch: int, order: Sequence[int]) -> Iterator[Rows]:
        """The blocks in this order; the next one is loaded while the last is used."""
        if len(order) < 2:
            yield from (self.rows.block(epoch, number) for number in order)
            return
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
            ahead = pool.submit(self.rows.block, epoch, order[0])
            for number in [*order[1:], None]:
                block = ahead.result()
                if number is not None:
                    ahead = pool.submit(self.rows.block, epoch, number)
                yield block

    def _share(self, rows: int) -> int:
        """This process's rows of a block: the same number for all while training, each row once while validating."""
        return rows // self.world if self.seed is not None else -(-(rows - self.rank) // self.world)
