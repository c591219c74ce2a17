"""Studies of kind particles: images, identities, tables that are kept, recorded frames, configuration and its mistakes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import kstest, truncnorm

from scatterflow import instrument as geometry
from scatterflow import particles, sizes
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.loading import validate
from scatterflow.config.study import ParticlesConfig
from scatterflow.errors import ConfigError, SimulationError
from scatterflow.forward.dwba import particles as dwba
from scatterflow.forward.dwba.diffuse import diffuse_counts
from scatterflow.forward.particles import Arrangement, Particles, Stack
from scatterflow.particles import tables_folder
from tests import small_particles as made

tolerances = (1e-6 * (1 + k / 1000) for k in itertools.count(1))  # another one is another table


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


# What a study is asked for


def test_quantities_are_the_moments_of_its_sizes() -> None:
    one = made.study(sample={"sizes": 400, "radius_nm": [0.3, 9.0], "distance_nm": [9.0, 18.0]})
    theta = one.prior.sample(200).values
    found = one.quantities(theta)
    assert list(found) == ["distance_nm", "disorder", "mean_radius_nm", "width_nm"]
    column = dict(zip(one.prior.names, theta.T, strict=True))
    np.testing.assert_array_equal(found["distance_nm"], column["distance_nm"])
    np.testing.assert_array_equal(found["disorder"], column["disorder"])
    # a log-normal's own moments: fine bins, hardly cut
    p = one.size_distribution(theta)
    whole = p["beyond"].values < 1e-4
    assert whole.sum() > 50
    mean, width = column["mode1.radius_nm"], column["mode1.relative_width"] * column["mode1.radius_nm"]
    np.testing.assert_allclose(found["mean_radius_nm"][whole], mean[whole], rtol=1e-3)
    np.testing.assert_allclose(found["width_nm"][whole], width[whole], rtol=0.02)
    several = one.quantities(theta.reshape(20, 10, -1))
    np.testing.assert_array_equal(several["width_nm"].ravel(), found["width_nm"])
    ordered = made.study(sample={"interference": "hard-disks", "distance_nm": [14.0, 18.0]})
    assert "disorder" not in ordered.quantities(ordered.prior.sample(2))


def test_sizes_and_heights_are_independent() -> None:
    one = made.study(sample={"aspect_ratio": [0.5, 1.1], "aspect_ratios": 10, "distance_nm": [9.0, 18.0]})
    theta = one.prior.sample(20)
    both, radii = one.size_height_distribution(theta), one.size_distribution(theta)
    assert both.dims == ("simulation", "radius", "aspect_ratio")
    np.testing.assert_allclose(both.sum("aspect_ratio"), radii, rtol=1e-12)
    mean = theta.sel(parameter="aspect_ratio").values
    width = theta.sel(parameter="aspect_width").values
    at = np.linspace(0.5, 1.1, 11)
    cut = truncnorm((0.5 - mean) / width, (1.1 - mean) / width, mean, width)
    np.testing.assert_allclose(both.sum("radius"), np.diff(cut.cdf(at[:, None]).T, axis=1), atol=1e-12)
    np.testing.assert_allclose(both["height"], 2 * both["radius"] * both["aspect_ratio"])


# Identities


@pytest.mark.parametrize(
    ("changes", "simulations", "features"),
    [
        ({}, False, False),
        ({"seed": 12}, True, True),
        ({"sample": {"disorder": [0.05, 0.3]}}, True, True),
        ({"sample": {"layers": [made.LAYER]}}, True, True),
        ({"instrument": {"incidence_deg": 0.39}}, True, True),
        ({"instrument": {"views": {"image": made.VIEW | {"bins": [16, 40]}}}}, True, True),
        ({"forward": {"engine": "bornagain"}}, True, True),
        ({"forward": {"roughness": False}}, True, True),
        ({"forward": {"table_tolerance": 1e-5}}, True, True),
        ({"instrument": {"masked": []}}, False, True),
        ({"artefacts": {"total_counts": [1e4, 1e5]}}, False, True),
        ({"artefacts": {"gaps": {"place": "random"}}}, False, True),
        ({"artefacts": {"geometry": {"distance": 0.0}}}, False, True),
        ({"artefacts": {"geometry": {"incidence_deg": 0.005}}}, True, True),
        ({"simulate": {"simulations": 180}}, False, False),
        ({"forward": {"batch_bytes": 1_000_000}}, False, False),
        ({"forward": {"accelerator": "gpu"}}, False, False),
        ({"forward": {"cross_check": 1, "tolerance": 0.1}}, False, False),
        ({"evaluation": {"total_counts": 1e4}}, False, False),
        ({"baselines": {"starts": 2}}, False, False),
    ],
)
def test_identities_change_with_what_they_depend_on(changes: dict[str, Any], simulations: bool, features: bool) -> None:
    base, other = made.study(), made.study(**changes)
    assert (other.simulation_identity() != base.simulation_identity()) is simulations
    assert (other.features_identity() != base.features_identity()) is features


def test_tolerance_of_tables_does_not_change_bornagains_images() -> None:
    one, other = (made.study(forward={"engine": "bornagain", "table_tolerance": t}) for t in (1e-6, 1e-5))
    assert one.simulation_identity() == other.simulation_identity()


@pytest.mark.parametrize(
    ("section", "change", "stages"),
    [
        ("evaluation", {"bound_rows": 5}, {"baseline", "infer", "evaluate"}),
        ("baselines", {"starts": 2}, {"baseline"}),
        ("inference", {"samples": 60}, {"train", "infer"}),
        ("models", {"dual-branch": {"artefacts": False}}, {"train"}),
        ("forward", {"cross_check": 1}, {"cross-check"}),
        ("simulate", {"shard_size": 30}, set()),
    ],
)
def test_stages_run_again_after_changes_of_their_options(
    section: str, change: dict[str, Any], stages: set[str]
) -> None:
    base, other = made.study(), made.study(**{section: change})
    names = ("cross-check", "train", "baseline", "infer", "evaluate")
    changed = {
        name for name in names if base.stage_options(name, "dual-branch") != other.stage_options(name, "dual-branch")
    }
    assert changed == stages


# Recorded frames


def test_artefacts_depend_on_seed_draw_and_number_only() -> None:
    one = made.study()
    counts = one.simulate(one.prior.sample(6))
    whole = one.observe(counts)
    xr.testing.assert_equal(one.observe(counts.isel(simulation=[4, 2])), whole.isel(simulation=[4, 2]))
    xr.testing.assert_equal(one.observe(counts, seed=one.seed, draw=0), whole)
    for other in (one.observe(counts, seed=5), one.observe(counts, draw=1)):
        assert (other["image"] != whole["image"]).any(("z_image", "y_image")).all()
    assert set(one.preprocess(whole)) == {"image", "mask_image"}
    assert (whole["image"].values[~whole["mask_image"].values] == 0).all()


@pytest.mark.parametrize("total", [1e3, 1e5])
def test_noise_alone_has_the_counts_asked_for(total: float) -> None:
    one = made.study()
    seen = made.recorded(one, one.prior.sample(40).values, total)
    assert seen["mask_image"].all()
    sums = seen["image"].sum(("z_image", "y_image")).values
    z = (sums - total) / np.sqrt(total)  # Poisson
    assert abs(z.mean()) < 4 / np.sqrt(40)
    assert 0.5 < z.std() < 1.6
    exact = made.recorded(one, one.prior.sample(3).values, total, noise=False)
    np.testing.assert_allclose(exact["image"].sum(("z_image", "y_image")), total, rtol=1e-5)


def test_real_frames_are_masked_where_the_study_is() -> None:
    one = made.study()
    counts = made.images(np.full((1, 32, 40), 7.0, dtype=np.float32)).assign(
        mask_image=(("simulation", "z_image", "y_image"), np.ones((1, 32, 40), dtype=bool))
    )
    counts["mask_image"][0, 3, 5] = False
    seen = one.seen(counts)
    width = (made.VIEW["columns"][1] - made.VIEW["columns"][0]) / 40
    masked = [column for column in range(40) if 752 < 392 + width * (column + 0.5) < 832]
    wanted = np.ones((32, 40), dtype=bool)
    wanted[:, masked] = False
    wanted[3, 5] = False
    np.testing.assert_array_equal(seen["mask_image"][0], wanted)
    np.testing.assert_array_equal(seen["image"][0], np.where(wanted, 7, 0))
    assert counts["mask_image"].values.sum() == 32 * 40 - 1  # the frame itself stays


# Tables that are kept


def test_tables_are_kept_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCATTERFLOW_CACHE", str(tmp_path / "tables"))
    assert tables_folder() == tmp_path / "tables"
    one = made.study(forward={"table_tolerance": next(tolerances)})
    theta = one.prior.sample(2).values
    first = one.expected(theta)
    (file,) = (tmp_path / "tables").iterdir()
    written = file.stat().st_mtime_ns
    forget()
    np.testing.assert_array_equal(one.expected(theta), first)
    assert file.stat().st_mtime_ns == written  # read, not made
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    forget()
    np.testing.assert_array_equal(one.expected(theta), first)
    assert file.read_bytes() != damaged
    written = file.stat().st_mtime_ns
    forget()
    np.testing.assert_array_equal(one.expected(theta), first)
    assert file.stat().st_mtime_ns == written  # what was made anew is whole


def forget() -> None:
    """Tables of this process."""
    particles._table.cache_clear()


def test_a_folder_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SCATTERFLOW_CACHE", str(tmp_path / "file" / "tables"))
    tolerance = next(tolerances)
    one = made.study(forward={"table_tolerance": tolerance})
    theta = one.prior.sample(2).values
    found = one.expected(theta)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the table of form factors is not kept: ")
    np.testing.assert_allclose(found, made.study().expected(theta), rtol=1e-4)


def test_tables_lie_in_the_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCATTERFLOW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tables_folder() == tmp_path / "scatterflow"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tables_folder() == Path.home() / ".cache" / "scatterflow"


# Configuration

LOW = made.VIEW | {"rows": [[300, 684]]}
GAUSS = made.VIEW | {"bins": [32, 1], "sampling": [2, "gauss3"]}
APART = made.VIEW | {"rows": [[474, 594], [600, 800]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"instrument": {"views": {"image": made.VIEW | {"rows": [[300, 684]]}}}},
            "above the horizon, row 471.6, but begins at row 300",
        ),
        ({"instrument": {"beam_z_px": -5000.0}}, "the horizon, row -.*must lie on the detector of 1679 rows"),
        ({"instrument": {"beam_z_px": 5000.0}}, "the horizon, row 5104.1, must lie on the detector of 1679 rows"),
        ({"instrument": {"geometry": "flat"}}, "instrument.geometry must be bornagain"),
        ({"instrument": {"background": 1.0}}, "instrument.background must be 0"),
        ({"instrument": {"views": {"image": made.VIEW, "profile": made.VIEW}}}, "must define 'image' alone"),
        ({"instrument": {"views": {"picture": made.VIEW}}}, "must define 'image' alone"),
        (
            {"instrument": {"views": {"image": GAUSS}}},
            "sampled by integers",
        ),
        ({"instrument": {"views": {"image": APART}}}, "must be one range of rows"),
        (
            {"artefacts": {"geometry": {"incidence_deg": 0.01}}},
            "above the horizon, row 474.2 at its highest, but begins at row 474",
        ),
        ({"artefacts": {"geometry": {"incidence_deg": 0.3}}}, "geometry.incidence_deg"),
        (
            {"artefacts": {"geometry": {"incidence_deg": 0.1}}, "instrument": {"incidence_deg": 0.1}},
            "incidence_deg must be below the incidence, 0.1 deg, got 0.1",
        ),
        ({"models": {"abc": {}}}, "the name 'abc' is taken"),
        ({"models": {"sets": {}}}, "the name 'sets' is taken"),
        ({"evaluation": {"beyond_disorder": [0.6, 0.4]}}, "beyond_disorder must ascend between 0 and 1"),
        ({"evaluation": {"beyond_disorder": [0.4, 1.5]}}, "beyond_disorder must ascend between 0 and 1"),
        ({"evaluation": {"counts_series": [1e4, 0.0]}}, "counts_series must be above 0"),
        ({"sample": {"modes": {"mean_radius_nm": [3.5, 4.0], "number": 4}}}, "modes: 4 of them need mean radii"),
        ({"sample": {"radius_nm": [0.5, 1.6]}}, "modes: 1 of them need mean radii"),
        ({"sample": {"modes": {"mean_radius_nm": [5.0, 6.0]}}}, "distance_nm must start at 10.2 nm or more"),
        ({"sample": {"layer": 1}}, "layer must be at most 0"),
        ({"baselines": {"methods": ["cut-fit", "guess"]}}, "methods"),
        ({"forward": {"engine": "fast"}}, "engine"),
    ],
)
def test_mistakes_are_told_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        validate(ParticlesConfig, made.configuration(**changes), "run.yaml")
    assert "\n" not in str(caught.value)


def test_a_study_needs_its_instrument() -> None:
    without = {name: part for name, part in made.STUDY.items() if name != "instrument"}
    with pytest.raises(ConfigError, match=r"instrument.*is missing") as caught:
        validate(ParticlesConfig, without, "run.yaml")
    assert "\n" not in str(caught.value)


def test_methods_for_the_surface_are_left_out_inside_a_layer() -> None:
    assert made.study().config.methods == ("cut-fit", "abc", "peak", "uniform")
    assert made.inside().config.methods == ("abc", "uniform")


def test_images_of_the_same_layers_are_those_of_each_alone() -> None:
    study = made.study(sample={"layers": [made.LAYER]})
    theta = np.repeat(study.prior.sample(3).values, 4, axis=0)
    theta[:, 0] = np.random.default_rng(0).uniform(*study.config.sample.distance_nm, len(theta))
    together = study.expected(theta[[0, 4, 1, 8, 5, 2]])
    alone = np.concatenate([study.expected(theta[[row]]) for row in (0, 4, 1, 8, 5, 2)])
    np.testing.assert_allclose(together, alone, rtol=1e-4)
