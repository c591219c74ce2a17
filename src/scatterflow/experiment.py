"""The expert's sample as an experiment whose truth is known: simulated, with parasitic scattering and counting noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.multilayer import MultilayerStudy

GROUP = "estimators"  # of a tree: every result below it, so that no name of a model meets one of a variable
_BORDER = 0.01
_SEED = 3  # added to the run's seed: noise of its own


def record(study: MultilayerStudy) -> tuple[xr.DataArray, xr.Dataset, xr.Dataset] | None:
    """Parameters (1, parameter), recorded counts and features of the experiment; None if the study has no expert."""
    expert = study.expert()
    if expert is None:
        return None
    recorded = study.observe(study.simulate(expert), seed=study.seed + _SEED, experiment=True)
    return expert, recorded, study.preprocess(recorded)


def off_the_border(study: MultilayerStudy, expert: xr.DataArray) -> NDArray[np.float64]:
    """The expert's values (1, parameter), moved into the prior by 1 % of its quantiles where they lie on its border.

    On the border itself a density means nothing: it is what the tails of the flow's unbounded coordinate make of it.
    """
    cube = study.prior.to_cube(expert)
    return study.prior.from_cube(np.clip(cube, _BORDER, 1 - _BORDER))


def full_frame(study: MultilayerStudy) -> xr.Dataset:
    """Counts and mask (z, y) of the whole detector for the expert's sample, without parasitic scattering."""
    expert = study.expert()
    assert expert is not None  # `record` came first
    full = study.observe(study.simulate(expert, views=("full",)), seed=study.seed + _SEED).isel(simulation=0)
    return xr.Dataset({"counts": (("z", "y"), full["full"].values), "mask": (("z", "y"), full["mask_full"].values)})


def result(study: MultilayerStudy, posterior: Any, expert: xr.DataArray) -> xr.Dataset:
    """Posterior samples of the experiment, their log densities `lp`, and `log_prob` of the expert's values."""
    samples = posterior.sample(study.config.inference.samples, seed=study.seed)
    dims = ("observation", "sample", "parameter")
    return xr.Dataset(
        {
            "samples": (dims, samples.values.astype(np.float32)),
            "lp": (dims[:2], posterior.log_prob(samples).values),
            "log_prob": (dims[:1], posterior.log_prob(off_the_border(study, expert)).values),
        },
        coords={"parameter": list(study.prior.names)},
    )
