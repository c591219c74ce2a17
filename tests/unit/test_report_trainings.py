"""The report's sections on what the estimators of nanodiffraction descend, and how fast they get there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scatterflow import landscape
from scatterflow.config.regressor import DonutConfig, LeanConfig, NanobeamNNConfig
from scatterflow.report import mapconvergence, maplandscape
from scatterflow.report.gallery import Gallery
from tests import made_scans


def test_trainings_are_compared_by_kind_of_loss(tmp_path: Path) -> None:
    models: dict[str, Any] = {"a": LeanConfig(), "b": LeanConfig(), "c": DonutConfig(), "d": NanobeamNNConfig()}
    losses = [4.0, 2.0, 1.01, 1.0, 1.2]
    one = pd.DataFrame({"phase": "lean", "epoch": range(5), "seconds": np.arange(1.0, 6), "train_loss": losses,
                        "val_loss": losses, "stopped": [""] * 4 + ["patience"]})  # fmt: skip
    two = pd.concat([one, one.assign(phase="lean-frames", val_loss=np.array(losses) / 10)])
    plain = one.drop(columns=["phase", "seconds", "stopped"])
    histories = {"a": one, "b": two, "c": plain, "d": plain}
    made = mapconvergence.section(histories, models, Gallery(tmp_path, "film"), 3)
    table = made.tables[0]
    assert [row[0] for row in table.rows] == ["a", "b, on labels", "b, on frames", "c", "d"]
    # 5 % of the way from 4 to 1 are 0.15: the third epoch is the first within it
    assert table.rows[0][1:] == ["5", "5.0 s", "4", "1.000", "epoch 3, 3.0 s", "no better for long"]
    assert table.rows[3][2] == "\N{EN DASH}"
    assert "b, on frames: 5 epochs, lowest validation loss 0.1000" in made.pictures[0].caption
    assert len({mapconvergence.loss_of(config, "") for config in models.values()}) == 3
    kinds = [
        part.rsplit(" / ", 1)[1] for part in table.notes[0].removeprefix("Losses: ").split(". Wall")[0].split("; ")
    ]
    assert kinds == ["nats", "nats per pixel", "brightest pixel", "(half of the prior's range)²"]


def test_losses_around_the_truth_are_described_in_numbers(tmp_path: Path) -> None:
    found = made_scans.losses()
    made = maplandscape.section(found, Gallery(tmp_path, "film"))
    facts = landscape.facts(found)
    other = facts[landscape.LOSSES[3]]["cuts"]["chi_deg"]
    assert len(made.pictures) == len(landscape.LOSSES) + 1
    assert f"along tilt χ, it stops at 1 point of {landscape.FINE}" in made.lead
    assert f"at {other['stops']:,} ({100 * other['flat']:.1f} %)" in made.lead
    assert "ring of 2 points per pixel" in made.tables[0].rows[3][0]
    same = found.copy(deep=True)
    same["cut"][:, 3] = same["cut"][:, 1].values
    assert "stops it no more often" in maplandscape.lead(landscape.facts(same), maplandscape.labels_of(same))
