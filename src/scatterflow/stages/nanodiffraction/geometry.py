"""The geometry of a measured scan as its frames show it, beside what the configuration says.

Fitted are means of frames that show the ring in the same place: a mean over all tilts of a scan is smeared. Two or three
such means tell how far their results scatter.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow.config.study import NanodiffractionConfig
from scatterflow.errors import FrameError
from scatterflow.ringfit import DEGENERATE, Geometry, estimate_geometry
from scatterflow.stages.nanodiffraction.scans import Scan

FREE = ("strain", "omega_deg", "chi_deg", "film_thickness_nm", "peak_width", "outer_zone_nm", "stop_um")
BRIGHT = 0.25  # share of the brightest frame's counts: darker frames do not show the sample
CELL = 2.0  # edge of the squares that frames are grouped by, the place of their centroid, over the centroid's noise
GROUPS = 3  # the squares with most counts
LEAST = 5  # frames of the square with most counts: the squares grow until they hold so many
SYSTEMATIC = 1e-3  # of a value: coarse quadrature and tilts within a group, by simulated scans
BEYOND = 3.0  # standard deviations from which a configured value is contradicted
FITS = 0.02  # share of the counts that the film model may leave unexplained; what varies within a group is 0.003
NOISE = 5.0  # standard deviations of the misfit that are no misfit
TOLD = 0.5  # of a value: with a larger error, the frames do not tell it, unless it contradicts the configuration
ATTRIBUTE = "estimated_geometry"
Array = NDArray[np.float64]
_TOLD = ("film_thickness_nm", "peak_width", "outer_zone_nm", "stop_um")
_UNITS = {"film_thickness_nm": "nm", "peak_width": "pixel", "outer_zone_nm": "nm", "stop_um": "um"}
_UNITS |= {"ring_outer_px": "pixel", "ring_inner_px": "pixel"}
_UNITS |= {"energy_kev": "keV", "distance_mm": "mm", "pixel_mm": "mm", "zone_plate_um": "um", "lattice_nm": "nm"}


def attributes(scan: Scan, config: NanodiffractionConfig) -> dict[str, Any]:
    """What is written of the estimate with a scan's maps; takes some seconds.

    `estimated_geometry` is JSON: {name: {"value", "sd", "unit", "config", "agrees", "why"}}. Names are those of the options
    in `beam` and `film`, and `ring_outer_px`, `ring_inner_px`; `agrees` is False where the configured value is more than
    `BEYOND` sd away. The sd of `peak_width` holds what the tilts within a mean widen. What frames cannot tell has no value,
    and `why` says so. `estimated_geometry_misfit`: squared deviation over the counting noise (1: the film model fits);
    `estimated_geometry_unexplained`: share of the counts that this is beyond the noise, by squares of the differences of
    roots; `estimated_geometry_fits`: 1 where it is at most `FITS` or the misfit is noise, else 0: then the root of this
    share is in all errors. `estimated_geometry_frames`: frames used. Where nothing can be estimated,
    `estimated_geometry_missing` says why instead of them all.
    """
    groups, edge = _groups(scan.lit)
    if not groups:
        return {f"{ATTRIBUTE}_missing": "no frame with counts"}
    found: list[Geometry] = []
    valid = np.ones(config.beam.shape, dtype=bool) if scan.mask is None else scan.mask
    try:
        for frames in groups:
            start = found[0].values if found else None
            mean = frames.mean(axis=0, dtype=np.float64)
            found.append(estimate_geometry(mean, config.beam, config.film, valid, FREE, len(frames), start))
    except FrameError as error:
        return {f"{ATTRIBUTE}_missing": str(error)}
    counts = [float(frames.sum(where=valid, dtype=np.float64)) for frames in groups]
    misfit, pixels = float(np.mean([each.misfit for each in found])), int(valid.sum())
    unexplained = max(misfit - 1, 0.0) * pixels / (4 * float(np.mean(counts)))  # a root's noise is 1/2
    noise = NOISE * np.sqrt(2 / (pixels * len(found)))
    fits = unexplained <= FITS or misfit - 1 <= noise
    systematic = SYSTEMATIC if fits else max(SYSTEMATIC, float(np.sqrt(unexplained)))
    entries = _entries(found, config, edge, systematic)
    for entry in entries.values() if not fits else ():
        entry["why"] = entry["why"] or f"the film model leaves {unexplained:.0%} of the counts unexplained"
    return {
        ATTRIBUTE: json.dumps(entries),
        f"{ATTRIBUTE}_misfit": misfit,
        f"{ATTRIBUTE}_unexplained": unexplained,
        f"{ATTRIBUTE}_fits": int(fits),
        f"{ATTRIBUTE}_frames": sum(map(len, groups)),
    }


def _groups(frames: NDArray[np.float32]) -> tuple[list[NDArray[np.float32]], float]:
    """Frames (frame, z, y) whose centroids lie in the same square, for those with most counts, and its edge [pixel]."""
    totals = frames.sum(axis=(1, 2), dtype=np.float64)
    bright = totals > BRIGHT * totals.max(initial=0)
    frames, totals = frames[bright], totals[bright]
    if not len(frames):
        return [], 0.0
    places, noise = [], []
    for axis in (1, 2):
        place, profiles = np.arange(frames.shape[axis]), frames.sum(axis=3 - axis, dtype=np.float64)
        places.append(profiles @ place / totals)
        noise.append(np.sqrt((profiles @ place**2 / totals - places[-1] ** 2).clip(min=1 / 12) / totals))
    edge = CELL * float(np.median(noise))
    while True:
        squares = np.floor(np.stack(places, axis=1) / edge).astype(int)
        square = np.unique(squares, axis=0, return_inverse=True)[1].ravel()
        counts = np.bincount(square, weights=totals)
        if len(counts) == 1 or np.bincount(square)[counts.argmax()] >= LEAST:
            break
        edge *= 1.5
    return [frames[square == chosen] for chosen in np.argsort(-counts, kind="stable")[:GROUPS]], edge


def _entries(
    found: list[Geometry], config: NanodiffractionConfig, edge: float, systematic: float
) -> dict[str, dict[str, Any]]:
    beam, film = config.beam, config.film
    inner, outer = beam.ring_px
    values = {name: np.array([each.values[name] for each in found]) for name in _TOLD}  # (group,)
    sds = {name: np.array([each.sd[name] for each in found]) for name in _TOLD}
    relative = {name: sds[name] / np.maximum(values[name], 1e-9) for name in ("outer_zone_nm", "stop_um")}
    # shifts that fill the square widen a Gaussian exp(-x^2 / w^2) by this w
    sds["peak_width"] = np.hypot(sds["peak_width"], edge / np.sqrt(6) * np.sqrt(len(found)))
    radius = outer * beam.outer_zone_nm / values["outer_zone_nm"]
    hole = radius * values["stop_um"] / beam.zone_plate_um
    values |= {"ring_outer_px": radius, "ring_inner_px": hole}
    sds |= {"ring_outer_px": radius * relative["outer_zone_nm"]}
    sds |= {"ring_inner_px": hole * np.hypot(relative["outer_zone_nm"], relative["stop_um"])}
    said = {"film_thickness_nm": film.thickness_nm, "peak_width": film.peak_width}
    said |= {"outer_zone_nm": beam.outer_zone_nm, "stop_um": beam.stop_um}
    said |= {"ring_outer_px": outer, "ring_inner_px": inner}
    # a radius is an inverse, whose larger side is meant
    shares = {name: systematic / (1 - min(systematic, 0.9)) if name.endswith("_px") else systematic for name in said}
    entries = {name: _entry(name, values[name], sds[name], value, shares[name]) for name, value in said.items()}
    if config.prior.film_thickness_nm is not None:
        entries["film_thickness_nm"] |= {"config": None, "agrees": None, "why": "a parameter: every point has its own"}
    for name, why in DEGENERATE.items():
        value = getattr(film if name == "lattice_nm" else beam, name)
        entries[name] = _untold(name, value, f"degenerate with {why}")
    return entries


def _entry(name: str, values: Array, sds: Array, config: float, systematic: float) -> dict[str, Any]:
    """Mean over the groups; its error is the fits' own or that of their scatter, whichever is larger, and a share of it."""
    value, number = float(values.mean()), len(values)
    variance = float((sds**2).sum()) / number**2
    if number > 1:
        variance = max(variance, float(values.var(ddof=1)) / number)
    sd = float(np.hypot(np.sqrt(variance), systematic * value))
    agrees = bool(abs(config - value) <= BEYOND * sd)
    if agrees and sd > TOLD * value:
        return _untold(name, config, f"the frames only tell that it is below {value + BEYOND * sd:.2g} {_UNITS[name]}")
    return {"value": value, "sd": sd, "unit": _UNITS[name], "config": config, "agrees": agrees, "why": ""}


def _untold(name: str, config: float, why: str) -> dict[str, Any]:
    return {"value": None, "sd": None, "unit": _UNITS[name], "config": config, "agrees": None, "why": why}
