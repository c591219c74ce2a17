"""Real time: 64x64 frames at 1 kHz for 60 s on 2 cores, from the writer's process to the answer in the file of records.

pytest benchmarks/bench_watch.py -s

SCATTERFLOW_WATCH_SECONDS shortens it. The writer notes the clock before it hands a frame to HDF5, so the end-to-end
latency holds writing, noticing, reading, the queue, the lean encoder and the checks of answers; it also refreshes the
bundle every 10 s, as a training elsewhere would. The published encoder needs 0.27 ms per frame on a CPU, in batches,
with nothing around it. Beside other programs the figures are those of the kernel's scheduler: an idle machine is meant.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from scatterflow.cli.watch import load_estimator
from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.config.regressor import LeanConfig
from scatterflow.config.simulate import SimulateConfig
from scatterflow.config.study import NanodiffractionConfig
from scatterflow.forward.nanodiffraction import PARAMETERS, intensities, kinematics
from scatterflow.models.nanophysics import Box
from scatterflow.models.regressor import Regressor, build
from scatterflow.watch import Settings, watch

SECONDS = float(os.environ.get("SCATTERFLOW_WATCH_SECONDS", "60"))
RATE_HZ = 1000
CORES = 2
P99_MS = 20.0  # must be under this
EVERY = 10 * RATE_HZ  # frames from one new bundle to the next
MAX_COUNTS = 7
DIFFERENT = 500  # frames that are repeated
BOX = Box(PARAMETERS[:3], (-0.005, -0.05, -0.1), (0.005, 0.05, 0.1))
DATASET = "entry/data/data"


def encoder() -> Regressor:
    """The lean encoder in its full size, with its study. Its speed does not depend on what it has learned: nothing."""
    torch.manual_seed(1)
    config, beam, film = LeanConfig(), NanobeamConfig(), FilmConfig()
    simulate = SimulateConfig(simulations=100, shard_size=10, held_back=20, validation=20)
    study = NanodiffractionConfig(beam=beam, film=film, models={"lean": config}, simulate=simulate)
    told = {"name": "watched", "run": "bench", "seed": 1, "config": study.model_dump(mode="json")}
    meta = {"study": told, "threshold": 1.2}
    network = build(config, beam, film, BOX)
    return Regressor(config, beam, film, BOX, network, MAX_COUNTS, (1.0, 1.0, 1.0), meta=meta)


def frames() -> np.ndarray:
    """Poisson counts (frame, z, y) of parameters drawn from the box."""
    rng = np.random.default_rng(1)
    theta = BOX.from_unit(torch.as_tensor(rng.uniform(-0.9, 0.9, (DIFFERENT, 3))))
    expected = intensities(kinematics(NanobeamConfig(), FilmConfig()), theta).clamp_min(0).numpy()
    return rng.poisson(MAX_COUNTS * expected / expected.max((1, 2), keepdims=True)).astype(np.uint16)


def write(path: Path, bundle: Path, images: np.ndarray, number: int) -> None:
    """Write frames at the rate in SWMR mode, and bundle.json now and then; notes when into `times.npy`."""
    times = np.zeros(number)
    with h5py.File(path, "w", libver="latest") as file:
        shape = images.shape[1:]
        data = file.create_dataset(DATASET, (0, *shape), images.dtype, maxshape=(None, *shape), chunks=(1, *shape))
        file.swmr_mode = True
        time.sleep(2.0)  # until the watch has begun
        began = time.monotonic()
        for i in range(number):
            time.sleep(max(0.0, began + i / RATE_HZ - time.monotonic()))
            times[i] = time.time()
            data.resize(i + 1, 0)
            data[i] = images[i % len(images)]
            data.flush()
            if i % EVERY == EVERY // 2:
                refresh(bundle, 1 - i // EVERY % 2)
    np.save(path.with_name("times.npy"), times)


def refresh(bundle: Path, number: int) -> None:
    """Put the bundle `number` (0 or 1) into its place, as a training that has saved its newest one does."""
    newest = bundle.with_name(f"bundle{number}") / "bundle.json"
    partial = bundle / "bundle.json.partial"
    partial.write_bytes(newest.read_bytes())
    partial.replace(bundle / "bundle.json")


@pytest.fixture
def two_cores() -> Iterator[None]:
    """This process and the writer on two cores, the network on one of them."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(before)[:CORES])
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("two_cores")
def test_detector_rate(tmp_path: Path) -> None:
    number = round(SECONDS * RATE_HZ)
    np.save(tmp_path / "images.npy", frames())
    bundle = tmp_path / "bundle"
    for name, identity in (("bundle", "first"), ("bundle0", "even"), ("bundle1", "odd")):
        replace(encoder(), identity=identity).save(tmp_path / name)
    lines = (tmp_path / "lines.txt").open("w")
    before = time.process_time()
    command = [sys.executable, __file__, str(tmp_path / "scan.h5"), str(bundle), str(number)]
    with subprocess.Popen(command) as writer, lines:
        summary = watch(
            tmp_path / "scan.h5", bundle, load_estimator, output=tmp_path / "out", settings=Settings(idle_s=60.0),
            tell=lambda told: print(told, file=lines, flush=True),
        )  # fmt: skip
    busy = (time.process_time() - before) / SECONDS
    assert writer.returncode == 0
    records = [json.loads(line) for line in (tmp_path / "out" / "frames.jsonl").read_text().splitlines()[1:]]
    times = np.load(tmp_path / "times.npy")
    through = 1e3 * (np.array([each["answered_s"] for each in records]) - times)
    late = 1e3 * (times - times[0] - np.arange(number) / RATE_HZ).max()
    p50, p99 = np.quantile(through, [0.5, 0.99])
    print(
        f"\n{number} frames at {summary.rate_hz:.1f} Hz on {CORES} cores: {summary.ok} ok, {summary.late} late, "
        f"{summary.broken} broken, {summary.missing} missing; {summary.bundles} bundles; at most {summary.largest_lag} wait"
        f"\nthe model was compared with {1 - summary.unchecked / number:.0%} of the frames; load of the machine: "
        f"{os.getloadavg()[0]:.1f}"
        f"\nfrom before the write to the answer: p50 {p50:.2f} ms, p99 {p99:.2f} ms (needed {P99_MS:g}), at most "
        f"{through.max():.1f} ms; from appearance: p50 {summary.p50_ms:.2f} ms, p99 {summary.p99_ms:.2f} ms"
        f"\nthe watch keeps {busy:.0%} of a core busy; the writer was at most {late:.1f} ms behind its own schedule"
    )
    assert [each["number"] for each in records] == list(range(number))
    assert (summary.ok, summary.refused) == (number, 0)
    assert summary.bundles == 1 + (number + EVERY // 2 - 1) // EVERY
    assert p99 < P99_MS


@pytest.mark.usefixtures("two_cores")
def test_encoder_alone() -> None:
    """What of it is the network's share: time per frame by size of the batch."""
    lean, images = encoder(), frames().astype(np.float32)
    print("\nlean encoder, one core, frames in a batch: ms per frame (published encoder on a CPU: 0.27)")
    for size in (1, 4, 16, 64, 256):
        took = []
        for _ in range(20):
            began = time.perf_counter()
            lean.predict(images[:size])
            took.append(time.perf_counter() - began)
        print(f"{size:4d}: {1e3 * min(took) / size:.3f}")


if __name__ == "__main__":
    scan, folder, count = sys.argv[1:]
    write(Path(scan), Path(folder), np.load(Path(scan).with_name("images.npy")), int(count))
