"""Particles by engine dwba against BornAgain 25: every shape, interference and layer, random sizes and stacks."""

import numpy as np
import pytest

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import ConfigError
from scatterflow.forward import bornagain_particles, particles
from scatterflow.forward.dwba import diffuse, tables
from scatterflow.forward.dwba import particles as dwba
from scatterflow.forward.dwba.formfactors import SHAPES, Shape, formfactor, heights, volume
from scatterflow.forward.particles import Arrangement, Interference, Particles, Stack

pytestmark = pytest.mark.science
LOWEST_DEG = 0.05  # below, BornAgain loses digits
INSTRUMENT = InstrumentConfig(
    shape=(24, 24), pixel_mm=2.0, distance_mm=3230.0, beam_z_px=13.0, beam_y_px=9.3, wavelength_nm=0.105,
    incidence_deg=0.4, resolution_mm=0.0, background=0.0,
)  # fmt: skip
EDGES = np.linspace(0, 24, 25)
PLACES = [(0, 0), (0, 3), (1, 2), (2, 2)]  # layer of the particles, free layers


def pairs(edges: np.ndarray) -> np.ndarray:
    return np.column_stack([edges[:-1], edges[1:]])


def drawn(
    rng: np.random.Generator, shape: Shape, interference: Interference, layer: int, free: int
) -> tuple[Particles, Arrangement, Stack]:
    """Random particles of gold, of four sizes where BornAgain allows it, on or in a random stack on silicon."""
    sizes = 1 if interference == "hard-disks" else 4
    radius = rng.uniform(1, 5, sizes)
    height = heights(shape, radius, 1.0 if shape == "sphere" else rng.uniform(0.4, 1.0, sizes))
    gold = Particles(shape, radius, height, 3e-5, 2.6e-6, layer, interference, damping_nm=1e3)
    arrangement = Arrangement(rng.dirichlet(np.ones(sizes))[None], rng.uniform(18, 24, 1), rng.uniform(0.05, 0.5, 1))
    low, high = np.array([[3e-6, 1e-8, 20, 0.2, 0.3, 5], [2e-5, 1e-6, 40, 1.0, 0.9, 30]])
    layers = np.vstack([rng.uniform(low, high, (free, 6)), [5.4e-6, 8e-8, 0.0, 0.4, 0.6, 20.0]])
    cross = None if rng.random() < 0.5 else 100.0
    return gold, arrangement, Stack(layers[None], rng.choice(["tanh", "erf"]), cross_correlation_length_nm=cross)


@pytest.mark.parametrize("interference", ["none", "paracrystal", "hard-disks"])
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_equals_bornagain(shape: Shape, interference: Interference) -> None:
    rng = np.random.default_rng(SHAPES.index(shape))
    alpha, _ = geometry.angles(INSTRUMENT, *np.meshgrid(EDGES[1:] - 0.5, EDGES[1:] - 0.5, indexing="ij"))
    worst = 0.0
    for layer, free in PLACES * 3:
        described = drawn(rng, shape, interference, layer, free)
        ours = dwba.expected_counts(*described, INSTRUMENT, pairs(EDGES), pairs(EDGES))[0]
        theirs = bornagain_particles.expected_counts(*described, INSTRUMENT, EDGES, EDGES)[0]
        assert ((ours == 0) == (theirs == 0)).all()
        compared = (np.degrees(alpha) > LOWEST_DEG) & (theirs > 1e-6 * theirs.max())
        assert compared.sum() > 300
        worst = max(worst, float(np.abs(ours[compared] / theirs[compared] - 1).max()))
    print(f"particles, {shape}, {interference}: largest relative difference from BornAgain {worst:.1e}")
    assert worst < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_tables_with_errors_of_the_incidence_equal_bornagain(shape: Shape) -> None:
    """One table against BornAgain at other angles of incidence, detector and direct beam where they were."""
    rng = np.random.default_rng(20 + SHAPES.index(shape))
    instrument = INSTRUMENT.model_copy(update={"beam": "direct", "beam_z_px": -1.0})
    rows, columns = pairs(EDGES[12:]), pairs(EDGES)
    gold, arrangement, stack = drawn(rng, shape, "paracrystal", 0, 1)
    table = tables.tables(gold, instrument, rows, columns, incidence_error_deg=0.03)
    found = []
    for error in (-0.03, 0.02, rng.uniform(-0.03, 0.03)):
        tilted = instrument.model_copy(update={"incidence_deg": instrument.incidence_deg + error})
        ours = tables.expected_counts(table, arrangement, stack, [error])[0].astype(float)
        ours += diffuse.diffuse_counts(stack, instrument, rows, columns, [error], 0.03)[0]
        theirs = bornagain_particles.expected_counts(gold, arrangement, stack, tilted, EDGES[12:], EDGES)[0]
        still = bornagain_particles.expected_counts(gold, arrangement, stack, instrument, EDGES[12:], EDGES)[0]
        assert np.abs(still / theirs - 1).max() > 0.05
        found.append(np.abs(ours / theirs - 1))
    median, most = float(np.median(found)), float(np.max(found))
    print(f"tables, {shape}, incidence 0.03 deg off: from BornAgain median {median:.1e}, at most {most:.1e}")
    assert median < 1e-5
    assert most < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_form_factor_equals_bornagains(shape: Shape) -> None:
    import bornagain as ba

    rng = np.random.default_rng(5)
    qx, qy = rng.normal(0, 1, (2, 200))
    qz = rng.normal(0, 1, 200) + 0.05j * rng.random(200)  # damped waves
    radius = np.array([0.5, 3.0, 15.0])
    height = heights(shape, radius, 1.0 if shape == "sphere" else np.array([1.0, 0.6, 0.3]))
    gold = Particles(shape, radius, height, 3e-5, 0.0)
    for r, h, ours in zip(radius, height, formfactor(shape, radius, height, qx, qy, qz), strict=True):
        theirs = bornagain_particles.form(ba, gold, float(r), float(h))
        wanted = [
            theirs.formfactorAtBottom(ba.C3(complex(x), complex(y), z)) for x, y, z in zip(qx, qy, qz, strict=True)
        ]
        size = volume(shape, r, h)
        assert size == pytest.approx(theirs.volume(), rel=1e-12)
        assert np.abs(ours - wanted).max() < 1e-13 * size


def test_hard_disks_of_several_sizes_are_ours_alone() -> None:
    gold, arrangement, stack = drawn(np.random.default_rng(1), "sphere", "paracrystal", 0, 0)
    several = Particles(gold.shape, gold.radius, gold.height, gold.delta, gold.beta, interference="hard-disks")
    with pytest.raises(ConfigError, match="must be of one size, got several; use engine dwba"):
        bornagain_particles.expected_counts(several, arrangement, stack, INSTRUMENT, EDGES, EDGES)
    covered = np.pi * particles.disk_radius(several, arrangement.shares) ** 2
    assert covered == pytest.approx(arrangement.shares @ (np.pi * several.radius**2))
    counts = dwba.expected_counts(several, arrangement, stack, INSTRUMENT, pairs(EDGES), pairs(EDGES))
    assert np.isfinite(counts).all()
    assert counts.max() > 0
