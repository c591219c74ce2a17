"""Section on what the estimators descend: losses of one frame around its truth (`landscape.py`)."""

from __future__ import annotations

from typing import Any

import xarray as xr

from scatterflow import landscape
from scatterflow.report.figures import landscape as drawing
from scatterflow.report.figures.maps import symbol
from scatterflow.report.gallery import Gallery, Section
from scatterflow.report.mapwords import count, joined, sized, upper
from scatterflow.report.numbers import percent
from scatterflow.report.tables import Table
from scatterflow.units import UNITS


def section(found: xr.Dataset, gallery: Gallery) -> Section:
    """Planes and cuts of all losses, with what a descent finds there."""
    facts = landscape.facts(found)
    wide, close = ([_axis(found, str(name), key) for name in found["parameter"].values] for key in ("axis", "cut_axis"))
    by_name = {axis.name: axis for axis in wide}
    pairs = [(by_name[a], by_name[b]) for a, b in (str(name).split() for name in found["plane_of"].values)]
    losses = labels_of(found)
    pictures = []
    for number, (key, label) in enumerate(losses.items()):
        entry = facts[key]
        words = joined([
            f"{_pair(name)} {percent(plane['basin'])} ({count(plane['stops'], 'stop')})"
            for name, plane in entry["planes"].items()
        ])  # fmt: skip
        unit = "" if entry["unit"] == "1" else f" / {entry['unit']}"
        pictures.append(
            gallery.add(
                f"landscape-{number}",
                drawing.planes(found["plane"].values[:, number], pairs, f"{key.split(',')[0]}{unit}"),
                f"{upper(label)} over planes of two parameters through the truth. A descent finds it from: {words}.",
                f"{upper(label)}; cross: truth, dashed: the prior's box; the upright axis is named above. A descent finds "
                f"the truth's minimum from this share of the plane: {words}.",
            )
        )
    shown = {label: found["cut"].values[:, number] for number, label in enumerate(losses.values())}
    flat = joined([
        f"{label}: {', '.join(f'{symbol(name)} {percent(part)}' for name, part in _flat(facts[key]).items())}"
        for key, label in losses.items()
    ])  # fmt: skip
    pictures.append(
        gallery.add(
            "landscape-cuts",
            drawing.cuts(shown, close),
            f"The losses close to the truth, along each parameter alone. Flat steps: {flat}.",
            f"Close to the truth (line), along each parameter alone. Steps that are flat: {flat}.",
        )
    )
    place = f"row {int(found.attrs['row'])}, column {int(found.attrs['column'])}" if "row" in found.attrs else ""
    frame = (
        f"One frame of {found.attrs.get('scan', 'a simulated scan')} ({place}, {found.attrs['counts']:,.0f} counts)."
    )
    return Section(
        "landscape", "What do the estimators descend?", f"{frame} {lead(facts, losses)}", pictures,
        tables=[_planes(facts, losses), _cuts(facts, losses)],
    )  # fmt: skip


def _axis(found: xr.Dataset, name: str, key: str) -> drawing.Axis:
    low, high = found["box"].sel(parameter=name).values.astype(float)
    values = found[key].sel(parameter=name).values.astype(float)
    return drawing.Axis(
        name, UNITS.get(name, "1"), values, float(found["truth"].sel(parameter=name)), (float(low), float(high))
    )


def labels_of(found: xr.Dataset) -> dict[str, str]:
    """Losses by their name in the file, with the ring that they take."""
    other = str(found.attrs.get("other_ring", "other ring"))
    return {name: name.replace("other ring", other) for name in map(str, found["loss"].values)}


def _flat(entry: dict[str, Any]) -> dict[str, float]:
    return {name: cut["flat"] for name, cut in entry["cuts"].items()}


def _pair(name: str) -> str:
    return " and ".join(symbol(each) for each in name.split())


def lead(facts: dict[str, Any], labels: dict[str, str]) -> str:
    """Whether a descent finds the truth, within the prior and beyond, and what the other ring does to it."""
    own = [entry for key, entry in facts.items() if labels[key] == key]
    inside, whole = (
        [plane[what] for entry in own for plane in entry["planes"].values()] for what in ("inside", "basin")
    )
    said = (
        f"Within the prior's box, steepest descent on the grid finds the truth's minimum from {_range(inside)} of the "
        f"points; as far as DONUT's output reaches, {landscape.REACH:.1f} times half of the box, from {_range(whole)}."
    )
    keys = list(facts)
    mine, other = facts[landscape.LOSSES[1]]["cuts"], facts[keys[-1]]["cuts"]
    worst = max(other, key=lambda name: other[name]["stops"] - mine[name]["stops"])
    ring = labels[keys[-1]].split(", ")[-1]
    if other[worst]["stops"] <= mine[worst]["stops"]:
        return f"{said} Close by, the {ring} stops it no more often than the study's own."
    return (
        f"{said} Close by, along {symbol(worst)}, it stops at {count(mine[worst]['stops'], 'point')} of {landscape.FINE} "
        f"({percent(mine[worst]['flat'])} of the steps are flat); with the {ring}, at {other[worst]['stops']:,} "
        f"({percent(other[worst]['flat'])}), and the truth's basin is {_width(worst, other[worst])} wide instead of "
        f"{_width(worst, mine[worst])}."
    )


def _range(shares: list[float]) -> str:
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"


def _width(name: str, cut: dict[str, Any]) -> str:
    size = _size(name, cut["width"]) if cut["width"] else "less than a step"
    return f"at least {size}" if cut["basin"] == 1 else size


def _size(name: str, value: float) -> str:
    return sized(value, UNITS.get(name, "1")) if value else "0"


def _planes(facts: dict[str, Any], labels: dict[str, str]) -> Table:
    rows = [
        [upper(labels[key]),
         *(f"{percent(each['inside'])}, {percent(each['basin'])} ({each['stops']})" for each in entry["planes"].values())]
        for key, entry in facts.items()
    ]  # fmt: skip
    first = next(iter(facts.values()))
    notes = [
        "Share of the points within the prior's box, and of all points of the plane, from which steepest descent (to the "
        f"lowest of eight neighbours on a grid of {landscape.STEPS} x {landscape.STEPS}) ends where it ends from the truth; "
        "in brackets at how many points it stops."
    ]
    return Table("Descents in the planes", ["loss", *(_pair(name) for name in first["planes"])], rows, notes)


def _cuts(facts: dict[str, Any], labels: dict[str, str]) -> Table:
    rows = [
        [upper(labels[key]),
         *(cell for name, cut in entry["cuts"].items()
           for cell in (_width(name, cut), _size(name, cut["off"]), str(cut["stops"]), percent(cut["flat"])))]
        for key, entry in facts.items()
    ]  # fmt: skip
    first = next(iter(facts.values()))
    heads = [f"{symbol(name)}: {what}" for name in first["cuts"] for what in ("basin", "off by", "stops", "flat")]
    notes = [
        f"Along one parameter, to a tenth of half of the prior's range on each side, at {landscape.FINE} places. Basin: "
        "width of what leads to the truth's minimum; off by: from there to the truth; flat: steps that change the loss by "
        "less than a twentieth of the mean."
    ]
    return Table("Descents close to the truth", ["loss", *heads], rows, notes)
