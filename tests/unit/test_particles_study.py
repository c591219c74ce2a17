"""Studies of kind particles: identities, tables that are kept, recorded frames, configuration and its mistakes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import truncnorm

from scatterflow import particles
from scatterflow.config.loading import validate
from scatterflow.config.study import ParticlesConfig
from scatterflow.errors import ConfigError
from scatterflow.particles import tables_folder
from tests import small_particles as made

tolerances = (1e-6 * (1 + k / 1000) for k in itertools.count(1))  # another one is another table


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "tables"
    monkeypatch.setenv("SCATTERFLOW_CACHE", str(folder))
    return folder


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
