"""Tables of form factors: the same images as the reference engine, for all shapes, sizes and stacks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import ConfigError, SimulationError, StoreError
from scatterflow.forward.dwba import tables_file, tables_torch
from scatterflow.forward.dwba.engine import interfaces_of
from scatterflow.forward.dwba.formfactors import SHAPES, Shape, heights
from scatterflow.forward.dwba.fresnel import reflection
from scatterflow.forward.dwba.particles import expected_counts
from scatterflow.forward.dwba.tables import Tables, tables
from scatterflow.forward.dwba.tables import expected_counts as by_tables
from scatterflow.forward.dwba.tables_incidence import reach_deg, tilts, weights
from scatterflow.forward.dwba.tables_nodes import decomposed
from scatterflow.forward.dwba.tables_structure import excess
from scatterflow.forward.dwba.tables_waves import reflected
from scatterflow.forward.particles import Arrangement, Interference, Particles, Stack, Transient, structure_factor

SIMULATIONS, SIZES = 3, 12
# 40 x 56 pixels up to 1.4 deg and 1.6 deg beside the beam, which is off the middle: both sides come from the same nodes
INSTRUMENT = InstrumentConfig(
    shape=(40, 56), pixel_mm=2.0, distance_mm=3230.0, beam_z_px=13.0, beam_y_px=20.3, wavelength_nm=0.105,
    incidence_deg=0.4, resolution_mm=0.0, background=0.0,
)  # fmt: skip
ROWS, COLUMNS = (np.column_stack([np.arange(n), np.arange(n) + 1.0]) for n in INSTRUMENT.shape)
RADIUS = np.linspace(1, 10, SIZES)


def gold(shape: Shape, interference: Interference = "paracrystal") -> Particles:
    height = heights(shape, RADIUS, 1.0 if shape == "sphere" else 0.7)
    return Particles(shape, RADIUS, height, 3e-5, 2.6e-6, interference=interference)


def drawn() -> tuple[Arrangement, Stack]:
    rng = np.random.default_rng(4)
    shares = rng.dirichlet(np.full(SIZES, 0.3), SIMULATIONS)
    arrangement = Arrangement(shares, rng.uniform(24, 30, SIMULATIONS), rng.uniform(0.1, 0.4, SIMULATIONS))
    low, high = np.array([[3e-6, 1e-8, 5, 0.2, 0.3, 5], [2e-5, 1e-6, 40, 1.0, 0.9, 30]])
    free = rng.uniform(low, high, (SIMULATIONS, 2, 6))
    silicon = np.broadcast_to([5.4e-6, 8e-8, 0.0, 0.4, 0.6, 20.0], (SIMULATIONS, 1, 6))
    return arrangement, Stack(np.concatenate([free, silicon], axis=1))


@pytest.fixture(scope="module")
def spheres() -> Tables:
    return tables(gold("sphere"), INSTRUMENT, ROWS[2:], COLUMNS)


@pytest.mark.parametrize("interference", ["none", "paracrystal", "hard-disks"])
@pytest.mark.parametrize("shape", SHAPES)
def test_images_are_those_of_the_reference(shape: Shape, interference: Interference) -> None:
    particles, described = gold(shape, interference), drawn()
    table = tables(particles, INSTRUMENT, ROWS[2:], COLUMNS)
    ours = by_tables(table, *described)
    theirs = expected_counts(particles, *described, INSTRUMENT, ROWS[2:], COLUMNS, rough=False)
    wrong = np.abs(ours / theirs - 1)
    assert ours.dtype == np.float32
    assert theirs.max() / theirs.min() > 1e4  # a claim over four decades
    assert np.median(wrong) < 1e-6
    assert wrong.max() < 1e-3


ERRORS_DEG = np.array(
    [0.02, -0.0123, 0.0]
)  # 0.05 of the incidence; horizon and specular beam move by 0.6 and 1.1 pixels


def tilted(error_deg: float) -> InstrumentConfig:
    return INSTRUMENT.model_copy(update={"incidence_deg": INSTRUMENT.incidence_deg + error_deg})


def row_of(row: int, arrangement: Arrangement, stack: Stack) -> tuple[Arrangement, Stack]:
    few = (getattr(arrangement, name)[row : row + 1] for name in ("shares", "distance_nm", "disorder"))
    return Arrangement(*few), replace(stack, layers=stack.layers[row : row + 1])


@pytest.mark.parametrize(
    ("shape", "interference"), [("sphere", "paracrystal"), ("hemi-ellipsoid", "hard-disks"), ("box", "none")]
)
def test_errors_of_the_incidence_are_those_of_the_reference(shape: Shape, interference: Interference) -> None:
    """One table for all angles against the reference at each simulation's own: as good as without errors."""
    particles, described = gold(shape, interference), drawn()
    table = tables(particles, INSTRUMENT, ROWS[2:], COLUMNS, incidence_error_deg=0.02)
    ours, where = by_tables(table, *described, ERRORS_DEG), (ROWS[2:], COLUMNS)
    for row, error in enumerate(ERRORS_DEG.tolist()):
        one = row_of(row, *described)
        theirs = expected_counts(particles, *one, tilted(error), *where, rough=False)[0]
        wrong = np.abs(ours[row] / theirs - 1)
        assert np.median(wrong) < 1e-6
        assert wrong.max() < 1e-3
        if error:
            still = expected_counts(particles, *one, INSTRUMENT, *where, rough=False)[0]
            assert np.abs(still / theirs - 1).max() > 0.1  # to be compared with what the error does
    without = by_tables(table, *described)
    assert without == pytest.approx(by_tables(table, *described, np.zeros(SIMULATIONS)))
    assert without == pytest.approx(by_tables(tables(particles, INSTRUMENT, *where), *described), rel=1e-3)


def test_tilts_are_as_many_as_phases_need() -> None:
    """Polynomials through the tilts against the wave that they shall follow; none at all without errors."""
    largest, tallest = 0.03, 40.0
    assert tilts(INSTRUMENT, tallest, 0.0, 1e-6).tolist() == [0.0]
    errors = np.linspace(-largest, largest, 101)
    rate = 2 * geometry.wavenumber(INSTRUMENT) * np.radians(tallest)
    found = {}
    for tolerance in (1e-3, 1e-6):
        at = tilts(INSTRUMENT, tallest, largest, tolerance)
        share = weights(at, errors, len(errors))
        assert share is not None
        found[tolerance] = np.abs(share @ np.exp(1j * rate * at) - np.exp(1j * rate * errors)).max()
        assert found[tolerance] < tolerance
        assert reach_deg(at) == pytest.approx(largest)
    assert found[1e-3] > 1e-6  # no more tilts than needed


@pytest.mark.parametrize("transient", ["tanh", "erf"])
def test_reflection_is_that_of_the_engine(transient: Transient) -> None:
    """From the horizon to far beyond the critical angles, with a smooth interface among the rough ones."""
    layers = drawn()[1].layers.copy()
    layers[0, 1, 3] = 0.0
    stack = Stack(layers, transient)
    k, sines = geometry.wavenumber(INSTRUMENT), np.sin(np.radians(np.geomspace(0.01, 3, 200)))
    *_, solvable = interfaces_of(torch.from_numpy(layers), torch.from_numpy(sines), k, 0.5, transient)
    theirs = reflection(solvable)
    wrong = np.abs(reflected(stack, layers, k, sines) - torch.complex(theirs.re, theirs.im).numpy())
    assert wrong.max() < 2e-6
    assert np.median(wrong) < 2e-7


def test_reflection_of_many_layers() -> None:
    """Numbers that the interfaces share are neither lost nor too small: a dozen thin layers, most of them smooth."""
    rng = np.random.default_rng(2)
    low, high = np.array([[3e-6, 1e-8, 1, 0.0, 0.3, 5], [2e-5, 1e-6, 4, 0.0, 0.9, 30]])
    layers = rng.uniform(low, high, (4, 13, 6))
    layers[2:, ::3, 3] = 0.4
    k, sines = geometry.wavenumber(INSTRUMENT), np.sin(np.radians(np.geomspace(0.01, 3, 200)))
    *_, solvable = interfaces_of(torch.from_numpy(layers), torch.from_numpy(sines), k, 0.5, "tanh")
    theirs = reflection(solvable)
    wrong = np.abs(reflected(Stack(layers), layers, k, sines) - torch.complex(theirs.re, theirs.im).numpy())
    assert wrong.max() < 5e-6


def test_structure_factors_are_those_of_the_engine() -> None:
    """Between the sharp ridge at the beam and where nothing is left of it."""
    arrangement, q = drawn()[0], np.geomspace(1e-3, 3, 500)
    theirs = structure_factor(gold("sphere"), arrangement, q)
    assert 1 + excess(gold("sphere"), arrangement, q[None])[:, 0] == pytest.approx(theirs, rel=3e-6, abs=3e-7)


def test_nodes_are_as_many_as_functions_are_independent() -> None:
    """Polynomials of degree 5 follow from 6 places; noise from no fewer than all."""
    rng = np.random.default_rng(1)
    some = rng.normal(size=(300, 6)) @ np.linspace(-1, 1, 50) ** np.arange(6)[:, None]
    nodes, between = decomposed(some, np.full(some.shape, 1e-9))
    assert len(nodes) == 6
    assert some[:, nodes] @ between == pytest.approx(some, abs=1e-9)
    noise = rng.normal(size=(300, 50))
    nodes, between = decomposed(noise, np.full(noise.shape, 1e-9))
    assert (noise[:, nodes] @ between == noise).all()


@pytest.mark.parametrize("interference", ["none", "paracrystal", "hard-disks"])
@pytest.mark.parametrize("shape", ["sphere", "box"])
def test_images_by_torch_are_those_by_numpy(shape: Shape, interference: Interference) -> None:
    """On the device that every machine has: as far as single precision allows, of which deep minima cost both some."""
    rounding = np.finfo(np.float32).eps
    particles, described = gold(shape, interference), drawn()
    around_the_beam = COLUMNS - COLUMNS.mean() + INSTRUMENT.beam_y_px
    for columns, errors in ((COLUMNS, None), (around_the_beam, ERRORS_DEG)):
        largest = 0.0 if errors is None else float(errors.max())
        table = tables(particles, INSTRUMENT, ROWS[2:], columns, incidence_error_deg=largest)
        assert table.mirrored == (columns is around_the_beam)
        ours, theirs = by_tables(table, *described, errors, device="cpu"), by_tables(table, *described, errors)
        assert ours.dtype == np.float32
        wrong = np.abs(ours / theirs - 1)
        assert np.median(wrong) < 4 * rounding
        assert wrong.max() < 2000 * rounding


def test_batches_on_a_device_do_not_matter(spheres: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = by_tables(spheres, *drawn(), device="cpu")
    monkeypatch.setitem(tables_torch._BATCH_BYTES, "cpu", 1)
    assert by_tables(spheres, *drawn(), device="cpu") == pytest.approx(whole, rel=1e-5)


def test_few_columns_are_their_own_nodes() -> None:
    """Interpolation that cannot be as good as asked is not used: large particles on a coarse detector."""
    few = COLUMNS[10:30:4]
    table, described = tables(gold("sphere"), INSTRUMENT, ROWS[2:], few), drawn()
    theirs = expected_counts(gold("sphere"), *described, INSTRUMENT, ROWS[2:], few, rough=False)
    assert len(table.across) == len(few)
    assert np.quantile(np.abs(by_tables(table, *described) / theirs - 1), 0.9) < 1e-5


def test_an_image_does_not_depend_on_the_others(spheres: Tables) -> None:
    arrangement, stack = drawn()
    every = by_tables(spheres, arrangement, stack)
    one = Arrangement(arrangement.shares[1:2], arrangement.distance_nm[1:2], arrangement.disorder[1:2])
    assert by_tables(spheres, one, replace(stack, layers=stack.layers[1:2]))[0] == pytest.approx(every[1], rel=1e-5)


def test_images_are_linear_in_the_shares(spheres: Tables) -> None:
    """Without interference: a mixture scatters as its parts do."""
    table = replace(spheres, particles=gold("sphere", "none"))
    arrangement, stack = drawn()
    same = replace(stack, layers=np.repeat(stack.layers[:1], SIMULATIONS, axis=0))
    there = replace(arrangement, distance_nm=np.full(SIMULATIONS, 25.0))
    mixed = replace(there, shares=np.repeat(there.shares.mean(axis=0, keepdims=True), SIMULATIONS, axis=0))
    assert by_tables(table, mixed, same)[0] == pytest.approx(by_tables(table, there, same).mean(axis=0), rel=3e-5)


def test_more_nodes_where_more_is_asked(spheres: Tables) -> None:
    coarse = tables(gold("sphere"), INSTRUMENT, ROWS[2:], COLUMNS, tolerance=1e-2)
    assert len(coarse.across) < len(spheres.across) < len(COLUMNS)
    assert coarse.nbytes < spheres.nbytes


def test_errors_are_one_line(spheres: Tables) -> None:
    flat = INSTRUMENT.model_copy(update={"geometry": "flat"})
    with pytest.raises(ConfigError, match=r"geometry must be bornagain for tables .*, got flat; resample"):
        tables(gold("sphere"), flat, ROWS, COLUMNS)
    with pytest.raises(ConfigError, match="must lie above the horizon, got 1 at or below it; crop the view"):
        tables(gold("sphere"), INSTRUMENT, ROWS[1:], COLUMNS)
    with pytest.raises(SimulationError, match="must be 0, the surface, for tables, got 1"):
        tables(replace(gold("sphere"), layer=1), INSTRUMENT, ROWS[2:], COLUMNS)
    arrangement, stack = drawn()
    with pytest.raises(SimulationError, match="as many shares of all sizes as stacks"):
        by_tables(spheres, arrangement, replace(stack, layers=stack.layers[:2]))
    with pytest.raises(
        SimulationError, match=r"incidence \[deg\] of row 1 must be at most 0 to either side, .*, got 0.01"
    ):
        by_tables(spheres, arrangement, stack, np.array([0.0, 0.01, 0.0]))
    with pytest.raises(ConfigError, match="must lie above the horizon, got 1 at or below it"):
        tables(gold("sphere"), INSTRUMENT, ROWS[2:], COLUMNS, incidence_error_deg=0.05)
    horizon = geometry.horizon_px(INSTRUMENT)
    direct = {"beam": "direct", "beam_z_px": 2 * horizon - INSTRUMENT.beam_z_px}
    of_direct = INSTRUMENT.model_copy(update=direct)  # here the horizon moves the other way
    assert geometry.horizon_px(of_direct) == pytest.approx(horizon)
    with pytest.raises(ConfigError, match="must lie above the horizon, got 1 at or below it"):
        tables(gold("sphere"), of_direct, ROWS[2:], COLUMNS, incidence_error_deg=0.05)


def test_a_table_is_kept_and_used_again(spheres: Tables, tmp_path: Path) -> None:
    path, described = tmp_path / "tables" / "spheres", (gold("sphere"), INSTRUMENT, ROWS[2:], COLUMNS)
    made = tables_file.kept(path, *described)
    written = path.stat().st_mtime_ns
    again = tables_file.kept(path, *described)
    assert path.stat().st_mtime_ns == written
    for table in (made, again):
        assert (by_tables(table, *drawn()) == by_tables(spheres, *drawn())).all()
    of_errors = tables_file.kept(tmp_path / "tables" / "tilted", *described, incidence_error_deg=0.02)
    read = tables_file.read(tmp_path / "tables" / "tilted", *described, incidence_error_deg=0.02)
    assert (by_tables(of_errors, *drawn(), ERRORS_DEG) == by_tables(read, *drawn(), ERRORS_DEG)).all()
    # the structure factor is no part of it
    other = tables_file.read(path, gold("sphere", "none"), *described[1:])
    assert other.particles.interference == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"particles": gold("spheroid")}, "must be of these particles and sizes, got another; delete it"),
        ({"instrument": INSTRUMENT.model_copy(update={"distance_mm": 3231.0})}, "must be of this instrument"),
        ({"rows": ROWS[3:]}, "must be of these pixels"),
        ({"tolerance": 1e-5}, "must be of this tolerance"),
        ({"incidence_error_deg": 0.01}, "must be of these errors of the incidence"),
    ],
)  # fmt: skip
def test_a_table_of_something_else_is_not_used(
    change: dict[str, object], message: str, spheres: Tables, tmp_path: Path
) -> None:
    path = tmp_path / "spheres"
    tables_file.write(path, spheres)
    asked = {"particles": gold("sphere"), "instrument": INSTRUMENT, "rows": ROWS[2:], "columns": COLUMNS} | change
    with pytest.raises(StoreError, match=message):
        tables_file.read(path, **asked)  # type: ignore[arg-type]  # one of the arguments is another of its own type
    assert tables_file.kept(path, **asked).rows.shape == np.shape(asked["rows"])  # type: ignore[arg-type]  # as above
    tables_file.read(path, **asked)  # type: ignore[arg-type]  # as above


def test_a_damaged_table_is_made_anew(spheres: Tables, tmp_path: Path) -> None:
    path, described = tmp_path / "spheres", (gold("sphere"), INSTRUMENT, ROWS[2:], COLUMNS)
    with pytest.raises(StoreError, match="spheres must exist"):
        tables_file.read(path, *described)
    tables_file.write(path, spheres)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="must be as it was written, got another checksum; delete it"):
        tables_file.read(path, *described)
    path.write_bytes(content[:1000])
    with pytest.raises(StoreError, match="must be a table of form factors"):
        tables_file.read(path, *described)
    tables_file.kept(path, *described)
    tables_file.read(path, *described)
