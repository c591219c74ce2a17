"""One trainer (Lightning) for all models: schedule, early stopping, time budget, checkpoint and resume, history.

Every epoch's random numbers come from (seed, epoch): order of the rows, dropout and latent variables. So a training that
was killed and continues from its last checkpoint ends with the weights of an undisturbed one, bit by bit on a CPU with
the same number of threads.

Importing this module imports Lightning (seconds): only training does.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from scatterflow import files, seeds
from scatterflow.config.training import PhaseConfig, TrainingConfig
from scatterflow.data import Batches, Source
from scatterflow.errors import ScatterflowError, StoreError
from scatterflow.progress import Advance, Tracker, duration, quiet, say, track
from scatterflow.provenance import digest

_VALIDATION_ROWS = 256  # rows per validation step: bounds memory, changes nothing
_WARM_UP = 100  # steps over which the learning rate of the cosine schedule rises
Stop = Literal["epochs", "patience", "budget"]


class Task(Protocol):
    """What can be trained: an nn.Module with a loss."""

    def loss(self, *batch: Tensor) -> Tensor:
        """Loss of each row, (row,)."""


@dataclass(frozen=True)
class Epoch:
    """One line of the history. Losses are means over rows; `seconds` counts from the start of the phase.

    `stopped` says in the last epoch of a phase why it was the last.
    """

    phase: str
    epoch: int
    seconds: float
    train_loss: float
    val_loss: float
    lr: float
    stopped: Stop | Literal[""] = ""


@dataclass(frozen=True)
class History:
    """How a phase went: its epochs, why it stopped, which epoch's weights were kept."""

    epochs: tuple[Epoch, ...]
    stopped: Stop
    best_epoch: int
    best_loss: float
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Plain JSON, without the epochs."""
        return {
            "phase": self.epochs[0].phase,
            "epochs": len(self.epochs),
            "stopped": self.stopped,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "seconds": round(self.seconds, 3),
        }


def fit(
    module: nn.Module,
    train: Source,
    validation: Source,
    phase: PhaseConfig,
    run: TrainingConfig,
    folder: Path,
    *,
    name: str,
    seed: int,
    identity: str = "",
    earlier: Sequence[Epoch] = (),
    log: Callable[[str], None] = say,
    tracker: Tracker = track,
) -> History:
    """Train `module` (see `Task`) in place, on the weights with the best validation loss.

    `folder` receives `history.csv` (the epochs of `earlier` phases first) and the checkpoint `<name>.ckpt`, from which a
    stopped training of the same `identity`, settings, seed and number of rows continues. Raises ScatterflowError where
    the loss is not finite, StoreError for a folder that cannot be written or a damaged checkpoint.
    """
    checkpoint = folder / f"{name}.ckpt"
    settings = run.model_dump(mode="json", include={"precision", "mode"}) | phase.model_dump(mode="json")
    keeper = _Keeper(module, phase, checkpoint, name, tuple(earlier), run.checkpoint_every)
    keeper.identity = digest([identity, name, seed, settings, len(train), len(validation)])
    if _is_helper(run):
        log, tracker = _silent, quiet
    state = _read(checkpoint)
    if state is not None and state["identity"] != keeper.identity:
        log(f"{name}: the checkpoint of another training is left aside, starting anew")
        state = None
    if state is not None:
        keeper.load_state_dict(state)
        if keeper.stopped is None:
            log(f"{name}: continues after epoch {len(keeper.epochs)} of {phase.epochs}")
    if keeper.stopped is None:
        with files.disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        steps = len(Batches(train, phase.batch_size, lambda: 0, seed, world=run.devices))
        with (
            _quiet_torch(run.threads),
            tracker(f"training {name}", steps * (phase.epochs - len(keeper.epochs))) as advance,
        ):
            keeper.advance = advance
            module.train()  # Lightning keeps the mode that it finds
            trainer = Trainer(
                accelerator=run.accelerator,
                devices=run.devices,
                precision=run.precision,
                max_epochs=phase.epochs,
                gradient_clip_val=phase.gradient_norm,
                callbacks=[keeper],
                plugins=[LightningEnvironment()],  # in a Slurm job, too: tasks there are no ranks
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                default_root_dir=folder,
            )
            trainer.fit(
                _Loop(module, train, validation, phase, seed),
                ckpt_path=checkpoint if state is not None else None,
                weights_only=True,
            )
    module.load_state_dict(keeper.best)
    module.eval()
    assert keeper.stopped is not None
    history = History(tuple(keeper.epochs), keeper.stopped, keeper.best_epoch, keeper.best_loss, keeper.seconds)
    ended = {"epochs": "all epochs done", "patience": "no better for a while", "budget": "time budget spent"}
    log(
        f"{name}: {len(history.epochs)} epochs in {duration(history.seconds)} ({ended[history.stopped]}), "
        f"best validation loss {history.best_loss:.4g} after epoch {history.best_epoch + 1}"
    )
    return history


def end_helpers(run: TrainingConfig) -> None:
    """End the processes that Lightning started to train beside this one: only the first goes on and writes results."""
    if _is_helper(run):
        raise SystemExit(0)


def write_history(path: Path, epochs: Sequence[Epoch]) -> None:
    """Write the epochs as CSV: phase, epoch, seconds, train_loss, val_loss, lr, stopped."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    table.writeheader()
    for epoch in epochs:
        table.writerow({key: f"{x:.7g}" if isinstance(x, float) else x for key, x in asdict(epoch).items()})
    with files.disk_errors(path):
        files.write_atomic(path, text.getvalue().encode())


class _Loop(LightningModule):
    """Lightning's view of a task."""

    def __init__(self, module: nn.Module, train: Source, validation: Source, phase: PhaseConfig, seed: int) -> None:
        super().__init__()
        self.module, self.train_rows, self.validation_rows = module, train, validation
        self.phase, self.seed = phase, seed
        self.sums: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decayed = [weight for weight in self.module.parameters() if weight.ndim > 1]
        free = [weight for weight in self.module.parameters() if weight.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.phase.learning_rate, weight_decay=self.phase.weight_decay)

    def train_dataloader(self) -> Batches:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return Batches(self.train_rows, self.phase.batch_size, lambda: self.current_epoch, self.seed, rank, world)

    def val_dataloader(self) -> Batches:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return Batches(self.validation_rows, _VALIDATION_ROWS, lambda: 0, None, rank, world)

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(seeds.integer(self.seed, f"epoch {self.current_epoch} of process {self.global_rank}"))
        self.sums["train"] = torch.zeros(2, dtype=torch.float64)

    def on_validation_epoch_start(self) -> None:
        # the same latent variables in every epoch, so that epochs compare
        torch.manual_seed(seeds.integer(self.seed, f"validation of process {self.global_rank}"))
        self.sums["validation"] = torch.zeros(2, dtype=torch.float64)

    def training_step(self, batch: tuple[Tensor, ...]) -> Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: tuple[Tensor, ...]) -> Tensor:
        return self._step("validation", batch)

    def mean(self, part: str) -> float:
        """Mean loss over the rows of all processes."""
        total = self.trainer.strategy.reduce(self.sums[part].to(self.device, torch.float32), reduce_op="sum")
        assert isinstance(total, Tensor)
        return float(total[0] / total[1])

    def _step(self, part: str, batch: tuple[Tensor, ...]) -> Tensor:
        losses = self.module.loss(*batch)  # type: ignore[operator] # see Task: nn.Module declares no methods of its own
        self.sums[part] += torch.tensor([float(losses.detach().sum()), float(len(losses))], dtype=torch.float64)
        mean: Tensor = losses.mean()
        return mean


class _Keeper(Callback):
    """Learning rate, best weights, early stopping, budget, history and checkpoint of a phase."""

    def __init__(
        self, module: nn.Module, phase: PhaseConfig, checkpoint: Path, name: str, earlier: tuple[Epoch, ...], every: int
    ) -> None:
        self.module, self.phase, self.checkpoint, self.name = module, phase, checkpoint, name
        self.earlier, self.every = earlier, every
        self.identity = ""
        self.epochs: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch, self.best_loss = -1, float("inf")
        self.stopped: Stop | None = None
        self.spent = 0.0  # seconds of the runs before this one
        self.began = time.monotonic()
        self.advance: Advance = lambda _: None

    @property
    def seconds(self) -> float:
        """Time spent on this phase, in this run and those before."""
        if self.stopped is not None:
            return self.epochs[-1].seconds
        return self.spent + time.monotonic() - self.began

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's
        phase = self.phase
        if phase.schedule == "steps":
            done = self._done(trainer, trainer.current_epoch)
            rate = phase.learning_rate * phase.decay_factor ** int(done * phase.epochs / phase.decay_every + 1e-9)
            _set_rate(trainer, rate)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's
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

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.advance(1)
        if self.phase.budget_s is not None and self._longest(trainer) >= self.phase.budget_s:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, _Loop)
        epoch = trainer.current_epoch
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        train_loss, val_loss = pl_module.mean("train"), pl_module.mean("validation")
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
        trainer.should_stop = self.stopped is not None
        if self.stopped or (epoch + 1) % self.every == 0:
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What a continued training needs, in types that load without unpickling."""
        return {
            "identity": self.identity,
            "epochs": json.dumps([asdict(epoch) for epoch in self.epochs]),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "stopped": self.stopped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` left off."""
        self.epochs = [Epoch(**epoch) for epoch in json.loads(state_dict["epochs"])]
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.best_loss, self.stopped = state_dict["best_loss"], state_dict["stopped"]
        self.spent, self.began = self.epochs[-1].seconds, time.monotonic()

    def _longest(self, trainer: Trainer) -> float:
        """Seconds spent, by the slowest clock of all processes: they must stop together."""
        if trainer.world_size == 1:
            return self.seconds
        seconds = torch.tensor(self.seconds, device=trainer.strategy.root_device)
        return float(trainer.strategy.reduce(seconds, reduce_op="mean"))

    def _save(self, trainer: Trainer) -> None:
        partial = self.checkpoint.with_name(self.checkpoint.name + files.PARTIAL)
        with files.disk_errors(self.checkpoint):
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                files.sync(partial)
                partial.replace(self.checkpoint)
        if trainer.is_global_zero:
            write_history(self.checkpoint.with_name("history.csv"), [*self.earlier, *self.epochs])


def _set_rate(trainer: Trainer, rate: float) -> None:
    for group in trainer.optimizers[0].param_groups:
        group["lr"] = rate


def _read(checkpoint: Path) -> dict[str, Any] | None:
    """The keeper's state in a checkpoint; None where there is no checkpoint. Nothing in it is executed."""
    if not checkpoint.exists():
        return None
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        state: dict[str, Any] = content["callbacks"][_Keeper.__qualname__]
        return state
    except (OSError, RuntimeError, KeyError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise StoreError(
            f"checkpoint {checkpoint}", "must be complete", type(error).__name__, "delete it to train from the start"
        ) from None


def _is_helper(run: TrainingConfig) -> bool:
    """True in the processes that Lightning starts, by the same command, for the second device and on."""
    return run.devices > 1 and getattr(rank_zero_only, "rank", 0) > 0


def _silent(_: str) -> None:
    """Say nothing."""


@contextmanager
def _quiet_torch(threads: int) -> Iterator[None]:
    """A fixed number of threads, no advice from Lightning; the process's own settings and random state come back."""
    before, logger = torch.get_num_threads(), logging.getLogger("lightning.pytorch")
    level = logger.level
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(warnings.catch_warnings())
        # a CPU beside an idle GPU is the configuration's choice
        warnings.filterwarnings("ignore", message="GPU available but not used")
        # in a Slurm job, too, this process is the only rank that trains, see LightningEnvironment above
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        # Lightning 2.6 calls what torch 2.13 is going to remove
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        stack.callback(torch.set_num_threads, before)
        stack.callback(logger.setLevel, level)
        torch.set_num_threads(threads)
        logger.setLevel(logging.WARNING)
        yield
