"""The stage preprocess on real (small) simulations: one store of features whatever the backend, resume, damage, kills."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scatterflow import fanout, manifest, shards, store
from scatterflow.errors import SimulationError, StoreError
from scatterflow.manifest import Place, StoreManifest
from scatterflow.progress import quiet
from scatterflow.stages import preprocess, simulate
from scatterflow.verify import verify
from tests.conftest import ROOT
from tests.features_study import Features, features
from tests.workflow.checkout import tree_sha256


def run(study: Features, folder: Path) -> Path:
    return preprocess.run(study, folder, quiet)


def store_of(folder: Path) -> Path:
    (path,) = folder.glob("preprocess/features-*.zarr")
    return path


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 simulations, no features."""
    folder = tmp_path_factory.mktemp("simulated")
    simulate.run(features(), folder, quiet)
    return folder


@pytest.fixture(scope="module")
def done(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of an undisturbed run; tests work on copies."""
    folder = tmp_path_factory.mktemp("done") / "study"
    shutil.copytree(simulated, folder)
    run(features(), folder)
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def fresh(simulated: Path, tmp_path: Path) -> Path:
    shutil.copytree(simulated, tmp_path / "fresh")
    return tmp_path / "fresh"


def test_features_are_those_of_all_simulations_at_once(done: Path) -> None:
    study = features()
    counts = preprocess.simulations(study, done).load()
    expected = study.preprocess(study.observe(counts[list(study.views)]))
    found = preprocess.load(study, done)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name].values, values.values)
        assert found[name].attrs == values.attrs
    np.testing.assert_array_equal(found["parameters"].values, study.prior.sample(60).values)
    np.testing.assert_array_equal(found["qz"].values, expected["qz"].values)
    assert found["parameter"].values.tolist() == list(study.prior.names)
    assert found["unit"].values.tolist() == list(study.prior.units)
    assert found["split"].values.tolist() == ["held_back", "validation", *["train"] * 58]
    assert preprocess.rows(found, "validation")["simulation"].values.tolist() == [1]


def test_one_writer_per_shard(done: Path) -> None:
    """Each array is cut in shards of the simulations' size: no two shards share a file."""
    where = store.layout(store_of(done))
    assert where.shard_size == store.layout(next(done.glob("simulate/store-*.zarr"))).shard_size == 10
    wanted = {file for shard in manifest.plan(60, 10) for file in where.files(shard)}
    assert {file for name in where.arrays for file in store_of(done).glob(f"{name}/c/**/*") if file.is_file()} == wanted
    assert len(wanted) == 6 * len(where.arrays)


def test_manifest_and_verification(done: Path) -> None:
    entry = manifest.read(done / "preprocess" / "manifest.json", StoreManifest)
    assert entry.identity == features().features_identity()
    assert entry.splits == {"held_back": 1, "validation": 1, "train": 58}
    for path in (done / "preprocess", done / "preprocess" / "manifest.json", store_of(done)):
        report = verify(path)
        assert report.ok
        assert (report.store.name, report.checksum) == (entry.store, entry.checksum)


def test_processes_give_the_same_bytes_and_need_no_torch(
    fresh: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "_WORTH_BYTES", 0)  # or it is too little work for a second process
    run(features(workers=2, torch_at=15), fresh)
    assert tree_sha256(store_of(fresh)) == tree_sha256(store_of(done))


def test_kill_and_resume(fresh: Path, done: Path, tmp_path: Path) -> None:
    """kill -9 of the whole stage in the middle; what was finished is not computed again."""
    options: dict[str, Any] = {"wait_at": (35,), "gate": str(tmp_path / "gate")}
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.features_study", str(fresh), json.dumps(options)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while len(list(fresh.glob("preprocess/shards-*/*.json"))) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    place = Place(fresh, features().features_identity(), "preprocess")
    before = {file: file.stat().st_mtime_ns for file in place.records.iterdir()}
    assert len(before) == 3
    with pytest.raises(StoreError, match=r"preprocess/manifest\.json must exist.*run `scatterflow preprocess`"):
        preprocess.load(features(), fresh)
    run(features(), fresh)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert tree_sha256(store_of(fresh)) == tree_sha256(store_of(done))


def test_a_worker_is_killed(fresh: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "_WORTH_BYTES", 0)
    run(features(workers=2, kill_at=25, once=str(tmp_path / "once")), fresh)
    assert (tmp_path / "once").exists()
    assert tree_sha256(store_of(fresh)) == tree_sha256(store_of(done))


def test_damage_is_found_and_mended(copy: Path, done: Path) -> None:
    flipped, cut, gone = (next(store_of(copy).glob(f"image/c/{shard}/*/*")) for shard in (0, 2, 4))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-5])
    gone.unlink()
    assert [damage.shard.start for damage in verify(copy / "preprocess").damaged] == [0, 20, 40]
    (copy / "preprocess" / "manifest.json").unlink()  # as snakemake does
    records = {file: file.stat().st_mtime_ns for file in copy.glob("preprocess/shards-*/*.json")}
    run(features(), copy)
    changed = sorted(int(file.name[:9]) for file, before in records.items() if file.stat().st_mtime_ns != before)
    assert changed == [0, 20, 40]
    assert tree_sha256(store_of(copy)) == tree_sha256(store_of(done))


def test_more_simulations_only_add_shards(copy: Path, tmp_path: Path) -> None:
    where = store.layout(store_of(copy))
    files = [file for shard in manifest.plan(60, 10) for file in where.files(shard)]
    before = [file.stat().st_mtime_ns for file in files]
    simulate.run(features(80), copy, quiet)
    run(features(80), copy)
    assert [file.stat().st_mtime_ns for file in files] == before
    anew = tmp_path / "anew"
    simulate.run(features(80), anew, quiet)
    run(features(80), anew)
    assert tree_sha256(store_of(copy)) == tree_sha256(store_of(anew))
    assert preprocess.load(features(), copy).sizes["simulation"] == 60, (
        "the larger store serves the smaller number, too"
    )


def test_simulations_in_other_shards_give_features_in_other_shards(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "simulate")
    study = features(shard_size=20)
    simulate.run(study, copy, quiet)
    run(study, copy)
    assert store.layout(store_of(copy)).shard_size == 20
    assert verify(copy / "preprocess").ok
    assert len(list(copy.glob("preprocess/shards-*/*.json"))) == 3


def test_what_an_earlier_version_left_is_replaced(fresh: Path, done: Path) -> None:
    """Another layout below the same name: arrays that are no longer stored, others in one chunk."""
    old = fresh / "preprocess" / store_of(done).name
    preprocess.load(features(), done)[["profile", "split"]].load().drop_vars("split").assign(
        split=("simulation", np.zeros(60, np.uint8))
    ).to_zarr(old, zarr_format=3, consolidated=False)
    run(features(), fresh)
    assert tree_sha256(old) == tree_sha256(store_of(done))


def test_frames_without_features_fail_alone(fresh: Path) -> None:
    """Simulations whose image is constant have no contrast: their shard fails with its reason, the others are kept."""
    study = features()
    place = Place(fresh, study.simulation_identity())
    where, shard = store.layout(place.store), manifest.plan(60, 10)[3]
    arrays = store.read_shard(where, shard)
    arrays["image"] = np.zeros_like(arrays["image"])
    del arrays[store.STATUS]
    store.write_shard(place.store, shard, arrays)
    with pytest.raises(SimulationError, match="1 of 6 shards must become features, got image of frame"):
        run(study, fresh)
    found = shards.status(Place(fresh, study.features_identity(), "preprocess"), 60)
    assert (found["done"], found["failed"]) == (50, 10)


def test_lost_simulations_are_named(fresh: Path) -> None:
    next(fresh.glob("simulate/store-*.zarr/status/c/2")).unlink()
    with pytest.raises(StoreError, match=r"status/c/2 is missing.*run `scatterflow simulate` again"):
        run(features(), fresh)


def test_slurm_gets_paths_and_ranges(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage hands its work to the backend under its own name, with what other machines need."""
    seen: list[fanout.Shared] = []

    def backend(planned: Any, work: Any, workers: int, shared: Any) -> Any:
        seen.append(shared)
        for shard in planned:
            work(shard)
            yield fanout.Outcome(shard)

    monkeypatch.setitem(fanout.BACKENDS, "far", backend)
    monkeypatch.setenv(fanout.VARIABLE, "far")
    run(features(), fresh)
    assert [(shared.name, shared.folder.parent) for shared in seen] == [("preprocess", fresh / "preprocess")]
    assert seen[0].missing([manifest.plan(60, 10)[0]]) == []
