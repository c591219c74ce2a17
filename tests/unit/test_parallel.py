"""Simulations in processes equal those in this process."""

from pathlib import Path

import pytest
import xarray as xr

import scatterflow as sf
from scatterflow.forward import parallel

DEMO = Path(__file__).parents[2] / "config" / "demo.yaml"


@pytest.mark.parametrize("engine", ["bornagain", "dwba"])
def test_processes_do_not_change_the_result(engine: str) -> None:
    study = sf.load_study(DEMO, "multilayer", {"forward.engine": engine})
    theta = study.prior.sample(parallel._ALONE[engine] + 30)
    spread = parallel.simulate(study, theta, ("profile",), workers=2)
    xr.testing.assert_identical(spread, study.simulate(theta, views=("profile",)))
