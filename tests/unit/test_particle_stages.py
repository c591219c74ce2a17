"""Stages of kind particles that need no model: the sets of images, the methods of today, figures of merit, estimates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import linear_sum_assignment
from scipy.stats import beta, norm, wasserstein_distance

from scatterflow import estimates
from scatterflow.errors import StoreError
from scatterflow.particles import QUANTITIES, ParticlesStudy
from scatterflow.progress import quiet
from scatterflow.sizescores import MODES, mean_and_width, modes
from scatterflow.stages import preprocess, simulate
from scatterflow.stages.particles import baseline, evaluate, sets
from tests import small_particles as made

FEW = {"simulations": 30, "held_back": 10, "validation": 10, "shard_size": 30, "chunk_size": 10}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCATTERFLOW_CACHE", str(tmp_path_factory.getbasetemp() / "tables"))


def finished(study: ParticlesStudy, folder: Path) -> Path:
    simulate.run(study, folder, quiet)
    preprocess.run(study, folder, quiet)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[ParticlesStudy, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCATTERFLOW_CACHE", str(tmp_path_factory.getbasetemp() / "tables"))
        study = made.study()
        return study, finished(study, tmp_path_factory.mktemp("surface"))


# Sets of images


def test_sets_are_held_back_rows_recorded_anew(results: tuple[ParticlesStudy, Path]) -> None:
    study, folder = results
    found = sets.simulated(study, folder)
    assert {name: rows.sizes["simulation"] for name, rows in found.items()} == {
        "test": 20, "counts-10000": 10, "beyond": 10,
    }  # fmt: skip
    features = preprocess.load(study, folder)
    learnt = preprocess.rows(features, "train", "validation")["parameters"].values
    for name, rows in found.items():
        theta = rows["parameters"].values
        if name != "beyond":
            np.testing.assert_array_equal(theta, study.prior.sample(20).values[: len(theta)])
        assert not (theta[:, None, 0] == learnt[None, :, 0]).any()
        assert rows.attrs["total_counts"] == (1e4 if name == "counts-10000" else 1e5)
    # with artefacts that no training has: another seed
    counts = study.simulate(study.prior.sample(20))
    trained = study.observe(counts, config=study.artefacts_with(1e5))
    assert (trained["image"].values != found["test"]["image"].values).any((1, 2)).all()
    xr.testing.assert_equal(sets.simulated(study, folder)["test"], found["test"])


@pytest.mark.parametrize("total", [1e3, 1e5])
def test_sets_have_the_counts_asked_for(total: float) -> None:
    study = made.study(
        artefacts={"background": None} | {name: {"probability": 0} for name in ("tail", "streaks", "gaps", "aperture")}
        | {name: {"probability": 0} for name in ("beam_stop", "specular_stop")}
        | {"hot_pixels": {"number": [0, 0]}, "instrument_mask": False, "geometry": {"beam_px": 0, "distance": 0,
            "divergence_px": [0, 0], "bandwidth": [0, 0]}}
    )  # fmt: skip
    theta = study.prior.sample(30)
    counts = study.simulate(theta).assign(parameters=theta)
    sums = sets.recorded(study, counts, total)["image"].sum(("z_image", "y_image")).values
    z = (sums - total) / np.sqrt(total)
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    assert np.abs(z).max() < 5


def test_beyond_is_the_same_samples_with_more_disorder(results: tuple[ParticlesStudy, Path]) -> None:
    study, folder = results
    found = sets.simulated(study, folder)
    at = study.prior.names.index("disorder")
    beyond, test = found["beyond"]["parameters"].values, found["test"]["parameters"].values[:10]
    low, high = study.config.evaluation.beyond_disorder
    assert ((beyond[:, at] > low) & (beyond[:, at] < high)).all()
    assert len(set(beyond[:, at])) == 10
    np.testing.assert_array_equal(np.delete(beyond, at, 1), np.delete(test, at, 1))
    # its images are those of the disorder: recorded without artefacts they are the engine's
    few = xr.Dataset({"image": found["test"]["image"][:3], "parameters": found["test"]["parameters"][:3]})
    images = sets._beyond(study, few)
    np.testing.assert_allclose(images["image"], study.expected(images["parameters"].values), rtol=1e-6)
    assert (found["beyond"]["image"].values != found["test"]["image"].values[:10]).any()


def test_without_disorder_nothing_is_beyond(tmp_path: Path) -> None:
    study = made.study(sample={"interference": "none"}, simulate=FEW)
    assert set(sets.simulated(study, finished(study, tmp_path))) == {"test", "counts-10000"}


def test_sets_need_simulations(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="simulate") as caught:
        sets.simulated(made.study(), tmp_path)
    assert "\n" not in str(caught.value)


# Methods of today


def test_baselines_answer_all_sets(results: tuple[ParticlesStudy, Path]) -> None:
    study, folder = results
    told: list[str] = []
    baseline.run(study, folder, told.append)
    assert [line.split(":")[0] for line in told] == ["cut-fit", "abc", "peak", "uniform"]
    for method in study.config.methods:
        groups = evaluate.read_estimates(folder / "baseline" / f"{method}.nc")
        assert set(groups) == ({"test"} if method == "cut-fit" else {"test", "counts-10000", "beyond"})
        test = groups["test"]
        assert test.sizes["simulation"] == (3 if method == "cut-fit" else 20)
        assert set(test.data_vars) >= {f"{name}_true" for name in QUANTITIES}
        assert all(np.isfinite(each).all() for name, each in test.data_vars.items() if not name.endswith("_sd"))
    assert "size_distribution" not in evaluate.read_estimates(folder / "baseline" / "peak.nc")["test"]
    judged = evaluate.merit(evaluate.read_estimates(folder / "baseline" / "abc.nc")["test"])
    assert judged["n"] == 20
    assert judged["distance_nm"]["median_error"] < 9 / 4
    told = {method: "modes" in evaluate.merit(evaluate.read_estimates(folder / "baseline" / f"{method}.nc")["test"])
            for method in study.config.methods}  # fmt: skip
    assert told == {"cut-fit": True, "abc": True, "peak": False, "uniform": False}


def test_methods_that_know_the_surface_only_are_left_out_inside_a_layer(tmp_path: Path) -> None:
    study = made.inside(simulate=FEW)
    told: list[str] = []
    baseline.run(study, finished(study, tmp_path), told.append)
    assert told[0] == "left out, for they know nothing of particles inside a layer: cut-fit, peak"
    assert sorted(path.stem for path in (tmp_path / "baseline").glob("*.nc")) == ["abc", "uniform"]


def test_intervals_of_a_fit_are_central_and_within_the_prior() -> None:
    study = made.study(inference={"interval": 0.9})
    found = xr.Dataset(
        {
            "distance_nm": ("simulation", [13.0, 10.0, 13.5]),
            "distance_nm_sd": ("simulation", [0.1, 5.0, np.inf]),
            "width_nm": ("simulation", [0.5, 0.5, 0.5]),
            "width_nm_sd": ("simulation", [0.1, 1.0, np.inf]),
        }
    )
    made_of = baseline.intervals(found, study)
    low, high = norm(13.0, 0.1).interval(0.9)
    assert made_of["distance_nm_low"][0] == pytest.approx(low)
    assert made_of["distance_nm_high"][0] == pytest.approx(high)
    np.testing.assert_array_equal(made_of["distance_nm_low"][1:], 9.0)
    np.testing.assert_array_equal(made_of["distance_nm_high"][1:], 18.0)
    np.testing.assert_array_equal(made_of["width_nm_low"][1:], 0.0)
    np.testing.assert_array_equal(made_of["width_nm_high"][2:], 3.0)  # half of all sizes at either end


# Figures of merit


def answers(**values: Any) -> xr.Dataset:
    return xr.Dataset({name: ("simulation", np.asarray(each)) for name, each in values.items()})


def test_merit_of_known_answers() -> None:
    true = np.array([10.0, 10.0, 20.0, 40.0, 50.0])
    value = true + np.array([1.0, -2.0, 0.0, 4.0, -10.0])
    rows = answers(
        distance_nm=value, distance_nm_true=true, distance_nm_low=value - np.array([1, 1, 1, 1, 10]),
        distance_nm_high=value + np.array([1, 1, 1, 3, 10]), wasserstein_nm=[1.0, 2.0, 3.0, 4.0, 10.0],
        outside=[True, False, False, True, False], information_gain=[1.0, 2.0, 3.0, 4.0, 5.0],
    )  # fmt: skip
    found = evaluate.merit(rows)
    assert found["n"] == 5
    entry = found["distance_nm"]
    assert entry["median_error"] == 2.0
    assert entry["mean_error"] == pytest.approx(17 / 5)
    assert entry["median_relative_error"] == pytest.approx(0.1)
    assert entry["median_width"] == 2.0
    assert entry["coverage"] == pytest.approx(3 / 5)  # both borders belong to it
    assert found["wasserstein_nm"] == {"median": 3.0, "mean": 4.0}
    assert found["outside"] == pytest.approx(2 / 5)
    assert found["information_gain"]["mean"] == 3.0
    assert found["information_gain"]["se"] == pytest.approx(np.std([1, 2, 3, 4, 5], ddof=1) / np.sqrt(5))
    assert "disorder" not in found


def test_errors_of_modes_are_those_of_the_nearest_assignment() -> None:
    study = made.study(sample={"modes": {"number": 3, "mean_radius_nm": [1.0, 5.0], "relative_width": [0.1, 0.3]}})
    truth, samples = study.prior.sample(40, seed=5).values, prior_samples(study, 40, 31)
    told = estimates.with_modes(xr.Dataset(), study.prior.names, samples.values)
    rows = estimates.beside_truth(study, told, truth)
    found = evaluate.merit(rows)["modes"]
    assert found["number"] == 3
    columns = dict(zip(study.prior.names, np.moveaxis(samples.values, -1, 0), strict=True))
    true = dict(zip(study.prior.names, truth.T, strict=True))
    shares = [columns["mode1.share"], columns["mode2.share"], 1 - columns["mode1.share"] - columns["mode2.share"]]
    weights = np.stack(
        [true["mode1.share"], true["mode2.share"], 1 - true["mode1.share"] - true["mode2.share"]], axis=1
    )
    errors: dict[str, list[float]] = {name: [] for name in MODES}
    for image in range(40):
        ours = [
            (np.median(columns[f"mode{mode}.radius_nm"][image]),
             np.median(columns[f"mode{mode}.radius_nm"][image] * columns[f"mode{mode}.relative_width"][image]),
             np.median(shares[mode - 1][image]))
            for mode in (2, 3, 1)  # in any order
        ]  # fmt: skip
        theirs = [
            (true[f"mode{mode}.radius_nm"][image],
             true[f"mode{mode}.radius_nm"][image] * true[f"mode{mode}.relative_width"][image], weights[image, mode - 1])
            for mode in (1, 2, 3)
        ]  # fmt: skip
        far = np.subtract.outer([each[0] for each in theirs], [each[0] for each in ours]) ** 2  # the best one is unique
        for number, name in enumerate(MODES):
            pairs = zip(*linear_sum_assignment(far), strict=True)
            off = [abs(theirs[one][number] - ours[other][number]) for one, other in pairs]
            errors[name].append(float(weights[image] @ off))
    for name in MODES:
        assert found[name]["median_error"] == pytest.approx(np.median(errors[name]))
        assert found[name]["mean_error"] == pytest.approx(np.mean(errors[name]))


def test_modes_of_a_size_distribution_are_its_own() -> None:
    study = made.study(
        sample={"sizes": 300, "radius_nm": [0.1, 20.0], "interference": "none",
                "modes": {"number": 2, "mean_radius_nm": [1.5, 4.0], "relative_width": [0.12, 0.3]}}
    )  # fmt: skip
    theta = study.prior.sample(30).values
    found, p = modes(study.prior.names, theta), study.size_distribution(theta)
    mean, width = mean_and_width(p.values, p["radius"].values)
    radius, deviation, share = found.values()
    np.testing.assert_allclose(share.sum(1), 1)
    np.testing.assert_allclose((share * radius).sum(1), mean, rtol=2e-3)
    second = (share * (radius**2 + deviation**2)).sum(1)
    np.testing.assert_allclose(np.sqrt(second - (share * radius).sum(1) ** 2), width, rtol=5e-3)
    assert (np.diff(radius) > 0).all()


def test_a_true_mode_without_particles_counts_for_nothing() -> None:
    one = xr.Dataset({
        name: (("simulation", "mode"), np.array([values]))
        for name, values in {
            "mode_radius_nm": [2.0, 9.0], "mode_radius_nm_true": [2.5, 5.0], "mode_width_nm": [1.0, 0.1],
            "mode_width_nm_true": [0.5, 0.2], "mode_share": [0.9, 0.1], "mode_share_true": [1.0, 0.0],
        }.items()
    })  # fmt: skip
    found = evaluate.merit(one)["modes"]
    assert found["mode_radius_nm"]["median_error"] == pytest.approx(0.5)
    assert found["mode_radius_nm"]["median_relative_error"] == pytest.approx(0.2)
    assert found["mode_width_nm"]["median_relative_error"] == pytest.approx(1.0)
    assert "median_relative_error" not in found["mode_share"]


@pytest.mark.parametrize(("held", "of"), [(0, 7), (3, 7), (7, 7), (70, 100)])
def test_intervals_of_shares_are_clopper_and_pearsons(held: int, of: int) -> None:
    found = evaluate.share("coverage", np.arange(of) < held)
    tail = (1 - evaluate.CONFIDENCE) / 2
    low = beta.ppf(tail, held, of - held + 1) if held else 0.0
    high = beta.ppf(1 - tail, held + 1, of - held) if held < of else 1.0
    assert found == {
        "coverage": held / of, "coverage_low": pytest.approx(low), "coverage_high": pytest.approx(high),
    }  # fmt: skip


def test_errors_are_told_by_disorder() -> None:
    study = made.study()
    true = np.linspace(0.05, 0.35, 41)
    rows = answers(disorder=true + true**2, disorder_true=true)
    bins = evaluate._by_disorder(study, rows)
    np.testing.assert_allclose([entry["low"] for entry in bins], [0.05, 0.125, 0.2, 0.275])
    np.testing.assert_allclose([entry["high"] for entry in bins], [0.125, 0.2, 0.275, 0.35])
    for entry in bins:
        inside = true[(true >= entry["low"]) & (true <= entry["high"])]
        assert entry["n"] == len(inside)
        assert entry["disorder"]["median_error"] == pytest.approx(np.median(inside) ** 2)


@pytest.mark.parametrize("content", [b"", b"no NetCDF"])
def test_damaged_estimates_are_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "abc.nc"
    path.write_bytes(content)
    for each in (path, tmp_path / "absent.nc"):
        with pytest.raises(StoreError, match=r"must be a readable NetCDF file.*scatterflow baseline") as caught:
            evaluate.read_estimates(each)
        assert "\n" not in str(caught.value)


# Estimates of posterior samples


@pytest.fixture(scope="module")
def study() -> ParticlesStudy:
    return made.study()


def prior_samples(study: ParticlesStudy, images: int, number: int, seed: int = 3) -> xr.DataArray:
    values = study.prior.sample(images * number, seed=seed).values.reshape(images, number, -1)
    return xr.DataArray(values, dims=("observation", "sample", "parameter"))


@pytest.mark.parametrize("interval", [0.5, 0.68, 0.9])
def test_intervals_of_exchangeable_samples_hold_their_share(study: ParticlesStudy, interval: float) -> None:
    images = 600  # more than a block of them
    samples, truth = prior_samples(study, images, 99), study.prior.sample(images, seed=4).values
    found = estimates.beside_truth(study, estimates.of_samples(study, samples, interval), truth)
    # a truth among 99 samples has any of 100 ranks alike; quantiles between samples: 98 steps of them
    share = 98 * interval / 100
    room = 4.5 * np.sqrt(share * (1 - share) / images)
    for name in QUANTITIES:
        true = found[f"{name}_true"]
        inside = float(((found[f"{name}_low"] <= true) & (true <= found[f"{name}_high"])).mean())
        assert abs(inside - share) < room, name
        assert float((true > found[name]).mean()) == pytest.approx(0.5, abs=4.5 * 0.5 / np.sqrt(images))
    truths = found["size_distribution_true"]
    inside = ((found["size_distribution_low"] <= truths) & (truths <= found["size_distribution_high"])).mean(
        "simulation"
    )
    assert np.abs(inside[2:8] - share).max() < room  # sizes that all of them have


def test_estimates_are_those_of_the_samples(study: ParticlesStudy) -> None:
    samples = prior_samples(study, 5, 60)
    found = estimates.of_samples(study, samples, 0.68)
    sizes = study.size_distribution(samples.values[2]).values
    np.testing.assert_allclose(found["size_distribution"][2], sizes.mean(0))
    np.testing.assert_allclose(found["size_distribution"].sum("radius"), 1)
    disorder = samples.values[2, :, study.prior.names.index("disorder")]
    assert found["disorder"][2] == pytest.approx(np.median(disorder))
    assert found["disorder_sd"][2] == pytest.approx(disorder.std(ddof=1))
    assert found["disorder_low"][2] == pytest.approx(np.quantile(disorder, 0.16))
    assert found["distance_nm"].attrs["units"] == "nm"
    assert found["disorder"].attrs["units"] == "1"


def test_distance_from_the_truth_is_scipys(study: ParticlesStudy) -> None:
    truth = study.prior.sample(6, seed=9).values
    found = estimates.beside_truth(study, estimates.of_samples(study, prior_samples(study, 6, 50), 0.68), truth)
    radius = found["radius"].values
    wanted = [
        wasserstein_distance(radius, radius, ours, true)
        for ours, true in zip(found["size_distribution"].values, study.size_distribution(truth).values, strict=True)
    ]
    np.testing.assert_allclose(found["wasserstein_nm"], wanted, rtol=1e-9)
    for name, values in study.quantities(truth).items():
        np.testing.assert_array_equal(found[f"{name}_true"], values)
    alone = estimates.beside_truth(study, found[["distance_nm"]], truth)
    assert "wasserstein_nm" not in alone
