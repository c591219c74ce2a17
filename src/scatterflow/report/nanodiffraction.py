"""The page of a study of kind nanodiffraction: its products, its verdict and the order of its sections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from scatterflow import landscape, maps
from scatterflow.errors import StoreError
from scatterflow.nanodiffraction import NanodiffractionStudy
from scatterflow.products import read_json
from scatterflow.report import (
    mapframes,
    maplandscape,
    mapsections,
    maptables,
    mapverdict,
    sweeps,
)
from scatterflow.report.figures import maps as drawing
from scatterflow.report.gallery import Gallery, Section
from scatterflow.report.kindpage import finished
from scatterflow.report.mapsections import Scans
from scatterflow.report.metrics import Verdict
from scatterflow.report.page import StudyPage
from scatterflow.report.products import Missing, StudyFolder
from scatterflow.report.style import estimator_styles
from scatterflow.study import Study

PREFIX = "scan-"


def page(study: Study, folder: Path, gallery: Gallery) -> StudyPage:
    """Draw all figures of a study below `folder` (results/<run>/<study>/) and compose its sections.

    What is not there is listed as missing. Raises StoreError for damaged products.
    """
    assert isinstance(study, NanodiffractionStudy)  # the caller's other kind has a page of its own
    at = StudyFolder(study, folder)
    found: dict[str, Any] = {}
    if path := at.there("evaluate/metrics.json", "figures of merit", "snakemake evaluate"):
        found = _metrics(path)
    # evaluate joins the maps of trained estimators and of baselines; before it, those of the trained ones are there
    scans = read_scans(folder / "evaluate") or read_scans(folder / "infer")
    if not scans:
        at.missing.append(Missing(f"maps (infer/{PREFIX}*.nc)", "snakemake infer"))
    if (swept := at.sweep()) is not None:
        found |= {"seeds": sweeps.seeds(swept), "sweep": swept.model_dump(mode="json")}
    composed = sections(scans, found, gallery, study.seed)
    if (path := folder / "evaluate" / landscape.FILE).exists():
        composed.append(maplandscape.section(landscape.read(path), gallery))
    return finished(at, gallery, verdict(found), tiles(found), composed, found, swept)


def read_scans(folder: Path) -> dict[str, xr.Dataset]:
    """The scans in `folder` by name, in memory. Raises StoreError if one is damaged."""
    found = {}
    for path in sorted(folder.glob(f"{PREFIX}*.nc")):
        try:
            with xr.open_dataset(path, engine="h5netcdf") as opened:
                scan = opened.load()
        except (OSError, ValueError, KeyError) as error:
            remedy = "run `scatterflow infer` again"
            raise StoreError(str(path), "must be a readable NetCDF file", str(error), remedy) from None
        found[path.stem.removeprefix(PREFIX)] = maps.checked(scan, str(path))
    return found


def _metrics(path: Path) -> dict[str, Any]:
    found = read_json(path, "scatterflow evaluate")
    remedy = "run `scatterflow evaluate` again"
    if not isinstance(found, dict) or not {"headline", "scans", "published"} <= found.keys():
        raise StoreError(str(path), "must hold the figures of merit of maps", remedy=remedy)
    return found


def sections(scans: Scans, found: Mapping[str, Any], gallery: Gallery, seed: int) -> list[Section]:
    """All sections of the kind from its scans by name and its figures of merit (`maps.evaluation`, with seeds, latency)."""
    if not scans:
        return [Section("maps", "Maps of strain and tilt", missing="Nothing to show: run `snakemake infer`.")]
    known = list(dict.fromkeys(name for scan in scans.values() for name in maps.names(scan, "estimator")))
    styles = estimator_styles(known)
    # figures of merit of other estimators are out of date: better none
    judged = {
        name: entry
        for name, entry in found.get("scans", {}).items()
        if name in scans and list(entry["goodness"]["estimators"]) == maps.names(scans[name], "estimator")
    }
    result = [mapsections.accuracy_section(scans, judged, found.get("published", {}), styles, gallery, seed)]
    for name, scan in mapsections.in_order(scans):
        if (cut := mapframes.frames_section(name, scan, gallery)) is not None:
            result.append(cut)
        result.append(mapsections.maps_section(name, scan, gallery, seed))
        if scan.sizes.get("shown", 0):
            result.append(mapsections.points_section(name, scan, gallery))
        if not maps.simulated(scan):
            result.append(mapsections.agreement_section(name, scan, judged.get(name), styles, gallery))
    result.append(mapsections.film_section(scans, judged, styles, gallery))
    result += [
        Section(key, title, lead, tables=[table])
        for key, title, lead, table in (
            (
                "seeds",
                "Does the training fail on some seeds?",
                mapverdict.seeds_lead(found.get("seeds", [])),
                maptables.seeds(found.get("seeds", [])),
            ),
            ("latency", "Is it fast enough for real time?", "", maptables.latency(found.get("latency", []))),
        )
        if table
    ]
    return result


def verdict(found: Mapping[str, Any]) -> Verdict | None:
    """The study's headline from its figures of merit; None where there are none.

    It can be trusted if some estimator comes within `mapverdict.GOOD` times the Cramer-Rao bound for every parameter of the
    headline scan, fails nowhere, and its intervals hold the truth as often as they say; and if the film model describes
    every measured scan.
    """
    headline = found.get("headline")
    if headline is None:
        return None
    scan = found["scans"][headline]
    good = mapverdict.trusted(scan["merit"])
    sentences = [
        mapverdict.best_sentence(scan),
        mapverdict.published_sentence(scan, found["published"]),
        *(mapverdict.scan_sentence(entry) for entry in found["scans"].values()),
        mapverdict.failing_sentence(scan["merit"]),
        mapverdict.seeds_lead(found.get("seeds", [])),
    ]
    described = all(entry["goodness"]["verdict"]["status"] == "ok" for entry in found["scans"].values())
    return Verdict(ok=good is not None and described, sentences=[sentence for sentence in sentences if sentence])


def tiles(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Numbers of the headline with what they mean."""
    headline = found.get("headline")
    merit = found["scans"][headline]["merit"] if headline is not None else None
    best = mapverdict.best(merit) if merit else None
    if merit is None or best is None:
        return []
    parameters = merit["estimators"][best]["parameters"]
    shown = [
        (mapverdict.accuracy(name, entry), f"error of {drawing.symbol(name)} per frame, {best}")
        for name, entry in parameters.items()
        if entry["sd"] is not None
    ]
    ratios = [entry["ratio"] for entry in parameters.values() if entry["ratio"] is not None]
    if ratios:
        shown.append((f"{max(ratios):.2f}", "times the Cramér\N{EN DASH}Rao bound, at worst"))
    return shown
