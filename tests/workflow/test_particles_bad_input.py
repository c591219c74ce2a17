"""Bad input for a model of particles at the command line: one line each, exit status 2, and the good frame is answered."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import fabio
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from scatterflow import load_study
from tests.workflow.checkout import BIN, ROOT, Checkout, tree_sha256

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

INSTRUMENT = ROOT / "config" / "instruments" / "p03_pilatus2m.yaml"
TOTAL = 1e5  # expected counts of the good frame
BUNDLE = Path("results", "clusters", "gold", "models", "dual-branch")
STATUS = {
    "good.cbf": ("ok", "outside"),
    "truncated.cbf": ("unreadable",),
    "empty.cbf": ("unreadable",),
    "text.tif": ("unreadable",),
    "dark.cbf": ("unreadable",),
    "elsewhere.cbf": ("masked-out",),  # no counts where the model looks
    "masked.cbf": ("masked-out",),
    "nan.tif": ("masked-out",),
    "saturated.cbf": ("masked-out",),
    "other-detector.cbf": ("wrong-instrument",),
    "missing.cbf": ("unreadable",),
}


def scatterflow(checkout: Checkout, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "scatterflow"), *map(str, arguments)]
    done = subprocess.run(command, cwd=checkout.folder, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stdout + done.stderr
    assert "internal error" not in done.stdout + done.stderr
    return done


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 2, nothing on stdout, and one line on stderr with the words."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    for word in words:
        assert word in line


def image(checkout: Checkout) -> NDArray[np.int32]:
    """A simulated image (row from the top, column) on the whole detector, each bin's counts spread over its pixels."""
    study = load_study(checkout.folder / "particles.yaml", "gold")
    instrument = study.config.instrument
    view = instrument.views["image"]
    (rows,), columns = view.rows, view.columns
    counts = study.observe(study.simulate(study.prior.sample(1, seed=5)))["image"].values[0]
    size = (rows[1] - rows[0]) // counts.shape[0], (columns[1] - columns[0]) // counts.shape[1]
    whole = np.zeros(instrument.shape)
    whole[slice(*rows), slice(*columns)] = np.kron(counts * TOTAL / counts.sum() / np.prod(size), np.ones(size))
    return np.random.default_rng(5).poisson(whole)[::-1].astype(np.int32)  # files count rows from the top


@pytest.fixture(scope="module")
def frames(answered: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good frame of the study's detector, and what can be wrong with one."""
    folder = tmp_path_factory.mktemp("frames")
    good = image(answered)
    elsewhere = np.zeros_like(good)
    elsewhere[0] = 5  # the uppermost row
    for name, data in (
        ("good", good),
        ("dark", np.zeros_like(good)),
        ("elsewhere", elsewhere),
        ("masked", np.full_like(good, -1)),
        ("saturated", np.full_like(good, np.iinfo(good.dtype).max)),
        ("other-detector", np.ascontiguousarray(good[:619, :487])),
    ):
        fabio.cbfimage.CbfImage(data=data).write(folder / f"{name}.cbf")
    content = (folder / "good.cbf").read_bytes()
    (folder / "truncated.cbf").write_bytes(content[: len(content) * 3 // 4])
    (folder / "empty.cbf").write_bytes(b"")
    (folder / "text.tif").write_text("counts: many\n" * 100)
    fabio.tifimage.TifImage(data=np.full(good.shape, np.nan, dtype=np.float32)).write(folder / "nan.tif")
    return folder


def test_each_frame_gets_one_line_and_bad_ones_do_not_stop_the_good(
    answered: Checkout, frames: Path, tmp_path: Path
) -> None:
    paths = [frames / name for name in STATUS]
    done = scatterflow(answered, "infer", *paths, "--model", BUNDLE, "--output", tmp_path / "found")
    assert done.returncode == 2, done.stderr
    assert f"{len(STATUS) - 1} of {len(STATUS)} frames got no answer" in done.stderr.splitlines()[-1]
    lines = done.stdout.splitlines()
    assert len(lines) == len(STATUS)
    for path, line, allowed in zip(paths, lines, STATUS.values(), strict=True):
        assert line.startswith(f"{path}: ")
        assert line.removeprefix(f"{path}: ").split(",")[0] in allowed
        assert ("distance_nm" in line) == (path.name == "good.cbf")
    listed = json.loads((tmp_path / "found" / "frames.json").read_bytes())
    assert all(each["status"] in allowed for each, allowed in zip(listed, STATUS.values(), strict=True))
    (written,) = (tmp_path / "found").glob("*.nc")
    with xr.open_dataset(written, engine="h5netcdf") as found:
        assert np.isfinite(found["size_distribution"]).all()


# text of the instrument file, what stands there instead, words of the refusal
INSTRUMENTS = {
    "the horizon lies outside the frame": (
        "beam_z_px: 367.5",
        "beam_z_px: 5000",
        ("horizon of", "must lie on the frame"),
    ),
    "no beam centre": ("beam_z_px: 367.5", "", ("beam_z_px", "is missing")),
}


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_instruments_that_cannot_be(answered: Checkout, frames: Path, tmp_path: Path, name: str) -> None:
    old, new, words = INSTRUMENTS[name]
    text = INSTRUMENT.read_text()
    assert old in text
    path = tmp_path / "instrument.yaml"
    path.write_text(text.replace(old, new))
    done = scatterflow(answered, "infer", frames / "good.cbf", "--model", BUNDLE, "--instrument", path)
    refused(done, *words)


def test_everything_is_masked_by_the_instrument(answered: Checkout, frames: Path, tmp_path: Path) -> None:
    path = tmp_path / "instrument.yaml"
    path.write_text(INSTRUMENT.read_text() + "  - {z: [0, 1679], y: [0, 1475]}\n")
    done = scatterflow(answered, "infer", frames / "good.cbf", "--model", BUNDLE, "--instrument", path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stdout.splitlines()
    assert ": masked-out, " in line
    assert "1 of 1 frames got no answer (1 masked-out)" in done.stderr


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda folder: flip(folder / "weights.safetensors"), "weights.safetensors"),
    "an edited number": (
        lambda folder: (folder / "bundle.json").write_text(
            (folder / "bundle.json").read_text().replace('"seed": 7', '"seed": 8')
        ),
        "must be as it was written",
    ),
    "no bundle": (lambda folder: (folder / "bundle.json").unlink(), "give the folder of a trained model"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_bundles(answered: Checkout, frames: Path, tmp_path: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    bundle = tmp_path / "dual-branch"
    bundle.mkdir()
    for path in (answered.folder / BUNDLE).iterdir():
        (bundle / path.name).write_bytes(path.read_bytes())
    before = tree_sha256(bundle)
    damage(bundle)
    assert tree_sha256(bundle) != before
    refused(scatterflow(answered, "infer", frames / "good.cbf", "--model", bundle), str(bundle), words)
