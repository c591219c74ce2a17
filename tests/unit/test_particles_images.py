"""Expected images of kind particles: rough interfaces, engines, batches, errors of the incidence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from scatterflow import instrument as geometry
from scatterflow import sizes
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import ConfigError, SimulationError
from scatterflow.forward.dwba import particles as dwba
from scatterflow.forward.dwba.diffuse import diffuse_counts
from scatterflow.forward.particles import Arrangement, Particles, Stack
from tests import small_particles as made


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "tables"
    monkeypatch.setenv("SCATTERFLOW_CACHE", str(folder))
    return folder


def edges(low: float, high: float, number: int) -> np.ndarray:
    at = np.linspace(low, high, number + 1)
    return np.column_stack([at[:-1], at[1:]])


# What rough interfaces scatter


@pytest.mark.parametrize("cut_off", [0.5, 0.02])
def test_diffuse_counts_are_those_of_every_pixel(cut_off: float) -> None:
    rng = np.random.default_rng(1)
    of = InstrumentConfig.model_validate(made.INSTRUMENT | {"views": {"image": made.VIEW}})
    rows, columns = edges(480, 1400, 24), edges(10, 1470, 60)
    particle = Particles("sphere", np.array([2.0]), np.array([4.0]), 2.3e-5, 2.2e-6)
    beyond = []
    for number in range(8):
        free = int(rng.integers(0, 4))
        low, high = np.array([[1e-6, 1e-9, 5, 0.1, 0.2, 5], [2e-5, 1e-6, 40, 1.0, 0.95, 60]])
        layers = rng.uniform(low, high, (3, free + 1, 6))
        layers[:, -1, 2] = 0.0
        cross = None if number % 2 else float(rng.uniform(5, 500))
        stack = Stack(layers, ("tanh", "erf")[number % 2], cut_off, cross)
        few = Arrangement(np.ones((3, 1)), np.full(3, 12.0), np.full(3, 0.2))
        both, alone = (dwba.expected_counts(particle, few, stack, of, rows, columns, rough) for rough in (True, False))
        wanted, found = both - alone, diffuse_counts(stack, of, rows, columns)
        assert found.shape == wanted.shape
        assert found.dtype == np.float32
        lit = wanted > 0
        # of the image: interference of correlated interfaces may leave next to nothing
        assert np.abs(found - wanted).max() <= 1e-4 * wanted.max()
        assert (np.abs(found - wanted) / both).max() < 1e-4
        # the difference of both cancels where particles are much brighter
        clear = lit & (wanted > 1e-6 * both)
        assert clear.sum() > 0.5 * lit.sum()
        np.testing.assert_allclose(found[clear], wanted[clear], rtol=3e-3)
        np.testing.assert_array_equal(found[~lit & (alone > 0)], 0)
        beyond.append((found == 0).mean())
    assert (min(beyond) > 0.1) == (cut_off < 0.5)  # the wide cut-off lies outside of the detector


@pytest.mark.parametrize("cross", [None, 60.0])
def test_diffuse_counts_with_errors_of_the_incidence(cross: float | None) -> None:
    """Against every pixel at each simulation's own incidence."""
    largest, errors = 0.015, np.array([0.015, -0.01, 0.0])
    of = InstrumentConfig.model_validate(made.INSTRUMENT | {"views": {"image": made.VIEW}})
    rows, columns = edges(480, 1400, 24), edges(10, 1470, 60)
    particle = Particles("sphere", np.array([2.0]), np.array([4.0]), 2.3e-5, 2.2e-6)
    low, high = np.array([[1e-6, 1e-9, 5, 0.1, 0.2, 5], [2e-5, 1e-6, 40, 1.0, 0.95, 60]])
    stack = Stack(np.random.default_rng(3).uniform(low, high, (3, 2, 6)), cross_correlation_length_nm=cross)
    found = diffuse_counts(stack, of, rows, columns, errors, largest)
    moved = []
    for row, error in enumerate(errors.tolist()):
        one = Stack(stack.layers[row : row + 1], cross_correlation_length_nm=cross)
        few = Arrangement(np.ones((1, 1)), np.full(1, 12.0), np.full(1, 0.2))
        tilted = of.model_copy(update={"incidence_deg": of.incidence_deg + error})
        both, alone = (
            dwba.expected_counts(particle, few, one, tilted, rows, columns, rough)[0] for rough in (True, False)
        )
        wanted = both - alone
        assert np.abs(found[row] - wanted).max() <= 1e-4 * wanted.max()
        assert (np.abs(found[row] - wanted) / both).max() < 1e-4
        moved.append(np.abs(diffuse_counts(one, of, rows, columns)[0] / found[row] - 1).max())
    assert (np.array(moved) > 0.01).tolist() == [True, True, False]


def test_roughness_is_added_and_can_be_left_out() -> None:
    rough, smooth = made.study(), made.study(forward={"roughness": False})
    theta = rough.prior.sample(3).values
    bins = geometry.axes(geometry.view(rough.config.instrument, "image"))
    besides = diffuse_counts(
        sizes.stack(rough.config.sample, theta, rough.energy_kev), rough.config.instrument, bins.z, bins.y
    )
    assert (besides > 0).all()
    both, alone = rough.expected(theta), smooth.expected(theta)
    np.testing.assert_allclose(both, alone + besides, rtol=1e-5)
    assert np.abs(both / alone - 1).max() > 1e-3


# Images


@pytest.mark.parametrize("layer", [0, 1])
def test_images_are_bornagains(layer: int) -> None:
    one = made.inside() if layer else made.study(sample={"layers": [made.LAYER]})
    theta = one.prior.sample(2)
    ours, theirs = one.simulate(theta)["image"].values, one.simulate(theta, "bornagain")["image"].values
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)


@pytest.mark.parametrize("layer", [0, 1])
def test_images_with_errors_of_the_incidence_are_bornagains(layer: int) -> None:
    tilted: dict[str, Any] = {"artefacts": {"geometry": {"incidence_deg": 0.008}}}
    one = made.inside(**tilted) if layer else made.study(sample={"layers": [made.LAYER]}, **tilted)
    theta = one.prior.sample(2)
    theta[:, -1] = [0.008, -0.006]
    ours, theirs = one.simulate(theta)["image"].values, one.simulate(theta, "bornagain")["image"].values
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)
    assert np.median(np.abs(ours / theirs - 1)) < 1e-5
    theta[:, -1] = 0.0
    off = made.inside() if layer else made.study(sample={"layers": [made.LAYER]})
    still = off.expected(theta[:, :-1].values)
    np.testing.assert_allclose(one.simulate(theta)["image"].values, still, rtol=1e-4)
    assert np.abs(ours / still - 1).max() > 0.1


def test_the_error_of_the_incidence_is_a_parameter_of_its_own() -> None:
    """Of simulations; what is asked of the sample does not depend on it. Off by default, and then nowhere."""
    off, one = made.study(), made.study(artefacts={"geometry": {"incidence_deg": 0.008}})
    assert one.prior.names == (*off.prior.names, "incidence_error_deg")
    assert one.prior.units[-1] == "deg"
    theta = one.prior.sample(2000)
    assert kstest(theta[:, -1], "uniform", (-0.008, 0.016)).pvalue > 1e-3
    few = theta[:5]
    for name in ("size_distribution", "size_height_distribution"):
        wanted = getattr(off, name)(few.values[:, :-1])
        for given in (few, few.values):
            np.testing.assert_array_equal(getattr(one, name)(given), wanted)
    for name, values in off.quantities(few.values[:, :-1]).items():
        np.testing.assert_array_equal(one.quantities(few)[name], values)
    assert "incidence_error_deg" in one.simulation_facts()
    assert not any("incidence_error" in name for name in off.simulation_facts())


def test_simulations_have_names_units_and_places() -> None:
    one = made.study()
    counts = one.simulate(one.prior.sample(3, start=5))
    assert counts["image"].dims == ("simulation", "z_image", "y_image")
    assert counts["image"].shape == (3, 32, 40)
    assert counts["image"].attrs["units"] == "counts"
    assert counts.attrs == {"study": "small", "kind": "particles"}
    np.testing.assert_array_equal(counts["simulation"], [5, 6, 7])
    assert (counts["image"] > 0).all()
    assert one.views == ("image",)


def test_samples_of_a_bin_are_summed() -> None:
    once = made.study()
    often = made.study(instrument={"views": {"image": made.VIEW | {"sampling": [2, 3]}}})
    fine = made.study(instrument={"views": {"image": made.VIEW | {"bins": [64, 120]}}})
    theta = once.prior.sample(3).values
    bins = fine.expected(theta).astype(np.float64).reshape(3, 32, 2, 40, 3).sum((2, 4))
    np.testing.assert_allclose(often.expected(theta), bins, rtol=1e-4)
    assert np.abs(once.expected(theta) / bins - 1).max() > 1e-3  # one sample is not enough for this to be no test


def test_batches_do_not_matter() -> None:
    one, small = made.study(), made.study(forward={"batch_bytes": 1_000_000})
    rows = 2 * 1_000_000 // (4 * 8 * 32 * 40)
    theta = one.prior.sample(rows).values
    together = one.expected(theta)
    np.testing.assert_allclose(small.expected(theta), together, rtol=1e-5)
    np.testing.assert_allclose(one.expected(theta[7:8])[0], together[7], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"engine": "fast"}, "engine must be one of"), ({"views": ("profile",)}, "view must be 'image', got 'profile'")],
)
def test_engines_and_views_that_are_not(arguments: dict[str, Any], message: str) -> None:
    one = made.study()
    with pytest.raises(ConfigError, match=message):
        one.simulate(one.prior.sample(1), **arguments)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one = made.study(forward={"accelerator": "gpu"})
    with pytest.raises(ConfigError, match=r"forward.accelerator must be cpu where torch finds no GPU, got gpu"):
        one.expected(one.prior.sample(1).values)


def test_counts_that_are_no_numbers_are_refused() -> None:
    one = made.study(instrument={"beam_intensity": 1e300})  # beyond float32
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(SimulationError, match="counts of row 0 must be finite"),
    ):
        one.expected(one.prior.sample(1).values)


def test_images_of_the_same_layers_are_those_of_each_alone() -> None:
    study = made.study(sample={"layers": [made.LAYER]})
    theta = np.repeat(study.prior.sample(3).values, 4, axis=0)
    theta[:, 0] = np.random.default_rng(0).uniform(*study.config.sample.distance_nm, len(theta))
    together = study.expected(theta[[0, 4, 1, 8, 5, 2]])
    alone = np.concatenate([study.expected(theta[[row]]) for row in (0, 4, 1, 8, 5, 2)])
    np.testing.assert_allclose(together, alone, rtol=1e-4)
