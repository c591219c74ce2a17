"""The tiny study whose features meet trouble at a chosen simulation; also a program that runs the stage preprocess.

python -m tests.features_study FOLDER '{"simulations": 40, "kill_at": 12, "once": "FILE"}'
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

import xarray as xr

from scatterflow.errors import ScatterflowError
from scatterflow.stages import preprocess
from tests.store_study import Tiny, tiny


@dataclass(frozen=True)
class Features(Tiny):
    """At `kill_at` the process kills itself, only once if `once` names a file to note it in.

    At `wait_at` it waits until the file `gate` exists; at `torch_at` it fails if torch has been imported.
    """

    kill_at: int | None = None
    once: str = ""
    wait_at: tuple[int, ...] = ()
    gate: str = ""
    torch_at: int | None = None

    def preprocess(self, noisy: xr.Dataset) -> xr.Dataset:
        rows = noisy["simulation"].values.tolist()
        if len(rows) > 1:  # the single row is the stage's look at the shapes
            if self.kill_at in rows and not (self.once and Path(self.once).exists()):
                if self.once:
                    Path(self.once).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            while set(self.wait_at) & set(rows) and not Path(self.gate).exists():
                time.sleep(0.05)
            if self.torch_at in rows and "torch" in sys.modules:
                raise RuntimeError("torch was imported")
        return super().preprocess(noisy)


def features(simulations: int = 60, **options: Any) -> Features:
    """The tiny study of `simulations` in shards of 10; `options` are those of `tiny` and the fields of `Features`."""
    numbers = {name: options.pop(name) for name in ("shard_size", "workers") if name in options}
    plain = tiny(simulations, **numbers)
    return Features(plain.name, plain.config, plain.seed, plain.run, **options)


def main() -> int:
    try:
        print(preprocess.run(features(**json.loads(sys.argv[2])), Path(sys.argv[1])))
    except ScatterflowError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # tasks import the study by the module's name, which is not __main__ there
    sys.exit(importlib.import_module("tests.features_study").main())
