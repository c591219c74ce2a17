"""The stage simulate on real (small) simulations: resume, extension, damage, failures, locks, kills."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scatterflow import manifest, shards, store
from scatterflow.errors import ConfigError, SimulationError, StoreError
from scatterflow.manifest import Place, Shard, StoreManifest
from scatterflow.progress import quiet
from scatterflow.stages import simulate
from scatterflow.verify import verify
from tests.conftest import ROOT
from tests.store_study import Tiny, tiny


def run(study: Tiny, folder: Path) -> Path:
    return simulate.run(study, folder, quiet)


def files(folder: Path) -> dict[str, bytes]:
    (path,) = folder.glob("simulate/store-*.zarr")
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of 40 simulations; tests work on copies."""
    folder = tmp_path_factory.mktemp("done")
    run(tiny(), folder)
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path / "copy")
    return tmp_path / "copy"


def child(folder: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.store_study", str(folder), json.dumps(options)]
    return subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


def session(number: int) -> list[str]:
    """Processes of a session that still run."""
    found = subprocess.run(
        ["ps", "-s", str(number), "-o", "pid=,stat=,args="], capture_output=True, text=True, check=False
    )
    return [line for line in found.stdout.splitlines() if " Z" not in line]


def records(folder: Path) -> list[Path]:
    return list(folder.glob("simulate/shards-*/*.json"))


def test_a_store_holds_what_the_study_simulates(done: Path) -> None:
    data = store.open_store(done / "simulate" / "manifest.json")
    study = tiny()
    theta = study.prior.sample(40)
    np.testing.assert_array_equal(data["parameters"].values, theta.values)
    expected = study.simulate(theta)
    for view in study.views:
        np.testing.assert_array_equal(data[view].values, expected[view].values)
        assert data[view].attrs == expected[view].attrs
        np.testing.assert_array_equal(data[f"qz_{view}"].values, expected[f"qz_{view}"].values)
    assert data.attrs["identity"] == study.simulation_identity()


def test_the_manifest_says_what_was_made(done: Path) -> None:
    entry = manifest.read(done / "simulate" / "manifest.json", StoreManifest)
    assert (entry.simulations, entry.shard_size, len(entry.shards)) == (40, 10, 4)
    assert entry.identity == tiny().simulation_identity()
    assert entry.parameters == tiny().prior.names
    assert entry.views == ("profile", "image")
    assert 0 < entry.wall_seconds <= entry.core_seconds + 0.001  # one process; both are rounded to ms
    report = verify(done)
    assert report.ok
    assert report.checksum == entry.checksum


@pytest.mark.parametrize("options", [{"shard_size": 20}, {"shard_size": 5}, {"shard_size": 40, "chunk_size": 10}])
def test_the_checksum_does_not_depend_on_shards_or_chunks(done: Path, tmp_path: Path, options: dict[str, int]) -> None:
    path = run(tiny(**options), tmp_path)
    entries = [manifest.read(each, StoreManifest) for each in (path, done / "simulate" / "manifest.json")]
    assert entries[0].checksum == entries[1].checksum


def test_a_second_run_does_nothing(copy: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in copy.rglob("*.json")}
    content = files(copy)
    run(tiny(), copy)
    changed = {file.name for file in before if file.stat().st_mtime_ns != before[file]}
    assert changed <= {"status.json", "zarr.json"}  # the consolidated metadata are written anew, with the same bytes
    assert files(copy) == content


def test_raising_the_number_only_appends(copy: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in copy.glob("simulate/store*/*/c/**/*") if file.is_file()}
    run(tiny(60), copy)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    run(tiny(60), tmp_path / "at-once")
    assert files(copy) == files(tmp_path / "at-once")


def test_lowering_the_number_keeps_the_store(copy: Path, tmp_path: Path) -> None:
    before = files(copy)
    path = run(tiny(20), copy)
    assert files(copy) == before
    assert manifest.read(path, StoreManifest).simulations == 20
    assert store.open_store(path).sizes["simulation"] == 20
    lone = run(tiny(20), tmp_path / "lone")
    checksums = {manifest.read(each, StoreManifest).checksum for each in (path, lone)}
    assert len(checksums) == 1
    assert verify(path).ok


def test_a_store_keeps_the_shard_size_it_began_with(copy: Path) -> None:
    before = files(copy)
    run(tiny(40, shard_size=20), copy)
    assert files(copy) == before
    with pytest.raises(ConfigError, match="chunk_size=4 must divide the shard size 10"):
        run(tiny(40, shard_size=4, chunk_size=4), copy)


def test_another_identity_lies_beside(copy: Path) -> None:
    before = files(copy)
    place = Place(copy, tiny().simulation_identity())
    other = Tiny("multilayer", tiny().config, 8, "tiny")
    run(other, copy)
    assert len(list(copy.glob("simulate/store-*.zarr"))) == 2
    kept = {str(f.relative_to(place.store)): f.read_bytes() for f in place.store.rglob("*") if f.is_file()}
    assert kept == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


DAMAGES = {"flipped bit": flip, "truncated": truncate, "deleted": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("array", ["image", "profile", "parameters", "status"])
def test_damage_is_found_and_mended(copy: Path, done: Path, damage: str, array: str) -> None:
    (path,) = copy.glob(f"simulate/store-*/{array}/c/2")
    DAMAGES[damage](next(file for file in [path, *path.rglob("*")] if file.is_file()))
    report = verify(copy)
    assert [each.shard for each in report.damaged] == [Shard(20, 30)]
    assert array in report.damaged[0].reason
    made = run(tiny(), copy).read_bytes()
    assert files(copy) == files(done)
    assert made == (done / "simulate" / "manifest.json").read_bytes()  # the same data: nothing downstream re-runs


@pytest.mark.parametrize("name", ["zarr.json", "image/zarr.json", "qz_image/c/0", "qz_image/zarr.json", "unit/c/0"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metadata_are_found_and_mended(copy: Path, done: Path, damage: str, name: str) -> None:
    (path,) = copy.glob(f"simulate/store-*/{name}")
    DAMAGES[damage](path)
    with pytest.raises(StoreError, match="store"):
        verify(copy)
    run(tiny(), copy)
    assert files(copy) == files(done)
    assert verify(copy).ok


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_makes_its_shard_anew(copy: Path, done: Path, damage: str) -> None:
    record = sorted(records(copy))[1]
    DAMAGES[damage](record)
    run(tiny(), copy)
    assert manifest.read(record, manifest.ShardRecord).state == "ok"
    assert files(copy) == files(done)


def test_a_damaged_manifest_is_one_line_and_written_anew(copy: Path) -> None:
    path = copy / "simulate" / "manifest.json"
    whole = path.read_bytes()
    for content in (
        b"",
        b"{",
        whole[:-30],
        whole.replace(b'"format": 1', b'"format": 2'),
        whole.replace(b"seed", b"sede"),
    ):
        path.write_bytes(content)
        for read in (store.open_store, verify):
            with pytest.raises(
                StoreError, match=r"must be a whole StoreManifest.*run `scatterflow simulate`"
            ) as caught:
                read(path)
            assert "\n" not in str(caught.value)
    run(tiny(), copy)
    assert path.read_bytes() == whole


def test_records_of_another_identity_do_not_count(copy: Path) -> None:
    for path in records(copy)[:2]:
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "identity": "0" * 64}))
    place = Place(copy, tiny().simulation_identity())
    assert len(shards.missing(place, manifest.plan(40, 10))) == 2


def test_a_failing_simulation_costs_its_shard_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SimulationError, match=r"1 of 4 shards must be simulated.*simulations 0 to 4.*row 2: layer01"):
        run(tiny(error_at=2), tmp_path)
    assert "shard 000000000-000000010 failed" in capsys.readouterr().err
    counts = simulate.status(tmp_path)
    assert (counts["done"], counts["failed"], counts["left"], counts["finished"]) == (30, 10, 0, False)
    (path,) = tmp_path.glob("simulate/store-*.zarr")
    with pytest.raises(StoreError, match="must be complete"):
        store.open_store(path)
    assert set(store.lazy(store.layout(path))["status"][:10].values.tolist()) == {store.FAILED}
    run(tiny(), tmp_path)
    assert simulate.status(tmp_path)["done"] == 40


def test_nan_is_an_error_not_a_result(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="image of simulation 33 must be finite"):
        run(tiny(nan_at=33), tmp_path)
    assert simulate.status(tmp_path)["failed"] == 10


def test_status_without_anything(tmp_path: Path) -> None:
    assert simulate.status(tmp_path)["total"] == 0
    assert simulate.status(tmp_path, tiny())["left"] == 40


def test_sigterm_keeps_what_is_finished(tmp_path: Path, done: Path) -> None:
    first = child(tmp_path, delay_s=0.3)
    wait_until(lambda: records(tmp_path))
    first.terminate()
    _, text = first.communicate()
    assert first.returncode == 128 + signal.SIGTERM
    assert text.splitlines()[-1].endswith("stopped by SIGTERM; finished shards are kept, run it again")
    assert "Traceback" not in text
    kept = len(records(tmp_path))
    assert 0 < kept < 4
    run(tiny(), tmp_path)
    assert files(tmp_path) == files(done)


def test_kill_9_in_the_middle_leaves_no_orphan_and_resumes_to_the_same_bits(tmp_path: Path, done: Path) -> None:
    first = child(tmp_path, workers=2, delay_s=1.5)
    wait_until(lambda: records(tmp_path))
    assert simulate.status(tmp_path)["running"]
    with pytest.raises(StoreError, match=f"one writer at a time, got a second beside process {first.pid} on"):
        run(tiny(), tmp_path)
    first.kill()
    first.communicate()
    assert not (tmp_path / "simulate" / "manifest.json").exists()
    wait_until(lambda: not session(first.pid), 30)
    assert not simulate.status(tmp_path)["running"]
    kept = {path: path.read_bytes() for path in records(tmp_path)}
    assert 0 < len(kept) < 4
    run(tiny(), tmp_path)
    assert {path: path.read_bytes() for path in kept} == kept
    assert files(tmp_path) == files(done)
    checksums = {manifest.read(f / "simulate" / "manifest.json", StoreManifest).checksum for f in (tmp_path, done)}
    assert len(checksums) == 1


def test_keyboard_interrupt_of_the_whole_group_is_quiet(tmp_path: Path) -> None:
    first = child(tmp_path, workers=2, delay_s=0.3)
    wait_until(lambda: records(tmp_path))
    os.killpg(first.pid, signal.SIGINT)
    _, text = first.communicate()
    assert first.returncode == 128 + signal.SIGINT
    assert [line for line in text.splitlines() if not line.startswith("simulate multilayer: ")] == []
    wait_until(lambda: not session(first.pid), 30)


def limited(tmp_path: Path, simulations: int) -> subprocess.CompletedProcess[str]:
    """A run that may not write files above 4 kB: what the kernel answers differs from a full disk by its number only."""
    options = json.dumps({"simulations": simulations, "shard_size": 100, "chunk_size": 20})
    return subprocess.run(
        [sys.executable, "-m", "tests.store_study", str(tmp_path), options],
        cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
    )  # fmt: skip


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    path = run(tiny(100, shard_size=100, chunk_size=20), tmp_path)
    before = path.read_bytes()
    ended = limited(tmp_path, 200)
    assert ended.returncode == 2
    line = ended.stderr.splitlines()[-1]
    assert "cannot be read or written, got file too large; raise the limit" in line
    assert "what is finished is kept" in line
    assert "Traceback" not in ended.stderr
    assert path.read_bytes() == before
    assert verify(path).ok
    run(tiny(200, shard_size=100, chunk_size=20), tmp_path)
    assert verify(path).simulations == 200


def test_a_folder_that_is_not_writable_is_one_line(tmp_path: Path, as_user: list[str]) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    command = [*as_user, sys.executable, "-m", "tests.store_study", str(tmp_path / "closed" / "study"), "{}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith("got permission denied; make it writable or choose another folder")
