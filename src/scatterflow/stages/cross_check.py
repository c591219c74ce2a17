"""Stage cross-check: stored simulations computed once more by the other engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import instrument as geometry
from scatterflow import provenance, seeds
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import SimulationError
from scatterflow.multilayer import MultilayerStudy
from scatterflow.particles import ParticlesStudy
from scatterflow.products import write_json
from scatterflow.progress import say
from scatterflow.stages import preprocess

LOWEST_DEG = 0.05  # exit angle from which the engines are compared
OTHER = {"dwba": "bornagain", "bornagain": "dwba"}


def run(study: MultilayerStudy | ParticlesStudy, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Compare random stored simulations with the other engine and write `cross-check/manifest.json`; returns its path.

    BornAgain knows no flat detector: with geometry flat both engines compute the same samples in geometry bornagain.
    Raises SimulationError, naming the worst sample and its parameters, where a bin deviates by more than
    `forward.tolerance` of its expected counts.
    """
    config = study.config
    number = min(config.forward.cross_check, config.simulate.simulations)
    generator = seeds.generator(study.seed, "cross-check", 0)
    index = np.sort(generator.choice(config.simulate.simulations, number, replace=False))
    stored = preprocess.simulations(study, folder).isel(simulation=index).load()
    theta = study.prior.dataarray(stored["parameters"].values).assign_coords(simulation=index)
    own: xr.Dataset = stored
    flat = config.instrument.geometry == "flat"
    instrument = config.instrument.model_copy(update={"geometry": "bornagain"})
    if flat and isinstance(study, MultilayerStudy):
        study = replace(study, config=study.config.model_copy(update={"instrument": instrument}))
    engine: str = config.forward.engine
    other = OTHER[engine]
    study.simulate(theta[:1])  # the first call loads libraries and plans
    began = time.process_time()
    again = study.simulate(theta)
    seconds = {engine: (time.process_time() - began) / number}
    if flat:
        own = again
    study.simulate(theta[:1], engine=other)
    began = time.process_time()
    reference = study.simulate(theta, engine=other)
    seconds[other] = (time.process_time() - began) / number
    views = {name: deviation(own[name], reference[name], comparable(instrument, name)) for name in study.views}
    worst_view = max(views, key=lambda name: views[name]["largest"])
    worst = views[worst_view]
    parameters = dict(zip(study.prior.names, theta.sel(simulation=worst["simulation"]).values.tolist(), strict=True))
    tell(
        f"cross-check: {number} simulations by {engine} deviate from {other} by at most {worst['largest']:.2g} of the "
        f"counts of a bin (tolerance {config.forward.tolerance:g}); {seconds[engine] * 1e3:.3g} ms of a core against "
        f"{seconds[other] * 1e3:.3g} ms each"
    )
    if not worst["largest"] <= config.forward.tolerance:
        values = ", ".join(f"{name}={value:.6g}" for name, value in parameters.items())
        raise SimulationError(
            f"simulation {worst['simulation']}, view {worst_view}: engine {engine}",
            f"must agree with {other} within forward.tolerance={config.forward.tolerance:g}",
            f"{worst['largest']:.3g} at {values}",
            "report it with these parameters, or choose the other engine",
        )
    return write_json(
        folder / "cross-check" / "manifest.json",
        {
            "format": 1,
            "engine": engine,
            "reference": other,
            "geometry": "bornagain",
            "lowest_exit_angle_deg": LOWEST_DEG,
            "simulations": number,
            "stored": not flat,
            "tolerance": config.forward.tolerance,
            "views": views,
            "worst": {"view": worst_view, "simulation": worst["simulation"], "parameters": parameters},
            "core_seconds_per_simulation": seconds,
            "versions": provenance.versions(("bornagain", "torch", "numpy")),
        },
    )


def comparable(instrument: InstrumentConfig, view: str) -> NDArray[np.bool_]:
    """Rows of bins (z,) that are compared: next to the horizon BornAgain's own numbers are noisy."""
    lowest = float(geometry.rows_px(instrument, np.radians(LOWEST_DEG)))
    return np.asarray(geometry.axes(geometry.view(instrument, view)).z[:, 0] >= lowest)


def deviation(own: xr.DataArray, reference: xr.DataArray, rows: NDArray[np.bool_]) -> dict[str, Any]:
    """Largest and median relative deviation of the bins of a view (simulation, z, y), and where the largest lies.

    `rows` (z,) are those compared.
    """
    expected = reference.values[:, rows].astype(np.float64)
    relative = np.abs(own.values[:, rows] - expected) / np.maximum(expected, np.finfo(np.float32).tiny)
    row, z, y = np.unravel_index(np.argmax(relative), relative.shape)
    return {
        "largest": float(relative[row, z, y]),
        "median": float(np.median(relative)),
        "simulation": int(reference["simulation"].values[row]),
        "bin": [int(np.flatnonzero(rows)[z]), int(y)],
    }
