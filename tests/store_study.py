"""A study of small views that BornAgain computes in milliseconds, in whole and with faults; also a program that runs it.

python -m tests.store_study FOLDER '{"simulations": 40, "delay_s": 0.1}'
"""

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from scatterflow.config.forward import ForwardConfig
from scatterflow.config.observe import ObserveConfig
from scatterflow.config.preprocess import PreprocessConfig
from scatterflow.config.simulate import SimulateConfig
from scatterflow.config.study import MultilayerConfig
from scatterflow.errors import ScatterflowError, SimulationError
from scatterflow.multilayer import MultilayerStudy
from scatterflow.prior import Parameter, Prior
from scatterflow.stages import simulate
from tests.examples import instrument, sample

VIEWS = {
    "profile": {"rows": ((30, 33), (40, 43)), "columns": (16, 24), "bins": (6, 1), "sampling": (1, 1)},
    "image": {"rows": ((28, 44),), "columns": (4, 36), "bins": (8, 2), "sampling": (1, 1)},
}


THETA = Prior((Parameter("a", 0.0, 1.0), Parameter("b_nm", 1.0, 2.0, "nm"))).sample(1)


def example() -> xr.Dataset:
    """A simulation of one row of a made-up view, for stores without a study."""
    counts = np.zeros((1, 4, 3), np.float32)
    return xr.Dataset(
        {"image": (("simulation", "z_image", "y_image"), counts, {"units": "counts", "long_name": "expected counts"})},
        coords={"qz_image": ("z_image", np.linspace(0.1, 0.4, 4), {"units": "nm^-1", "long_name": "q_z"})},
    )


@dataclass(frozen=True)
class Tiny(MultilayerStudy):
    """Real simulations; what fails is chosen by simulation index."""

    error_at: int | None = None  # this simulation cannot be computed
    nan_at: int | None = None  # this one comes out as NaN
    delay_s: float = 0.0  # per call

    def simulate(
        self, theta: xr.DataArray, engine: str | None = None, views: tuple[str, ...] | None = None
    ) -> xr.Dataset:
        time.sleep(self.delay_s)
        rows = theta["simulation"].values
        if len(rows) > 1 and self.error_at in rows:  # the single row is the stage's look at the shapes
            raise SimulationError(f"row {int(np.argmax(rows == self.error_at))}: layer01_TaO.delta", "must be physical")
        counts = super().simulate(theta, engine, views)
        if self.nan_at in rows:
            counts["image"][np.argmax(rows == self.nan_at), 0, 0] = np.nan
        return counts


def tiny(simulations: int = 40, shard_size: int = 10, chunk_size: int = 5, workers: int = 1, **faults: Any) -> Tiny:
    """The study; `faults` are the fields of `Tiny`."""
    numbers = SimulateConfig(
        simulations=simulations,
        held_back=1,
        validation=1,
        shard_size=shard_size,
        chunk_size=chunk_size,
        workers=workers,
    )
    config = MultilayerConfig.model_construct(  # without the sections that simulations and features do not depend on
        kind="multilayer",
        instrument=instrument(views=VIEWS),
        sample=sample(),
        forward=ForwardConfig(),
        observe=ObserveConfig(),
        preprocess=PreprocessConfig(),
        simulate=numbers,
    )
    return Tiny("multilayer", config, 7, "tiny", **faults)


def main() -> int:
    try:
        print(simulate.run(tiny(**json.loads(sys.argv[2])), sys.argv[1]))
    except ScatterflowError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
