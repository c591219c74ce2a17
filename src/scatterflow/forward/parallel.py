"""Simulations of a few hundred samples on all cores, for predictive checks, and many small ones on one."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import xarray as xr
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from scatterflow.multilayer import MultilayerStudy

# samples per task, and up to how many the start of processes costs more than it saves
_CHUNK = {"bornagain": 25, "dwba": 250}
_ALONE = {"bornagain": 100, "dwba": 2000}


def simulate(
    study: MultilayerStudy, theta: xr.DataArray, views: tuple[str, ...], workers: int | None = None
) -> xr.Dataset:
    """As `Study.simulate`, spread over processes; the result does not depend on their number."""
    processes = workers or len(os.sched_getaffinity(0))
    engine = study.config.forward.engine
    if processes == 1 or len(theta) <= _ALONE[engine]:
        return study.simulate(theta, views=views)
    parts = [theta[start : start + _CHUNK[engine]] for start in range(0, len(theta), _CHUNK[engine])]
    done = list(_pool(processes).map(_one, [(study, part, views) for part in parts]))
    return xr.concat(done, dim="simulation", data_vars="minimal", coords="minimal", compat="override", join="outer")


@functools.cache
def _pool(processes: int) -> ProcessPoolExecutor:
    """One pool for the life of this process: its workers import BornAgain once; it ends with the interpreter."""
    # a fresh server process: forking one that runs torch's threads can deadlock
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("forkserver"))


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch and for matrix products: many small ones take several times as long with more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _one(task: tuple[MultilayerStudy, xr.DataArray, tuple[str, ...]]) -> xr.Dataset:
    study, theta, views = task
    if study.config.forward.engine == "dwba":
        import torch

        torch.set_num_threads(1)  # the processes have the cores
    return study.simulate(theta, views=views)
