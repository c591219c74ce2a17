"""A study of kind nanodiffraction through snakemake and the command line: from nothing to maps and their verdict."""

import json
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

import scatterflow as sf
from scatterflow.nexus import read_maps
from scatterflow.trials import SweepManifest
from tests.workflow.checkout import BIN, ROOT, Checkout, new_checkout

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]
RUN = "nanodiffraction.yaml"


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose run is complete."""
    checkout = new_checkout(tmp_path_factory.mktemp("nano") / "finished")
    (checkout.folder / RUN).write_text((ROOT / "tests" / "workflow" / RUN).read_text())
    done = checkout.snakemake(configfile=RUN)
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout


def bundle(checkout: Checkout) -> Path:
    return checkout.folder / "results" / "nano" / "film" / "models" / "lean"


def test_the_run_is_complete_and_its_report_has_the_maps(mapped: Checkout) -> None:
    assert mapped.jobs(configfile=RUN) == {}
    results = mapped.folder / "results" / "nano"
    page = (results / "report.html").read_text()
    assert "cannot be trusted" in page or "can be trusted" in page
    for words in ("published test scan", "maximum likelihood", "correlation fit", "centroid", "DONUT"):
        assert words in page
    metrics = json.loads((results / "metrics.json").read_text())["studies"]["film"]
    found = metrics["scans"]["waves"]["merit"]["estimators"]
    # the likelihood reaches what the counts allow, with so few points within the scatter of 36 of them
    assert all(0.6 < entry["ratio"] < 1.5 for entry in found["maximum likelihood"]["parameters"].values())
    maps = read_maps(results / "film" / "infer" / "scan-waves.nxs")
    assert maps.sizes["row"] == maps.sizes["column"] == 6
    status = subprocess.run(
        [BIN / "scatterflow", "status", "--config", RUN, "--json"], cwd=mapped.folder, capture_output=True, text=True
    )
    assert {stage["state"] for stage in json.loads(status.stdout)["stages"]} == {"done"}


def test_another_training_runs_the_training_and_what_follows(mapped: Checkout, tmp_path: Path) -> None:
    copy = mapped.copy(tmp_path / "copy")
    path = copy.folder / RUN
    path.write_text(path.read_text().replace("hidden: 64", "hidden: 48"))
    assert set(copy.jobs(configfile=RUN)) == {"train_model", "infer_posterior", "evaluate_study", "write_report"}
    path.write_text(path.read_text().replace("simulations: 2000", "simulations: 2500"))
    assert "simulate_study" in copy.jobs(configfile=RUN)


def test_an_ensemble_of_seeds_is_a_sweep(mapped: Checkout, tmp_path: Path) -> None:
    copy = mapped.copy(tmp_path / "copy")
    path = copy.folder / RUN
    sweep = "    sweep: {model: lean, seeds: 2, space: {hidden: [16]}}\n"
    path.write_text(path.read_text().replace("    baselines:", sweep + "    baselines:"))
    assert copy.jobs(configfile=RUN) == {"run_sweep": 1, "write_report": 1}
    done = copy.snakemake(configfile=RUN)
    assert done.returncode == 0, done.stdout + done.stderr
    results = copy.folder / "results" / "nano"
    found = SweepManifest.model_validate_json((results / "film" / "sweep" / "manifest.json").read_bytes())
    assert [(trial.seed, trial.state) for trial in found.trials] == [(0, "ok"), (1, "ok")]
    assert "Does the training fail on some seeds?" in (results / "report.html").read_text()
    assert copy.jobs(configfile=RUN) == {}


def test_python(mapped: Checkout) -> None:
    study = sf.load_study(mapped.folder / RUN, "film")
    theta = study.prior.sample(5, start=50)
    model = sf.load_model(bundle(mapped))
    found = model.predict(study.preprocess(study.observe(study.simulate(theta))))
    assert set(found) == {name + end for name in study.prior.names for end in ("", "_sd")}
    assert found["omega_deg"].attrs["units"] == "deg"
    np.testing.assert_array_equal(found["simulation"], theta["simulation"])


def scan(folder: Path, checkout: Checkout, rows: int = 3, stray: bool = False) -> Path:
    """A scan as a detector writes it: unbinned, its top row first."""
    study = sf.load_study(checkout.folder / RUN, "film")
    counts = study.observe(study.simulate(study.prior.sample(3 * rows)))["frame"].values.astype(int)
    if stray:
        counts[4] = 0
        counts[5] = 0
        counts[5, :6, :6] = np.random.default_rng(3).poisson(40, (6, 6))  # no ring
        counts[6] = np.random.default_rng(4).poisson(1.0, counts[6].shape)  # nothing but a background
    split = np.random.default_rng(1).multinomial(counts, [0.25] * 4)
    fine = split.reshape(*counts.shape, 2, 2).swapaxes(2, 3).reshape(len(counts), 64, 64)
    path = folder / "made.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("entry/data/data", data=fine[:, ::-1].astype(np.uint16))
        data.attrs["interpretation"] = "image"
        file["entry/data"].attrs["scan_shape"] = [rows, 3]
    return path


def infer(checkout: Checkout, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [BIN / "scatterflow", "infer", *arguments, "--model", bundle(checkout)]
    return subprocess.run([str(part) for part in command], cwd=checkout.folder, capture_output=True, text=True)


def test_a_scan_is_inferred_frame_by_frame(mapped: Checkout, tmp_path: Path) -> None:
    done = infer(mapped, scan(tmp_path, mapped, stray=True), "--output", tmp_path / "maps")
    lines = done.stdout.splitlines()
    assert done.returncode == 2, done.stderr
    assert "1 empty" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert len([line for line in lines if "made.h5[" in line]) == 9
    assert ": empty, " in lines[4]
    assert ": outside, deviance" in lines[5]
    assert ": faint, an even background explains the frame as well" in lines[6]
    assert "strain" in lines[0]
    assert "+-" in lines[0]
    maps = read_maps(tmp_path / "maps" / "made.nxs")
    assert maps.sizes["row"] == maps.sizes["column"] == 3


def test_scans_that_cannot_be_used_are_one_line(mapped: Checkout, tmp_path: Path) -> None:
    path = scan(tmp_path, mapped, rows=2)
    with h5py.File(path, "r+") as file:
        file["entry/data"].attrs["scan_shape"] = [4, 3]
    done = infer(mapped, path)
    assert done.returncode == 2
    assert "4 x 3 = 12 frames" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    refused = infer(mapped, path, "--instrument", ROOT / "config" / "instruments" / "p03_pilatus2m.yaml")
    assert refused.returncode == 2
    assert "--instrument" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
