"""Engine dwba against BornAgain 25: same samples, same run, one thread each. Also on a GPU, where there is one.

pytest benchmarks/bench_dwba.py -s
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.sample import SampleConfig
from scatterflow.forward import bornagain
from scatterflow.forward.dwba import Engine, limits
from scatterflow.multilayer import multilayer_prior
from scatterflow.study import load_study

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's compiler warns of itself
]
PAPER = load_study("config/paper.yaml", "layers12").config
DEMO = load_study("config/demo.yaml", "multilayer").config
PIXELS = 1024 * 512
GPU = torch.cuda.is_available()
NEEDED = {
    ("bornagain", True): 300,
    ("flat", True): 150,
    ("bornagain", False): 50,
    ("flat", False): 50,
}  # what it must reach
FRAMES_PER_S = 10_000  # on a GPU
GRADIENT = 5  # times the forward


def seconds(run: Callable[[], object], repeats: int = 7, device: str = "cpu") -> float:
    """Shortest time of a run, without the first, which plans and compiles; on the CPU that of the thread itself."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats + 1):
        start = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times[1:])


def prior_samples(sample: SampleConfig, n: int, device: str = "cpu") -> torch.Tensor:
    return torch.tensor(multilayer_prior(sample, 1).sample(n).values, device=device)


def forward(engine: Engine, theta: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return engine(theta)

    return run


def gradient(engine: Engine, theta: torch.Tensor, view: str) -> Callable[[], object]:
    """Gradient of the summed Poisson log-likelihood."""
    with torch.no_grad():
        observed = torch.poisson(engine(theta)[view])

    def run() -> object:
        x = theta.clone().requires_grad_(True)
        counts = engine(x)[view]
        return torch.autograd.grad((observed * counts.log() - counts).sum(), x)

    return run


@pytest.fixture(scope="module")
def bornagain_seconds() -> float:
    """One whole frame of 14 interfaces."""
    theta = prior_samples(PAPER.sample, 1).numpy()
    start = time.process_time()
    bornagain.expected_counts(PAPER.sample, InstrumentConfig(), theta, ("full",))
    return time.process_time() - start


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("geometry", ["bornagain", "flat"])
def test_whole_frame_of_14_interfaces(bornagain_seconds: float, geometry: str, compiled: bool) -> None:
    config = InstrumentConfig(geometry=geometry)
    engine = Engine(PAPER.sample, config, ("full",), limits(PAPER.sample), compiled=compiled)
    theta = prior_samples(PAPER.sample, 1)
    one = seconds(forward(engine, theta))
    how = "compiled" if engine.compiled else "eager"
    print(
        f"\nwhole frame, geometry {geometry}, {how}: {1e3 * one:.1f} ms; BornAgain in its geometry "
        f"{bornagain_seconds:.1f} s: {bornagain_seconds / one:.0f} times (needed {NEEDED[geometry, engine.compiled]})"
    )
    assert bornagain_seconds / one >= NEEDED[geometry, engine.compiled]


@pytest.mark.parametrize("geometry", ["bornagain", "flat"])
def test_gradient_of_a_whole_frame(geometry: str) -> None:
    engine = Engine(PAPER.sample, InstrumentConfig(geometry=geometry), ("full",), limits(PAPER.sample))
    theta = prior_samples(PAPER.sample, 1)
    ratio = seconds(gradient(engine, theta, "full"), 4) / seconds(forward(engine, theta))
    print(
        f"\ngradient of 72 parameters, geometry {geometry}: {ratio:.1f} times the forward (at most {GRADIENT}), both eager"
    )
    assert ratio <= GRADIENT


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("geometry", ["bornagain", "flat"])
def test_views_of_the_demo(geometry: str, compiled: bool) -> None:
    config = DEMO.instrument.model_copy(update={"geometry": geometry})
    engine = Engine(DEMO.sample, config, ("profile", "image"), limits(DEMO.sample), compiled=compiled)
    rows = prior_samples(DEMO.sample, engine.batch)
    start = time.process_time()
    bornagain.expected_counts(DEMO.sample, DEMO.instrument, rows[:4].numpy(), ("profile", "image"))
    peer = (time.process_time() - start) / 4
    one = seconds(forward(engine, rows)) / len(rows)
    plain = Engine(DEMO.sample, config, ("profile", "image"), limits(DEMO.sample))
    with torch.no_grad():
        for name, counts in engine(rows).items():
            torch.testing.assert_close(counts, plain(rows)[name], rtol=1e-6, atol=0)
    print(
        f"\nprofile and image of the demo, geometry {geometry}, {'compiled' if engine.compiled else 'eager'}, batches of "
        f"{len(rows)}: {1e3 * one:.2f} ms each, {1 / one:.0f} per second and core; BornAgain {1e3 * peer:.0f} ms (its "
        f"geometry): {peer / one:.0f} times faster"
    )


def test_throughput_against_layers_and_pixels() -> None:
    print("\nfree layers, pixels: dwba (eager, geometry bornagain) and BornAgain, milliseconds per frame, ratio")
    for free in (1, 3, 6, 12):
        content = PAPER.sample.model_dump() | {"layers": PAPER.sample.layers[:free], "expert": ()}
        sample = SampleConfig.model_validate(content)
        theta = prior_samples(sample, 1)
        for binned in (1, 4, 8):
            shape = (1024 // binned, 512 // binned)
            config = InstrumentConfig(
                shape=shape, pixel_mm=0.05 * binned, beam_z_px=413 / binned, beam_y_px=215 / binned, resolution_mm=0.0
            )
            engine = Engine(sample, config, ("full",), limits(sample))
            ours = seconds(forward(engine, theta))
            if shape[0] * shape[1] * (free + 2) > PIXELS:
                print(f"{free:3d} {shape[0] * shape[1]:8d}: {1e3 * ours:8.2f}        - (BornAgain: minutes)")
                continue
            start = time.process_time()
            bornagain.expected_counts(sample, config, theta.numpy(), ("full",))
            peer = time.process_time() - start
            print(f"{free:3d} {shape[0] * shape[1]:8d}: {1e3 * ours:8.2f} {1e3 * peer:8.0f} {peer / ours:6.0f}")


@pytest.mark.skipif(not GPU, reason="no GPU on this machine")  # the tests above measure the CPU
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("geometry", ["bornagain", "flat"])
def test_whole_frames_on_a_gpu(geometry: str, compiled: bool) -> None:
    config = InstrumentConfig(geometry=geometry)
    engine = Engine(PAPER.sample, config, ("full",), limits(PAPER.sample), "fast", "cuda", compiled, 2**34)
    theta = prior_samples(PAPER.sample, engine.batch, "cuda")
    rate = len(theta) / seconds(forward(engine, theta), 5, "cuda")
    written = rate * PIXELS * 4 / 1e9
    print(
        f"\nGPU, geometry {geometry}, {'compiled' if engine.compiled else 'eager'}, batches of {len(theta)}: {rate:.0f} "
        f"frames per second (needed {FRAMES_PER_S}), which are {written:.0f} GB/s of counts"
    )
    on_cpu = Engine(PAPER.sample, config, ("full",), limits(PAPER.sample))
    with torch.no_grad():
        np.testing.assert_allclose(engine(theta)["full"][:2].cpu(), on_cpu(theta[:2].cpu())["full"], rtol=1e-5)
    assert rate >= FRAMES_PER_S
