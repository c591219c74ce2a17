"""Stage evaluate of kind nanodiffraction: trained estimators and baselines judged on the same scans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr

from scatterflow import landscape, maps
from scatterflow.errors import StoreError
from scatterflow.exports import write_tree
from scatterflow.models.regressor import load_regressor
from scatterflow.nanodiffraction import NanodiffractionStudy
from scatterflow.products import read_json, write_json
from scatterflow.progress import say
from scatterflow.stages.nanodiffraction.scans import PREFIX

_JOINED = ("estimate", "sd", "goodness")  # what each estimator has; all else is of the scan


def run(study: NanodiffractionStudy, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Write `evaluate/scan-<name>.nc` with all estimators, and `evaluate/metrics.json`; returns the path of the metrics.

    The losses of a frame around its truth (`landscape.py`), of the first simulated scan on the study's own film, are in
    `evaluate/landscape.nc`.
    """
    inferred = read_json(folder / "infer" / "manifest.json", "snakemake infer")
    baselines = read_json(folder / "baseline" / "manifest.json", "scatterflow baseline")
    scans = {}
    for name in inferred["scans"]:
        parts = [_read(folder / stage / f"{PREFIX}{name}.nc", stage) for stage in ("infer", "baseline")]
        scans[name] = _joined(*parts)
        write_tree(folder / "evaluate" / f"{PREFIX}{name}.nc", {"/": scans[name]})
    able = [name for name, scan in scans.items() if landscape.possible(scan)]
    if able:
        write_tree(folder / "evaluate" / landscape.FILE, {"/": landscape.of_scan(study, scans[able[0]])})
        tell(f"scan {able[0]}: losses of a frame around its truth")
    found = maps.evaluation(scans)
    for name, entry in found["scans"].items():
        tell(f"scan {name}: {entry['goodness']['verdict']['status']}: {entry['goodness']['verdict']['why']}")
    models = {name: load_regressor(folder / "models" / name) for name in study.config.models}
    seconds = inferred["seconds_per_frame"] | baselines["seconds_per_frame"]
    latency = [{"estimator": name, "device": "CPU", "ms": 1e3 * value} for name, value in seconds.items()]
    content: dict[str, Any] = {
        "format": 1,
        "study": study.name,
        "kind": study.kind,
        **found,
        "latency": latency,
        "scores": {name: dict(model.scores) for name, model in models.items()},
        "identity": {
            "simulations": study.simulation_identity(),
            "features": study.features_identity(),
            **{f"model {name}": model.identity for name, model in models.items()},
        },
    }
    return write_json(folder / "evaluate" / "metrics.json", content)


def _read(path: Path, stage: str) -> xr.Dataset:
    remedy = f"run `scatterflow {stage}` again"
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            return maps.checked(opened.load(), str(path))
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path}", "must be a readable NetCDF file", error, remedy) from None


def _joined(inferred: xr.Dataset, baseline: xr.Dataset) -> xr.Dataset:
    """The maps of all estimators of a scan in one dataset; the frames that are shown are rebuilt by the first baseline."""
    both = [part[list(_JOINED)] for part in (inferred, baseline)]
    joined = xr.concat(both, dim="estimator", join="exact", combine_attrs="drop")
    result = baseline.drop_vars([*_JOINED, "estimator"]).merge(joined)
    # how the parts were stored says too little of the whole: texts would be cut to the length of the first part's
    return result.assign_attrs(baseline.attrs).drop_encoding()
