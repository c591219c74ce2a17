"""How a training went: one line per epoch, kept as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from scatterflow import files

Stop = Literal["epochs", "patience", "budget"]


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


def write_history(path: Path, epochs: Sequence[Epoch]) -> None:
    """Write the epochs as CSV: phase, epoch, seconds, train_loss, val_loss, lr, stopped."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    table.writeheader()
    for epoch in epochs:
        table.writerow({key: f"{x:.7g}" if isinstance(x, float) else x for key, x in asdict(epoch).items()})
    with files.disk_errors(path):
        files.write_atomic(path, text.getvalue().encode())
