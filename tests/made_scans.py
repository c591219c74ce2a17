"""Scans as the stage infer writes them, made in seconds by the real forward model.

`likelihood` is one step of Fisher scoring from the truth: to first order the efficient estimator, whose errors are those of
the Cramer-Rao bound. What the report must say about the others follows from how they are made of it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from scatterflow import landscape
from scatterflow.baselines.poisson import expected_deviance
from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.forward.nanodiffraction import Kinematics, intensities, kinematics
from scatterflow.scan import overview

MAX_COUNTS = 7
STEPS = np.array([1e-6, 1e-5, 1e-5])  # of the derivatives
PARAMETERS = ("strain", "omega_deg", "chi_deg")
ESTIMATORS = ("likelihood", "narrow", "lost", "centroid")
BATCH = 128
COARSE = NanobeamConfig(shape=(32, 32), pixel_mm=0.22)  # the same detector, binned: an eighth of the time


GEOMETRY = {
    "energy_kev": {"value": 9.2, "sd": 0.04, "unit": "keV", "config": 9.0},
    "outer_zone_nm": {"value": 20.1, "sd": 0.2, "unit": "nm", "config": 20.0},
    "peak_width": {"value": 9.0, "sd": 0.5, "unit": "pixel", "config": 6.0, "agrees": True, "why": ""},
    "distance_mm<b>": {"value": None, "sd": None, "unit": "mm", "config": 850.0, "agrees": None, "why": "degenerate"},
}
DECIDED = {
    "roi_rows": "[10, 41]", "roi_columns": "[8, 39]", "roi_sigmas": 120.0, "roi_fraction": 0.9, "masked_hot": 2,
    "masked_gap": 64, "geometry": json.dumps({"energy_kev": "config, as the file says: ASSUMED"}), "defocus_um": -46.0,
    "defocus_explained": 0.85, "estimated_geometry": json.dumps(GEOMETRY),
    "estimated_geometry_fits": 0, "estimated_geometry_unexplained": 0.07, "estimated_geometry_frames": 96,
}  # fmt: skip


def mean_frame() -> xr.Dataset:
    """Mean frame, mask and causes of a scan as `read_scan` gives them: a peak at (30, 22), a gap and two hot pixels."""
    z, y = np.indices((64, 48))
    frame = 0.01 + 2 * np.exp(-((z - 30) ** 2 + (y - 22) ** 2) / 50)
    cause = np.zeros(frame.shape, dtype=np.int8)
    cause[50:52] = 2
    cause[[5, 20], [7, 30]] = 1
    dims = ("z_frame", "y_frame")
    return xr.Dataset(
        {"overview": (dims, frame.astype("f4")), "overview_mask": (dims, cause == 0),
         "overview_cause": (dims, cause, {"flag_meanings": "valid hot gap"})},
        attrs={"roi": [14, 45, 6, 37], "background": 0.01},
    )  # fmt: skip


def fields(size: int) -> np.ndarray:
    """The paper's strain and tilts (row, column, parameter) on [-1, 1] squared."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")

    def edges(height: float) -> np.ndarray:
        turns = np.radians([-60, 0, 60])
        steps = [1 / (1 + np.exp(-(x * np.cos(turn) + y * np.sin(turn)) / 0.07)) for turn in turns]
        return height * (np.sum(steps, axis=0) / 3 - 0.5)

    return np.stack([5e-4 * np.sin(2 * np.pi * (x + y) / 0.4), edges(0.01), edges(0.02)], axis=-1)


def expected(at: Kinematics, theta: np.ndarray) -> np.ndarray:
    """Expected counts (frame, z, y), at most MAX_COUNTS in the brightest pixel."""
    parts = [intensities(at, torch.as_tensor(theta[i : i + BATCH])).numpy() for i in range(0, len(theta), BATCH)]
    frames = np.concatenate(parts).clip(0)  # in the dark the difference of two discs is zero but for rounding
    return MAX_COUNTS * frames / frames.max(axis=(1, 2), keepdims=True)


def scored(at: Kinematics, theta: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One Fisher-scoring step from theta with a free amplitude: estimate, its sd, deviance over its expectation."""
    model = expected(at, theta) + 1e-6
    slopes = [(expected(at, theta + shift) - expected(at, theta - shift)) / (2 * STEPS[i])
              for i, shift in enumerate(np.diag(STEPS))]  # fmt: skip
    jacobian = np.stack([*slopes, model], axis=1)
    fisher = np.einsum("nizy,njzy,nzy->nij", jacobian, jacobian, 1 / model)
    score = np.einsum("nizy,nzy->ni", jacobian, counts / model - 1)
    covariance = np.linalg.inv(fisher)
    step = np.einsum("nij,nj->ni", covariance, score)
    model *= counts.sum(axis=(1, 2), keepdims=True) / model.sum(axis=(1, 2), keepdims=True)
    ratio = np.where(counts > 0, counts / model, 1.0)
    deviance = 2 * (counts * np.log(ratio) - counts + model).sum(axis=(1, 2))
    deviance /= expected_deviance(model).sum(axis=(1, 2))
    return theta + step[:, :3], np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))[:, :3], deviance


def scan(
    size: int = 16, seed: int = 1, film: bool = True, experiment: bool = False, beam: NanobeamConfig = COARSE
) -> xr.Dataset:
    """A scan of size x size points. Without `film` every other frame is the sum of two films tilted against each other."""
    rng = np.random.default_rng(seed)
    at = kinematics(beam, FilmConfig(), dtype=torch.float64)
    theta = fields(size).reshape(-1, 3)
    light = expected(at, theta)
    if not film:
        second = expected(at, theta + np.array([0, 0.01, 0.05]))
        light[::2] = (light + second)[::2] / 2
    counts = rng.poisson(light).astype(float)
    best, bound, deviance = scored(at, theta, counts)
    n = len(theta)
    made = {
        "likelihood": (best, bound),
        "narrow": (best + 1.5 * bound * rng.normal(size=best.shape), bound),
        "lost": (best + 60 * bound * rng.normal(size=best.shape), bound),
        "centroid": (0.9 * best + 3 * bound * rng.normal(size=best.shape), np.full_like(bound, np.nan)),
    }
    estimate, sd = (np.stack([pair[i] for pair in made.values()]) for i in (0, 1))
    estimate[2, rng.random(n) < 0.1] = np.nan
    shown = np.linspace(0, n - 1, 2).astype(int)
    radius = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, size)] * 2))
    status = np.where(radius > 1.2, "weak: 3 counts", "ok") if experiment else np.full((size, size), "ok")
    estimate[:, (status != "ok").ravel()] = np.nan
    shape = (size, size)
    made_scan = xr.Dataset(
        {
            "estimate": (("estimator", "row", "column", "parameter"), estimate.reshape(4, *shape, 3)),
            "sd": (("estimator", "row", "column", "parameter"), sd.reshape(4, *shape, 3)),
            "goodness": (("estimator", "row", "column"), np.multiply.outer([1, 1.02, 2, 1.1], deviance.reshape(shape))),
            "intensity": (("row", "column"), counts.sum(axis=(1, 2)).reshape(shape)),
            "status": (("row", "column"), status.astype(object)),
            "frames": (("shown", "z", "y"), counts[shown].astype("f4")),
            "rebuilt": (("shown", "z", "y"), expected(at, best[shown]).astype("f4")),
            "shown_row": ("shown", shown // size),
            "shown_column": ("shown", shown % size),
        },
        coords={
            "estimator": list(ESTIMATORS), "parameter": list(PARAMETERS), "unit": ("parameter", ["1", "deg", "deg"]),
            "x_um": ("column", np.linspace(-1, 1, size)), "y_um": ("row", np.linspace(-1, 1, size)),
        },
        attrs={"title": "the paper's test scan", "source": "simulated", "experiment": int(experiment), "relative": "[]",
               "rebuilt_estimator": "likelihood", "max_counts": MAX_COUNTS, "fields": "paper"},
    )  # fmt: skip
    if experiment:
        made_scan.attrs |= {"title": "a real scan", "source": "made by hand <b>", "relative": json.dumps(["strain"])}
        made_scan.attrs |= DECIDED
        return made_scan.assign(overview(mean_frame()))
    made_scan["truth"] = (("row", "column", "parameter"), theta.reshape(*shape, 3))
    made_scan["bound"] = (("row", "column", "parameter"), bound.reshape(*shape, 3))
    return made_scan


def write(folder: Path, scans: dict[str, xr.Dataset]) -> None:
    """Write `infer/scan-<name>.nc` below `folder`."""
    (folder / "infer").mkdir(parents=True, exist_ok=True)
    for name, one in scans.items():
        one.to_netcdf(folder / "infer" / f"scan-{name}.nc", engine="h5netcdf")


def losses(beam: NanobeamConfig = COARSE) -> xr.Dataset:
    """Losses of a frame around its truth, by the real forward model, as the stage evaluate writes them."""
    film, truth = FilmConfig(), np.array([2e-4, 2e-3, -4e-3])
    own, other = kinematics(beam, film), kinematics(beam, film, 2)
    counts = np.random.default_rng(0).poisson(expected(own, truth[None])[0]).astype(float)
    box = np.array([[-0.005, -0.05, -0.1], [0.005, 0.05, 0.1]])
    found = landscape.compute(counts, truth, own, other, box)
    return found.assign_attrs(counts=counts.sum(), row=3, column=4, scan="a scan", own_ring="integral over the ring",
                              other_ring="ring of 2 points per pixel")  # fmt: skip
