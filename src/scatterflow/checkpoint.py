"""What a training has reached, step by step: learning rate, best weights, early stopping, budget, history, checkpoint.

A checkpoint holds the weights, the optimizer and what `Keeper` knows. Random numbers and the order of the rows need no
place in it: they come from (seed, epoch, step).
"""

from __future__ import annotations

import json
import math
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from scatterflow import files
from scatterflow.config.training import PhaseConfig, TrainingConfig
from scatterflow.errors import ScatterflowError, StoreError
from scatterflow.history import Epoch, Stop, write_history
from scatterflow.interruption import Requests
from scatterflow.progress import Advance

FORMAT = 2  # of checkpoints; those of another number are left aside
_WARM_UP = 100  # steps over which the learning rate of the cosine schedule rises
_DUE = 1  # that a checkpoint is due, as a number below all signals


class Keeper(Callback):
    """All that a phase must not lose, and the hooks of Lightning that keep it."""

    def __init__(
        self,
        module: nn.Module,
        phase: PhaseConfig,
        run: TrainingConfig,
        checkpoint: Path,
        identity: str,
        name: str,
        earlier: tuple[Epoch, ...],
        requests: Requests,
        tell: Callable[[str], None],
    ) -> None:
        self.module, self.phase, self.run, self.checkpoint = module, phase, run, checkpoint
        self.identity, self.name, self.earlier = identity, name, earlier
        self.requests, self.tell = requests, tell
        self.epochs: list[Epoch] = []
        self.step = 0  # steps of the epoch that is not finished
        self.sums: dict[str, Tensor] = {}  # losses and rows so far, of the epoch's training and validation
        self.best: dict[str, Tensor] = {}
        self.best_epoch, self.best_loss = -1, float("inf")
        self.stopped: Stop | None = None
        self.spent = 0.0  # seconds of the runs before this one
        self.began = self.saved = time.monotonic()
        self.advance: Advance = lambda _: None

    @property
    def seconds(self) -> float:
        """Time spent on this phase, in this run and those before."""
        if self.stopped is not None:
            return self.epochs[-1].seconds
        return self.spent + time.monotonic() - self.began

    @property
    def reached(self) -> str:
        """Where the phase stands, for people."""
        step = f", step {self.step} of the next" if self.step else ""
        return f"{self.name}, after epoch {len(self.epochs)} of {self.phase.epochs}{step}"

    def add(self, part: str, losses: Tensor) -> None:
        """Count the losses (row,) of a batch of the part, "train" or "validation"."""
        self.sums[part] += torch.tensor([float(losses.detach().sum()), float(len(losses))], dtype=torch.float64)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Hear signals although Lightning has just set handlers of its own."""
        self.requests.install()
        if trainer.global_rank > 0 and self.step:
            self.sums["train"].zero_()  # the checkpoint holds those of all processes

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin the sums of the epoch; the schedule `steps` sets the learning rate."""
        self.sums["train"] = torch.zeros(2, dtype=torch.float64)
        phase = self.phase
        if phase.schedule == "steps":
            done = self._done(trainer, trainer.current_epoch)
            rate = phase.learning_rate * phase.decay_factor ** int(done * phase.epochs / phase.decay_every + 1e-9)
            _set_rate(trainer, rate)

    def on_train_batch_start(self, trainer: Trainer, _module: LightningModule, _batch: Any, batch_idx: int) -> None:
        """The schedule `cosine` sets the learning rate."""
        if self.phase.schedule == "cosine":
            rising = min(1.0, (trainer.global_step + 1) / _WARM_UP)
            done = self._done(trainer, trainer.current_epoch + batch_idx / trainer.num_training_batches)
            _set_rate(trainer, self.phase.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * done)))

    def _done(self, trainer: Trainer, epochs: float) -> float:
        """Share of the phase that is done; where the budget ends first, of the budget."""
        done = epochs / self.phase.epochs
        if self.phase.budget_s is not None:
            done = max(done, min(1.0, self._longest(trainer) / self.phase.budget_s))
        return done

    def on_train_batch_end(
        self, trainer: Trainer, _module: LightningModule, _outputs: Any, _batch: Any, batch_idx: int
    ) -> None:
        """Count the step; stop where the budget is spent, keep what a signal or the clock asks for."""
        self.advance(1)
        self.step = batch_idx + 1
        if self.phase.budget_s is not None and self._longest(trainer) >= self.phase.budget_s:
            trainer.should_stop = True
        if not trainer.should_stop and self.step < trainer.num_training_batches:  # else the epoch ends now, and saves
            self._keep(trainer, due=False)

    def on_validation_epoch_start(self, *_: Any) -> None:
        """Begin the sums of the validation."""
        self.sums["validation"] = torch.zeros(2, dtype=torch.float64)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Keep the best weights and the history; decide whether this was the last epoch."""
        epoch = trainer.current_epoch
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        train_loss, val_loss = self._mean(trainer, "train"), self._mean(trainer, "validation")
        if not (abs(train_loss) < float("inf") and abs(val_loss) < float("inf")):
            remedy = "lower learning_rate, or look for outliers in the features"
            raise ScatterflowError(
                f"loss of {self.name} in epoch {epoch + 1}", "must be finite", (train_loss, val_loss), remedy
            )
        if val_loss < self.best_loss:
            self.best_epoch, self.best_loss = epoch, val_loss
            self.best = {key: value.detach().cpu().clone() for key, value in self.module.state_dict().items()}
        seconds = self.seconds
        if trainer.should_stop:
            self.stopped = "budget"
        elif epoch + 1 == self.phase.epochs:
            self.stopped = "epochs"
        elif epoch - self.best_epoch >= self.phase.patience:
            self.stopped = "patience"
        self.epochs.append(Epoch(self.name, epoch, seconds, train_loss, val_loss, rate, self.stopped or ""))
        self.step = 0
        trainer.should_stop = self.stopped is not None
        self._keep(trainer, due=self.stopped is not None or (epoch + 1) % self.run.checkpoint_every == 0)

    def state_dict(self) -> dict[str, Any]:
        """What a continued training needs, in types that load without unpickling."""
        return {
            "identity": self.identity,
            "epochs": json.dumps([asdict(epoch) for epoch in self.epochs]),
            "step": self.step,
            "sums": self.sums["train"],
            "seconds": self.seconds,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "stopped": self.stopped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` left off."""
        self.epochs = [Epoch(**epoch) for epoch in json.loads(state_dict["epochs"])]
        self.step, self.sums["train"] = state_dict["step"], state_dict["sums"].clone()
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.best_loss, self.stopped = state_dict["best_loss"], state_dict["stopped"]
        self.spent, self.began = state_dict["seconds"], time.monotonic()

    def _mean(self, trainer: Trainer, part: str) -> float:
        """Mean loss over the rows of all processes."""
        total = self._total(trainer, part, torch.float32)
        return float(total[0] / total[1])

    def _total(self, trainer: Trainer, part: str, dtype: torch.dtype) -> Tensor:
        total = trainer.strategy.reduce(self.sums[part].to(trainer.strategy.root_device, dtype), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _longest(self, trainer: Trainer) -> float:
        """Seconds spent, by the clocks of all processes: they must stop together."""
        if trainer.world_size == 1:
            return self.seconds
        seconds = torch.tensor(self.seconds, device=trainer.strategy.root_device)
        return float(trainer.strategy.reduce(seconds, reduce_op="mean"))

    def _keep(self, trainer: Trainer, due: bool) -> None:
        """Write a checkpoint if one is due or a signal has asked for it, then do as the signal says."""
        due = due or time.monotonic() - self.saved >= 60 * self.run.checkpoint_minutes
        wanted = self.requests.number or (_DUE if due else 0)
        if trainer.world_size > 1:  # a signal may have reached one process only
            number = torch.tensor(wanted, device=trainer.strategy.root_device)
            wanted = int(trainer.strategy.reduce(number, reduce_op="max"))
        if not wanted:
            return
        self._save(trainer)
        if wanted != _DUE and (wanted != signal.SIGURG or trainer.is_global_zero):  # one asks Slurm, the others go on
            self.requests.number = wanted
            self.requests.obey(self.reached, self.tell)

    def _save(self, trainer: Trainer) -> None:
        """Write the checkpoint beside its place: a kill at any moment leaves the old one or the new one."""
        own = self.sums["train"]
        if trainer.world_size > 1:
            self.sums["train"] = self._total(trainer, "train", torch.float32).double().cpu()
        partial = self.checkpoint.with_name(self.checkpoint.name + files.PARTIAL)
        with files.disk_errors(self.checkpoint):
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                files.sync(partial)
                partial.replace(self.checkpoint)
        if trainer.is_global_zero:
            write_history(self.checkpoint.with_name("history.csv"), [*self.earlier, *self.epochs])
        self.sums["train"], self.saved = own, time.monotonic()


def read(checkpoint: Path) -> dict[str, Any] | None:
    """The state of the keeper that wrote a checkpoint; None where there is none. Nothing in it is executed.

    Raises StoreError for a damaged one.
    """
    if not checkpoint.exists():
        return None
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        state: dict[str, Any] = content["callbacks"][Keeper.__qualname__]
        return state
    except (OSError, RuntimeError, KeyError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise StoreError(
            f"checkpoint {checkpoint}", "must be complete", type(error).__name__, "delete it to train from the start"
        ) from None


def _set_rate(trainer: Trainer, rate: float) -> None:
    for group in trainer.optimizers[0].param_groups:
        group["lr"] = rate
