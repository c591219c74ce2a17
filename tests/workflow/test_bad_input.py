"""Bad input at the command line: one line, exit status 2, and nothing that was there is lost."""

import subprocess
from pathlib import Path

import fabio
import numpy as np
import pytest

from scatterflow import load_study
from tests.workflow.checkout import BIN, Checkout, tree_sha256

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

STUDY = ("--config", "tiny.yaml")


def scatterflow(
    checkout: Checkout, *arguments: str | Path, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a checkout."""
    command = [*prefix, str(BIN / "scatterflow"), *map(str, arguments)]
    return subprocess.run(command, cwd=checkout.folder, capture_output=True, text=True, timeout=300)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 2, the words in the last line, and no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last


@pytest.fixture(scope="module")
def frames(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good frame of the tiny instrument, and what can be wrong with one."""
    folder = tmp_path_factory.mktemp("frames")
    study = load_study(finished.folder / "tiny.yaml", "multilayer")
    counts = study.simulate(study.prior.sample(1, seed=5), views=("full",))["full"].values[0]
    # files count rows from the top, arrays here from the lowest exit angle
    good = np.random.default_rng(5).poisson(counts)[::-1].astype(np.int32)
    fabio.cbfimage.CbfImage(data=good).write(folder / "good.cbf")
    content = (folder / "good.cbf").read_bytes()
    (folder / "truncated.cbf").write_bytes(content[: len(content) * 3 // 4])
    (folder / "empty.cbf").write_bytes(b"")
    (folder / "text.tif").write_text("counts: many\n" * 100)
    fabio.cbfimage.CbfImage(data=np.full_like(good, -1)).write(folder / "masked.cbf")
    fabio.tifimage.TifImage(data=np.full(good.shape, np.nan, dtype=np.float32)).write(folder / "nan.tif")
    fabio.cbfimage.CbfImage(data=good[:-7]).write(folder / "other-detector.cbf")
    return folder


STATUS = {
    "good.cbf": ("ok", "outside"),
    "truncated.cbf": ("unreadable",),
    "empty.cbf": ("unreadable",),
    "text.tif": ("unreadable",),
    "masked.cbf": ("masked-out",),
    "nan.tif": ("masked-out",),
    "other-detector.cbf": ("wrong-instrument",),
    "missing.cbf": ("unreadable",),
}


def test_each_frame_gets_one_line_and_bad_ones_do_not_stop_the_good(finished: Checkout, frames: Path) -> None:
    paths = [frames / name for name in STATUS]
    done = scatterflow(finished, "infer", *paths, "--model", finished.results / "models" / "joint")
    refused(done, f"{len(STATUS) - 1} of {len(STATUS)} frames got no answer")
    lines = done.stdout.splitlines()
    assert len(lines) == len(STATUS)
    for path, line, allowed in zip(paths, lines, STATUS.values(), strict=True):
        assert line.startswith(f"{path}: ")
        assert line.removeprefix(f"{path}: ").split(",")[0] in allowed


def test_flipped_bit_is_found_and_mended(checkout: Checkout) -> None:
    (store,) = checkout.results.glob("simulate/store-*.zarr")
    before = tree_sha256(store)
    chunk = max((path for path in store.glob("profile/c/**/*") if path.is_file()), key=lambda path: path.name)
    content = bytearray(chunk.read_bytes())
    content[len(content) // 3] ^= 1
    chunk.write_bytes(content)
    refused(scatterflow(checkout, "verify", checkout.results), "1 damaged shard")
    checkout.configure({"observe.noise": "none"})  # other features, which need the simulations
    refused(scatterflow(checkout, "preprocess", *STUDY), "run `scatterflow simulate` again")
    mended = scatterflow(checkout, "simulate", *STUDY)
    assert mended.returncode == 0, mended.stderr
    assert tree_sha256(store) == before


def test_missing_shard_is_found(checkout: Checkout) -> None:
    (store,) = checkout.results.glob("simulate/store-*.zarr")
    min(path for path in store.glob("profile/c/**/*") if path.is_file()).unlink()
    refused(scatterflow(checkout, "verify", checkout.results), "1 damaged shard")


def test_bundle_of_another_study_is_refused(checkout: Checkout) -> None:
    """A bundle knows the features that it was trained on; these are of another noise."""
    bundle = checkout.results / "models" / "joint"
    before = tree_sha256(bundle)
    checkout.configure({"observe.noise": "none"})
    assert scatterflow(checkout, "preprocess", *STUDY).returncode == 0
    refused(scatterflow(checkout, "infer", *STUDY), "multilayer/models/", "scatterflow train")
    assert tree_sha256(bundle) == before


def test_bundle_that_is_none_is_refused(finished: Checkout, frames: Path) -> None:
    refused(scatterflow(finished, "infer", frames / "good.cbf", "--model", frames), str(frames))


def test_folder_that_cannot_be_written(checkout: Checkout, as_user: list[str]) -> None:
    """Nothing is lost: the features that were there stay readable."""
    before = tree_sha256(checkout.results)
    folders = [path for path in (checkout.results, *checkout.results.rglob("*")) if path.is_dir()]
    checkout.configure({"observe.noise": "none"})
    for folder in folders:
        folder.chmod(0o555)
    try:
        refused(scatterflow(checkout, "preprocess", *STUDY, prefix=tuple(as_user)), "preprocess")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert tree_sha256(checkout.results) == before


def test_full_disk(checkout: Checkout) -> None:
    """No file may grow beyond 1 kB: writing fails as on a full disk, and what was there stays."""
    before = {path: path.read_bytes() for path in checkout.results.rglob("*") if path.is_file()}
    checkout.configure({"observe.noise": "none"})
    refused(scatterflow(checkout, "preprocess", *STUDY, prefix=("prlimit", "--fsize=1024")), "preprocess")
    assert {path: path.read_bytes() for path in before} == before
    assert scatterflow(checkout, "preprocess", *STUDY).returncode == 0
    assert not list(checkout.results.rglob("*.partial"))
