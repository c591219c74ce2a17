"""How many simulations are made, what they serve for, and how they are cut into shards."""

from __future__ import annotations

import math
from typing import Self

from pydantic import model_validator

from scatterflow.config.base import Section, option


class SimulateConfig(Section):
    """Simulations of a study. Row `i` is the same whatever their number, the shard size and the workers."""

    simulations: int = option(
        gt=0,
        help="number of simulations; raising it later extends the store",
        source="arXiv 2210.01543, A.1: 1e5 to 6e5",
    )
    held_back: int = option(
        500, ge=1, help="the first rows: for evaluation only, never seen by training, ABC library or thresholds"
    )
    validation: int = option(500, ge=1, help="the rows after those held back: early stopping of the training")
    shard_size: int = option(
        100,
        gt=0,
        help="simulations per shard: one file per array, the unit of work, resume and Slurm array tasks; a store keeps "
        "the size it began with",
        source="zarr: 0.1-1 GB per shard on a parallel file system",
    )
    chunk_size: int = option(
        10, gt=0, help="simulations per call of the forward model, always so many; it must divide the shard size"
    )
    workers: int | None = option(None, ge=1, help="processes on this machine; none: all cores")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.simulations % self.shard_size:
            use = _or([f"simulations: {n}" for n in _multiples(self.simulations, self.shard_size)])
            sizes = _or([f"shard_size: {n}" for n in _divisors(self.simulations, self.shard_size)])
            raise ValueError(
                f"shard_size={self.shard_size} must divide simulations={self.simulations}; use {sizes}, or {use}"
            )
        if self.shard_size % self.chunk_size:
            sizes = _or([f"chunk_size: {n}" for n in _divisors(self.shard_size, self.chunk_size)])
            raise ValueError(f"chunk_size={self.chunk_size} must divide shard_size={self.shard_size}; use {sizes}")
        if self.held_back + self.validation >= self.simulations:
            raise ValueError(
                f"held_back={self.held_back} + validation={self.validation} must be less than "
                f"simulations={self.simulations}, the rest trains; raise simulations or lower the others"
            )
        return self


def _multiples(n: int, of: int) -> list[int]:
    """The positive multiples of `of` next to `n`."""
    return [m for m in (n // of * of, -(-n // of) * of) if m > 0]


def _divisors(n: int, near: int) -> list[int]:
    """The divisors of `n` next to `near`: the largest below and the smallest above."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    divisors = {*small, *(n // d for d in small)}
    below = max(d for d in divisors if d <= max(near, 1))
    return sorted({below, min((d for d in divisors if d > near), default=below)})


def _or(choices: list[str]) -> str:
    return " or ".join(choices)
