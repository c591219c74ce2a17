"""Nearest stored simulations of an observation: one matrix product per block, then exact where it matters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
_BLOCK_BYTES = 256 * 2**20  # distances held at once
_ROWS = 16384  # library rows that are squared, masked or compared at once, where that needs a copy
_UNIT_ROUNDOFF = 2.0**-24  # of float32


@dataclass(frozen=True)
class Index:
    """Library features prepared for distances; holds one centred float32 copy of the library.

    `centred` (simulation, feature), 0 where masked; `squares` (simulation,) its squared norms; `mean` (feature,);
    `valid` (simulation, feature), or None where every feature of every simulation is valid.
    """

    centred: Floats
    squares: Floats
    mean: Floats
    valid: Flags | None


def build(features: Floats, valid: Flags | None = None) -> Index:
    """Centre the library (float32 would cancel otherwise) and compute its norms once.

    features : (simulation, feature); `valid` of the same shape, True = valid, None = all.
    """
    if valid is not None and valid.all():
        valid = None
    where = True if valid is None else valid
    counts = len(features) if valid is None else np.maximum(valid.sum(axis=0), 1)
    mean = (features.sum(axis=0, dtype=np.float64, where=where) / counts).astype(np.float32)
    centred = features - mean
    if valid is not None:
        np.copyto(centred, 0, where=~valid)
    return Index(centred, np.einsum("nd,nd->n", centred, centred), mean, valid)


def nearest(index: Index, observations: Floats, valid: Flags, n: int) -> tuple[NDArray[np.intp], Array]:
    """Rows and distances of the `n` nearest simulations of each observation, nearest first: (observation, n) each.

    Euclidean distance over the features that are valid on both sides, times sqrt(features / shared features) so that
    a simulation with fewer valid features is not nearer for that; infinite where nothing is shared. Candidates within
    the rounding error of the float32 product are compared in float64; equal distances go to the lower row.

    observations : (observation, feature) as in the library; `valid` of the same shape, True = valid.
    """
    centred = np.where(valid, observations - index.mean, np.float32(0))
    rows = np.empty((len(centred), n), dtype=np.intp)
    distances = np.empty((len(centred), n))
    block = max(1, _BLOCK_BYTES // (4 * len(index.centred)))
    for start in range(0, len(centred), block):
        part = slice(start, start + block)
        approximate, slack = _squares(index, centred[part], valid[part])
        # one observation at a time: each is a pass over the whole library, and candidates differ in number
        for place in range(start, start + len(approximate)):
            row = approximate[place - start]
            candidates = np.flatnonzero(row <= np.partition(row, n - 1)[n - 1] + slack[place - start])
            exact = _exact(index, candidates, centred[place], valid[place])
            order = np.argsort(exact, kind="stable")[:n]
            rows[place], distances[place] = candidates[order], np.sqrt(exact[order])
    return rows, distances


def _squares(index: Index, observations: Floats, valid: Flags) -> tuple[Floats, Array]:
    """Squared distances |x|^2 - 2 x.y + |y|^2 (observation, simulation), twice their rounding error (observation,)."""
    simulations, features = index.centred.shape
    own = np.einsum("md,md->m", observations, observations)[:, None]
    # a float32 dot product of d terms errs by at most d eps |x| |y| (Higham 2002, section 3.1)
    reach = np.sqrt(own[:, 0].astype(np.float64)) + np.sqrt(float(index.squares.max()))
    slack = 2 * (features + 8) * _UNIT_ROUNDOFF * reach**2
    if index.valid is None and valid.all():
        result: Floats = observations @ index.centred.T
        result *= -2
        result += index.squares
        result += own
        return result, slack
    result = np.empty((len(observations), simulations), dtype=np.float32)
    weights = valid.astype(np.float32)
    fewest = weights.sum(axis=1, dtype=np.float64)
    for start in range(0, simulations, _ROWS):
        library = index.centred[start : start + _ROWS]
        part = weights @ np.square(library).T - 2 * (observations @ library.T)
        shared = weights.sum(axis=1, keepdims=True)
        if index.valid is None:
            part += own
        else:
            both = index.valid[start : start + _ROWS].astype(np.float32).T
            part += np.square(observations) @ both
            shared = weights @ both
            fewest = np.minimum(fewest, np.where(shared > 0, shared, features).min(axis=1))
        result[:, start : start + _ROWS] = np.where(shared > 0, part * (features / np.maximum(shared, 1)), np.inf)
    return result, slack * features / np.maximum(fewest, 1)


def _exact(index: Index, rows: NDArray[np.intp], observation: Floats, valid: Flags) -> Array:
    """Squared distances of the candidate `rows` to one observation in float64, (row,)."""
    features = index.centred.shape[1]
    result = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS):
        chosen = rows[start : start + _ROWS]
        both = valid[None] if index.valid is None else valid & index.valid[chosen]
        difference = np.where(both, index.centred[chosen].astype(np.float64) - observation, 0.0)
        shared = both.sum(axis=1)
        squares = np.einsum("nd,nd->n", difference, difference) * features / np.maximum(shared, 1)
        result[start : start + _ROWS] = np.where(shared > 0, squares, np.inf)
    return result
