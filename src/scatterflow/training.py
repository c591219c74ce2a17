"""One trainer (Lightning) for all models: schedule, early stopping, time budget, checkpoint and resume, history.

Every step's random numbers (dropout, latent variables) come from (seed, epoch, step), the order of the rows from (seed,
epoch). So a training that was killed or stopped and continues from its last checkpoint, also in the middle of an epoch,
ends with the weights of an undisturbed one, bit by bit on a CPU with the same number of threads.

Importing this module imports Lightning (seconds): only training does.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from scatterflow import checkpoint, files, seeds
from scatterflow.checkpoint import Keeper
from scatterflow.config.training import PhaseConfig, TrainingConfig
from scatterflow.data import Batches, Source
from scatterflow.errors import ConfigError
from scatterflow.history import Epoch, History
from scatterflow.interruption import heeded
from scatterflow.progress import Tracker, duration, quiet, say, track
from scatterflow.provenance import digest

_VALIDATION_ROWS = 256  # rows per validation step: bounds memory, changes nothing
_GIVEN = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS")  # variables in which Slurm names the GPUs of a job


class Task(Protocol):
    """What can be trained: an nn.Module with a loss."""

    def loss(self, *batch: Tensor) -> Tensor:
        """Loss of each row, (row,)."""


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
    stopped training of the same `identity`, settings, seed and number of rows continues. Signals that end the process
    do so after a checkpoint (see `interruption`), by raising `fanout.Stopped`. Raises ScatterflowError where the loss is
    not finite, StoreError for a folder that cannot be written or a damaged checkpoint, ConfigError for a missing GPU.
    """
    if _is_helper(run):
        log, tracker = _silent, quiet
    _check_gpu(run, log if not earlier else _silent)
    path = folder / f"{name}.ckpt"
    settings = run.model_dump(mode="json", include={"precision", "mode"}) | phase.model_dump(mode="json")
    identity = digest([checkpoint.FORMAT, identity, name, seed, settings, len(train), len(validation)])
    with heeded() as requests:
        keeper = Keeper(module, phase, run, path, identity, name, tuple(earlier), requests, log)
        state = checkpoint.read(path)
        if state is not None and state["identity"] != identity:
            log(f"{name}: the checkpoint of another training is left aside, starting anew")
            state = None
        if state is not None:
            keeper.load_state_dict(state)
            if keeper.stopped is None:
                log(f"continues: {keeper.reached}")
        if keeper.stopped is None:
            with files.disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            steps = len(Batches(train, phase.batch_size, lambda: 0, seed, world=run.devices))
            left = steps * (phase.epochs - len(keeper.epochs)) - keeper.step
            with _quiet_torch(run.threads), tracker(f"training {name}", left) as advance:
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
                    _Loop(module, train, validation, phase, seed, keeper),
                    ckpt_path=path if state is not None else None,
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


class _Loop(LightningModule):
    """Lightning's view of a task."""

    def __init__(
        self,
        module: nn.Module,
        train: Source,
        validation: Source,
        phase: PhaseConfig,
        seed: int,
        keeper: Keeper,
    ) -> None:
        super().__init__()
        self.module, self.train_rows, self.validation_rows = module, train, validation
        self.phase, self.seed, self.keeper = phase, seed, keeper

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decayed = [weight for weight in self.module.parameters() if weight.ndim > 1]
        free = [weight for weight in self.module.parameters() if weight.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.phase.learning_rate, weight_decay=self.phase.weight_decay)

    def train_dataloader(self) -> _Loader:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return _Loader(
            Batches(self.train_rows, self.phase.batch_size, lambda: self.current_epoch, self.seed, rank, world)
        )

    def val_dataloader(self) -> Batches:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return Batches(self.validation_rows, _VALIDATION_ROWS, lambda: 0, None, rank, world)

    def on_validation_epoch_start(self) -> None:
        self._draw("validation")  # the same latent variables in every epoch, so that epochs compare

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        self._draw(f"epoch {self.current_epoch}, step {batch_idx}")
        return self._step("train", batch)

    def validation_step(self, batch: tuple[Tensor, ...]) -> Tensor:
        return self._step("validation", batch)

    def _draw(self, name: str) -> None:
        """Begin the random numbers `name` of this process."""
        torch.manual_seed(seeds.integer(self.seed, f"{name} of process {self.global_rank}"))

    def _step(self, part: str, batch: tuple[Tensor, ...]) -> Tensor:
        losses = cast(Task, self.module).loss(*batch)
        self.keeper.add(part, losses)
        mean: Tensor = losses.mean()
        return mean


class _Loader:
    """Batches that Lightning can begin in the middle of an epoch: it keeps `state_dict` in the checkpoint."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.used = 0  # batches of the current epoch
        self.first = 0  # of the next epoch: where a checkpoint has left off

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        self.used, self.first = self.first, 0
        for batch in self.batches.after(self.used):
            self.used += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"used": self.used}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.first = state_dict["used"]


def _check_gpu(run: TrainingConfig, log: Callable[[str], None]) -> None:
    """Say so where the job was given a GPU that torch does not find. Raises ConfigError where there must be one."""
    if torch.accelerator.is_available() or run.accelerator == "cpu":
        return
    if run.accelerator == "gpu":
        raise ConfigError(
            "training.accelerator", "must be auto or cpu where torch finds no GPU", "gpu", "set it to auto"
        )
    given = next((f"{name}={os.environ[name]}" for name in _GIVEN if os.environ.get(name)), None)
    if given:
        log(f"this job has a GPU ({given}), but torch finds none: training on the CPU")


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
