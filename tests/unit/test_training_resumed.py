"""A training that is stopped at any step continues at this step and ends as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from scatterflow.config.training import PhaseConfig, TrainingConfig
from scatterflow.data import Batches, Blocks, Rows, Source
from scatterflow.errors import ConfigError
from scatterflow.fanout import Stopped
from scatterflow.history import History
from scatterflow.progress import Tracker, quiet
from scatterflow.training import fit
from tests.unit.test_training import Regression, weights

ROWS, BATCH, EPOCHS = 70, 8, 4
STEPS = ROWS // BATCH  # of an epoch
STOPS = (1, 5, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS + 4, EPOCHS * STEPS - 1)


def numbers(epoch: int, rows: slice) -> xr.Dataset:
    """Rows that differ from epoch to epoch, as with fresh noise."""
    x = np.random.default_rng(epoch).normal(size=(ROWS, 5)).astype(np.float32)[rows]
    return xr.Dataset({"x": (("simulation", "feature"), x)})


def rows_of(part: xr.Dataset) -> Rows:
    x = torch.from_numpy(part["x"].values)
    return Rows((x, x[:, 0] * x[:, 1] + x[:, 2]))


SOURCES: dict[str, Source] = {
    "resident": rows_of(numbers(0, slice(ROWS))),
    "blocks": Blocks(ROWS, 13, numbers, rows_of),
}


def signals_at(steps: dict[int, int]) -> Tracker:
    """A tracker that sends this process a signal when a step of the run (counted from 1) is done."""

    @contextmanager
    def tracker(label: str, total: int) -> Iterator[Callable[[int], None]]:
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            if done in steps:
                signal.raise_signal(steps[done])

        yield advance

    return tracker


def train(
    folder: Path,
    source: str = "resident",
    schedule: str = "steps",
    steps: dict[int, int] | None = None,
    lines: list[str] | None = None,
    tracker: Tracker = quiet,
    **run,
) -> tuple[Regression, History]:
    module = Regression()
    phase = PhaseConfig(epochs=EPOCHS, batch_size=BATCH, decay_every=1, decay_factor=0.5, schedule=schedule)
    history = fit(
        module,
        SOURCES[source],
        SOURCES["resident"],
        phase,
        TrainingConfig(**{"accelerator": "cpu", **run}),
        folder,
        name="toy",
        seed=3,
        log=(lambda _: None) if lines is None else lines.append,
        tracker=signals_at(steps) if steps else tracker,
    )
    return module, history


def same(one: tuple[Regression, History], other: tuple[Regression, History]) -> None:
    np.testing.assert_array_equal(weights(one[0]), weights(other[0]))
    for field in ("epoch", "train_loss", "val_loss", "lr", "stopped"):
        assert [getattr(e, field) for e in one[1].epochs] == [getattr(e, field) for e in other[1].epochs]


@pytest.mark.parametrize("schedule", ["steps", "cosine"])
@pytest.mark.parametrize("source", SOURCES)
def test_stopped_at_any_step_it_ends_with_the_same_bits(source: str, schedule: str, tmp_path: Path) -> None:
    undisturbed = train(tmp_path / "undisturbed", source, schedule)
    for stop in STOPS:
        folder, lines = tmp_path / str(stop), []
        with pytest.raises(Stopped) as stopped:
            train(folder, source, schedule, {stop: signal.SIGTERM})
        assert stopped.value.code == 128 + signal.SIGTERM
        resumed = train(folder, source, schedule, lines=lines)
        epoch, step = divmod(stop, STEPS)
        where = f"after epoch {epoch} of {EPOCHS}" + (f", step {step} of the next" if step else "")
        assert lines[0] == f"continues: toy, {where}"
        same(resumed, undisturbed)


def test_stopped_again_and_again(tmp_path: Path) -> None:
    """Every run gets three steps further."""
    runs = 0
    while True:
        try:
            resumed = train(tmp_path / "stopped", "blocks", "cosine", {3: signal.SIGINT})
            break
        except Stopped:
            runs += 1
    assert runs == EPOCHS * STEPS // 3
    same(resumed, train(tmp_path / "undisturbed", "blocks", "cosine"))
    assert resumed[1].seconds == resumed[1].epochs[-1].seconds
    assert all(np.diff([epoch.seconds for epoch in resumed[1].epochs]) > 0)


def test_a_checkpoint_every_few_minutes_is_what_a_killed_training_continues_from(tmp_path: Path) -> None:
    """Copies of the checkpoint as a kill -9 after each step would find it."""
    path, found = tmp_path / "toy.ckpt", {}

    @contextmanager
    def copying(label: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(n: int) -> None:
            if path.exists():
                found[path.read_bytes()] = None

        yield advance

    phase = PhaseConfig(epochs=EPOCHS, batch_size=BATCH)
    run = TrainingConfig(accelerator="cpu", checkpoint_minutes=1e-9, checkpoint_every=1000)
    module = Regression()
    history = fit(
        module, SOURCES["blocks"], SOURCES["resident"], phase, run, tmp_path, name="toy", seed=3, log=lambda _: None,
        tracker=copying,
    )  # fmt: skip
    assert len(found) == EPOCHS * STEPS - 1
    for number, content in list(enumerate(found, start=1))[:: STEPS // 2]:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "toy.ckpt").write_bytes(content)
        lines: list[str] = []
        again = Regression()
        resumed = fit(
            again, SOURCES["blocks"], SOURCES["resident"], phase, run, folder, name="toy", seed=3, log=lines.append,
            tracker=quiet,
        )  # fmt: skip
        epoch, step = divmod(number, STEPS)
        assert lines[0].startswith(f"continues: toy, after epoch {epoch} of {EPOCHS}"), lines
        assert (f"step {step} of the next" in lines[0]) == bool(step)
        same((again, resumed), (module, history))


STEP_S = 0.3  # the three stopped runs take less than half of the budget, so that a slow machine does not end them by it


def test_the_spent_budget_is_not_given_back(tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(Stopped):
            budget(tmp_path, {2: signal.SIGTERM})
    lines: list[str] = []
    history = budget(tmp_path, {}, lines)
    assert history.stopped == "budget"
    assert "step" in lines[0]
    assert history.seconds > 3 * 2 * STEP_S


def budget(folder: Path, steps: dict[int, int], lines: list[str] | None = None) -> History:
    class Slow(Regression):
        def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            time.sleep(STEP_S)
            return super().loss(x, y)

    return fit(
        Slow(), SOURCES["resident"], Rows(SOURCES["resident"].block(0, 0).take(torch.arange(5))),
        PhaseConfig(epochs=1, batch_size=2, budget_s=4), TrainingConfig(accelerator="cpu"), folder, name="toy",
        seed=3, log=(lines if lines is not None else []).append, tracker=signals_at(steps),
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "size", "batch"), [(50, 50, 7), (50, 13, 7), (50, 3, 7), (50, 7, 7), (5, 2, 8)])
@pytest.mark.parametrize("world", [1, 2])
def test_batches_after_some_are_the_others_and_load_no_more_than_they_need(
    rows: int, size: int, batch: int, world: int
) -> None:
    loaded: list[int] = []

    def load(epoch: int, part: slice) -> xr.Dataset:
        loaded.append(part.start)
        return xr.Dataset({"x": ("simulation", np.arange(part.start, part.stop))})

    source = Blocks(rows, size, load, lambda part: Rows((torch.from_numpy(part["x"].values),)))
    for seed in (1, None):
        batches = Batches(source, batch, lambda: 2, seed, world - 1, world)
        every = [each[0].tolist() for each in batches]
        for done in range(len(every) + 1):
            loaded.clear()
            assert [each[0].tolist() for each in batches.after(done)] == every[done:]
            left = sum(len(each) for each in every[done:]) + batch - 1  # and the rows that fill no batch
            assert len(loaded) <= -(-left // max(1, size // world)) + 1


def test_signals_while_it_is_being_stopped_change_nothing(tmp_path: Path) -> None:
    """Slurm and snakemake both send SIGTERM; the last word has who ends it, not who asks for another turn."""
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "a", steps={3: signal.SIGUSR2, 4: signal.SIGTERM})
    assert stopped.value.signal_name == "SIGUSR2"
    lines: list[str] = []
    same(train(tmp_path / "a", lines=lines), train(tmp_path / "b"))
    assert "step 3 of the next" in lines[0]


def test_a_signal_at_the_last_step_or_later_ends_the_process_all_the_same(tmp_path: Path) -> None:
    @contextmanager
    def late(label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda _: None
        signal.raise_signal(signal.SIGTERM)

    for name, tracker in (("last", signals_at({EPOCHS * STEPS: signal.SIGTERM})), ("later", late)):
        with pytest.raises(Stopped):
            train(tmp_path / name, tracker=tracker)
        before = (tmp_path / name / "toy.ckpt").stat().st_mtime_ns
        same(train(tmp_path / name), train(tmp_path / "undisturbed"))
        assert (tmp_path / name / "toy.ckpt").stat().st_mtime_ns == before, "nothing was left to train"


def test_handlers_of_the_process_come_back(tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGURG)
    before = [signal.getsignal(number) for number in numbers]
    train(tmp_path)
    assert [signal.getsignal(number) for number in numbers] == before


def scontrol(folder: Path, script: str) -> None:
    """A command `scontrol` that does what `script` says: no Slurm is needed to see how a training takes its answer."""
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\n{script}\n')
    (folder / "scontrol").chmod(0o755)


def test_near_the_time_limit_the_job_goes_back_into_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Slurm answers to a requeue: SIGTERM to the job."""
    scontrol(tmp_path / "bin", "kill -TERM $PPID")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    lines: list[str] = []
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "run", steps={5: signal.SIGURG}, lines=lines)
    assert stopped.value.signal_name == "SIGTERM"
    assert (tmp_path / "bin" / "asked").read_text() == "requeue 17\n"
    assert lines[0].endswith("step 5 of the next: the time limit is near, Slurm job 17 goes back into the queue")
    same(train(tmp_path / "run"), train(tmp_path / "undisturbed"))


def test_a_refused_requeue_is_told_in_one_line_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol(tmp_path / "bin", "echo Requested operation is presently disabled >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    lines: list[str] = []
    finished = train(tmp_path / "run", steps={5: signal.SIGURG}, lines=lines)
    assert "Slurm job 17 cannot be requeued (Requested operation is presently disabled)" in lines[0]
    assert "\n" not in lines[0]
    same(finished, train(tmp_path / "undisturbed"))


def test_outside_slurm_the_signal_means_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    lines: list[str] = []
    train(tmp_path, steps={5: signal.SIGURG}, lines=lines)
    assert len(lines) == 1


def test_a_second_interrupt_by_hand_ends_at_once_and_tears_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, signal; from pathlib import Path\n"
        "from tests.unit.test_training_resumed import train, STEPS\n"
        "import scatterflow.checkpoint as checkpoint\n"
        "write = checkpoint.Trainer.save_checkpoint\n"
        "def interrupted(trainer, path):\n"
        "    if trainer.current_epoch == 1: Path(path).write_bytes(b'torn'); signal.raise_signal(signal.SIGINT)\n"
        "    write(trainer, path)\n"
        "checkpoint.Trainer.save_checkpoint = interrupted\n"
        "train(Path(sys.argv[1]), steps={STEPS + 2: signal.SIGINT})\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=200)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert (tmp_path / "run" / "toy.ckpt.partial").read_bytes() == b"torn"
    lines: list[str] = []
    same(train(tmp_path / "run", lines=lines), train(tmp_path / "undisturbed"))
    assert lines[0] == f"continues: toy, after epoch 1 of {EPOCHS}"
    shutil.rmtree(tmp_path / "run")


def test_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has a GPU")  # what is tested is the refusal where there is none
    for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
        monkeypatch.delenv(name, raising=False)
    lines: list[str] = []
    with pytest.raises(
        ConfigError, match=r"training\.accelerator must be auto or cpu where torch finds no GPU, got gpu"
    ):
        train(tmp_path / "gpu", accelerator="gpu")
    train(tmp_path / "laptop", accelerator="auto", lines=lines)
    assert len(lines) == 1
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    train(tmp_path / "job", accelerator="auto", lines=lines)
    assert lines[1] == "this job has a GPU (SLURM_JOB_GPUS=0), but torch finds none: training on the CPU"
