"""From expected counts to what a detector records: counting noise, masked pixels, parasitic scattering."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import instrument as geometry
from scatterflow import seeds
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.observe import ObserveConfig, ParasiticConfig
from scatterflow.errors import SimulationError

Array = NDArray[Any]


def observe(
    counts: xr.Dataset,
    instrument: InstrumentConfig,
    config: ObserveConfig,
    seed: int,
    parasitic: ParasiticConfig | None = None,
) -> xr.Dataset:
    """Recorded counts of each view and `mask_<view>` (True = valid), both (simulation, z_<view>, y_<view>); lazy on Dask.

    The noise of simulation `i` depends on (seed, view, i) only. A bin with some masked pixels records less and is scaled
    up to all its pixels; below `min_valid_share` it is masked and holds 0. With `parasitic`, the scattering of the beam
    stop that an experiment's profile contains is added. Raises SimulationError for negative or non-finite counts.
    """
    result = xr.Dataset(coords=counts.coords, attrs={**counts.attrs, "parasitic": int(parasitic is not None)})
    for name in counts.data_vars:
        view = str(name)
        expected = counts[view]
        if parasitic is not None and view == "profile":
            expected = expected / parasitic_weight(counts["qz_profile"], parasitic)
        share = xr.DataArray(geometry.valid_share(instrument, view), dims=(f"z_{view}", f"y_{view}"))
        core = [f"z_{view}", f"y_{view}"]
        recorded, valid = xr.apply_ufunc(
            _record,
            expected,
            counts["simulation"],
            share,
            input_core_dims=[core, [], core],
            output_core_dims=[core, core],
            kwargs={"config": config, "seed": seed, "stream": view},
            dask="parallelized",
            output_dtypes=[np.float32, np.bool_],
        )
        attrs = {"units": "counts", "long_name": f"recorded counts of view {view}"}
        result[view] = recorded.transpose(*counts[view].dims).assign_attrs(attrs)
        attrs = {"units": "1", "long_name": f"valid bins of view {view}"}
        result[f"mask_{view}"] = valid.transpose(*counts[view].dims).assign_attrs(attrs)
    return result


def poisson(expected: Array, simulation: Array, seed: int, stream: str) -> NDArray[np.float64]:
    """Poisson counts of `expected` (..., z, y) of each `simulation` (...); row `i` depends on (seed, stream, i) only."""
    recorded = np.empty(expected.shape)
    # one generator per simulation, so that any row can be drawn alone; the draws themselves dominate the loop
    for index in np.ndindex(simulation.shape):
        generator = seeds.generator(seed, f"noise:{stream}", int(simulation[index]))
        recorded[index] = generator.poisson(expected[index])
    return recorded


def scale_to_full(recorded: Array, share: Array, min_share: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Counts scaled from the valid share of a bin to the whole bin, and which bins are valid; masked bins hold 0."""
    valid = share >= min_share
    full = np.where(valid, recorded / np.where(valid, share, 1.0), 0.0)
    return full.astype(np.float32), np.broadcast_to(valid, full.shape)


def parasitic_weight(qz: xr.DataArray, config: ParasiticConfig) -> xr.DataArray:
    """Weight by which an experiment's profile is multiplied to remove parasitic scattering; 1 where it is largest."""
    above, below = qz - config.centre_qz_per_nm, config.centre_qz_per_nm - qz
    weight = (config.above_scale * abs(above) ** config.above_power).where(
        above > 0, config.below_scale * abs(below) ** config.below_power
    )
    relative: xr.DataArray = weight / weight.max()
    return relative


def _record(
    expected: Array, simulation: Array, share: Array, config: ObserveConfig, seed: int, stream: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Noise and mask of a block of simulations, (..., z, y)."""
    expected, simulation = np.asarray(expected, dtype=np.float64), np.asarray(simulation)
    if not (np.isfinite(expected).all() and (expected >= 0).all()):
        raise SimulationError(f"expected counts of view {stream}", "must be finite and not negative")
    shares = np.broadcast_to(share, expected.shape)
    if config.dead_share:
        size = int(np.prod(share.shape))
        dead = np.empty(expected.shape, dtype=bool)
        for index in np.ndindex(simulation.shape):
            uniform = seeds.uniforms(seed, f"dead:{stream}", int(simulation[index]), 1, size)
            dead[index] = uniform.reshape(share.shape) < config.dead_share
        shares = np.where(dead, 0.0, shares)
    recorded = expected * shares
    if config.noise == "poisson":
        recorded = poisson(recorded, simulation, seed, stream)
    return scale_to_full(recorded, shares, config.min_valid_share)
