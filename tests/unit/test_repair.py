"""`scatterflow verify --repair` on real stores: bad shards are made anew, nothing else is touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scatterflow import fanout, manifest, shards, store
from scatterflow.cli.running import run
from scatterflow.manifest import Place
from scatterflow.verify import verify
from tests.conftest import ROOT
from tests.workflow.checkout import tree_sha256

OPTIONS = ("--config", str(ROOT / "tests" / "workflow" / "tiny.yaml"))
SMALL = tuple(
    part
    for text in ("simulations=60", "held_back=10", "validation=10", "shard_size=10", "workers=1")
    for part in ("--set", f"simulate.{text}")
)
BAD = [0, 20, 40]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulations and features of a study."""
    results = tmp_path_factory.mktemp("made")
    for stage in ("simulate", "preprocess"):
        assert run([stage, *OPTIONS, *SMALL, "--results", str(results), "--json"]) == 0
    return results / "tiny" / "multilayer"


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "study")
    return tmp_path / "study"


def damage(path: Path) -> None:
    """A flipped bit, a cut file and a missing one, in three shards."""
    flipped, cut, gone = (next(path.glob(f"image/c/{start // 10}/*/*")) for start in BAD)
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 8
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-7])
    gone.unlink()


@pytest.mark.parametrize("stage", ["simulate", "preprocess"])
def test_only_bad_shards_are_made_anew(stage: str, study: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = (study / stage).glob("*.zarr")
    where = store.layout(path)
    damage(path)
    bad = {file for start in BAD for file in where.files(manifest.Shard(start, start + 10))}
    bad |= {next((study / stage).glob(f"shards-*/{start:09d}-*.json")) for start in BAD}
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in study.rglob("*") if file.is_file()}
    assert run(["verify", str(study / stage)]) == 2
    told = capsys.readouterr()
    assert f"add --repair, or run `scatterflow {stage}`" in told.err
    assert len(told.out.splitlines()) == 3
    assert run(["verify", str(study / stage), "--repair", "--json", *OPTIONS, *SMALL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    assert [each["start"] for each in document["repaired"]] == BAD
    assert tree_sha256(path) == tree_sha256(next((made / stage).glob("*.zarr")))
    for file, (content, mtime) in before.items():
        if file not in bad and file.name != ".lock":
            assert (file.read_bytes(), file.stat().st_mtime_ns) == (content, mtime), file
    assert run(["verify", str(study / stage), "--repair", *OPTIONS, *SMALL]) == 0
    assert "all whole" in capsys.readouterr().out


def test_a_store_of_another_configuration_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = study.glob("simulate/*.zarr")
    damage(path)
    before = tree_sha256(study)
    assert run(["verify", str(study), "--repair", *OPTIONS, *SMALL, "--set", "seed=8"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "must be of a study of" in told
    assert "--set" in told
    assert tree_sha256(study) == before


def test_a_shard_that_stays_bad(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that damages what is written to it."""
    (path,) = study.glob("preprocess/*.zarr")
    damage(path)
    write = store.write_shard

    def forgetful(*arguments: object) -> dict[str, str]:
        hashes = write(*arguments)  # type: ignore[arg-type]  # as they come
        for file in path.glob("image/c/2/*/*"):
            file.unlink()
        return hashes

    monkeypatch.setattr(store, "write_shard", forgetful)
    assert run(["verify", str(study / "preprocess"), "--repair", *OPTIONS, *SMALL]) == 2
    told = capsys.readouterr()
    assert "1 damaged shard of 6; check the disk" in told.err
    assert [line.split(";")[-1].strip() for line in told.out.splitlines()][:2] == ["made anew"] * 2
    assert [each.shard.start for each in verify(study / "preprocess").damaged] == [20]


def test_repair_goes_through_the_fan_out(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SCATTERFLOW_FANOUT the bad shards, and no others, go where simulations go."""
    (path,) = study.glob("simulate/*.zarr")
    damage(path)
    seen: list[int] = []

    def backend(todo: list[manifest.Shard], work: object, workers: int, shared: fanout.Shared) -> object:
        seen.extend(shard.start for shard in todo)
        assert shared.missing(todo) == todo
        yield from fanout.BACKENDS["local"](todo, work, workers, shared)  # type: ignore[arg-type]  # as it comes

    monkeypatch.setitem(fanout.BACKENDS, "far", backend)  # type: ignore[arg-type]  # looser
    monkeypatch.setenv(fanout.VARIABLE, "far")
    assert run(["verify", str(study), "--repair", *OPTIONS, *SMALL]) == 0
    assert seen == BAD
    identity = str(store.attributes(path)["identity"])
    assert not shards.jobs_folder(Place(study, identity)).exists()
