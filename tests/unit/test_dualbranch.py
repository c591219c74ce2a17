"""Dual-branch models as users meet them: what the network sees, training, bundles, answers, errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scatterflow.artefacts import frame
from scatterflow.config.dualbranch import DualBranchConfig, TrunkConfig
from scatterflow.config.study import ParticlesConfig
from scatterflow.errors import BundleError, ConfigError
from scatterflow.models import ParticleModel, load_model
from scatterflow.models.dualbranch import Reduction, reduction
from scatterflow.models.dualbranch_training import Labelled, Recorded, train_dual_branch
from scatterflow.models.particlebundle import load_particle_model, with_verdict, work_folder
from scatterflow.models.particlemodel import QUANTITIES, untrained
from scatterflow.particles import ParticlesStudy
from scatterflow.progress import quiet
from scatterflow.verdict import FeatureScore

QUICK = {"epochs": 4, "batch_size": 16, "block": 30, "fresh_every": 2}
SMALL = {"hidden": 16, "channels": [8, 8], "pixels": [8, 10]}
FLOW = {"transforms": 2, "hidden": 8}
BASE = {"trunk": SMALL, "flow": FLOW, "training": QUICK}
MODELS = {
    "columns": BASE | {"members": 2},
    "convolution": BASE | {"trunk": SMALL | {"kind": "convolution", "fold": False}},
    "perceptron": BASE | {"trunk": SMALL | {"kind": "perceptron", "dropout": 0.1}, "artefacts": False},
    "fresh": BASE | {"training": QUICK | {"fresh_every": 1}},
}
GOLD = {"name": "Au", "delta": 3e-5, "beta": 3e-6}
SILICON = {"name": "Si", "delta": 5e-6, "beta": 8e-8}
STUDY: dict[str, Any] = {
    "kind": "particles",
    "instrument": {
        "wavelength_nm": 0.1, "incidence_deg": 0.4, "distance_mm": 2500, "pixel_mm": 0.172, "shape": [400, 400],
        "background": 0, "resolution_mm": 0, "beam": "direct", "beam_z_px": 20, "beam_y_px": 200,
        "views": {"image": {"rows": [[130, 290]], "columns": [40, 360], "bins": [16, 20]}},
    },
    "sample": {
        "material": GOLD, "radius_nm": [1.0, 7.0], "sizes": 12, "distance_nm": [8.0, 18.0],
        "modes": {"mean_radius_nm": [2.0, 4.0], "relative_width": [0.15, 0.35]},
        "substrate": {"material": SILICON, "roughness_nm": 0.4, "hurst": 0.6, "correlation_length_nm": 20.0},
    },
    "simulate": {"simulations": 200, "held_back": 20, "validation": 20},
    "models": MODELS,
}  # fmt: skip
HARD_DISKS = {"sample": STUDY["sample"] | {"interference": "hard-disks", "distance_nm": [12.0, 18.0]}}
ROWS, VALIDATION = 90, 60


def study_with(**changes: Any) -> ParticlesStudy:
    return ParticlesStudy("tiny", ParticlesConfig.model_validate(STUDY | changes), 3, "test")


def simulated(study: ParticlesStudy, start: int, number: int) -> Labelled:
    """Images that tell spacing and mean radius, at no price: a peak whose place and width are theirs."""
    theta = study.prior.sample(number, seed=1, start=start).values
    names = study.prior.names
    distance, radius = (theta[:, names.index(name), None, None] for name in ("distance_nm", "mode1.radius_nm"))
    rows, columns = study.frame.shape
    z, y = np.arange(rows)[:, None], np.abs(np.arange(columns) - (columns - 1) / 2)
    counts = 5 + 100 * np.exp(-((y - 90 / distance) ** 2) / 2 - z * radius / 20)
    return Labelled(counts.astype(np.float32), theta, np.arange(start, start + number))


def features(study: ParticlesStudy, rows: Labelled, draw: int = 0) -> xr.Dataset:
    coords = {"simulation": rows.simulation}
    counts = xr.Dataset({"image": (("simulation", "z_image", "y_image"), rows.counts)}, coords)
    made = study.preprocess(study.observe(counts, draw=draw))
    return made.assign(parameters=study.prior.dataarray(rows.theta).assign_coords(coords))


def trained(study: ParticlesStudy, name: str, folder: Path) -> Path:
    train, held = simulated(study, 0, ROWS), features(study, simulated(study, ROWS, VALIDATION))
    return train_dual_branch(study, name, train, held, folder, tell=lambda _: None, tracker=quiet)


@pytest.fixture(scope="module")
def study() -> ParticlesStudy:
    return study_with()


@pytest.fixture(scope="module")
def bundle(study: ParticlesStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(study, "columns", tmp_path_factory.mktemp("models") / "columns").parent


image_and_mask = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float32, (2, *shape), elements=st.floats(0, 1e6, width=32)), arrays(np.bool_, (2, *shape))
    )
)


@given(image_and_mask, st.booleans(), st.integers(1, 3), st.integers(1, 3))
def test_reduction_is_the_mean_of_what_is_valid(
    made: tuple[np.ndarray, np.ndarray], folded: bool, z: int, y: int
) -> None:
    image, valid = made
    seen = Reduction(image.shape[1:], folded, (z, y))(image, valid)
    assert seen.log_counts.shape[1:] == Reduction(image.shape[1:], folded, (z, y)).result
    assert torch.equal(seen.log_counts == 0, (seen.log_counts == 0) | (seen.share == 0))
    # every new bin by hand: the bins that it holds, on one side or both
    columns = np.arange(image.shape[2])
    away = np.maximum(columns - image.shape[2] // 2, (image.shape[2] - 1) // 2 - columns)  # from the middle
    apart = away if folded else columns
    twice = np.where(folded & (image.shape[2] % 2 == 1) & (apart == 0), 2, 1)
    for row in range(seen.share.shape[1]):
        for column in range(seen.share.shape[2]):
            inside = (np.arange(image.shape[1]) // z == row)[:, None] & (apart // y == column)
            weight = inside * twice
            number = (weight * valid).sum((1, 2))
            whole = weight.sum()
            np.testing.assert_allclose(seen.share[:, row, column], number / whole, rtol=1e-6)
            mean = (weight * valid * image.astype(np.float64)).sum((1, 2)) / np.maximum(number, 1)
            np.testing.assert_allclose(seen.log_counts[:, row, column], np.log1p(whole * mean), rtol=1e-5, atol=1e-6)


def test_views_are_folded_where_they_are_symmetric(study: ParticlesStudy) -> None:
    assert reduction(study.frame, TrunkConfig()) == Reduction((16, 20), True, (1, 1))
    assert reduction(study.frame, TrunkConfig(pixels=(8, 5))) == Reduction((16, 20), True, (2, 2))
    assert not reduction(study.frame, TrunkConfig(fold=False)).folded
    aside = study.config.instrument.model_copy(update={"beam_y_px": 201.0})
    assert not reduction(frame(aside, "image"), TrunkConfig()).folded


@pytest.mark.parametrize("trunk", ["columns", "convolution", "perceptron"])
def test_networks_see_no_side_and_nothing_where_nothing_is_valid(study: ParticlesStudy, trunk: str) -> None:
    config = DualBranchConfig.model_validate(BASE | {"trunk": SMALL | {"kind": trunk}})
    model = ParticleModel("new", study, config, untrained(study, config).eval())
    rows = features(study, simulated(study, 0, 4))
    found = model.predict(rows, 50)
    xr.testing.assert_allclose(model.predict(rows.isel(y_image=slice(None, None, -1)), 50), found, rtol=1e-5)
    behind = rows.assign(image=rows["image"].where(rows["mask_image"], 1e5))
    xr.testing.assert_equal(model.predict(behind, 50), found)


def test_untrained_posterior_is_the_prior(study: ParticlesStudy) -> None:
    config = study.config.models["columns"]
    model = ParticleModel("new", study, config, untrained(study, config).eval())
    rows = simulated(study, 0, 5)
    posterior = model.posterior(features(study, rows))
    np.testing.assert_allclose(posterior.information_gain(rows.theta), 0, atol=1e-4)
    np.testing.assert_allclose(posterior.log_prob(rows.theta), study.prior.log_prob_box(rows.theta), atol=1e-4)


def test_epochs_show_fresh_draws(study: ParticlesStudy) -> None:
    config = study.config.models["columns"]
    rows = simulated(study, 40, 70)  # two whole blocks and a part
    with Recorded(study, rows, config, reduction(study.frame, config.trunk), study.seed) as source:
        assert source.borders() == [0, 30, 60, 70]
        for epoch in (0, 1, 2, 3):
            made = features(study, rows, draw=1 + epoch // 2)
            seen = source.reduction(made["image"].values, made["mask_image"].values)
            for number in (2, 0, 1):
                part = slice(*source.borders()[number : number + 2])
                log_counts, share, normal, sizes, second = source.block(epoch, number).tensors
                torch.testing.assert_close(log_counts, seen.log_counts[part], rtol=0, atol=0)
                torch.testing.assert_close(share.float(), seen.share[part], rtol=1e-3, atol=0)
                np.testing.assert_allclose(study.prior.from_normal(normal), rows.theta[part], rtol=1e-4)
                np.testing.assert_allclose(sizes, study.size_distribution(rows.theta[part]), rtol=1e-5)
                np.testing.assert_allclose(second, rows.theta[part, :2], rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_trained_is_loaded(study: ParticlesStudy, name: str, tmp_path: Path) -> None:
    path = trained(study, name, tmp_path / "model")
    model = load_model(path.parent)
    assert isinstance(model, ParticleModel)
    assert model.study.config == study.config
    held = features(study, simulated(study, ROWS, VALIDATION))
    found = model.predict(held, 100, seed=2)
    xr.testing.assert_equal(load_particle_model(path.parent).predict(held, 100, seed=2), found)
    assert found["size_distribution"].dims == ("simulation", "radius")
    np.testing.assert_allclose(found["size_distribution"].sum("radius"), 1)
    np.testing.assert_array_equal(found["simulation"], held["simulation"])
    for quantity in (*QUANTITIES, "size_distribution"):
        assert (found[f"{quantity}_low"] <= found[f"{quantity}_high"]).all()
    for quantity in QUANTITIES:
        assert (found[f"{quantity}_low"] <= found[quantity]).all()
        assert (found[quantity] <= found[f"{quantity}_high"]).all()
        assert (found[f"{quantity}_sd"] > 0).all()
        # as many truths lie inside as the calibration is for, up to other samples
        assert model.scores[f"coverage_{quantity}"] == pytest.approx(study.config.inference.interval, abs=0.1)
    # the same training from nothing has the same weights; in the same folder it finds itself done
    weights = (path.parent / "weights.safetensors").read_bytes()
    assert (trained(study, name, tmp_path / "other").parent / "weights.safetensors").read_bytes() == weights
    assert (trained(study, name, tmp_path / "model").parent / "weights.safetensors").read_bytes() == weights


def test_posterior_of_an_ensemble_is_a_density(study: ParticlesStudy, bundle: Path) -> None:
    model = load_particle_model(bundle)
    posterior = model.posterior(features(study, simulated(study, 200, 3)))
    theta = study.prior.sample(4000, seed=5).values
    # q / p has a mean of 1 under p, whatever q is
    ratio = np.exp(posterior.information_gain(np.broadcast_to(theta, (3, *theta.shape))).values)
    error = ratio.std(1) / np.sqrt(ratio.shape[1])
    assert (np.abs(ratio.mean(1) - 1) < 5 * error).all()
    alone = [member.log_prob(theta[:3]).values for member in posterior.members]
    np.testing.assert_allclose(posterior.log_prob(theta[:3]), np.logaddexp(*alone) - np.log(2))
    samples = posterior.sample(101, seed=4)
    assert samples.dims == ("observation", "sample", "parameter")
    assert study.prior.inside(samples.values).all()
    np.testing.assert_array_equal(samples[:, ::2], posterior.members[0].sample(51, seed=4))
    np.testing.assert_array_equal(samples[:, 1::2], posterior.members[1].sample(50, seed=4))
    assert posterior.map(20).shape == (3, len(study.prior.names))


def test_answers_do_not_depend_on_the_other_images(study: ParticlesStudy, bundle: Path) -> None:
    model = load_particle_model(bundle)
    rows = features(study, simulated(study, 200, 130))  # more than are worked on at once
    together = model.predict(rows, 60)
    assert together.sizes["simulation"] == 130
    xr.testing.assert_allclose(model.predict(rows.isel(simulation=[0]), 60), together.isel(simulation=[0]), rtol=1e-4)


def test_without_disorder_there_is_no_disorder(tmp_path: Path) -> None:
    study = study_with(**HARD_DISKS)
    path = trained(study, "columns", tmp_path / "model")
    model = load_particle_model(path.parent)
    found = model.predict(features(study, simulated(study, 200, 3)), 50)
    assert not [name for name in found if "disorder" in str(name)]
    assert found["distance_branch_nm"].shape == (3,)


def test_verdict_joins_the_bundle(study: ParticlesStudy, bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "model")
    shutil.copytree(work_folder(bundle), work_folder(folder))
    score = FeatureScore(np.zeros(3), np.ones(3), np.ones((3, 2)), 0.5)
    path = with_verdict(folder, score, {"features": {"threshold": 2.5}})
    model = load_particle_model(path.parent)
    assert model.verdict == {"features": {"threshold": 2.5}}
    np.testing.assert_array_equal(model.feature_score.loadings, score.loadings)
    assert not work_folder(folder).exists()
    assert (folder / "history.csv").read_text() == (bundle / "history.csv").read_text()
    assert "- features: 2.5" in (folder / "card.md").read_text()
    rows = features(study, simulated(study, 200, 3))
    xr.testing.assert_equal(model.predict(rows, 50), load_particle_model(bundle).predict(rows, 50))


@pytest.mark.parametrize(
    ("change", "must"),
    [
        ({"format": 99}, "must have format 1"),
        ({"kind": "multilayer"}, "must be of kind particles"),
        ({"factors": {"disorder": [2.0]}}, "must be as it was written"),
    ],
)
def test_other_bundles_are_refused(bundle: Path, tmp_path: Path, change: dict[str, Any], must: str) -> None:
    folder = shutil.copytree(bundle, tmp_path / "model")
    content = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(content | change))
    with pytest.raises(BundleError, match=must):
        load_particle_model(folder)


def test_bundles_of_other_content_are_refused(bundle: Path, tmp_path: Path) -> None:
    model = load_particle_model(bundle)
    wrong = [
        (replace(model, factors={"disorder": ()}), "must describe a model"),
        (replace(model, fits=model.fits[:1]), "must describe a model"),
        (replace(model, config=DualBranchConfig.model_validate(BASE | {"members": 2, "flow": FLOW | {"hidden": 9}})), "fit"),
    ]  # fmt: skip
    for number, (other, must) in enumerate(wrong):
        other.save(tmp_path / str(number))
        with pytest.raises(BundleError, match=must):
            load_particle_model(tmp_path / str(number))
    with torch.no_grad():
        model.networks.networks[0].level.weight.requires_grad_(False).fill_(np.nan)
    model.save(tmp_path / "nan")
    with pytest.raises(BundleError, match="must be finite"):
        load_particle_model(tmp_path / "nan")


def test_images_that_cannot_be_used_are_refused(study: ParticlesStudy, bundle: Path) -> None:
    model, rows = load_particle_model(bundle), features(study, simulated(study, 200, 3))
    where = rows["simulation"] == 201
    for wrong, must in (
        (rows.drop_vars("mask_image"), "must hold mask_image"),
        (rows.isel(y_image=slice(1, None)), "must hold image"),
        (rows.assign(image=rows["image"].where(~where)), "image 1 must be finite"),
        (rows.assign(image=rows["image"].where(~where, -1)), "image 1 must not be negative"),
        (rows.assign(mask_image=rows["mask_image"] & ~where), "image 1 must have valid bins"),
    ):
        with pytest.raises(BundleError, match=must):
            model.predict(wrong)


def test_simulations_that_do_not_fit_are_refused(study: ParticlesStudy, tmp_path: Path) -> None:
    train, held = simulated(study, 0, 40), features(study, simulated(study, 40, 20))
    with pytest.raises(ConfigError, match="model must be one of"):
        train_dual_branch(study, "none", train, held, tmp_path / "model")
    with pytest.raises(ConfigError, match="simulations must be counts"):
        train_dual_branch(study, "columns", train._replace(counts=train.counts[:, 1:]), held, tmp_path / "model")
