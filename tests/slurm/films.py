"""A study of nanodiffraction whose tasks wait in chosen simulations; also a program that simulates it.

python -m tests.slurm.films FOLDER '{"wait_at": [15], "gate": "FILE"}'
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from scatterflow.config.study import NanodiffractionConfig
from scatterflow.errors import ScatterflowError
from scatterflow.nanodiffraction import NanodiffractionStudy
from scatterflow.stages import simulate

CONTENT = {
    "kind": "nanodiffraction",
    "beam": {"shape": [16, 16], "pixel_mm": 0.44},
    "simulate": {"simulations": 60, "held_back": 1, "validation": 1, "shard_size": 10, "chunk_size": 5, "workers": 1},
    "models": {"lean": {"network": "lean"}},
}


@dataclass(frozen=True)
class Films(NanodiffractionStudy):
    """Within a task of Slurm, `wait_at` waits until the file `gate` exists."""

    wait_at: tuple[int, ...] = ()
    gate: str = ""

    def simulate(
        self, theta: xr.DataArray, engine: str | None = None, views: tuple[str, ...] | None = None
    ) -> xr.Dataset:
        while "SLURM_JOB_ID" in os.environ and set(self.wait_at) & set(theta["simulation"].values.tolist()):
            if Path(self.gate).exists():
                break
            time.sleep(0.1)
        return super().simulate(theta, engine, views)


def films(**faults: Any) -> Films:
    """60 small frames in shards of 10; `faults` are the fields of `Films`."""
    return Films("film", NanodiffractionConfig.model_validate(CONTENT), 7, "films", **faults)


def main() -> int:
    try:
        print(simulate.run(films(**json.loads(sys.argv[2])), sys.argv[1]))
    except ScatterflowError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # tasks import the study by the module's name, which is not __main__ there
    sys.exit(importlib.import_module("tests.slurm.films").main())
