"""Labelled images of particles: form-factor tables against BornAgain, 256 x 256 pixels, 30 sizes, three rough layers.

pytest benchmarks/bench_particles.py -s
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.forward import bornagain_particles
from scatterflow.forward.dwba import particles as reference
from scatterflow.forward.dwba import tables
from scatterflow.forward.particles import Arrangement, Particles, Stack

PIXELS, SIZES = 256, 30
IMAGES, BY_BORNAGAIN = 256, 3
NEEDED = 10_000
# the authors' geometry, cut to 256 bins of about 1.1 mm: up to 1.9 deg in the exit angle, 2.3 deg to either side
INSTRUMENT = InstrumentConfig(
    shape=(PIXELS + 42, PIXELS), pixel_mm=0.55, distance_mm=3230.0, beam_z_px=82.0, beam_y_px=PIXELS / 2,
    wavelength_nm=0.105, incidence_deg=0.4, resolution_mm=0.0, background=0.0,
)  # fmt: skip
ROWS, COLUMNS = np.arange(42.0, PIXELS + 43), np.arange(PIXELS + 1.0)
RADIUS = np.linspace(1, 15, SIZES)
GOLD = Particles("sphere", RADIUS, 2 * RADIUS, 3e-5, 2.6e-6, interference="paracrystal")


def pairs(edges: np.ndarray) -> np.ndarray:
    return np.column_stack([edges[:-1], edges[1:]])


def drawn(images: int) -> tuple[Arrangement, Stack]:
    """Log-normal distributions of size, distances and disorders, three rough layers of random thickness on silicon."""
    rng = np.random.default_rng(1)
    middle, width = rng.uniform(2, 6, (images, 1)), rng.uniform(0.1, 0.4, (images, 1))
    shares = np.exp(-((np.log(RADIUS / middle) / width) ** 2) / 2) + 1e-9
    arrangement = Arrangement(
        shares / shares.sum(axis=1, keepdims=True), rng.uniform(12, 20, images), rng.uniform(0.05, 0.35, images)
    )
    low, high = np.array([[3e-6, 1e-8, 5, 0.2, 0.3, 5], [2e-5, 1e-6, 40, 1.0, 0.9, 30]])
    silicon = np.broadcast_to([5.4e-6, 8e-8, 0.0, 0.4, 0.6, 20.0], (images, 1, 6))
    return arrangement, Stack(np.concatenate([rng.uniform(low, high, (images, 3, 6)), silicon], axis=1))


@pytest.mark.usefixtures("one_thread")
def test_labelled_images() -> None:
    began = time.process_time()
    table = tables.tables(GOLD, INSTRUMENT, pairs(ROWS), pairs(COLUMNS))
    making = time.process_time() - began
    arrangement, stack = drawn(IMAGES)
    few = Arrangement(*(getattr(arrangement, name)[:BY_BORNAGAIN] for name in ("shares", "distance_nm", "disorder")))
    same = replace(stack, layers=stack.layers[:BY_BORNAGAIN])
    began = time.process_time()
    theirs = bornagain_particles.expected_counts(GOLD, few, same, INSTRUMENT, ROWS, COLUMNS)
    slow = (time.process_time() - began) / BY_BORNAGAIN
    exact = reference.expected_counts(GOLD, few, same, INSTRUMENT, pairs(ROWS), pairs(COLUMNS))
    bare = reference.expected_counts(GOLD, few, same, INSTRUMENT, pairs(ROWS), pairs(COLUMNS), rough=False)
    took = []
    for _ in range(5):
        began = time.process_time()
        ours = tables.expected_counts(table, arrangement, stack)
        took.append((time.process_time() - began) / IMAGES)
    wrong = np.abs(ours[:BY_BORNAGAIN] / bare - 1)
    print(
        f"\n{PIXELS} x {PIXELS} pixels, {SIZES} sizes: BornAgain {slow:.2f} s per image, tables {1e3 * min(took):.3f} ms: "
        f"{slow / min(took):,.0f} times as fast (needed {NEEDED:,})"
        f"\nthe table: {making:.1f} s once, {table.nbytes / 2**20:.0f} MiB, {len(table.across)} nodes"
        f"\nreference against BornAgain: {np.abs(exact / theirs - 1).max():.1e}; tables against the reference: median "
        f"{np.median(wrong):.1e}, 99 % {np.quantile(wrong, 0.99):.1e}, at most {wrong.max():.1e}, over "
        f"{np.log10(bare.max() / bare.min()):.1f} decades"
    )
    assert np.quantile(wrong, 0.99) < 1e-3
    assert slow / min(took) > NEEDED
