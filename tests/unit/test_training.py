"""The trainer: determinism, early stopping, budget, checkpoints. Run as a script, it is the training that gets killed."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scatterflow import seeds
from scatterflow.config.training import PhaseConfig, TrainingConfig
from scatterflow.data import Batches, Rows
from scatterflow.errors import ScatterflowError, StoreError
from scatterflow.history import History
from scatterflow.progress import quiet
from scatterflow.training import end_helpers, fit

ROWS, EPOCHS = 3000, 8


class Regression(nn.Module):
    """Batch norm, dropout and fresh noise: everything whose state a resumed training could lose."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(5, 64), nn.BatchNorm1d(64), nn.SiLU(), nn.Dropout(0.1), nn.Linear(64, 1))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.network(x + 0.1 * torch.randn_like(x))[:, 0] - y) ** 2


def data() -> tuple[Rows, Rows]:
    x = torch.randn(ROWS + 500, 5, generator=torch.Generator().manual_seed(1))
    y = x[:, 0] * x[:, 1] + x[:, 2]
    return Rows((x[:ROWS], y[:ROWS])), Rows((x[ROWS:], y[ROWS:]))


def train(
    folder: Path, seed: int = 3, lines: list[str] | None = None, devices: int = 1, **options
) -> tuple[Regression, History]:
    module = Regression()
    run = TrainingConfig(devices=devices, accelerator="cpu")
    phase = PhaseConfig(**{"epochs": EPOCHS, "batch_size": 16, "decay_every": 3, "patience": 50, **options})
    log = (lambda _: None) if lines is None else lines.append
    history = fit(module, *data(), phase, run, folder, name="toy", seed=seed, log=log, tracker=quiet)
    return module, history


def weights(module: nn.Module) -> np.ndarray:
    return torch.cat([tensor.double().flatten() for tensor in module.state_dict().values()]).numpy()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, *train(folder)


def test_kill_and_rerun_end_with_the_same_weights(undisturbed, tmp_path):
    _, module, history = undisturbed
    folder = tmp_path / "killed"
    running = subprocess.Popen([sys.executable, __file__, str(folder)], cwd=Path(__file__).parents[2])
    checkpoint = folder / "toy.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert running.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.kill()
    running.wait()
    lines: list[str] = []
    resumed, again = train(folder, lines=lines)
    assert any("continues: toy, after epoch" in line for line in lines)
    np.testing.assert_array_equal(weights(resumed), weights(module))
    for field in ("epoch", "train_loss", "val_loss", "lr", "stopped"):
        assert [getattr(e, field) for e in again.epochs] == [getattr(e, field) for e in history.epochs]
    assert all(np.diff([e.seconds for e in again.epochs]) > 0)


def test_the_seed_decides(undisturbed, tmp_path):
    _, module, _ = undisturbed
    np.testing.assert_array_equal(weights(train(tmp_path / "same")[0]), weights(module))
    assert not np.array_equal(weights(train(tmp_path / "other", seed=4)[0]), weights(module))


def test_it_learns_and_keeps_the_best_weights(undisturbed):
    _, module, history = undisturbed
    losses = [epoch.val_loss for epoch in history.epochs]
    assert history.best_loss == min(losses) == losses[history.best_epoch]
    assert history.best_loss < 0.6 * float(data()[1].tensors[1].var()), "better than no model"
    assert history.stopped == "epochs"
    assert len(history.epochs) == EPOCHS
    assert not module.training
    torch.manual_seed(seeds.integer(3, "validation of process 0"))  # the noise in the loss is that of every epoch
    with torch.no_grad():
        loss = torch.cat([module.loss(*batch) for batch in Batches(data()[1], 256, lambda: 0)]).mean()
    assert float(loss) == pytest.approx(history.best_loss, rel=1e-6)


def test_history_table_and_no_litter(undisturbed):
    folder, _, history = undisturbed
    assert {path.name for path in folder.iterdir()} == {"history.csv", "toy.ckpt"}
    with (folder / "history.csv").open() as handle:
        table = list(csv.DictReader(handle))
    assert [float(row["val_loss"]) for row in table] == pytest.approx([e.val_loss for e in history.epochs], rel=1e-6)
    assert [float(row["lr"]) for row in table] == pytest.approx([1e-3] * 3 + [1e-4] * 3 + [1e-5] * 2)
    assert [row["stopped"] for row in table] == [""] * (EPOCHS - 1) + ["epochs"]
    assert {row["phase"] for row in table} == {"toy"}


def test_a_finished_training_is_not_repeated(undisturbed):
    folder, module, history = undisturbed
    before = (folder / "toy.ckpt").stat().st_mtime_ns
    again, same = train(folder)
    assert (folder / "toy.ckpt").stat().st_mtime_ns == before
    assert same == history
    np.testing.assert_array_equal(weights(again), weights(module))


def test_another_training_does_not_use_the_checkpoint(tmp_path):
    first, _ = train(tmp_path, epochs=2)
    lines: list[str] = []
    second, history = train(tmp_path, lines=lines, epochs=2, learning_rate=5e-3)
    assert any("starting anew" in line for line in lines)
    assert len(history.epochs) == 2
    assert not np.array_equal(weights(first), weights(second))


def test_early_stopping(tmp_path):
    _, history = train(tmp_path, epochs=40, learning_rate=0.3, decay_every=100, weight_decay=0, patience=2)
    assert history.stopped == "patience"
    assert len(history.epochs) == history.best_epoch + 1 + 2


def test_budget_ends_in_the_middle_of_an_epoch_and_is_told(tmp_path):
    module, history = train(tmp_path, epochs=10_000, budget_s=0.2, decay_every=5000)
    assert history.stopped == history.epochs[-1].stopped == "budget"
    assert np.isfinite(history.best_loss)
    assert not np.array_equal(weights(module), weights(Regression()))
    assert (tmp_path / "history.csv").read_text().splitlines()[-1].endswith(",budget")


def test_learning_rate_decays_with_the_budget_where_it_is_short(tmp_path):
    _, history = train(tmp_path, epochs=10_000, budget_s=2.0, decay_every=5000)
    rates = [epoch.lr for epoch in history.epochs]
    assert rates[0] == 1e-3
    assert rates[-1] < 1.01e-4  # once more smaller where the last step ends after the budget
    assert rates == sorted(rates, reverse=True)


def test_cosine_schedule_rises_and_falls_to_nothing(tmp_path):
    _, history = train(tmp_path, schedule="cosine")
    rates = [epoch.lr for epoch in history.epochs]  # of the last step of each epoch
    steps = ROWS // 16
    expected = [0.5e-3 * (1 + np.cos(np.pi * (epoch + 1 - 1 / steps) / EPOCHS)) for epoch in range(EPOCHS)]
    np.testing.assert_allclose(rates, expected)
    assert steps > 100, "the rise must be over in the first epoch"
    assert rates[-1] < 1e-6
    assert history.best_loss < 0.6 * float(data()[1].tensors[1].var())


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    with pytest.raises(ScatterflowError, match="loss of toy in epoch 1 must be finite"):
        train(tmp_path, learning_rate=0.99, gradient_norm=1e30, weight_decay=1e25)


def test_a_damaged_checkpoint_is_an_error_in_one_line(tmp_path):
    (tmp_path / "toy.ckpt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(StoreError, match=r"must be complete.*delete it") as error:
        train(tmp_path)
    assert "\n" not in str(error.value)


def test_the_process_keeps_its_random_state_and_threads(tmp_path):
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    module = Regression()
    torch.manual_seed(5)
    fit(module, *data(), PhaseConfig(epochs=1), TrainingConfig(), tmp_path, name="toy", seed=0, tracker=quiet)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("world", [1, 3])
def test_batches_cover_every_row_once(world):
    rows = Rows((torch.arange(50),))

    def parts(seed, epoch=0):
        return [torch.cat([b[0] for b in Batches(rows, 7, lambda: epoch, seed, rank, world)]) for rank in range(world)]

    validation = torch.cat(parts(None))
    assert sorted(validation.tolist()) == list(range(50))
    shuffled = parts(1)
    assert len({len(part) for part in shuffled}) == 1, "processes must take the same number of steps"
    together = torch.cat(shuffled).tolist()
    assert len(set(together)) == len(together)
    assert torch.cat(parts(1)).tolist() == together
    assert torch.cat(parts(1, epoch=1)).tolist() != together


def test_two_devices_train_together_and_one_process_goes_on(tmp_path):
    command = [sys.executable, __file__, str(tmp_path), "2"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["trained by process 0"]
    with (tmp_path / "history.csv").open() as handle:
        losses = [float(row["val_loss"]) for row in csv.DictReader(handle)]
    assert len(losses) == EPOCHS
    assert min(losses) < 0.6 * float(data()[1].tensors[1].var())


if __name__ == "__main__":
    number = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    train(Path(sys.argv[1]), devices=number)
    end_helpers(TrainingConfig(devices=number))
    print("trained by process", os.environ.get("LOCAL_RANK", "0"))
