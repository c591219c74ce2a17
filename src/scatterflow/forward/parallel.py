"""Simulations of a few hundred samples on all cores, for predictive checks: no store, no shards."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from scatterflow.study import Study

_CHUNK = 25  # samples per task


def simulate(study: Study, theta: xr.DataArray, views: tuple[str, ...], workers: int | None = None) -> xr.Dataset:
    """As `Study.simulate`, spread over processes; the result does not depend on their number."""
    processes = min(workers or len(os.sched_getaffinity(0)), -(-len(theta) // _CHUNK))
    parts = [theta[start : start + _CHUNK] for start in range(0, len(theta), _CHUNK)]
    if processes <= 1:
        return xr.concat([study.simulate(part, views=views) for part in parts], dim="simulation", data_vars="minimal")
    # a fresh server process: forking one that runs torch's threads can deadlock
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        done = list(pool.map(_one, [(study, part, views) for part in parts]))
    return xr.concat(done, dim="simulation", data_vars="minimal")


def _one(task: tuple[Study, xr.DataArray, tuple[str, ...]]) -> xr.Dataset:
    study, theta, views = task
    return study.simulate(theta, views=views)


def repeat_rows(theta: np.ndarray[tuple[int, ...], np.dtype[np.float64]], study: Study) -> xr.DataArray:
    """(observation, draw, parameter) flattened to (simulation, parameter)."""
    return study.prior.dataarray(theta.reshape(-1, theta.shape[-1]))
