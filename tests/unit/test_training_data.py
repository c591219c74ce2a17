"""Training data that come block by block: read, observed anew, simulated anew. As a script, the one that gets killed."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from scatterflow import models
from scatterflow.config.observe import ObserveConfig
from scatterflow.config.study import MultilayerConfig
from scatterflow.data import Batches, Blocks, Rows, fresh_noise, on_the_fly, split, stored
from scatterflow.errors import ConfigError
from scatterflow.fanout import Stopped
from scatterflow.models import Model
from scatterflow.multilayer import MultilayerStudy
from scatterflow.progress import Tracker, quiet
from tests import examples
from tests.unit.test_training_resumed import signals_at

KINDS = ("resident", "stream", "fresh_noise", "on_the_fly")
ROWS, BLOCK = 60, 16


def study_of(epochs: int = 4) -> MultilayerStudy:
    small = {"hidden": 8, "outputs": 4, "components": 4}

    def training(kind: str) -> dict:
        return {"data": kind, "block": BLOCK, "flow": {"epochs": epochs, "batch_size": 10, "patience": 50}}

    config = MultilayerConfig(
        instrument=examples.instrument(),
        sample=examples.sample(),
        simulate={"simulations": 100, "held_back": 20, "validation": 20, "shard_size": 20},
        models={
            kind: {
                "kind": "maf-profile",
                "flow": {"hidden": 8, "transforms": 1, "layers": 1, "encoder": small},
                "training": training(kind),
            }
            for kind in KINDS
        },
    )
    return MultilayerStudy("tiny", config, 5, "run")


STUDY = study_of()


def made() -> tuple[xr.Dataset, xr.Dataset]:
    """Expected counts of all simulations with their parameters, and features with splits."""
    theta = STUDY.prior.sample(100)
    counts = STUDY.simulate(theta)
    features = STUDY.preprocess(STUDY.observe(counts)).assign(parameters=theta)
    roles = np.repeat(["held_back", "validation", "train"], [20, 20, 60])
    return counts.assign(parameters=theta), features.assign_coords(split=("simulation", roles))


@pytest.fixture(scope="module")
def data() -> tuple[xr.Dataset, xr.Dataset]:
    return made()


def train(
    kind: str,
    folder: Path,
    data: tuple[xr.Dataset, xr.Dataset],
    study: MultilayerStudy = STUDY,
    tracker: Tracker = quiet,
) -> Model:
    counts, features = data
    rows = features if kind == "resident" else features.chunk(simulation=20)
    lazy = counts.isel(simulation=slice(40, None)).chunk(simulation=20)
    return models.train(study, kind, rows, folder, lambda _: None, tracker, counts=lazy)


def weights(model: Model) -> np.ndarray:
    return torch.cat([each.double().flatten() for each in model.estimator.networks.state_dict().values()]).numpy()


@pytest.mark.parametrize("kind", ["stream", "on_the_fly"])
def test_kill_and_rerun_end_with_the_same_weights(kind, data, tmp_path):
    study = study_of(epochs=12)
    undisturbed = train(kind, tmp_path / "undisturbed", data, study)
    command = [sys.executable, "-m", "tests.unit.test_training_data", kind, str(tmp_path / "killed")]
    running = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    checkpoint = tmp_path / "killed" / f"{kind}.training" / "flow.ckpt"
    deadline = time.monotonic() + 200
    while not checkpoint.exists():
        assert running.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    running.kill()
    running.wait()
    resumed = train(kind, tmp_path / "killed", data, study)
    np.testing.assert_array_equal(weights(resumed), weights(undisturbed))
    assert resumed.training["phases"][0]["epochs"] == 12


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_in_the_middle_of_an_epoch_it_ends_with_the_same_weights(kind, data, tmp_path):
    undisturbed = train(kind, tmp_path / "undisturbed", data)
    for step in (9, 4):  # the second run gets four steps further
        with pytest.raises(Stopped):
            train(kind, tmp_path / "stopped", data, tracker=signals_at({step: signal.SIGTERM}))
    resumed = train(kind, tmp_path / "stopped", data)
    np.testing.assert_array_equal(weights(resumed), weights(undisturbed))
    assert resumed.estimator.fits == undisturbed.estimator.fits


def test_a_finished_model_says_what_it_was_trained_on_and_the_data_matter(data, tmp_path):
    trained = {kind: train(kind, tmp_path, data) for kind in KINDS}
    assert [model.training["data"] for model in trained.values()] == list(KINDS)
    assert len({weights(model).tobytes() for model in trained.values()}) == len(KINDS)
    assert len({model.identity for model in trained.values()}) == len(KINDS)


def test_fresh_noise_needs_counts(data, tmp_path):
    with pytest.raises(ConfigError, match="must have the stored expected counts"):
        models.train(STUDY, "fresh_noise", data[1], tmp_path, lambda _: None, quiet)


def test_stored_rows_are_those_of_the_store(data):
    features = split(data[1], "train").chunk(simulation=20)
    xr.testing.assert_identical(
        stored(features)(3, slice(10, 26)), data[1].isel(simulation=slice(50, 66)).drop_encoding()
    )


def test_fresh_noise_is_that_of_epoch_and_simulation(data):
    counts = data[0].isel(simulation=slice(40, None))
    load = fresh_noise(STUDY, counts, 7)
    whole = load(2, slice(0, 60))
    xr.testing.assert_identical(load(2, slice(10, 20)), whole.isel(simulation=slice(10, 20)))
    np.testing.assert_array_equal(whole["parameters"], counts["parameters"])
    assert not np.array_equal(load(3, slice(0, 60))["profile"], whole["profile"])
    assert not np.array_equal(fresh_noise(STUDY, counts, 8)(2, slice(0, 60))["profile"], whole["profile"])


def test_its_noise_is_that_of_the_detector(data):
    """Many epochs of one simulation: mean and spread of the profile are those of `observe` with many seeds."""
    counts = data[0].isel(simulation=slice(40, 41))
    load = fresh_noise(STUDY, counts, 7)
    drawn = np.stack([load(epoch, slice(0, 1))["profile"].values[0] for epoch in range(200)])
    known = np.stack(
        [STUDY.preprocess(STUDY.observe(counts[["profile", "image"]], seed=s))["profile"].values[0] for s in range(200)]
    )
    spread = np.sqrt((drawn.var(axis=0) + known.var(axis=0)) / 200)
    assert (np.abs(drawn.mean(axis=0) - known.mean(axis=0)) < 5 * spread + 1e-7).all()
    assert drawn.std(axis=0).mean() == pytest.approx(known.std(axis=0).mean(), rel=0.1)


def test_simulations_on_the_fly_are_those_of_epoch_and_row():
    load = on_the_fly(STUDY, 7)
    part = load(2, slice(10, 14))
    again = load(2, slice(12, 16))
    np.testing.assert_array_equal(part["parameters"][2:], again["parameters"][:2])
    np.testing.assert_allclose(part["profile"][2:], again["profile"][:2], atol=1e-5)
    theta = STUDY.prior.dataarray(part["parameters"].values, start=10)
    quiet_study = replace(STUDY, config=STUDY.config.model_copy(update={"observe": ObserveConfig(noise="none")}))
    noiseless = STUDY.preprocess(quiet_study.observe(STUDY.simulate(theta)))
    for view in ("profile", "image"):
        deviation = part[view].values - noiseless[view].values
        assert 0 < deviation.std() < 0.3 * noiseless[view].values.std()
    assert not set(part["parameters"].values.ravel()) & set(load(3, slice(10, 14))["parameters"].values.ravel())


def blocks(rows: int, size: int) -> Blocks:
    numbers = xr.Dataset({"x": ("simulation", np.arange(rows))})
    return Blocks(rows, size, stored(numbers), lambda part: Rows((torch.from_numpy(part["x"].values),)))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("rows", "size", "batch"), [(50, 50, 7), (50, 13, 7), (50, 3, 7), (50, 7, 7), (5, 2, 8)])
def test_batches_of_blocks_cover_every_row_once(rows, size, batch, world):
    source = blocks(rows, size)

    def parts(seed, epoch=0):
        all_batches = [list(Batches(source, batch, lambda: epoch, seed, rank, world)) for rank in range(world)]
        for rank, batches in enumerate(all_batches):
            assert len(batches) == len(Batches(source, batch, lambda: epoch, seed, rank, world))
        return [torch.cat([b[0] for b in batches]) for batches in all_batches]

    assert sorted(torch.cat(parts(None)).tolist()) == list(range(rows))
    shuffled = parts(1)
    assert len({len(part) for part in shuffled}) == 1, "processes must take the same number of steps"
    together = torch.cat(shuffled).tolist()
    assert len(set(together)) == len(together)
    assert torch.cat(parts(1)).tolist() == together
    assert torch.cat(parts(1, epoch=1)).tolist() != together


def test_memory_holds_two_blocks():
    held, most = 0, 0

    class Counted(Rows):
        def __init__(self, tensors):
            nonlocal held, most
            super().__init__(tensors)
            held += 1
            most = max(most, held)

        def __del__(self):
            nonlocal held
            held -= 1

    source = blocks(200, 10)
    counted = Blocks(200, 10, source.load, lambda part: Counted((torch.from_numpy(part["x"].values),)))
    for _ in Batches(counted, 4, lambda: 0, 1):
        pass
    assert 2 <= most <= 3  # the one in use, the one being loaded, and the last until it is dropped


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), made(), study_of(epochs=12))
