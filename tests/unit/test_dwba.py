"""Engine dwba as a user meets it: bad input, batches, memory, compilation. Its physics: tests/science/test_dwba_*."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scatterflow.errors import ConfigError, SimulationError
from scatterflow.forward.dwba import Engine, expected_counts, fused, limits, roughness
from scatterflow.forward.dwba.pairs import Complex
from tests.examples import instrument, sample, theta

VIEWS = ("profile", "image")
ROWS = 13


@pytest.mark.parametrize(
    ("index", "value", "name"),
    [
        (0, -1e-6, "delta"),
        (0, 0.2, "delta"),
        (1, -1e-9, "beta"),
        (2, 0.0, "thickness_nm"),
        (2, np.inf, "thickness_nm"),
        (3, 0.0, "roughness_nm"),
        (3, -0.1, "roughness_nm"),
        (4, 0.0, "hurst"),
        (4, 1.0, "hurst"),
        (5, 0.0, "correlation_length_nm"),
        (5, np.nan, "correlation_length_nm"),
    ],
)
def test_unphysical_parameters_name_row_and_parameter(index: int, value: float, name: str) -> None:
    bad = theta(3).values.copy()
    bad[1, 6 + index] = value
    with pytest.raises(SimulationError, match=rf"row 1: layer02_Ta\.{name} must"):
        expected_counts(sample(), instrument(), bad, VIEWS)


def test_wrong_number_of_parameters_names_both() -> None:
    with pytest.raises(SimulationError, match=r"shape \(n, 12\), got \(3, 11\)"):
        expected_counts(sample(), instrument(), theta(3).values[:, 1:], VIEWS)


@pytest.mark.parametrize(
    "options", [{"incidence_deg": 0.0}, {"incidence_deg": 90.0}, {"incidence_deg": -1.0}, {"wavelength_nm": 0.0}]
)
def test_impossible_beams_are_refused_by_the_configuration(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        instrument(geometry="flat", **options)


def test_unknown_view_and_mode_name_the_known() -> None:
    with pytest.raises(ConfigError, match=r"full.*profile.*image"):
        expected_counts(sample(), instrument(), theta(1).values, ("imag",))
    with pytest.raises(ConfigError, match="fast or reference"):
        expected_counts(sample(), instrument(), theta(1).values, VIEWS, mode="quick")


def test_a_batch_that_cannot_fit_says_how_much_it_needs() -> None:
    with pytest.raises(
        SimulationError, match=r"one row of bins of view image.*batch_bytes=5000,.*at least \d+$"
    ) as error:
        expected_counts(sample(), instrument(), theta(1).values, ("image",), batch_bytes=5_000)
    enough = int(str(error.value).split()[-1])
    expected_counts(sample(), instrument(), theta(1).values, ("image",), batch_bytes=enough)


@pytest.mark.parametrize("mode", ["fast", "reference"])
@pytest.mark.parametrize("geometry", ["bornagain", "flat"])
def test_views_in_parts_are_the_same(mode: str, geometry: str) -> None:
    config = instrument(geometry=geometry)
    whole = expected_counts(sample(), config, theta(2).values, VIEWS, mode=mode)
    little = {"fast": 200_000, "reference": 2_000_000}[mode]
    parts = expected_counts(sample(), config, theta(2).values, VIEWS, mode=mode, batch_bytes=little)
    assert len(Engine(sample(), config, VIEWS, limits(sample()), mode, batch_bytes=little)._groups) > 2
    for name in VIEWS:
        np.testing.assert_allclose(parts[name], whole[name], rtol=2e-6 if mode == "fast" else 1e-13)


def test_no_simulations_give_empty_views() -> None:
    counts = expected_counts(sample(), instrument(), theta(1).values[:0], VIEWS)
    assert {name: array.shape for name, array in counts.items()} == {"profile": (0, 26, 1), "image": (0, 30, 8)}


@pytest.fixture(scope="module")
def whole() -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Counts of all rows at once, by mode and geometry."""
    return {
        (mode, geometry): expected_counts(sample(), instrument(geometry=geometry), theta(ROWS).values, VIEWS, mode=mode)
        for mode in ("fast", "reference")
        for geometry in ("bornagain", "flat")
    }


@pytest.mark.parametrize("geometry", ["bornagain", "flat"])
@pytest.mark.parametrize("mode", ["fast", "reference"])
@settings(max_examples=12, deadline=None)
@given(cuts=st.sets(st.integers(1, ROWS - 1)))
def test_rows_do_not_depend_on_their_batch(whole: dict, mode: str, geometry: str, cuts: set[int]) -> None:
    """To the last bit: a killed run may resume with other shards."""
    config = instrument(geometry=geometry)
    edges = [0, *sorted(cuts), ROWS]
    parts = [
        expected_counts(sample(), config, theta(ROWS).values[start:stop], VIEWS, mode=mode)
        for start, stop in itertools.pairwise(edges)
    ]
    for name in VIEWS:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[mode, geometry][name])


MEMORY = """
import sys
from scatterflow.forward.dwba import Engine, limits, expected_counts
from scatterflow.multilayer import multilayer_prior
from scatterflow.study import load_study
config = load_study("config/demo.yaml", "multilayer").config
geometry, mode, views, allowed, rows = sys.argv[1], sys.argv[2], sys.argv[3].split("+"), int(sys.argv[4]), int(sys.argv[5])
instrument = config.instrument.model_copy(update={"geometry": geometry})
theta = multilayer_prior(config.sample, 0).sample(rows).values
def run(theta, **options):
    counts = expected_counts(config.sample, instrument, theta, tuple(views), mode=mode, **options)
    return sum(array.nbytes for array in counts.values())
run(theta[:1], batch_bytes=allowed)  # what torch, its libraries and the plan take once
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
before = resident("VmRSS")
result = run(theta, batch_bytes=allowed)
print((resident("VmHWM") - before - result) / allowed)
"""


@pytest.mark.parametrize(
    ("geometry", "mode", "views", "megabytes", "rows"),
    [
        ("bornagain", "fast", "profile+image", 32, 60),
        ("flat", "fast", "full", 16, 2),
        ("flat", "reference", "image", 10, 2),
    ],
)
def test_memory_stays_within_its_bound(geometry: str, mode: str, views: str, megabytes: int, rows: int) -> None:
    """Peak resident memory beside the result, in a process of its own."""
    arguments = [geometry, mode, views, str(megabytes * 2**20), str(rows)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
    command = [sys.executable, "-c", MEMORY, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    share = float(done.stdout)
    print(f"\n{arguments}: {share:.2f} of the bound")
    assert 0.02 < share <= 1.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler warns of itself
def test_what_is_compiled_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    """One of the compiled functions, the shortest: the others take a minute (benchmarks/bench_dwba.py compares all)."""
    rng = np.random.default_rng(0)
    wave = Complex(*(torch.tensor(rng.normal(size=(2, 3, 40, 1))) for _ in range(2)))
    q2, sigma, hurst, length, damping = (torch.tensor(rng.random(shape)) for shape in ((40, 7), *[(2, 3)] * 4))
    arguments = (wave, q2, sigma, hurst, length, damping)
    torch.testing.assert_close(fused.fused(roughness.intensity)(*arguments), roughness.intensity(*arguments))
    assert ("compiling failed" in capsys.readouterr().err) == (fused.compiler("cpu") is None)


def test_what_cannot_be_compiled_is_computed_uncompiled_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def first(x: torch.Tensor) -> float:
        return float(x.numpy().tolist()[0])  # leaves torch: no compiler follows

    def second(x: torch.Tensor) -> float:
        return 2 * float(x.numpy().tolist()[0])

    x = torch.ones(1)
    assert [fused.fused(f)(x) for f in (first, second, first)] == [1.0, 2.0, 1.0]
    assert "".join(capsys.readouterr()).count("compiling failed") == 1


def test_no_compiler_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    fused.compiler.cache_clear()
    try:
        engines = [Engine(sample(), instrument(), VIEWS, limits(sample()), compiled=True) for _ in range(2)]
    finally:
        fused.compiler.cache_clear()
    text = "".join(capsys.readouterr())
    assert [engine.compiled for engine in engines] == [False, False]
    assert text.count("no compiler") == 1


def test_importing_the_forward_models_does_not_import_torch() -> None:
    code = "import sys, scatterflow.forward; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_types_of_the_counts() -> None:
    rows = theta(1).values
    for mode, dtype in (("fast", np.float32), ("reference", np.float64)):
        counts = expected_counts(sample(), instrument(), rows.astype(np.float32), VIEWS, mode=mode)
        assert {array.dtype for array in counts.values()} == {np.dtype(dtype)}
