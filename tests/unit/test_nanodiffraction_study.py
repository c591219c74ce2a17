"""Studies of kind nanodiffraction: prior, library, simulation, noise, configuration and its mistakes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import scatterflow as sf
from scatterflow.config.loading import load_run
from scatterflow.config.regressor import DonutConfig
from scatterflow.errors import ConfigError, SimulationError
from scatterflow.nanodiffraction import NanodiffractionStudy
from scatterflow.study import load_study

RUN = Path("tests/workflow/nanodiffraction.yaml")


def study(**overrides: Any) -> NanodiffractionStudy:
    found = load_study(RUN, "film", overrides)
    assert isinstance(found, NanodiffractionStudy)
    return found


def written(folder: Path, **changes: Any) -> Path:
    content = yaml.safe_load(RUN.read_text())
    content["studies"]["film"] |= changes
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_expected_counts_have_their_maximum_and_rows_do_not_depend_on_each_other() -> None:
    one = study()
    theta = one.prior.sample(8)
    counts = one.simulate(theta)
    assert counts["frame"].dims == ("simulation", "z_frame", "y_frame")
    np.testing.assert_allclose(counts["frame"].max(("z_frame", "y_frame")), 7, rtol=1e-6)
    np.testing.assert_allclose(one.simulate(theta[5:6])["frame"][0], counts["frame"][5], atol=1e-5)
    assert counts["z_deg_frame"].attrs["units"] == "deg"
    noisy, again = (one.observe(part) for part in (counts, counts.isel(simulation=[3])))
    np.testing.assert_array_equal(noisy["frame"][3], again["frame"][0])
    assert set(one.preprocess(noisy)) == {"frame", "mask_frame"}
    assert float(noisy["frame"].sum()) == pytest.approx(float(counts["frame"].sum()), rel=0.05)


def test_noise_can_be_left_out() -> None:
    one = study(**{"observe.noise": "none"})
    counts = one.simulate(one.prior.sample(2))
    np.testing.assert_array_equal(one.observe(counts)["frame"], counts["frame"])


def test_the_grid_is_the_published_library_each_point_once() -> None:
    one = study(**{"prior.sampling": "grid", "prior.grid": 5})
    whole = one.prior.sample(125).values
    assert len(np.unique(whole, axis=0)) == 125
    for column, name in zip(whole.T, one.prior.names, strict=True):
        np.testing.assert_allclose(np.unique(column), np.linspace(*getattr(one.config.prior, name), 5), atol=1e-12)
    np.testing.assert_array_equal(one.prior.sample(3, start=40).values, whole[40:43])
    np.testing.assert_array_equal(one.prior.sample(2, start=124).values[1], whole[0])
    first = whole[:25]  # any part of it spans the box
    assert all(len(np.unique(column)) > 2 for column in first.T)


def test_thickness_is_a_parameter_where_it_has_a_range() -> None:
    one = study(**{"prior.film_thickness_nm": [10.0, 13.0]})
    assert one.prior.names == ("strain", "omega_deg", "chi_deg", "film_thickness_nm")
    assert one.prior.units[-1] == "nm"
    thin, thick = one.simulate(one.prior.dataarray([[0, 0, 0, 10.0], [0, 0, 0, 13.0]]))["frame"].values
    assert np.abs(thin - thick).max() > 0.05


def test_the_library_of_the_predecessor_is_simulated(tmp_path: Path) -> None:
    """A box on a ring of points, and the exit angle by its sine: all but the likelihood does without slopes."""
    changes = {
        "beam": {"shape": [32, 32], "pixel_mm": 0.22, "exit_angle_rule": "sine"},
        "film": {"peak_shape": "box", "peak_width": 0.675},
        "forward": {"ring_upsampling": 2},
        "baselines": {"methods": ["correlation", "centroid"], "library": 11},
        "models": {"nanobeam": {"network": "nanobeam"}},
        "test_scans": [],
    }
    one = load_study(written(tmp_path, **changes), "film")
    counts = one.simulate(one.prior.sample(4))["frame"].values
    np.testing.assert_allclose(counts.max((1, 2)), 7, rtol=1e-6)
    whole = study(**{"film.peak_shape": "box", "film.peak_width": 0.675})
    integrated = whole.simulate(whole.prior.sample(4))["frame"].values
    assert 0.95 < np.corrcoef(counts.ravel(), integrated.ravel())[0, 1] < 0.9999
    assert one.simulation_identity() != whole.simulation_identity() != study().simulation_identity()


@pytest.mark.parametrize(
    ("override", "simulations", "features"),
    [
        ({"forward.ring_upsampling": 2}, True, True),
        ({"film.thickness_nm": 12.0}, True, True),
        ({"observe.noise": "none"}, False, True),
        ({"simulate.simulations": 4000}, False, False),
        ({"models.lean.hidden": 32}, False, False),
    ],
)
def test_identity(override: dict[str, Any], simulations: bool, features: bool) -> None:
    before, after = study(), study(**override)
    assert (before.simulation_identity() != after.simulation_identity()) is simulations
    assert (before.features_identity() != after.features_identity()) is features


def test_a_frame_without_light_is_named() -> None:
    one = study()
    theta = one.prior.dataarray([[0.0, 0.0, 0.0], [0.0, 60.0, 0.0]])
    with pytest.raises(SimulationError, match=r"row 1: .*omega_deg"):
        one.simulate(theta)


@pytest.mark.parametrize("recipe", ["paper", "code"])
def test_options_of_donut_are_read_from_a_file(tmp_path: Path, recipe: str) -> None:
    donut = {"network": "donut", "recipe": recipe, "channels": [8, 8], "training": {"epochs": 3}}
    read = load_run(written(tmp_path, models={"donut": donut})).studies["film"].models["donut"]
    assert isinstance(read, DonutConfig)
    assert (read.channels, read.training.epochs) == ((8, 8), 3)
    assert read.training.batch_size == {"paper": 16, "code": 256}[recipe]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "nanodifraction"}, ("kind", "nanodiffraction")),
        ({"beam": {"energy": 9.0}}, ("beam.energy", "energy_kev")),
        ({"models": {"lean": {"network": "lin"}}}, ("network", "lean")),
        ({"prior": {"strain": [0.1, -0.1]}}, ("prior", "ascending")),
        ({"sweep": {"model": "lean", "space": {"hiden": [1, 2]}}}, ("hiden", "did you mean 'hidden'?")),
        ({"sweep": {"model": "lean", "space": {"network": ["donut"]}}}, ("network", "can vary")),
        ({"instrument": {}}, ("instrument", "unknown")),
        ({"test_scans": [{"name": "a"}, {"name": "a"}]}, ("test_scans", "twice")),
        ({"models": {"centroid": {"network": "lean"}}}, ("centroid", "taken")),
        ({"prior": {"sampling": "grid", "film_thickness_nm": [1, 2]}}, ("film_thickness_nm", "random")),
        ({"film": {"peak_shape": "bell"}}, ("film.peak_shape", "box")),
        ({"beam": {"exit_angle_rule": "sine", "shape": [64, 8], "distance_mm": 3}}, ("exit_angle_rule", "distance_mm")),
        ({"film": {"peak_shape": "box"}, "forward": {"ring_upsampling": 2}}, ("film.peak_shape", "test_scans")),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as told:
        load_run(written(tmp_path, **changes))
    assert "\n" not in str(told.value)
    assert all(word in str(told.value) for word in words), told.value


def test_kinds_and_engines_do_not_mix(tmp_path: Path) -> None:
    content = yaml.safe_load(RUN.read_text())
    del content["studies"]["film"]["kind"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"kind.*is missing"):
        sf.load_study(tmp_path / "run.yaml", "film")
    one = study()
    with pytest.raises(ConfigError, match="kinematic"):
        one.simulate(one.prior.sample(1), engine="bornagain")
    with pytest.raises(ConfigError, match="frame"):
        one.simulate(one.prior.sample(1), views=("image",))
