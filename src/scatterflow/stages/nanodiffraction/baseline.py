"""Stage baseline of kind nanodiffraction: maximum likelihood, correlation fit and centroid on every scan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from scatterflow.baselines import centroid, correlation, likelihood
from scatterflow.exports import write_tree
from scatterflow.nanodiffraction import NanodiffractionStudy
from scatterflow.products import write_json
from scatterflow.progress import say
from scatterflow.stages.nanodiffraction import geometry, scans

LABELS = {"likelihood": "maximum likelihood", "correlation": "correlation fit", "centroid": "centroid"}
STARTS = 3  # of measured frames: what is no film has several summits


def run(study: NanodiffractionStudy, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Write `baseline/scan-<name>.nc` for each scan, and `baseline/manifest.json`; returns its path.

    Raises FrameError and ConfigError for a measured scan that cannot be read.
    """
    methods, names, latency = study.config.baselines.methods, [], {}
    for scan in scans.all_scans(study, tell):
        if scan.truth is None:
            scan = replace(scan, attrs=scan.attrs | geometry.attributes(scan, study.config))
        answers = {}
        for method in methods:
            start = time.perf_counter()
            answers[LABELS[method]] = _answer(study, scan, method)
            spent = (time.perf_counter() - start) / len(scan.frames)
            latency[LABELS[method]] = spent
            tell(f"scan {scan.name}: {LABELS[method]}, {1e3 * spent:.3g} ms per frame")
        write_tree(folder / "baseline" / f"{scans.PREFIX}{scan.name}.nc", {"/": scans.result(study, scan, answers)})
        names.append(scan.name)
    return write_json(
        folder / "baseline" / "manifest.json",
        {"format": 1, "methods": list(methods), "scans": names, "seconds_per_frame": latency},
    )


def _answer(study: NanodiffractionStudy, scan: scans.Scan, method: str) -> tuple[scans.Array, scans.Array]:
    """Values and standard deviations (point, parameter) by a method; not finite where it has none."""
    limits, frames = scans.box(study), scan.frames[scan.usable]
    if method == "likelihood":
        starts = 1 if scan.truth is not None else STARTS
        found = likelihood.fit(
            frames, scan.kinematics, limits, mask=scan.mask, background=scan.background, starts=starts
        )
        return scan.spread(found.theta, found.sd)
    if method == "correlation":
        patterns = correlation.library(scan.kinematics, limits, study.config.baselines.library, scan.mask)
        values, sd = correlation.predict(patterns, frames)
    else:
        calibration = centroid.calibration(study.config.beam, study.config.film, limits, scan.mask)
        values, sd = centroid.predict(calibration, frames)
    unknown = np.full((len(frames), limits.shape[1] - values.shape[1]), np.nan)  # the thickness
    return scan.spread(np.hstack([values, unknown]), np.hstack([sd, unknown]))
