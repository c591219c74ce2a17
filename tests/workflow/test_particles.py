"""A study of kind particles through snakemake and the command line: from nothing to p(R) of measured frames."""

import json
import os
import subprocess
from pathlib import Path

import fabio
import numpy as np
import pytest
import xarray as xr

import scatterflow as sf
from tests.workflow.checkout import BIN, ROOT, Checkout

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]
RUN = "particles.yaml"
INSTRUMENT = ROOT / "config" / "instruments" / "p03_pilatus2m.yaml"


def study_folder(checkout: Checkout) -> Path:
    return checkout.folder / "results" / "clusters" / "gold"


def infer(checkout: Checkout, *arguments: object) -> subprocess.CompletedProcess[str]:
    bundle = study_folder(checkout) / "models" / "dual-branch"
    command = [BIN / "scatterflow", "infer", *arguments, "--model", bundle]
    return subprocess.run([str(part) for part in command], cwd=checkout.folder, capture_output=True, text=True)


def frames() -> list[Path]:
    data = Path(os.environ.get("SCATTERFLOW_DATA") or ROOT.parent / "shared" / "data")
    return sorted((data / "p03_pilatus2m").glob("*.cbf"))


needs_frames = pytest.mark.skipif(not frames(), reason="the measured frames are not here; `make data` gets them")


def test_the_run_is_complete_and_says_how_good_it_is(answered: Checkout) -> None:
    assert answered.jobs(configfile=RUN) == {}
    results = answered.folder / "results" / "clusters"
    page = (results / "report.html").read_text()
    assert "absent.cbf" in page
    metrics = json.loads((results / "metrics.json").read_text())["studies"]["gold"]
    test = {name: entry["test"] for name, entry in metrics["estimators"].items()}
    assert test["uniform"]["wasserstein_over_uniform"] == 1
    assert test["dual-branch"]["wasserstein_over_uniform"] < 0.8
    assert test["cut-fit"]["wasserstein_over_uniform"] < 0.5
    assert (
        test["cut-fit"]["distance_nm"]["median_relative_error"] < test["peak"]["distance_nm"]["median_relative_error"]
    )
    bound = {entry["total_counts"]: entry["distance_nm"] for entry in metrics["bound"]["counts"]}
    assert bound[1e5] < bound[1e4]
    statuses = [frame["status"] for frame in metrics["frames"]]
    assert statuses[-1] == "missing"
    status = subprocess.run(
        [BIN / "scatterflow", "status", "--config", RUN, "--json"], cwd=answered.folder, capture_output=True, text=True
    )
    assert {stage["state"] for stage in json.loads(status.stdout)["stages"]} == {"done"}


def test_other_options_run_what_depends_on_them(answered: Checkout, tmp_path: Path) -> None:
    copy = answered.copy(tmp_path / "copy")
    path = copy.folder / RUN
    text = path.read_text()

    def jobs(old: str, new: str) -> set[str]:
        path.write_text(text.replace(old, new))
        return set(copy.jobs(configfile=RUN))

    after = {"infer_posterior", "evaluate_study", "write_report"}
    assert jobs("hidden: 32", "hidden: 24") == {"train_model", *after}
    assert jobs("fitted: 10", "fitted: 12") == {"run_baselines", "evaluate_study", "write_report"}
    assert jobs("predictive_draws: 4", "predictive_draws: 5") == {"train_model", *after}
    assert jobs("misfit_starts: 2", "misfit_starts: 1") == {"train_model", *after}
    changed = jobs("    forward:", "    artefacts: {hot_pixels: {number: [0, 0]}}\n    forward:")
    assert {"preprocess_study", "train_model", "run_baselines"} <= changed
    assert "simulate_study" not in changed
    assert "simulate_study" in jobs("[9.0, 18.0]", "[9.0, 17.0]")


def test_python(answered: Checkout) -> None:
    study = sf.load_study(answered.folder / RUN, "gold")
    theta = study.prior.sample(6, start=60)
    model = sf.load_model(study_folder(answered) / "models" / "dual-branch")
    features = study.preprocess(study.observe(study.simulate(theta)))
    found = model.predict(features)
    p = found["size_distribution"]
    np.testing.assert_allclose(p.sum("radius"), 1, rtol=1e-5)
    assert p["radius"].attrs["units"] == "nm"
    for name in ("distance_nm", "disorder", "mean_radius_nm", "width_nm"):
        assert {name, f"{name}_sd", f"{name}_low", f"{name}_high"} <= set(found)
        assert (found[f"{name}_low"] <= found[f"{name}_high"]).all()
    samples = model.posterior(features).sample(20, seed=1)
    assert study.prior.inside(samples).all()


@needs_frames
def test_measured_frames_get_a_line_and_a_file_each(answered: Checkout, tmp_path: Path) -> None:
    done = infer(answered, *frames(), "--instrument", INSTRUMENT, "--output", tmp_path / "found")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "distance_nm" in line
        assert "disorder" in line
        assert "mean_radius_nm" in line
        assert ": outside, " in line or ": ok, " in line
        assert ("its own posterior" in line) == ("answered with scales of rows" in line)
    written = sorted((tmp_path / "found").glob("*.nc"))
    assert len(written) == 3
    with xr.open_dataset(written[0], engine="h5netcdf") as found:
        assert float(found["size_distribution"].sum()) == pytest.approx(1, rel=1e-5)
        assert found["distance_nm"].attrs["units"] == "nm"


@needs_frames
def test_frames_that_cannot_be_used_are_one_line(answered: Checkout, tmp_path: Path) -> None:
    whole = fabio.open(frames()[0]).data
    small, dark, bright = (tmp_path / name for name in ("small.edf", "dark.edf", "bright.edf"))
    fabio.edfimage.EdfImage(whole[:600, :487].astype(np.int32)).write(str(small))
    fabio.edfimage.EdfImage(np.zeros_like(whole, dtype=np.int32)).write(str(dark))
    fabio.edfimage.EdfImage(np.full_like(whole, 2**30, dtype=np.int32)).write(str(bright))
    absurd = tmp_path / "absurd.yaml"
    absurd.write_text(INSTRUMENT.read_text().replace("beam_z_px: 367.5", "beam_z_px: 5000.0"))
    masked = tmp_path / "masked.yaml"
    text = INSTRUMENT.read_text()
    masked.write_text(text[: text.index("masked:")] + "masked:\n  - {z: [0, 1679], y: [0, 1475]}\n")
    flat = infer(answered, bright, "--instrument", INSTRUMENT)
    assert flat.returncode == 0, flat.stderr
    assert ": outside, " in flat.stdout
    assert "an even background explains most of its counts" in flat.stdout
    for arguments, words in (
        ((small, "--instrument", INSTRUMENT), "487 columns"),
        ((dark, "--instrument", INSTRUMENT), "counts"),
        ((frames()[0], "--instrument", absurd), "horizon"),
        ((frames()[0], "--instrument", masked), ""),
        ((frames()[0],), ""),
    ):
        done = infer(answered, *arguments)
        said = done.stdout + done.stderr
        assert "Traceback" not in said
        assert "internal error" not in said, said
        if len(arguments) == 1:  # the study's own geometry is that of these frames, without their mask
            assert done.returncode == 0, said
            continue
        assert done.returncode == 2, said
        assert words in said
        assert len(done.stdout.splitlines()) <= 1
