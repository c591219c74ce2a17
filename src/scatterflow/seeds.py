"""Counter-based random numbers: what simulation `i` draws depends on (seed, stream name, i) and nothing else.

So a data set is the same whatever the number of shards, workers or retries, and any row can be drawn alone. The
generator is Philox-4x64-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405): its key is a hash of seed and stream name,
its counter the index of the simulation.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_WORDS_PER_COUNT = 4  # 64-bit numbers that Philox-4x64 gives per counter value


def stream_key(seed: int, name: str) -> NDArray[np.uint64]:
    """Key (2 words of 64 bits) of the stream `name` under `seed`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.frombuffer(digest[:16], dtype=np.uint64)


def uniforms(seed: int, name: str, start: int, n: int, width: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), shape (n, width): row `k` depends on (seed, name, start + k) only."""
    counts_per_row = -(-width // _WORDS_PER_COUNT)
    bits = np.random.Philox(key=stream_key(seed, name), counter=start * counts_per_row)
    numbers = np.random.Generator(bits).random((n, counts_per_row * _WORDS_PER_COUNT))
    return numbers[:, :width]


def generator(seed: int, name: str, index: int) -> np.random.Generator:
    """Generator of simulation `index` for draws of variable length (Poisson): 2^128 numbers of its own."""
    counter = np.array([0, 0, index, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=stream_key(seed, name), counter=counter))


def integer(seed: int, name: str) -> int:
    """A 31-bit seed for libraries that take one integer, derived from `seed` and `name`."""
    return int(stream_key(seed, name)[0] >> np.uint64(33))
