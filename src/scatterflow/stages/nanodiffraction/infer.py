"""Stage infer of kind nanodiffraction: maps of every scan by the trained estimators."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from scatterflow.errors import BundleError
from scatterflow.exports import write_tree
from scatterflow.models.regressor import Regressor, load_regressor
from scatterflow.nanodiffraction import NanodiffractionStudy
from scatterflow.nexus import write_maps
from scatterflow.products import write_json
from scatterflow.progress import say
from scatterflow.stages.nanodiffraction import scans


def run(study: NanodiffractionStudy, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Write `infer/scan-<name>.nc` and, as NeXus, `infer/scan-<name>.nxs`; returns the path of `infer/manifest.json`.

    Raises BundleError for a model of other simulations, FrameError and ConfigError for a measured scan that cannot be read.
    """
    models = {name: trained(study, folder, name) for name in study.config.models}
    names, latency = [], {}
    for scan in scans.all_scans(study, tell):
        answers = {}
        for name, model in models.items():
            start = time.perf_counter()
            answers[name] = scan.spread(*model.predict(scan.frames[scan.usable]))
            latency[name] = (time.perf_counter() - start) / len(scan.frames)
            tell(f"scan {scan.name}: {name}, {1e3 * latency[name]:.3g} ms per frame")
        found = scans.result(study, scan, answers)
        place = folder / "infer" / f"{scans.PREFIX}{scan.name}"
        write_tree(place.with_suffix(".nc"), {"/": found})
        write_maps(place.with_suffix(".nxs"), found)
        names.append(scan.name)
    return write_json(
        folder / "infer" / "manifest.json",
        {"format": 1, "models": list(models), "scans": names, "seconds_per_frame": latency},
    )


def trained(study: NanodiffractionStudy, folder: Path, name: str) -> Regressor:
    """Estimator `name` of the run. Raises BundleError if it was trained on other features than the study's now."""
    bundle = folder / "models" / name
    model = load_regressor(bundle)
    if model.meta.get("features") != study.features_identity():
        must, got = "must be trained on this configuration's features", str(model.meta.get("features"))[:12]
        raise BundleError(f"bundle {bundle}", must, f"those of {got}", "run `scatterflow train`")
    return model
