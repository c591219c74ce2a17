"""The sweep of kind nanodiffraction: members of an ensemble, what they are worth, and the report's table of seeds."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from scatterflow.baselines import likelihood
from scatterflow.config.loading import load_run, parse_run
from scatterflow.models.regressor import load_regressor
from scatterflow.nanodiffraction import VIEW, NanodiffractionStudy
from scatterflow.progress import quiet
from scatterflow.report.gallery import Gallery
from scatterflow.report.nanodiffraction import page
from scatterflow.report.page import render
from scatterflow.stages import preprocess, simulate, sweep
from scatterflow.stages.nanodiffraction import train
from scatterflow.study import study_of
from scatterflow.trials import SweepManifest, study_of_trial, trials
from tests import made_scans

RUN = load_run(Path(__file__).parents[1] / "workflow" / "nanodiffraction.yaml").model_dump(mode="json")
RUN["studies"]["film"]["simulate"] |= {
    "simulations": 600,
    "held_back": 50,
    "validation": 250,
    "shard_size": 600,
    "workers": 1,
}
RUN["studies"]["film"]["models"] = {"lean": {"network": "lean", "hidden": 16, "training": {"epochs": 2}}}
RUN["studies"]["film"]["sweep"] = {"model": "lean", "parallel": 1, "seeds": 2, "space": {"training.batch_size": [16]}}
CONFIG = parse_run(RUN)


def study() -> NanodiffractionStudy:
    found = study_of(CONFIG, "film")
    assert isinstance(found, NanodiffractionStudy)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("film")
    simulate.run(study(), place, quiet)
    preprocess.run(study(), place, quiet)
    sweep.run(study(), place, lambda _: None)
    return place


def manifest(folder: Path) -> SweepManifest:
    return SweepManifest.model_validate_json((folder / "sweep" / "manifest.json").read_bytes())


def test_members_differ_and_are_scored_on_validation_rows(folder: Path) -> None:
    """The record says what other noise on the same rows confirms: gain and errors over the Cramer-Rao bound."""
    one, found = study(), manifest(folder)
    assert [(trial.seed, trial.state) for trial in found.trials] == [(0, "ok"), (1, "ok")]
    counts = preprocess.simulations(one, folder)[VIEW]
    chosen = preprocess.splits(one) == preprocess.SPLITS.index("validation")
    theta = preprocess.simulations(one, folder)["parameters"].values[chosen]
    least = np.sqrt((likelihood.bound(theta, one.kinematics, 7.0) ** 2).mean(0))
    seen = np.random.default_rng(0).poisson(counts.values[chosen])
    answers = []
    for trial in found.trials:
        place = next(each for each in trials(one) if each.identity == trial.identity).folder(folder)
        values, sd = load_regressor(place / "lean").predict(seen)
        answers.append(values)
        np.testing.assert_allclose((values - theta).std(0) / least, list(trial.ratio.values()), rtol=0.2)
        gain = (norm.logpdf(theta, values, sd) + np.log(one.prior.upper - one.prior.lower)).sum(1)
        assert trial.score is not None
        assert trial.score_se is not None
        assert abs(gain.mean() - trial.score) < 4 * trial.score_se
        assert trial.score > 3  # nats: more than the prior
        assert trial.seconds > 0
    assert not np.allclose(*answers)
    best = max(found.trials, key=lambda trial: trial.score or -np.inf)
    assert load_regressor(folder / "sweep" / "best").scores["gain"] == best.score


def test_the_first_member_is_what_training_it_alone_would_be(folder: Path, tmp_path: Path) -> None:
    first = trials(study())[0]
    train.run(study_of_trial(study(), first), "lean", folder, lambda _: None, quiet, tmp_path)
    alone, member = (place / "lean" / "weights.safetensors" for place in (tmp_path, first.folder(folder)))
    assert alone.read_bytes() == member.read_bytes()
    again: list[str] = []
    sweep.run(study(), folder, again.append)
    assert len(again) == 1, "what is trained is not trained again"


def test_the_report_has_a_table_of_seeds(folder: Path, tmp_path: Path) -> None:
    made_scans.write(folder, {"waves": made_scans.scan(8)})
    text = render(CONFIG, [page(study(), folder, Gallery(tmp_path, "m"))], "", "")
    assert "Trials of the sweep" in text
    for seed in (0, 1):
        assert f"lean, seed {seed}" in text
    assert "normal distributions with the stated errors" in text
