"""The page of a study of kind particles: its products and the order of its sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from scatterflow.errors import StoreError
from scatterflow.particles import ParticlesStudy
from scatterflow.products import read_json
from scatterflow.report import particlemeasured, particlesections, particleverdict, tables
from scatterflow.report.gallery import Gallery, Section
from scatterflow.report.kindpage import finished
from scatterflow.report.metrics import CrossCheck
from scatterflow.report.page import StudyPage
from scatterflow.report.products import Missing, StudyFolder, checked_cross_check, read_groups
from scatterflow.stages.particles import sets
from scatterflow.study import Study


def page(study: Study, folder: Path, gallery: Gallery) -> StudyPage:
    """Draw all figures of a study below `folder` (results/<run>/<study>/) and compose its sections.

    What is not there is listed as missing. Raises StoreError for damaged products.
    """
    assert isinstance(study, ParticlesStudy)  # the caller's other kinds have pages of their own
    at = StudyFolder(study, folder)
    found: dict[str, Any] = {}
    if path := at.there("evaluate/metrics.json", "figures of merit", "snakemake evaluate"):
        found = read_metrics(path)
    judged = dict(found)
    answers: dict[str, xr.Dataset] = {}
    compared = particlesections.compared(judged) if judged else []
    for name in study.config.models:
        path = at.there(f"infer/{name}.nc", f"answers of model {name}", "snakemake infer")
        if path and name in compared:
            answers[name] = _dataset(path, sets.TEST)
    for name in study.config.methods:
        path = at.there(f"baseline/{name}.nc", f"answers of baseline {name}", "snakemake baseline")
        if path and name in compared:
            answers[name] = _dataset(path, sets.TEST)
    shown = None
    if path := at.there("infer/examples.nc", "test images and rebuilt ones", "snakemake infer"):
        shown = _dataset(path)
    frames, arrays = _frames(study, folder, at.missing)
    check = None
    if path := at.there("cross-check/manifest.json", "comparison of the engines", "snakemake cross_check"):
        found |= {"cross_check": read_json(path, "scatterflow cross-check")}
        check = checked_cross_check(path, found["cross_check"])
    if (swept := at.sweep()) is not None:
        found |= {"sweep": swept.model_dump(mode="json")}
    without = [name for name, model in study.config.models.items() if not model.artefacts]
    interval, wanted = study.config.inference.interval, bool(study.config.inference.frames)
    composed = [
        particlesections.accuracy(judged, answers, gallery, study.seed),
        particlesections.examples(shown, interval, gallery),
        *particlesections.allowed(judged, gallery, study.seed),
        particlesections.calibration(judged, gallery, study.seed),
        *particlesections.ablated(judged, without),
        *particlemeasured.sections(frames, arrays, wanted, interval, gallery),
        forward(check),
    ]
    told = particleverdict.verdict(judged, frames)
    return finished(at, gallery, told, particleverdict.tiles(judged), composed, found, swept)


def read_metrics(path: Path) -> dict[str, Any]:
    """`evaluate/metrics.json` of the kind. Raises StoreError where it holds something else."""
    found = read_json(path, "scatterflow evaluate")
    remedy = "run `scatterflow evaluate` again"
    if not isinstance(found, dict) or not {"estimators", "interval", "sets"} <= found.keys():
        raise StoreError(str(path), "must hold the figures of merit of particles", remedy=remedy)
    for name, entry in found["estimators"].items():
        if not isinstance(entry, dict) or "n" not in (entry.get("test") or {}) or "kind" not in entry:
            raise StoreError(
                f"estimator {name} in {path}", "must have a kind and figures on the test set", remedy=remedy
            )
    return found


def _dataset(path: Path, group: str | None = None) -> xr.Dataset:
    try:
        with xr.open_dataset(path, group=group, engine="h5netcdf") as opened:
            return opened.load()
    except (OSError, ValueError, KeyError) as error:
        remedy = f"run `scatterflow {path.parent.name}` again"
        raise StoreError(str(path), "must be a readable NetCDF file", str(error), remedy) from None


def _frames(
    study: ParticlesStudy, folder: Path, missing: list[Missing]
) -> tuple[Sequence[Mapping[str, Any]], Mapping[str, xr.Dataset]]:
    """Summaries of the real frames and, by their number, what the figures show; adds what is `missing`."""
    wanted = [name for each in study.config.inference.frames for name in each.files]
    path, remedy = folder / "infer" / "frames.json", "run `scatterflow infer` again"
    if not path.exists():
        if wanted:
            missing.append(Missing("verdicts on real frames (infer/frames.json)", "snakemake infer"))
        return [], {}
    summaries = read_json(path, "scatterflow infer")
    if not isinstance(summaries, list) or any(
        not isinstance(entry, dict) or not {"file", "set", "status", "why"} <= entry.keys() for entry in summaries
    ):
        raise StoreError(str(path), "must be a list of frames with their verdicts", remedy=remedy)
    lost = [str(entry["file"]) for entry in summaries if entry["status"] == "missing"]
    if lost:
        missing.append(Missing(f"{len(lost)} of {len(summaries)} real frames: {', '.join(lost)}", "make data"))
    arrays = folder / "infer" / "frames.nc"
    return summaries, read_groups(arrays, remedy) if arrays.exists() else {}


def forward(check: CrossCheck | None) -> Section:
    """Whether the engine computes what the other one does."""
    title = "Is the forward model right?"
    if check is None:
        return Section("forward", title, missing="Nothing to show: run `snakemake cross_check`.")
    largest = max(part.largest for part in check.views.values())
    lead = f"Engines {check.engine} and {check.reference} agree within {largest:.1e} of the counts of every bin."
    return Section("forward", title, lead, tables=[tables.cross_check(check)])
