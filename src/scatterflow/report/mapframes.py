"""What a measured scan's frames were cut to, and what is assumed of its geometry."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import xarray as xr

from scatterflow import maps
from scatterflow.errors import StoreError
from scatterflow.report.figures import mapframe as drawing
from scatterflow.report.gallery import Gallery, Picture, Section
from scatterflow.report.mapwords import count, joined
from scatterflow.report.numbers import NONE, percent, plus_minus, significant
from scatterflow.report.tables import Table

AGREES = 3.0  # errors between configuration and estimate
_SINGLE = ("hot", "dead", "stuck")  # causes that mask single pixels, not lines or regions
_WORDS = {
    "invalid": "not finite or negative",
    "stuck": "always saturated",
    "file": "in the mask file",
    "hot": "hot",
    "dead": "dead",
    "gap": "in gaps between modules",
}


def frames_section(name: str, scan: xr.Dataset, gallery: Gallery) -> Section | None:
    """Mean frame with the cut, what is masked, what is assumed; None where the product holds nothing of it."""
    pictures = [_overview(name, scan, gallery)] if "overview" in scan else []
    estimates = estimated_geometry(scan, name)
    words = [*_cut(scan), *_assumed(scan), *_disagreement(scan, estimates)]
    if not (pictures or words or estimates):
        return None
    tables = [*([_geometry(scan, estimates)] if estimates else []), *_masked(scan)]
    title = f"What was cut out, what is assumed? {maps.title(scan, name)}"
    return Section(f"frames-{name}", title, " ".join(words), pictures, tables=tables)


def _overview(name: str, scan: xr.Dataset, gallery: Gallery) -> Picture:
    frame, causes = scan["overview"], scan["overview_cause"]
    meanings = str(causes.attrs["flag_meanings"]).split()
    block = int(frame.attrs["block"])
    z, y = (scan[f"{axis}_overview"].values for axis in "zy")
    marked = {}
    for number, cause in enumerate(meanings):
        if cause in _SINGLE:
            rows, columns = np.nonzero(causes.values == number)
            marked[cause] = z[rows], y[columns]
    centre = (float(frame.attrs["centre"][0]), float(frame.attrs["centre"][1]))
    roi = [int(n) for n in frame.attrs["roi"]]
    values = frame.values.astype(float)
    shown = f"; blocks of {block} x {block} pixels" if block > 1 else ""
    place = f"z {roi[0]} to {roi[1]}, y {roi[2]} to {roi[3]}"
    peak = significant(float(np.nanmax(values)))
    middle = f"z {centre[0]:.1f}, y {centre[1]:.1f}"
    return gallery.add(
        f"{name}-overview",
        drawing.mean_frame(values, block, roi, centre, marked),
        f"Mean of all frames of {maps.title(scan, name)} on a log scale, at most {peak} counts per pixel, with the part "
        f"that is cut out ({place}) around the Bragg peak, masked pixels and the centre of its counts ({middle}).",
        f"Mean frame, z along the exit angle; at most {peak} counts per pixel{shown}. Box: cut out ({place}); circle: "
        f"centre of the counts above background in it ({middle}); crosses: single masked pixels; hatched: no valid pixel.",
        png=True,
    )


def _cut(scan: xr.Dataset) -> list[str]:
    """How the cut was found."""
    if "roi_rows" not in scan.attrs:
        return []
    rows, columns = (json.loads(str(scan.attrs[f"roi_{name}"])) for name in ("rows", "columns"))
    where = f"rows {rows[0]} to {rows[1]} and columns {columns[0]} to {columns[1]} of the frames as stored"
    if "roi_sigmas" not in scan.attrs:
        return [f"Cut out, as configured: {where}."]
    return [
        f"Cut out around the Bragg peak, automatically: {where}, {significant(float(scan.attrs['roi_sigmas']))} standard "
        f"deviations above background, with {percent(float(scan.attrs['roi_fraction']))} of all counts above it."
    ]


def _assumed(scan: xr.Dataset) -> list[str]:
    """What is assumed of a measured scan's geometry, and how much of its tilts may be the beam's own divergence."""
    words = []
    remarks = json.loads(str(scan.attrs.get("geometry", "{}")))
    assumed = [f"{key} ({told})" for key, told in remarks.items() if "assumed" in str(told).lower()]
    if assumed:
        words.append(f"Assumed: {', '.join(assumed)}.")
    if "defocus_um" in scan.attrs:
        words.append(
            f"{percent(float(scan.attrs['defocus_explained']))} of the spot's movement is linear in the position, as if "
            f"the sample stood {significant(abs(float(scan.attrs['defocus_um'])), 2)} µm out of focus: "
            "that part of the tilts may be the beam's divergence."
        )
    return words


def estimated_geometry(scan: xr.Dataset, source: str) -> dict[str, dict[str, Any]]:
    """What was estimated of the geometry (`stages/nanodiffraction/geometry.py`), by quantity.

    `value` and `sd`, none where the frames do not tell; `config`, none where nothing was configured; `unit`; `agrees`,
    whether the configuration lies within errors of the estimate, or none; `why`, a remark. Raises StoreError where the
    attribute does not hold that.
    """
    text = str(scan.attrs.get("estimated_geometry", "{}"))
    try:
        return {str(name): _entry(entry) for name, entry in json.loads(text).items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        wanted = "must be a JSON object of value, sd, unit and config by quantity"
        remedy = "run `scatterflow infer` again"
        raise StoreError(f"estimated_geometry of scan {source}", wanted, text[:80], remedy) from None


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    value, sd, config = (_number(entry[name]) for name in ("value", "sd", "config"))
    off = abs(config - value) / sd if value is not None and config is not None and sd else None
    agrees = entry.get("agrees")
    if agrees is None and off is not None:
        agrees = off <= AGREES
    return {
        "value": value, "sd": sd, "config": config, "unit": str(entry.get("unit") or ""), "off": off,
        "agrees": None if agrees is None else bool(agrees), "why": str(entry.get("why") or ""),
    }  # fmt: skip


def _number(value: Any) -> float | None:
    """A finite number, or none."""
    return float(value) if value is not None and math.isfinite(float(value)) else None


def _disagreement(scan: xr.Dataset, estimates: dict[str, dict[str, Any]]) -> list[str]:
    """Where the frames contradict the configuration, and whether the film model allows an estimate at all."""
    words = []
    if "estimated_geometry_missing" in scan.attrs:
        words.append(
            f"The geometry could not be estimated from the frames: {scan.attrs['estimated_geometry_missing']}."
        )
    off = [f"{name} by {significant(entry['off'], 2)} errors" for name, entry in estimates.items()
           if entry["agrees"] is False and entry["off"] is not None]  # fmt: skip
    if off:
        words.append(f"The frames contradict the configuration: {joined(off)}.")
    if estimates and not int(scan.attrs.get("estimated_geometry_fits", 1)):
        left = float(scan.attrs.get("estimated_geometry_unexplained", math.nan))
        share = f" ({percent(left)} of their counts are left)" if math.isfinite(left) else ""
        words.append(f"But the film model does not explain these frames{share}: such an estimate says little.")
    return words


def _geometry(scan: xr.Dataset, estimates: dict[str, dict[str, Any]]) -> Table:
    """Configured values beside those estimated from the frames."""
    rows, untold = [], []
    for name, entry in estimates.items():
        if entry["value"] is None:
            untold.append(f"{name} ({entry['why'] or 'no estimate'})")
            continue
        verdict = {True: "yes", False: "NO", None: NONE}[entry["agrees"]]
        told = f"{significant(entry['off'], 2)} errors apart" if entry["off"] is not None else ""
        words = ", ".join(part for part in (verdict, told, entry["why"]) if part)
        config = NONE if entry["config"] is None else f"{entry['config']:.6g}"
        rows.append([_with_unit(name, entry["unit"]), config, plus_minus(entry["value"], entry["sd"]), words])
    number = f" {int(scan.attrs['estimated_geometry_frames']):,}" if "estimated_geometry_frames" in scan.attrs else ""
    notes = [
        f"Estimated from{number} frames, with one standard deviation; up to {AGREES:g} of them count as agreement.",
        *([f"Not told by the frames: {joined(untold)}."] if untold else []),
    ]
    return Table("Geometry: configured and estimated", ["quantity", "configured", "estimated", "agree?"], rows, notes)


def _with_unit(name: str, unit: str) -> str:
    """Name and unit, which most names end with."""
    return name if unit in ("", "1") or name.lower().endswith(f"_{unit.lower()}") else f"{name} / {unit}"


def _masked(scan: xr.Dataset) -> list[Table]:
    """How many pixels are masked, by cause: in the cut, and on the whole frame where that is known."""
    inside = {cause: int(scan.attrs[f"masked_{cause}"]) for cause in _WORDS if f"masked_{cause}" in scan.attrs}
    if not inside:
        return []
    rows = [[_WORDS[cause], f"{number:,}"] for cause, number in inside.items()]
    notes = [
        f"{count(sum(inside.values()), 'pixel')} before binning, each counted once; a binned pixel needs all of its own."
    ]
    return [Table("Masked pixels of the cut", ["pixels", "number"], rows, notes)]
