"""Simulations in processes equal those in this process."""

from pathlib import Path

import pytest
import xarray as xr

import scatterflow as sf
from scatterflow.forward import parallel

DEMO = Path(__file__).parents[2] / "config" / "demo.yaml"


@pytest.mark.parametrize(("engine", "tolerance"), [("bornagain", 0.0), ("dwba", 1e-6)])
def test_processes_do_not_change_the_result(engine: str, tolerance: float) -> None:
    """Bit by bit by BornAgain; within the rounding of single precision in batches of another size."""
    study = sf.load_study(DEMO, "multilayer", {"forward.engine": engine})
    theta = study.prior.sample(parallel._ALONE[engine] + 30)
    spread = parallel.simulate(study, theta, ("profile",), workers=2)
    xr.testing.assert_allclose(spread, study.simulate(theta, views=("profile",)), rtol=tolerance, atol=0.0)
