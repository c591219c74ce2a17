"""A dual-branch model on simulated images with artefacts: its intervals hold their share, and its answers know more."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from scatterflow.config.study import ParticlesConfig
from scatterflow.models.dualbranch_training import Labelled, train_dual_branch
from scatterflow.models.particlebundle import load_particle_model
from scatterflow.models.particlemodel import QUANTITIES, ParticleModel
from scatterflow.particles import ParticlesStudy
from scatterflow.progress import quiet
from scatterflow.sizescores import wasserstein

pytestmark = pytest.mark.science

TRAIN, VALIDATION, HELD_BACK = 3000, 800, 800
TRAINING = {"epochs": 10, "fresh_every": 5}
MODEL = {
    "trunk": {"channels": [32, 48, 48], "hidden": 128},
    "flow": {"transforms": 3, "hidden": 32},
    "training": TRAINING,
}
STUDY: dict[str, Any] = {
    "kind": "particles",
    "instrument": {
        "wavelength_nm": 0.10332, "incidence_deg": 0.4, "distance_mm": 2565, "pixel_mm": 0.172, "shape": [1679, 1475],
        "background": 0, "resolution_mm": 0, "beam": "direct", "beam_z_px": 367.5, "beam_y_px": 792.0,
        "views": {"image": {"rows": [[474, 858]], "columns": [312, 1272], "bins": [24, 64]}},
    },
    "sample": {
        "material": {"name": "Au", "delta": 2.3e-5, "beta": 2.2e-6}, "radius_nm": [0.5, 6.5], "sizes": 16,
        "modes": {"mean_radius_nm": [1.5, 4.0], "relative_width": [0.12, 0.35]}, "distance_nm": [5.0, 16.0],
        "substrate": {
            "material": {"name": "Si", "delta": 3.4e-6, "beta": 2.2e-8}, "roughness_nm": 0.4, "hurst": 0.6,
            "correlation_length_nm": 20.0,
        },
    },
    "simulate": {"simulations": 10_000, "held_back": 100, "validation": 100},
    "models": {"artefacts": MODEL, "none": MODEL | {"artefacts": False}},
}  # fmt: skip


@pytest.fixture(scope="module")
def study() -> ParticlesStudy:
    return ParticlesStudy("small", ParticlesConfig.model_validate(STUDY), 11, "test")


def simulated(study: ParticlesStudy, start: int, number: int) -> Labelled:
    theta = study.prior.sample(number, seed=1, start=start).values
    return Labelled(study.expected(theta), theta, np.arange(start, start + number))


def features(study: ParticlesStudy, rows: Labelled) -> xr.Dataset:
    coords = {"simulation": rows.simulation}
    counts = xr.Dataset({"image": (("simulation", "z_image", "y_image"), rows.counts)}, coords)
    made = study.preprocess(study.observe(counts))
    return made.assign(parameters=study.prior.dataarray(rows.theta).assign_coords(coords))


@pytest.fixture(scope="module")
def held_back(study: ParticlesStudy) -> Labelled:
    return simulated(study, TRAIN + VALIDATION, HELD_BACK)


@pytest.fixture(scope="module")
def models(study: ParticlesStudy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ParticleModel]:
    train = simulated(study, 0, TRAIN)
    validation = features(study, simulated(study, TRAIN, VALIDATION))
    folder = tmp_path_factory.mktemp("models")
    for name in study.config.models:
        train_dual_branch(study, name, train, validation, folder / name, tell=lambda _: None, tracker=quiet)
    return {name: load_particle_model(folder / name) for name in study.config.models}


def test_intervals_hold_their_share(
    study: ParticlesStudy, models: dict[str, ParticleModel], held_back: Labelled
) -> None:
    model, share = models["artefacts"], study.config.inference.interval
    found, truth = model.predict(features(study, held_back)), model.quantities_of(held_back.theta)
    # 4 standard deviations of a share of these rows, and of those that it was calibrated on
    room = 4 * np.sqrt(share * (1 - share) * (1 / HELD_BACK + 1 / VALIDATION))
    for name in QUANTITIES:
        inside = (found[f"{name}_low"].values <= truth[name]) & (truth[name] <= found[f"{name}_high"].values)
        print(f"dual branch: {inside.mean():.3f} of {name} in {share:.0%} intervals")
        assert abs(inside.mean() - share) < room, name


def test_answers_know_more_than_the_prior(
    study: ParticlesStudy, models: dict[str, ParticleModel], held_back: Labelled
) -> None:
    model = models["artefacts"]
    found, truth = model.predict(features(study, held_back)), model.quantities_of(held_back.theta)
    radius, sizes = found["radius"].values, truth["size_distribution"]
    apart = wasserstein(found["size_distribution"].values, sizes, radius)
    ignorant = wasserstein(np.full_like(sizes, 1 / len(radius)), sizes, radius)
    print(f"dual branch: W1 of p(R) {np.median(apart) / np.median(ignorant):.3f} of a uniform one's")
    assert np.median(apart) < np.median(ignorant) / 3  # the bar of the published network
    for name in QUANTITIES:
        error, spread = np.abs(found[name].values - truth[name]), np.abs(truth[name] - np.median(truth[name]))
        print(
            f"dual branch: median error of {name} {np.median(error):.3g}, {np.median(error) / np.median(spread):.3f}x"
        )
        assert np.median(error) < np.median(spread) / 2, name
    second = np.abs(found["distance_branch_nm"].values / truth["distance_nm"] - 1)
    assert np.median(second) < np.median(np.abs(truth["distance_nm"] / np.median(truth["distance_nm"]) - 1)) / 4


def test_posterior_is_worth_what_its_samples_say(
    study: ParticlesStudy, models: dict[str, ParticleModel], held_back: Labelled
) -> None:
    posterior = models["artefacts"].posterior(features(study, held_back))
    gain = posterior.information_gain(held_back.theta).values
    # a calibrated posterior expects of its own samples the log density that the truth has (mean over images)
    samples = posterior.sample(40, seed=2).values
    expected = posterior.information_gain(samples).values.mean(1)
    error = np.std(gain - expected) / np.sqrt(len(gain))
    print(
        f"dual branch: information gain {gain.mean():.2f} nat, {expected.mean():.2f} of its own samples +- {error:.2f}"
    )
    assert gain.mean() > 3
    assert abs(gain.mean() - expected.mean()) < 5 * error + 0.1


def test_training_without_artefacts_is_worse_where_there_are_some(
    study: ParticlesStudy, models: dict[str, ParticleModel], held_back: Labelled
) -> None:
    made = features(study, held_back)
    gain = {name: model.posterior(made).information_gain(held_back.theta).values for name, model in models.items()}
    print(f"dual branch: {(gain['artefacts'] - gain['none']).mean():.2f} nat are those of training with artefacts")
    difference = gain["artefacts"] - gain["none"]
    assert difference.mean() > 5 * difference.std() / np.sqrt(len(difference))
