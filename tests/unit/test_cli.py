"""The command line: exit statuses, one line on stderr, one JSON document on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scatterflow import load_study
from scatterflow.cli.running import run
from scatterflow.exports import read_posterior

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "workflow" / "tiny.yaml"
CONFIG = ("--config", str(TINY))
STAGES = ("simulate", "cross-check", "preprocess", "train", "baseline", "infer", "evaluate", "report")
SMALL = {
    "simulate.simulations": 100,
    "simulate.held_back": 40,
    "simulate.validation": 40,
    "simulate.shard_size": 50,
    "simulate.workers": 1,
    "models": "{control: {kind: maf-profile, flow: {transforms: 1, hidden: 8, layers: 1}, training: {flow: {epochs: 1}}}}",
    "inference.frames": "[]",
}
Captured = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Captured:
    """Run a command in this process; returns exit status, stdout and stderr."""

    def captured(*arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        status = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return captured


def options(results: Path) -> tuple[str, ...]:
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    return (*CONFIG, "--results", str(results), *settings)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run with simulations, features and one trained model."""
    folder = tmp_path_factory.mktemp("results")
    for stage in ("simulate", "preprocess", "train"):
        assert run([stage, *options(folder), "--json"]) == 0
    return folder


def process(code: str) -> list[str]:
    """A Python that runs `code` with the command line at hand."""
    return [sys.executable, "-c", f"import sys\nfrom scatterflow.cli.running import run\n{code}"]


# --- help, version, usage ---


def test_the_installed_command_lists_its_commands() -> None:
    command = Path(sys.executable).with_name("scatterflow")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for name in (*STAGES, "sweep", "verify", "status", "doctor"):
        assert f"\n  {name} " in done.stdout


def test_help_answers_without_the_heavy_libraries() -> None:
    code = "run(['--help']); print(sorted({'numpy', 'torch', 'xarray', 'pydantic', 'yaml', 'rich'} & set(sys.modules)))"
    done = subprocess.run(process(code), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", [*STAGES, "sweep", "verify", "status", "doctor"])
def test_every_command_has_help_and_json(call: Captured, name: str) -> None:
    status, out, err = call(name, "--help")
    assert (status, err) == (0, "")
    assert "--json" in out


def test_version(call: Captured) -> None:
    assert call("--version") == (0, f"scatterflow {_version()}\n", "")


def _version() -> str:
    return next(
        line.split('"')[1] for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version")
    )


WRONG = [
    ([], "Missing command"),
    (["trian"], "Did you mean 'train'"),
    (["train", "--stduy", "x"], "No such option"),
    (["train", "extra"], "unexpected extra argument"),
    (["train", "--study"], "requires an argument"),
    (["verify"], "Missing argument"),
    (["infer", "a.cbf", "--incidence-deg", "flat"], "should be a valid number"),
    (["infer", "--model", "m"], "give FRAMES"),
    (["infer", "a.cbf"], "FRAMES need --model"),
    (["infer", "a.cbf", "--model", "nowhere"], "nowhere"),
    (["infer", "a.cbf", "--model", "m", "--instrument", "nowhere.yaml"], "instrument file nowhere.yaml must exist"),
    (["infer", "a.cbf", "--model", "m", "--incidence-deg", "0.4"], "needs the --instrument"),
    (["infer", "a.cbf", "--model", "m", "--output", str(TINY)], "file"),
    (["train", "--config", "nowhere.yaml"], "nowhere.yaml must exist"),
    (["train", *CONFIG, "--study", "other"], "--study must be one of ['multilayer'], got 'other'"),
    (["report", *CONFIG, "--study", "multilayer"], "covers all studies"),
    (["train", *CONFIG, "--set", "seed"], "must be KEY=VALUE"),
    (["train", *CONFIG, "--set", "=3"], "must be KEY=VALUE"),
    (["train", *CONFIG, "--set", "seed=[1"], "value of --set seed"),
    (["train", *CONFIG, "--set", "seed=x"], "seed"),
    (["train", *CONFIG, "--set", "sede=1"], "studies.multilayer.sede"),
    (["train", *CONFIG, "--set", "simulate.simulatoins=1"], "did you mean 'simulations'"),
    (["train", *CONFIG, "--set", "studies.other.simulate.simulations=1"], "must be one of ['multilayer'], got 'other'"),
    (["train", *CONFIG, "--set", "sample.materials.Ta.hurst=[0.9, 0.1]"], "hurst must ascend"),
    (["preprocess", *CONFIG, "--results", "nowhere"], "scatterflow simulate"),
    (["verify", "nowhere"], "nowhere must be a store"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_the_user_can_mend_is_one_line_and_status_2(
    call: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("scatterflow: ")
    assert len(err.splitlines()) == 1
    assert words in err
    if arguments:
        status, out, again = call(arguments[0], "--json", *arguments[1:])
        assert (status, again) == (2, err)
        assert json.loads(out)["error"]["message"] == err.removeprefix("scatterflow: ").strip()
    assert list(tmp_path.iterdir()) == [], "a refused command left something behind"


def test_json_errors_have_their_parts(call: Captured) -> None:
    _, out, _ = call("train", *CONFIG, "--study", "other", "--json")
    assert json.loads(out)["error"] == {
        "kind": "ConfigError",
        "message": "--study must be one of ['multilayer'], got 'other'",
        "what": "--study",
        "must": "must be one of ['multilayer']",
        "got": "'other'",
        "remedy": "",
    }


# --- stages, status, verify ---


def test_a_stage_says_where_its_product_is(call: Captured, results: Path) -> None:
    status, out, err = call("preprocess", *options(results))
    path = results / "tiny" / "multilayer" / "preprocess" / "manifest.json"
    assert (status, out) == (0, f"{path}\n")
    assert "preprocess multilayer: 100 simulations" in err
    status, out, _ = call("preprocess", *options(results), "--json")
    assert status == 0
    document = json.loads(out)
    assert document.pop("seconds") >= 0
    assert document == {"command": "preprocess", "run": "tiny", "products": [str(path)]}


def test_overrides_reach_the_stage(results: Path) -> None:
    manifest = json.loads((results / "tiny/multilayer/simulate/manifest.json").read_text())
    assert (manifest["simulations"], manifest["shard_size"]) == (100, 50)


def states(call: Captured, *arguments: str | Path) -> dict[str, str]:
    status, out, err = call("status", *arguments, "--json")
    assert (status, err) == (0, "")
    return {stage["stage"]: stage["state"] for stage in json.loads(out)["stages"]}


def test_status_tells_done_from_left(call: Captured, results: Path, tmp_path: Path) -> None:
    assert states(call, *options(tmp_path)) == dict.fromkeys(STAGES, "left")
    done = ("simulate", "preprocess", "train")
    assert states(call, *options(results)) == {stage: "done" if stage in done else "left" for stage in STAGES}
    status, out, _ = call("status", *options(results))
    assert status == 0
    assert "100 of 100 simulations" in out
    assert len(out.splitlines()) == 1 + len(STAGES)


def test_status_tells_what_another_configuration_has_made(call: Captured, results: Path) -> None:
    other = states(call, *options(results), "--set", "sample.materials.Ta.hurst=[0.2, 0.9]")
    assert (other["simulate"], other["preprocess"]) == ("outdated", "outdated")
    noise = states(call, *options(results), "--set", "observe.noise=none")
    assert (noise["simulate"], noise["preprocess"]) == ("done", "outdated")
    more = states(call, *options(results), "--set", "simulate.simulations=200")
    assert (more["simulate"], more["preprocess"]) == ("left", "left")
    model = "{kind: maf-profile}"
    assert states(call, *options(results), "--set", f"models.second={model}")["train"] == "left"


def test_status_tells_failed_and_running_jobs_of_the_workflow(
    call: Captured, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "tiny" / "multilayer" / "logs" / "run_baselines.log"
    log.parent.mkdir(parents=True)
    log.write_text("begin\nno space left on \x1b[31mdevice\n\n")
    status, out, _ = call("status", *options(tmp_path))
    assert status == 0
    line = next(line for line in out.splitlines() if "baseline" in line)
    assert "failed" in line
    assert f"(see {log})" in line
    assert "no space left on [31mdevice" in line, "control characters of a log reach the terminal"
    lock = tmp_path / ".snakemake" / "scatterflow.lock"
    lock.parent.mkdir()
    hold = f"f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", f"import fcntl; {hold}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert states(call, *options(tmp_path))["baseline"] == "left", "the log is of an earlier run of the workflow"
        log.write_text("begin\n")
        assert states(call, *options(tmp_path))["baseline"] == "running"
        holder.communicate(b"\n")
    assert states(call, *options(tmp_path))["baseline"] == "failed"


def test_status_names_a_damaged_product(call: Captured, results: Path) -> None:
    manifest = results / "tiny" / "multilayer" / "preprocess" / "manifest.json"
    whole = manifest.read_bytes()
    try:
        manifest.write_bytes(whole[: len(whole) // 2])
        assert states(call, *options(results))["preprocess"] == "failed"
    finally:
        manifest.write_bytes(whole)


def test_verify_finds_a_flipped_bit(call: Captured, results: Path) -> None:
    store = next((results / "tiny" / "multilayer" / "simulate").glob("store-*.zarr"))
    status, out, _ = call("verify", store, "--json")
    assert (status, json.loads(out)["ok"]) == (0, True)
    shard = max((path for path in store.glob("profile/c/**/*") if path.is_file()), key=str)
    whole = shard.read_bytes()
    try:
        position = len(whole) // 3
        shard.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        status, out, err = call("verify", store)
        assert status == 2
        assert out.startswith("simulations 50 to 99: ")
        last = err.splitlines()[-1]
        assert "1 damaged shard of 2" in last
        assert "run `scatterflow simulate`" in last
        status, out, _ = call("verify", store, "--json")
        assert (status, json.loads(out)["ok"], len(json.loads(out)["damaged"])) == (2, False, 1)
    finally:
        shard.write_bytes(whole)


# --- infer ---


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good frame in two folders, a stack of two, and a text file."""
    import fabio
    import h5py

    folder = tmp_path_factory.mktemp("frames")
    study = load_study(TINY, "multilayer")
    counts = study.simulate(study.prior.sample(1, seed=5), views=("full",))["full"].values[0]
    image = np.random.default_rng(5).poisson(counts)[::-1].astype(np.int32)  # files begin with the top row
    (folder / "more").mkdir()
    for path in (folder / "a.cbf", folder / "more" / "a.cbf"):
        fabio.cbfimage.CbfImage(data=image).write(path)
    with h5py.File(folder / "scan.h5", "w") as file:
        file["entry/data/data"] = np.stack([image, image])
    (folder / "text.tif").write_text("counts: many\n")
    return folder


def test_infer_answers_frame_by_frame(call: Captured, results: Path, frames: Path, tmp_path: Path) -> None:
    model = results / "tiny" / "multilayer" / "models" / "control"
    paths = [frames / "a.cbf", frames / "text.tif", frames / "more" / "a.cbf", frames / "scan.h5"]
    status, out, err = call("infer", *paths, "--model", model, "--output", tmp_path / "out", "--json")
    assert status == 2
    assert err.splitlines()[-1] == "scatterflow: 1 of 5 frames got no answer (1 unreadable); the others are done"
    document = json.loads(out)
    assert json.loads((tmp_path / "out" / "frames.json").read_text()) == document["frames"]
    answered = [frame for frame in document["frames"] if frame["status"] != "unreadable"]
    assert [frame["status"] in ("ok", "outside") for frame in answered] == [True] * 4
    files = [frame["samples"] for frame in answered]
    assert len(set(files)) == len(files), "frames of the same name overwrite each other"
    study = load_study(TINY, "multilayer")
    for frame in answered:
        assert list(frame["estimates"]) == list(study.prior.names)
        stored = read_posterior(Path(frame["samples"]))
        medians = np.median(stored.samples.values[0], axis=0)
        shown = [estimate["value"] for estimate in frame["estimates"].values()]
        np.testing.assert_allclose(shown, medians, rtol=1e-6)
        assert np.isfinite(study.prior.log_prob(study.prior.dataarray(stored.samples.values[0]))).all()


def test_infer_prints_one_line_per_frame(call: Captured, results: Path, frames: Path) -> None:
    model = results / "tiny" / "multilayer" / "models" / "control"
    status, out, err = call("infer", frames / "a.cbf", frames / "scan.h5", "--model", model)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(frames / "a.cbf"),
        *(f"{frames / 'scan.h5'}::/entry/data/data[{index}]" for index in (0, 1)),
    ]


# --- doctor ---


def test_doctor_finds_this_machine_fit(call: Captured, tmp_path: Path) -> None:
    status, out, err = call("doctor", *CONFIG, "--results", tmp_path, "--json")
    document = json.loads(out)
    missing = [finding for finding in document["findings"] if finding["state"] == "missing"]
    assert (status, err, document["ok"], missing) == (0, "", True, [])
    found = {finding["what"]: finding["found"] for finding in document["findings"]}
    assert found["BornAgain"].startswith("25.")
    assert {"python", "packages", "cores", "memory", "disk", "GPU", "Slurm", "real frames"} <= set(found)
    warned = [finding for finding in document["findings"] if finding["state"] == "warning"]
    assert all(finding["remedy"] for finding in warned)


def test_doctor_names_what_is_missing(call: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCATTERFLOW_FANOUT", "cloud")
    status, out, err = call("doctor", "--config", "nowhere.yaml", "--results", TINY / "results")
    assert (status, err) == (2, "")
    assert out.splitlines()[-1] == "missing: disk, simulations, configuration"
