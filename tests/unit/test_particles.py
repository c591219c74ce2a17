"""Particles: closed forms of form and structure factors, symmetries, and what users can get wrong."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import ScatterflowError, SimulationError
from scatterflow.forward.dwba.formfactors import SHAPES, Shape, formfactor, heights, volume
from scatterflow.forward.dwba.particles import expected_counts
from scatterflow.forward.dwba.structure import hard_disks, paracrystal, paracrystal_density
from scatterflow.forward.particles import Arrangement, Particles, Stack

GOLD = Particles("spheroid", np.array([2.0, 4.0]), np.array([3.0, 6.0]), 3e-5, 2.6e-6, interference="paracrystal")
ARRANGED = Arrangement(np.array([[0.3, 0.7]]), np.array([12.0]), np.array([0.2]))
SILICON = (5.4e-6, 8e-8, 0.0, 0.4, 0.6, 20.0)
BARE = Stack(np.array([[SILICON]]))
LAYERED = Stack(np.array([[(1e-5, 1e-7, 8.0, 0.3, 0.6, 20.0), SILICON]]))
INSTRUMENT = InstrumentConfig(shape=(8, 8), pixel_mm=2.0, beam_z_px=4.0, beam_y_px=4.0, resolution_mm=0.0)
PIXELS = np.column_stack([np.arange(8), np.arange(1, 9)]).astype(float)

number = st.floats(0.2, 8.0)
vector = st.tuples(*[st.floats(-2, 2)] * 3)


@given(shape=st.sampled_from(SHAPES), radius=number, ratio=st.floats(0.2, 1.0), q=vector)
def test_symmetries_of_form_factors(shape: Shape, radius: float, ratio: float, q: tuple[float, float, float]) -> None:
    height = heights(shape, np.array([radius]), 1.0 if shape == "sphere" else ratio)
    size = float(volume(shape, np.array([radius]), height)[0])
    here = formfactor(shape, np.array([radius]), height, *map(np.array, q))[0]
    assert abs(here) <= size * (1 + 1e-12)
    mirrored = formfactor(shape, np.array([radius]), height, np.array(-q[0]), np.array(-q[1]), np.array(-q[2]))[0]
    assert mirrored == pytest.approx(np.conj(here), abs=1e-12 * size)  # the volume is real
    larger = formfactor(shape, np.array([2 * radius]), 2 * height, *(np.array(each / 2) for each in q))[0]
    assert larger == pytest.approx(8 * here, abs=1e-11 * size)
    at_zero = formfactor(shape, np.array([radius]), height, *map(np.array, (0.0, 0.0, 0.0)))[0]
    assert at_zero == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_form_factor_is_the_integral_over_the_volume(shape: Shape) -> None:
    radius, height = np.array([2.0]), heights(shape, np.array([2.0]), 1.0 if shape == "sphere" else 0.7)
    axis = (np.arange(160) + 0.5) / 80 - 1  # midpoints, in units of the half size
    x, y, z = np.meshgrid(2 * axis, 2 * axis, height[0] * (axis + 1) / 2, indexing="ij")
    square = x**2 + y**2
    inside = {
        "box": np.ones_like(x, dtype=bool),
        "cylinder": square <= 4,
        "hemi-ellipsoid": square / 4 + (z / height[0]) ** 2 <= 1,
        "truncated-sphere": square + (z - height[0] + 2) ** 2 <= 4,
    }.get(shape, square / 4 + (2 * z / height[0] - 1) ** 2 <= 1)
    cell = (2 / 80) ** 2 * height[0] / 160
    for q in ((0.3, 0.1, 0.4), (0.8, -0.5, -1.0)):
        counted = (np.exp(1j * (q[0] * x + q[1] * y + q[2] * z)) * inside).sum() * cell
        ours = formfactor(shape, radius, height, *map(np.array, q))[0, ...]
        assert abs(ours - counted) < 3e-3 * volume(shape, radius, height)[0]


def test_peak_of_a_paracrystal_lies_below_two_pi_over_distance() -> None:
    turns = np.linspace(0.3, 1.3, 20001)  # q D / 2 pi
    for disorder, place in ((0.25, 0.97), (0.5, 0.86)):
        factor = paracrystal(2 * np.pi * turns / 10, np.array(10.0), np.array(10 * disorder), 1e6)
        assert turns[factor.argmax()] == pytest.approx(place, abs=0.006)
    assert paracrystal(np.array(40.0), np.array(10.0), np.array(2.0)) == pytest.approx(1)


@given(distance=st.floats(2, 30), disorder=st.floats(0.05, 0.6), q=st.floats(0, 5))
def test_structure_factors_are_positive(distance: float, disorder: float, q: float) -> None:
    assert paracrystal(np.array(q), np.array(distance), np.array(disorder * distance)) > 0
    density = float(paracrystal_density(np.array(distance)))
    assert hard_disks(np.array(q), 0.4 * distance, density) > 0


def test_hard_disks_have_the_compressibility_of_their_fluid() -> None:
    for covered in (
        0.1,
        0.3,
        0.5,
    ):  # scaled particle theory: Helfand, Frisch & Lebowitz, J. Chem. Phys. 34, 1037 (1961)
        ours = hard_disks(np.array([0.0, 300.0]), 1.0, covered / np.pi)
        assert ours[0] == pytest.approx((1 - covered) ** 3 / (1 + covered), rel=0.06)
        assert ours[1] == pytest.approx(1, abs=0.01)


def counts(particles: Particles = GOLD, arranged: Arrangement = ARRANGED, stack: Stack = BARE) -> np.ndarray:
    return expected_counts(particles, arranged, stack, INSTRUMENT, PIXELS, PIXELS)


def test_sizes_without_a_share_do_not_count() -> None:
    one = Particles("spheroid", np.array([4.0]), np.array([6.0]), 3e-5, 2.6e-6, interference="paracrystal")
    alone = counts(one, replace(ARRANGED, shares=np.ones((1, 1))))
    assert counts(GOLD, replace(ARRANGED, shares=np.array([[0.0, 1.0]]))) == pytest.approx(alone, rel=1e-12)


def test_rows_are_independent() -> None:
    two = Arrangement(np.array([[0.3, 0.7], [0.9, 0.1]]), np.array([12.0, 15.0]), np.array([0.2, 0.4]))
    both = counts(GOLD, two, Stack(np.repeat(LAYERED.layers, 2, axis=0)))
    assert both[:1] == pytest.approx(counts(GOLD, ARRANGED, LAYERED), rel=1e-12)
    assert np.abs(both[1] / both[0] - 1).max() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(GOLD, shape="pyramid"), "shape of a particle must be one of sphere, .*, got 'pyramid'"),
        (lambda: replace(GOLD, radius=np.array([2.0, -1.0])), r"radius of a particle \[nm\] must be positive, got -1"),
        (lambda: replace(GOLD, shape="sphere"), "height of a sphere must be twice its radius; use spheroid"),
        (lambda: replace(GOLD, shape="truncated-sphere", height=np.array([4.5, 6])), "must be at most 4, got 4.5"),
        (lambda: replace(GOLD, height=np.array([3.0])), "must be a radius and a height each"),
        (lambda: replace(GOLD, delta=0.3), "delta, beta of particles must lie between 0 and 0.1"),
        (lambda: replace(GOLD, interference="crystal"), "interference of particles is not known, got 'crystal'"),
        (lambda: replace(ARRANGED, shares=np.array([[0.3, 0.3]])), "of row 0 must be 0 or more, sum 1, got 0.6"),
        (lambda: replace(ARRANGED, disorder=np.array([0.0])), "disorder of row 0 must be one positive number per row"),
        (lambda: replace(ARRANGED, distance_nm=np.ones(3)), "distance_nm of row .* must be one positive number"),
        (lambda: Stack(np.ones((1, 6))), r"layers must be \(simulation, layer, 6\), got \(1, 6\)"),
        (lambda: counts(stack=Stack(np.repeat(BARE.layers, 2, axis=0))), "must be as many shares of all sizes as stacks"),
        (lambda: counts(replace(GOLD, layer=1)), r"must be 0 \(the surface\) to 0 \(the lowest layer\), got 1"),
        (
            lambda: counts(replace(GOLD, layer=1, height=np.array([3.0, 8.5])), stack=LAYERED),
            r"height of particles \[nm\] must fit into their layer, 8 nm thick, got 8.5",
        ),
        (
            lambda: counts(replace(GOLD, interference="hard-disks"), replace(ARRANGED, distance_nm=np.array([6.0]))),
            "share of the plane under hard disks must be at most 0.7, got 1.",
        ),
    ],
)  # fmt: skip
def test_errors_are_one_line(make: object, message: str) -> None:
    with pytest.raises(SimulationError, match=message) as error:
        make()  # type: ignore[operator]  # a lambda of the table above
    assert isinstance(error.value, ScatterflowError)
    assert "\n" not in str(error.value)
