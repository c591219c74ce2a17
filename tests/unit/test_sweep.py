"""The sweep: which trials there are, that each is trained once and alone, and which one is kept."""

import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.stats import chisquare, kstest

from scatterflow import models
from scatterflow.config.loading import load_run, parse_run
from scatterflow.errors import ConfigError, ScatterflowError, StoreError
from scatterflow.multilayer import MultilayerStudy
from scatterflow.progress import quiet
from scatterflow.report.gallery import Gallery
from scatterflow.report.page import render, study_page
from scatterflow.report.products import read_products
from scatterflow.stages import preprocess, simulate, sweep, train
from scatterflow.study import study_of
from scatterflow.trials import SweepManifest, study_of_trial, trials

TINY = Path(__file__).parents[1] / "workflow" / "tiny.yaml"
RATE, DECAY = "training.flow.learning_rate", "training.flow.weight_decay"
MODEL = {
    "kind": "maf-profile",
    "flow": {"transforms": 1, "hidden": 8, "layers": 1},
    "training": {"flow": {"epochs": 2}},
}


def content(options: dict[str, Any] | None) -> dict[str, Any]:
    """A run whose study has one small model and this sweep of it."""
    run = load_run(TINY).model_dump(mode="json")
    study = run["studies"]["multilayer"]
    study["simulate"] |= {"simulations": 100, "held_back": 40, "validation": 40, "shard_size": 50, "workers": 1}
    study["models"], study["inference"]["frames"] = {"control": MODEL}, []
    study["sweep"] = {"model": "control", "parallel": 1} | options if options is not None else None
    return run


def study(space: dict[str, Any], **options: Any) -> MultilayerStudy:
    return study_of(parse_run(content({"space": space} | options)), "multilayer")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    plain = study({RATE: [1e-3]})
    simulate.run(plain, folder, quiet)
    preprocess.run(plain, folder, quiet)
    return folder


@pytest.fixture
def folder(features: Path, tmp_path: Path) -> Path:
    return shutil.copytree(features, tmp_path / "study")


def swept(chosen: MultilayerStudy, folder: Path) -> tuple[SweepManifest, list[str]]:
    lines: list[str] = []
    path = sweep.run(chosen, folder, lines.append)
    assert path == folder / "sweep" / "manifest.json"
    return SweepManifest.model_validate_json(path.read_bytes()), lines


def test_every_combination_is_trained_and_the_best_is_kept(folder: Path) -> None:
    space = {RATE: [1e-3, 1e-2], "flow.hidden": [4, 8]}
    chosen = study(space, seeds=2)
    found, lines = swept(chosen, folder)
    every = [
        (dict(zip(space, each, strict=True)), seed) for each in itertools.product(*space.values()) for seed in (0, 1)
    ]
    assert [(trial.settings, trial.seed) for trial in found.trials] == every
    assert len({trial.score for trial in found.trials}) == len(every), "settings and seeds must matter"
    best = max(found.trials, key=lambda trial: trial.score or -np.inf)
    assert found.best == best.identity
    model = models.load_model(folder / "sweep" / "best")
    fit = model.estimator.fits[best.mode]
    assert (fit.gain, fit.gain_se) == (best.score, best.score_se)
    rows = preprocess.rows(preprocess.load(chosen, folder), "validation").load()
    gain = model.posterior(rows).information_gain(chosen.prior.values(rows["parameters"]), fit.draws).values
    assert float(gain.mean()) == pytest.approx(best.score, abs=1e-4)  # the score is that of validation rows
    assert float(gain.std(ddof=1) / len(gain) ** 0.5) == pytest.approx(best.score_se, abs=1e-4)
    with (folder / "sweep" / "results.csv").open() as handle:
        table = list(csv.DictReader(handle))
    assert [float(row["score"]) for row in table] == [trial.score for trial in found.trials]
    assert [row["flow.hidden"] for row in table] == [str(settings["flow.hidden"]) for settings, _ in every]
    assert {row["state"] for row in table} == {"ok"}
    assert "best of 8 trials" in lines[-1]
    assert not list((folder / "sweep").glob("*/*.training"))


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "weights.safetensors")


def test_a_trial_is_what_training_it_alone_would_be(folder: Path, tmp_path: Path) -> None:
    chosen = study({RATE: [5e-3], "flow.hidden": [4]})
    swept(chosen, folder)
    (trial,) = trials(chosen)
    train.run(study_of_trial(chosen, trial), "control", folder, lambda _: None, quiet, tmp_path / "alone")
    alone, best = weights(tmp_path / "alone" / "control"), weights(folder / "sweep" / "best")
    assert alone.keys() == best.keys()
    for name, values in alone.items():
        np.testing.assert_array_equal(best[name], values)


def bundles(folder: Path) -> dict[str, int]:
    return {path.parts[-3]: path.stat().st_mtime_ns for path in folder.glob("sweep/*/control/bundle.json")}


def test_what_is_trained_is_not_trained_again(folder: Path) -> None:
    """More values, another order, another seed option: only what is new."""
    swept(study({RATE: [1e-3], "flow.hidden": [4, 8]}), folder)
    before = bundles(folder)
    _, lines = swept(study({"flow.hidden": [8, 4, 6], RATE: [1e-3]}), folder)
    assert "1 of 3 trials" in lines[0]
    after = bundles(folder)
    assert len(after) == 3
    assert before.items() <= after.items()
    found, lines = swept(study({"flow.hidden": [4], RATE: [1e-3]}), folder)
    assert len(found.trials) == len(lines) == 1
    assert bundles(folder) == after


def test_a_trial_that_fails_does_not_stop_the_others_and_is_tried_again(folder: Path) -> None:
    chosen = study({DECAY: [1e38, 0.01]})
    found, lines = swept(chosen, folder)
    assert [trial.state for trial in found.trials] == ["failed", "ok"]
    assert "loss of flow in epoch 1 must be finite" in found.trials[0].error
    assert found.trials[0].score is None
    assert found.best == found.trials[1].identity
    assert "best of 1 trials (1 failed)" in lines[-1]
    _, lines = swept(chosen, folder)
    assert "1 of 2 trials" in lines[0]
    with pytest.raises(ScatterflowError, match=r"1 trials of the sweep must be trained.*must be finite"):
        sweep.run(study({DECAY: [1e38]}), folder, lambda _: None)
    assert "must be finite" in (folder / "sweep" / "results.csv").read_text()


def test_the_report_shows_the_trials_as_text(folder: Path) -> None:
    chosen = study({DECAY: [1e38, 0.01]})
    run = parse_run(content({"space": {DECAY: [1e38, 0.01]}}))
    found, _ = swept(chosen, folder)
    path = folder / "sweep" / "manifest.json"
    told = json.loads(path.read_text())
    told["trials"][0]["error"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(told))
    (folder / "figures").mkdir()

    def page() -> str:
        return render(run, [study_page(read_products(chosen, folder), Gallery(folder / "figures", "m"))], "", "")

    text = page()
    assert "Trials of the sweep" in text
    assert f"<code>{DECAY}</code>" in text or DECAY in text
    assert f"{found.trials[1].score:.1f}".lstrip("-")[:2] in text
    assert "failed: &lt;script&gt;" in text
    assert "<script>" not in text
    path.write_text("{}")
    with pytest.raises(StoreError, match=r"manifest\.json must be the manifest of a sweep"):
        page()
    path.unlink()
    assert "run `snakemake sweep`" in page().replace("<code>", "`").replace("</code>", "`")


def test_without_features_or_without_a_sweep_nothing_starts(features: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"manifest\.json"):
        sweep.run(study({RATE: [1e-3]}), tmp_path)
    with pytest.raises(ConfigError, match="sweep of study multilayer must be configured"):
        sweep.run(study_of(parse_run(content(None)), "multilayer"), features)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"space": {"training.flow.learnign_rate": [1e-3]}}, "did you mean 'training.flow.learning_rate'?"),
        ({"space": {"kind": ["maf-profile"]}}, "kind is no option of model 'control' that can vary"),
        ({"space": {"training.flow": [1]}}, "training.flow is no option"),
        ({"space": {}}, "space"),
        ({"space": {RATE: []}}, f"{RATE} must have at least one value"),
        ({"space": {RATE: [1e-3, 1e-3]}}, "must not have a value twice"),
        ({"space": {RATE: [1e-3, 2.0]}}, f"{RATE}=2: input should be less than 1"),
        ({"space": {"flow.hidden": [4, 8.5]}}, "flow.hidden=8.5: input should be a valid integer"),
        (
            {"space": {RATE: {"low": 1e-4, "high": 1e-2}}},
            "must be a list of values in a grid; or choose search: random",
        ),
        ({"space": {RATE: {"low": 1e-2, "high": 1e-4}}, "search": "random", "trials": 3}, "must be below high"),
        ({"space": {RATE: {"low": 0, "high": 0.1, "log": True}}, "search": "random", "trials": 3}, "must be above 0"),
        ({"space": {RATE: [1e-3]}, "search": "random"}, "trials must be given in a random search"),
        ({"space": {RATE: [1e-3]}, "trials": 3}, "trials must be given in a random search, and only there"),
        ({"space": {RATE: [1e-3], "training.seed": [1, 2]}, "seeds": 2}, "leave one of them out"),
        ({"space": {RATE: [1e-3], "flow.hidden": list(range(1, 102))}, "seeds": 100}, "10100 trainings are too many"),
        ({"space": {RATE: [1e-3]}, "model": "contorl"}, "sweep.model must be one of ['control'], got 'contorl'"),
    ],
)
def test_mistakes_are_told_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_run(content(options))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def drawn(key: str, values: dict[str, Any], number: int = 2000) -> np.ndarray:
    chosen = study({key: values, DECAY: [0.1, 0.2]}, search="random", trials=number)
    return np.array([trial.settings[key] for trial in trials(chosen)], dtype=float)


def test_random_values_are_uniform_between_their_limits() -> None:
    found = drawn("flow.encoder.dropout", {"low": 0, "high": 0.5})
    assert kstest(found, "uniform", args=(0, 0.5)).pvalue > 1e-3
    found = drawn(RATE, {"low": 1e-4, "high": 1e-1, "log": True})
    assert kstest(np.log(found), "uniform", args=(np.log(1e-4), np.log(1e3))).pvalue > 1e-3
    assert (found >= 1e-4).all()
    assert (found <= 1e-1).all()


def test_options_of_whole_numbers_get_whole_numbers() -> None:
    chosen = study(
        {"flow.hidden": {"low": 3, "high": 7}, RATE: {"low": 1e-3, "high": 1e-2}}, search="random", trials=2000
    )
    found = [trial.settings["flow.hidden"] for trial in trials(chosen)]
    assert all(type(value) is int for value in found)
    values, counts = np.unique(found, return_counts=True)
    assert values.tolist() == [3, 4, 5, 6, 7]
    assert chisquare(counts).pvalue > 1e-3


@given(few=st.integers(1, 6), more=st.integers(0, 6), order=st.permutations([RATE, DECAY, "flow.hidden"]))
def test_more_random_trials_keep_the_first_and_the_order_of_options_is_none(
    few: int, more: int, order: list[str]
) -> None:
    space = {RATE: {"low": 1e-4, "high": 1e-2, "log": True}, DECAY: [0.01, 0.1], "flow.hidden": {"low": 4, "high": 64}}
    one = trials(study(space, search="random", trials=few))
    other = trials(study({key: space[key] for key in order}, search="random", trials=few + more))
    assert [trial.identity for trial in one] == [trial.identity for trial in other][: len(one)]


def test_identity_is_that_of_what_determines_the_bundle() -> None:
    (one,) = trials(study({RATE: [1e-3]}))
    base = content({"space": {RATE: [1e-3]}})

    def identity(change: Any) -> str:
        run = json.loads(json.dumps(base))
        change(run["studies"]["multilayer"])
        (trial,) = trials(study_of(parse_run(run), "multilayer"))
        return trial.identity

    assert identity(lambda s: None) == one.identity
    assert identity(lambda s: s["sweep"].update(parallel=4)) == one.identity
    assert identity(lambda s: s["models"]["control"]["training"].update(checkpoint_minutes=1)) == one.identity
    assert identity(lambda s: s["models"]["control"]["training"].update(threads=2)) != one.identity
    assert identity(lambda s: s["simulate"].update(simulations=150)) != one.identity
    assert identity(lambda s: s["observe"].update(noise="none")) != one.identity
