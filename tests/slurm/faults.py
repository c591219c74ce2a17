"""A study of real simulations whose tasks meet trouble at a chosen simulation; also a program that runs it.

python -m tests.slurm.faults FOLDER '{"simulations": 40, "kill_at": 12}'
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scatterflow.errors import ScatterflowError
from scatterflow.stages import simulate
from tests.store_study import Tiny, tiny


@dataclass(frozen=True)
class Faulty(Tiny):
    """At `kill_at` the process kills itself, at `eat_at` it takes 3 GB; only once if `once` names a file to note it in.

    At `wait_at` it waits until the file `gate` exists.
    """

    kill_at: int | None = None
    eat_at: int | None = None
    once: str = ""
    wait_at: tuple[int, ...] = ()
    gate: str = ""

    def simulate(
        self, theta: xr.DataArray, engine: str | None = None, views: tuple[str, ...] | None = None
    ) -> xr.Dataset:
        if "SLURM_JOB_ID" in os.environ:
            self._trouble(theta["simulation"].values.tolist())
        return super().simulate(theta, engine, views)

    def _trouble(self, rows: list[int]) -> None:
        while set(self.wait_at) & set(rows) and not Path(self.gate).exists():
            time.sleep(0.1)
        if not {self.kill_at, self.eat_at} & set(rows) or (self.once and Path(self.once).exists()):
            return
        if self.once:
            Path(self.once).touch()
        if self.kill_at in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        eaten = [np.ones(25_000_000) for _ in range(15)]  # 200 MB each
        signal.pause()  # until Slurm, which looks once a second, ends it
        del eaten


def faulty(simulations: int = 60, workers: int = 1, **faults: Any) -> Faulty:
    """The tiny study of `simulations`, with faults (the fields of `Faulty` and `Tiny`)."""
    plain = tiny(simulations, workers=workers)
    return Faulty(plain.name, plain.config, plain.seed, plain.run, **faults)


def main() -> int:
    try:
        print(simulate.run(faulty(**json.loads(sys.argv[2])), sys.argv[1]))
    except ScatterflowError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # tasks import the study by the module's name, which is not __main__ there
    sys.exit(importlib.import_module("tests.slurm.faults").main())
