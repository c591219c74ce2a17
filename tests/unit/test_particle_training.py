"""Stage train of kind particles: on which images a model is trained, stopped and calibrated."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from scatterflow.errors import ConfigError
from scatterflow.imagecheck import coarse
from scatterflow.models.dualbranch_training import Labelled, train_dual_branch
from scatterflow.models.particlebundle import load_particle_model
from scatterflow.particles import ParticlesStudy
from scatterflow.progress import quiet
from scatterflow.stages import preprocess, simulate
from scatterflow.stages.particles import sets, train
from scatterflow.verdict import fit_features
from tests import small_particles as made

QUICK = {
    "trunk": {"hidden": 8, "channels": [4, 4], "pixels": [8, 10]},
    "flow": {"transforms": 2, "hidden": 8},
    "training": {"epochs": 3, "batch_size": 25, "block": 50, "fresh_every": 3},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[ParticlesStudy, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCATTERFLOW_CACHE", str(tmp_path_factory.getbasetemp() / "tables"))
        study, folder = (
            made.study(models={"full": QUICK, "bare": QUICK | {"artefacts": False}}),
            tmp_path_factory.mktemp("s"),
        )
        simulate.run(study, folder, quiet)
        preprocess.run(study, folder, quiet)
        for model in study.config.models:
            train.run(study, model, folder, lambda _: None, quiet)
        return study, folder


def recorded(study: ParticlesStudy, counts: xr.Dataset, artefacts: bool) -> xr.Dataset:
    """Features of the study's counts, with its artefacts or with noise alone."""
    own = study.config.artefacts.total_counts
    assert own is not None
    config = study.artefacts_with(1.0, artefacts).model_copy(update={"total_counts": own})
    return study.preprocess(study.observe(counts, config=config)).assign(parameters=counts["parameters"])


@pytest.mark.parametrize("model", ["full", "bare"])
def test_a_model_is_validated_on_images_like_those_of_its_training(
    results: tuple[ParticlesStudy, Path], model: str, tmp_path: Path
) -> None:
    study, folder = results
    counts = preprocess.simulations(study, folder).load()
    roles = np.array(preprocess.SPLITS)[preprocess.splits(study)]
    rows = counts.isel(simulation=np.flatnonzero(roles == "train"))
    learnt = Labelled(rows["image"].values, rows["parameters"].values, rows["simulation"].values)
    written = json.loads((folder / "models" / model / "bundle.json").read_text())
    for artefacts in (True, False):
        held = recorded(study, counts.isel(simulation=np.flatnonzero(roles == "validation")), artefacts)
        assert bool(held["mask_image"].all()) != artefacts
        path = train_dual_branch(
            study, model, learnt, held, tmp_path / str(artefacts), tell=lambda _: None, tracker=quiet
        )
        again = json.loads(path.read_text())
        alike = artefacts == (model == "full")
        assert (again["scores"] == written["scores"]) == alike
        assert (again["factors"] == written["factors"]) == alike
        losses = [(each / "history.csv").read_text() for each in (path.parent, folder / "models" / model)]
        told = [[line.split(",")[4] for line in text.splitlines()] for text in losses]
        assert told[0][0] == "val_loss"
        assert (told[0] == told[1]) == alike


def test_the_verdict_knows_the_images_of_the_training(results: tuple[ParticlesStudy, Path]) -> None:
    study, folder = results
    counts = preprocess.simulations(study, folder).load()
    known = counts.isel(simulation=np.flatnonzero(preprocess.splits(study) == preprocess.SPLITS.index("train")))
    images = coarse(sets.simulated(study, folder)[sets.TEST])
    for model, artefacts in (("full", True), ("bare", False)):
        score = load_particle_model(folder / "models" / model).feature_score.score(images)
        same, other = (
            fit_features(coarse(recorded(study, known, each)), study.seed).score(images)
            for each in (artefacts, not artefacts)
        )
        np.testing.assert_allclose(score, same, rtol=1e-3)  # kept in single precision
        assert not np.allclose(score, other, rtol=0.1)


def test_a_model_that_is_not_configured_is_told_in_one_line(results: tuple[ParticlesStudy, Path]) -> None:
    study, folder = results
    with pytest.raises(ConfigError, match="model must be one of") as caught:
        train.run(study, "other", folder, lambda _: None, quiet)
    assert "\n" not in str(caught.value)
