"""A small study of kind particles: gold spheroids of one mode on silicon, 32 x 40 bins, hundreds of images in a second."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.config.study import ParticlesConfig
from scatterflow.particles import ParticlesStudy

GOLD = {"name": "Au", "delta": 2.3e-5, "beta": 2.2e-6}
SILICON = {"name": "Si", "delta": 3.4e-6, "beta": 2.2e-8}
OXIDE = {"name": "SiO2", "delta": 3.2e-6, "beta": 1.5e-8}
ROUGH = {"hurst": 0.6, "correlation_length_nm": 20.0}
VIEW: dict[str, Any] = {"rows": [[474, 858]], "columns": [392, 1192], "bins": [32, 40]}
INSTRUMENT: dict[str, Any] = {
    "wavelength_nm": 0.10332, "incidence_deg": 0.4, "distance_mm": 2565, "pixel_mm": 0.172, "shape": [1679, 1475],
    "background": 0, "resolution_mm": 0, "beam": "direct", "beam_z_px": 367.5, "beam_y_px": 792.0,
    "views": {"image": VIEW}, "masked": [{"z": [474, 858], "y": [752, 832]}],
}  # fmt: skip
SAMPLE: dict[str, Any] = {
    "shape": "spheroid", "aspect_ratio": 0.8, "material": GOLD, "radius_nm": [0.5, 6.5], "sizes": 12,
    "modes": {"mean_radius_nm": [1.5, 4.0], "relative_width": [0.12, 0.3]}, "distance_nm": [9.0, 18.0],
    "disorder": [0.05, 0.35], "substrate": {"material": SILICON, "roughness_nm": 0.3, **ROUGH},
}  # fmt: skip
LAYER: dict[str, Any] = {"material": OXIDE, "thickness_nm": [12.0, 20.0], "roughness_nm": [0.1, 0.5], **ROUGH}
STUDY: dict[str, Any] = {
    "kind": "particles",
    "instrument": INSTRUMENT,
    "sample": SAMPLE,
    "simulate": {"simulations": 90, "held_back": 20, "validation": 20, "shard_size": 90, "chunk_size": 10},
    "models": {"dual-branch": {}},
    "baselines": {"starts": 1, "fitted": 3, "accepted": 10},
    "inference": {"samples": 50, "predictive_draws": 4, "predictive_references": 20},
    "evaluation": {"series_rows": 10, "counts_series": [1e4], "bound_rows": 4},
}


def configuration(**changes: Any) -> dict[str, Any]:
    """STUDY with changes by section: options of a section are replaced one by one."""
    return STUDY | {
        name: STUDY.get(name, {}) | change if isinstance(change, dict) else change for name, change in changes.items()
    }


def study(seed: int = 11, **changes: Any) -> ParticlesStudy:
    return ParticlesStudy("small", ParticlesConfig.model_validate(configuration(**changes)), seed, "test")


def inside(**changes: Any) -> ParticlesStudy:
    """Particles inside a layer."""
    return study(sample={"layers": [LAYER], "layer": 1}, **changes)


def images(counts: NDArray[Any], first: int = 0) -> xr.Dataset:
    """Expected counts (simulation, z, y) as `simulate` names them."""
    coords = {"simulation": np.arange(first, first + len(counts))}
    return xr.Dataset({"image": (("simulation", "z_image", "y_image"), counts)}, coords)


def recorded(of: ParticlesStudy, theta: NDArray[Any], total: float, noise: bool = True, draw: int = 0) -> xr.Dataset:
    """Images of `total` expected counts each, with Poisson noise or without, and no artefacts."""
    options = of.artefacts_with(total, artefacts=False).model_copy(update={"noise": "poisson" if noise else "none"})
    return of.observe(images(of.expected(theta)), draw=draw, config=options)
