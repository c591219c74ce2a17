"""Bundles: what was saved is loaded, and every kind of damage is one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from scatterflow.config.study import MultilayerConfig
from scatterflow.errors import BundleError, ConfigError, StoreError
from scatterflow.models import Model, load_model, save, train
from scatterflow.models.bundle import load_bundle, save_bundle
from scatterflow.multilayer import MultilayerStudy
from scatterflow.progress import quiet
from scatterflow.provenance import digest
from scatterflow.verdict import fit_features
from tests import examples

ENCODER = {"hidden": 8, "outputs": 6, "components": 4}
PHASE = {"epochs": 2, "batch_size": 16}
MODELS = {
    "cvae-maf": {
        "kind": "cvae-maf",
        "cvae": {"channels": [4, 6], "latent": 2, "encoder": ENCODER},
        "flow": {"hidden": 12, "transforms": 2, "encoder": ENCODER},
        "training": {"cvae": PHASE, "flow": PHASE},
    },
    "joint": {
        "kind": "cvae-maf",
        "cvae": {"channels": [4, 6], "latent": 2, "encoder": ENCODER},
        "flow": {"hidden": 12, "transforms": 2, "encoder": ENCODER},
        "training": {"mode": "joint", "flow": PHASE},
    },
    "summary": {
        "kind": "summary-maf",
        "summary": {"profile_components": 4, "image_components": 6, "hidden": 12, "outputs": 6},
        "cvae": {"channels": [4, 6], "latent": 2, "encoder": ENCODER},
        "flow": {"hidden": 12, "transforms": 2},
        "training": {"cvae": PHASE, "flow": PHASE},
    },
    "control": {
        "kind": "maf-profile",
        "flow": {"hidden": 12, "transforms": 2, "encoder": ENCODER},
        "training": {"flow": PHASE},
    },
}
LIMITS = {"features": {"threshold": 2.5, "n": 20}, "predictive": {"threshold": 3.5, "n": 20}}


def study_of(**sample) -> MultilayerStudy:
    config = MultilayerConfig(
        instrument=examples.instrument(),
        sample=examples.sample(**sample),
        simulate={"simulations": 200, "held_back": 20, "validation": 40, "shard_size": 100},
        models=MODELS,
    )
    return MultilayerStudy("tiny", config, 5, "run")


def rows_of(study: MultilayerStudy) -> xr.Dataset:
    """Features that follow their parameters a little; simulating is not the point here."""
    rng = np.random.default_rng(0)
    n, points, shape = 120, 26, (30, 8)
    theta = study.prior.sample(n, seed=1)
    box = study.prior.to_box(theta)
    profile = 1 / (1 + np.exp(-box @ rng.normal(size=(box.shape[1], points))))
    image = 1 / (1 + np.exp(-(box @ rng.normal(size=(box.shape[1], 240))).reshape(n, *shape)))
    return xr.Dataset(
        {
            "profile": (("simulation", "profile_point"), profile.astype(np.float32)),
            "mask_profile": (("simulation", "profile_point"), np.ones((n, points), bool)),
            "image": (("simulation", "z_image", "y_image"), image.astype(np.float32)),
            "mask_image": (("simulation", "z_image", "y_image"), np.ones((n, *shape), bool)),
            "parameters": theta,
        },
        coords={"split": ("simulation", np.array(["validation"] * 40 + ["train"] * 80))},
    )


@pytest.fixture(scope="module")
def study() -> MultilayerStudy:
    return study_of()


@pytest.fixture(scope="module")
def rows(study) -> xr.Dataset:
    return rows_of(study)


@pytest.fixture(scope="module", params=list(MODELS))
def trained(request, study, rows, tmp_path_factory) -> Model:
    return train(study, request.param, rows, tmp_path_factory.mktemp("models"), lambda _: None, quiet)


@pytest.fixture(scope="module")
def saved(study, rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model = train(study, "control", rows, folder, lambda _: None, quiet)
    return save(folder / "control", model, fit_features(rows, 0), LIMITS).parent


@pytest.fixture
def bundle(saved, tmp_path) -> Path:
    """A fresh copy to damage."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_round_trip(trained, rows, tmp_path):
    work = trained.work
    assert (work / "history.csv").exists()
    path = save(tmp_path / trained.name, trained, fit_features(rows, 0), LIMITS)
    assert {each.name for each in path.parent.iterdir()} == {
        "bundle.json",
        "weights.safetensors",
        "card.md",
        "history.csv",
    }
    assert not work.exists(), "checkpoints go when the bundle is there"
    assert [each.name for each in tmp_path.iterdir()] == [trained.name], "no temporary folder stays"
    loaded = load_model(path.parent)
    assert loaded.name == trained.name
    assert loaded.study == trained.study
    assert loaded.identity == trained.identity
    assert loaded.training == trained.training
    assert loaded.verdict == LIMITS
    assert loaded.modes == trained.modes
    theta = rows["parameters"].values
    for mode in trained.modes:
        assert loaded.facts(mode) == trained.facts(mode)
        first, second = trained.posterior(rows, mode), loaded.posterior(rows, mode)
        np.testing.assert_array_equal(first.sample(5), second.sample(5))
        np.testing.assert_array_equal(first.log_prob(theta), second.log_prob(theta))
    np.testing.assert_allclose(loaded.feature_score.score(rows), fit_features(rows, 0).score(rows), rtol=1e-4)
    json.dumps(loaded.facts(loaded.modes[0]), allow_nan=False)


def test_phases_and_card_tell_how_it_was_trained(trained):
    names = [phase["phase"] for phase in trained.training["phases"]]
    phases = {"cvae-maf": ["cvae", "flow"], "joint": ["joint"], "summary": ["cvae", "summary"], "control": ["flow"]}
    assert names == phases[trained.name]
    assert trained.training["rows"] == {"train": 80, "validation": 40}
    if trained.work is not None and trained.work.exists():
        table = (trained.work / "history.csv").read_text().splitlines()
        assert len(table) == 1 + 2 * len(names)


def test_every_weight_has_learnt(trained, study):
    """Separate or joint, no part of the networks stays as it was initialised."""
    from scatterflow import seeds
    from scatterflow.models.networks import Networks

    torch.manual_seed(seeds.integer(study.seed, "weights"))
    fresh = Networks(trained.estimator.config, trained.estimator.inputs, len(study.prior.names))
    changed = dict(trained.estimator.networks.named_parameters())
    same = [name for name, weight in fresh.named_parameters() if torch.equal(weight, changed[name])]
    assert [name for name in same if not name.endswith("holes.weight")] == []  # no mask of theirs has holes


def test_training_twice_gives_the_same_model(study, rows, tmp_path):
    models = [train(study, "cvae-maf", rows, tmp_path / name, lambda _: None, quiet) for name in ("a", "b")]
    first, second = (model.estimator.networks.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert models[0].estimator.fits == models[1].estimator.fits


def test_unknown_model(study, rows, tmp_path):
    with pytest.raises(ConfigError, match="model must be one of"):
        train(study, "nobody", rows, tmp_path)


def test_bundle_of_another_study_is_seen(bundle):
    told = json.loads((bundle / "bundle.json").read_text())
    told["meta"]["study"]["config"]["sample"]["layers"] = ["Ta", "TaO"]
    rewrite(bundle, told)
    with pytest.raises(BundleError, match="must have the prior of its own study"):
        load_model(bundle)


def test_features_of_another_study_are_refused(bundle, rows):
    with pytest.raises(BundleError, match="must have the model's shape"):
        load_model(bundle).posterior(rows.isel(z_image=slice(0, 20)))


def rewrite(bundle: Path, told: dict) -> None:
    """As a program would that knows the checksum."""
    told.pop("sha256")
    (bundle / "bundle.json").write_text(json.dumps(told | {"sha256": digest(told)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "must have format 1, got 99"),
        ({"kind": "crystals"}, "must be of kind multilayer, got crystals"),
        ({"model": {"kind": "maf-profile", "flow": {"hidden": 13}}}, "weights of .* must fit its model"),
        ({"model": {"kind": "os.system"}}, "must describe a model"),
        ({"inputs": {"points": -1, "image_shape": [1]}}, "must describe a model"),
        ({"prior": [{"name": "a"}]}, "must describe a model"),
        ({"modes": {"profile": {"evil": 1}}}, "must describe a model"),
        ({"meta": {}}, "must hold a model of a study"),
        ({"weights": {}}, "another checksum"),
    ],
)
def test_strange_descriptions(bundle, change, message):
    rewrite(bundle, json.loads((bundle / "bundle.json").read_text()) | change)
    with pytest.raises(BundleError, match=message) as error:
        load_model(bundle)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors"])
def test_missing_truncated_empty_flipped_and_foreign_files(bundle, name):
    path = bundle / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    flipped = []
    for position in rng.integers(0, len(whole), 40):
        flipped.append(bytearray(whole))
        flipped[-1][position] ^= 1 << int(rng.integers(0, 8))
    for content in (b"", whole[: len(whole) // 2], whole[:-1], b"\x80\x04.", b"[1, 2]", *flipped):
        if content.strip() == whole.strip():
            continue
        path.write_bytes(bytes(content))
        with pytest.raises(BundleError) as error:
            load_model(bundle)
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(BundleError, match="must exist"):
        load_model(bundle)


def test_no_bundle_at_all(tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    for folder in (tmp_path / "nothing", file, tmp_path):
        with pytest.raises(BundleError, match="must exist"):
            load_model(folder)


def test_a_disk_that_refuses_leaves_the_old_bundle(bundle, monkeypatch, tmp_path):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    estimator = load_bundle(bundle).estimator
    obstacle = tmp_path / "file"
    obstacle.write_text("in the way")
    with pytest.raises(StoreError, match="cannot be read or written"):
        save_bundle(obstacle / "bundle", estimator, {})
    with pytest.raises(ValueError, match="Out of range float"):  # a programmer's error: nothing half written stays
        save_bundle(bundle, estimator, {"gain": float("nan")})
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_nothing_in_a_bundle_is_unpickled(bundle):
    """No pickle opcode reaches a loader: weights are safetensors, the rest is JSON and text."""
    assert {path.suffix for path in bundle.iterdir()} == {".json", ".safetensors", ".md", ".csv"}
    header = (bundle / "weights.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + length])
