"""Simulations in processes equal those in this process."""

from pathlib import Path

import xarray as xr

import scatterflow as sf
from scatterflow.forward import parallel

DEMO = Path(__file__).parents[2] / "config" / "demo.yaml"


def test_processes_do_not_change_the_result() -> None:
    study = sf.load_study(DEMO, "multilayer", {"instrument.views.profile.bins": [359, 1]})
    theta = study.prior.sample(parallel._ALONE + 30)
    spread = parallel.simulate(study, theta, ("profile",), workers=2)
    xr.testing.assert_identical(spread, study.simulate(theta, views=("profile",)))
