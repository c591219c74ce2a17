"""Sections on maps of strain and tilt: accuracy, maps, frames behind them, agreement, the film model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import maps
from scatterflow.report import maptables
from scatterflow.report.figures import mapagreement
from scatterflow.report.figures import maps as drawing
from scatterflow.report.gallery import Gallery, Picture, Section
from scatterflow.report.mapwords import count, joined, scaled, sized, upper
from scatterflow.report.numbers import NONE, minus, significant
from scatterflow.report.style import Style

Array = NDArray[np.float64]
Scans = Mapping[str, xr.Dataset]
EVALUATE = "Nothing to show: run `snakemake evaluate`."
_SAME = 1e-9  # of the values: what varies less is rounding


def in_order(scans: Scans) -> list[tuple[str, xr.Dataset]]:
    """The scans by name, simulated ones first."""
    return sorted(scans.items(), key=lambda item: not maps.simulated(item[1]))


def extent(scan: xr.Dataset) -> drawing.Extent:
    """Where the map lies: in micrometres if its steps are known, else in rows and columns."""
    sides: list[float] = []
    for coordinate, dim in (("x_um", "column"), ("y_um", "row")):
        number = scan.sizes[dim]
        place = scan.coords.get(coordinate)
        if place is None or dim not in place.dims or number < 2:
            return drawing.Extent(-0.5, scan.sizes["column"] - 0.5, -0.5, scan.sizes["row"] - 0.5, "")
        centres = place.mean([other for other in place.dims if other != dim]).values.astype(float)
        half = (centres[-1] - centres[0]) / (number - 1) / 2
        sides += [float(centres[0] - half), float(centres[-1] + half)]
    left, right, bottom, top = sides
    return drawing.Extent(left, right, bottom, top, "µm")


def unit(scan: xr.Dataset, parameter: str) -> str:
    """Unit of a parameter, 1 for none."""
    return str(scan["unit"].sel(parameter=parameter).values) if "unit" in scan.coords else "1"


def _values(scan: xr.Dataset, variable: str, estimator: str | None, parameter: str) -> Array:
    where = {"parameter": parameter} | ({"estimator": estimator} if estimator is not None else {})
    return scan[variable].sel(where).values.astype(float)


def maps_section(name: str, scan: xr.Dataset, gallery: Gallery, seed: int) -> Section:
    """Maps of every parameter by every estimator, on one scale."""
    known, relative, where = maps.simulated(scan), maps.relative_parameters(scan), extent(scan)
    title, use = maps.title(scan, name), maps.signal(scan)
    pictures = []
    for parameter in maps.names(scan, "parameter"):
        rows, words = [], []
        symbol, its = drawing.symbol(parameter), unit(scan, parameter)
        if known:
            truth, bound = (_values(scan, key, None, parameter) for key in ("truth", "bound"))
            rows.append(drawing.MapRow("truth", truth, None, bound))
        for estimator in maps.names(scan, "estimator"):
            values, sd = (_values(scan, key, estimator, parameter) for key in ("estimate", "sd"))
            if not np.isfinite(values).any():
                continue
            error = values - rows[0].values if known else None
            spread = (values if error is None else error)[use]
            spread = spread[np.isfinite(spread)]
            if spread.size:
                size_of = float(spread.std())
                varies = known or size_of > _SAME * float(
                    np.abs(values[use]).max(initial=0.0, where=np.isfinite(values[use]))
                )
                words.append(f"{estimator} {sized(size_of, its) if varies else 'the same everywhere'}")
            if parameter in relative:
                values = values - np.nanmedian(values[use] if np.isfinite(values[use]).any() else values)
            rows.append(drawing.MapRow(estimator, values, error, sd if np.isfinite(sd).any() else None))
        what = (
            "truth, estimates, their errors and stated standard deviations" if known else "estimates and their errors"
        )
        spreads = f"{'Sd of the error' if known else 'Sd of the map'}: {joined(words)}."
        line = "" if use.all() else "; inside the line: with signal"
        zero = " Known up to a constant: the median is taken out." if parameter in relative else ""
        pictures.append(
            gallery.add(
                f"{name}-map-{parameter}",
                drawing.parameter_maps(parameter, its, rows, where, known, use),
                f"Maps of {symbol} over {title}: {what}, one row per estimator. {spreads}",
                f"{upper(symbol)}, one colour scale per column; hatched: no answer{line}. {spreads}{zero}",
                png=True,
            )
        )
    size = f"{scan.sizes['row']} by {scan.sizes['column']} points"
    counts = "; ".join(f"{number:,} of {use.size:,} {status}" for status, number in _status(scan).items())
    source = f" Source: {scan.attrs['source']}." if scan.attrs.get("source") else ""
    origin = f"Simulated, seed {seed}" if known else "Measured"
    lead = f"{origin}, {size}: {counts}.{source}"
    return Section(f"maps-{name}", f"Maps: {title}", lead, pictures)


def _status(scan: xr.Dataset) -> dict[str, int]:
    values, counts = np.unique(scan["status"].values.astype(str), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def points_section(name: str, scan: xr.Dataset, gallery: Gallery) -> Section:
    """Frames of chosen points of the map, and what their estimates reconstruct."""
    title, where = maps.title(scan, name), extent(scan)
    places = [(int(scan["shown_row"][i]), int(scan["shown_column"][i])) for i in range(scan.sizes["shown"])]
    across, up = (where.right - where.left) / scan.sizes["column"], (where.top - where.bottom) / scan.sizes["row"]
    points = [(where.left + (column + 0.5) * across, where.bottom + (row + 0.5) * up) for row, column in places]
    by = scan.attrs.get("rebuilt_estimator")
    pictures = [
        gallery.add(
            f"{name}-points",
            drawing.marked_map(scan["intensity"].values.astype(float), "counts in the frame", where, points),
            f"Map of the counts per frame of {title} with {len(points)} numbered points.",
            "Counts per frame, and the points whose frames are shown.",
        )
    ]
    for number, (row, column) in enumerate(places, start=1):
        frame, rebuilt = (scan[key].values[number - 1].astype(float) for key in ("frames", "rebuilt"))
        facts = _facts(scan, row, column, str(by)) if by in maps.names(scan, "estimator") else ""
        pictures.append(
            gallery.add(
                f"{name}-point-{number}",
                drawing.frame_fit(frame, rebuilt),
                f"Frame of point {number} ({significant(float(np.nansum(frame)))} counts), its reconstruction and their "
                f"difference in standard deviations.{facts}",
                f"{number}: row {row}, column {column}, {scan['status'].values[row, column]}, "
                f"{np.nansum(frame):,.0f} counts.{facts}",
            )
        )
    lead = f"Reconstructions by {by}. " if by else ""
    return Section(f"points-{name}", f"From a map point to its frame: {title}", lead, pictures)


def _facts(scan: xr.Dataset, row: int, column: int, estimator: str) -> str:
    """Estimates of one point, with truth where it is known."""
    here = scan.isel(row=row, column=column)
    words = []
    for parameter in maps.names(scan, "parameter"):
        where = {"parameter": parameter}
        value, sd = (float(here[key].sel(where | {"estimator": estimator})) for key in ("estimate", "sd"))
        if not np.isfinite(value):
            continue
        truth = float(here["truth"].sel(where)) if maps.simulated(scan) else None
        words.append(f"{drawing.symbol(parameter)} {scaled(value, sd, unit(scan, parameter), truth)}")
    deviance = float(here["goodness"].sel(estimator=estimator))
    fit = f"; deviance {significant(deviance)}" if np.isfinite(deviance) else ""
    return f" {estimator}: {', '.join(words)}{fit}." if words else f" {estimator}: no answer."


def accuracy_section(
    scans: Scans,
    found: Mapping[str, Any],
    published_figures: Mapping[str, Any],
    styles: Mapping[str, Style],
    gallery: Gallery,
    seed: int,
) -> Section:
    """Errors on simulated scans against the Cramer-Rao bound, coverage, and the published figures."""
    title = "How close to what the counts allow?"
    pictures: list[Picture] = []
    tables = []
    for name, scan in in_order(scans):
        judged = found.get(name)
        if not judged or not judged["merit"]:
            continue
        published = published_figures if judged["as_published"] else {"estimators": {}}
        parameters = [p for p in maps.names(scan, "parameter") if maptables.estimated(judged["merit"], p)]
        units = {parameter: unit(scan, parameter) for parameter in parameters}
        words = maptables.ratio_words(judged["merit"])
        pictures.append(
            gallery.add(
                f"{name}-bound",
                drawing.against_bound(
                    parameters, maptables.scores(judged["merit"]), styles,
                    maptables.published_ratios(judged["merit"], published), maps.LEVELS[0],
                ),
                f"Error of every estimator over the Cramér\N{EN DASH}Rao bound, and coverage of its 68 % intervals, "
                f"on {judged['title']}. {words}",
                f"{upper(judged['title'])}. Marks: standard deviation of the error over the bound (line at 1: nothing "
                f"better is possible without bias), ticks: its mean, hollow: published; right: coverage with "
                f"{100 * maps.CONFIDENCE:g} % intervals, grey: within 3 points. n = {judged['merit']['points']:,} frames, "
                f"seed {seed}.",
            )
        )  # fmt: skip
        tables += maptables.merit(judged, units, published)
    if not pictures:
        return Section("accuracy", title, missing=EVALUATE)
    lead = (
        "The Cramér\N{EN DASH}Rao bound is the smallest standard deviation that any unbiased estimator can reach with "
        "these counts; the amplitude of a frame counts as unknown."
    )
    return Section("accuracy", title, lead, pictures, tables=tables)


def agreement_section(
    name: str, scan: xr.Dataset, judged: Mapping[str, Any] | None, styles: Mapping[str, Style], gallery: Gallery
) -> Section:
    """How far the estimators agree where no truth is known."""
    title = f"Do the estimators agree? {maps.title(scan, name)}"
    if not judged:
        return Section(f"agreement-{name}", title, missing=EVALUATE)
    found, use, relative = judged["agreement"], maps.signal(scan), maps.relative_parameters(scan)
    reference = judged["goodness"]["verdict"]["estimator"] or found["estimators"][0]
    place = found["estimators"].index(reference)
    pictures = []
    for parameter, matrices in found["parameters"].items():
        values = {e: _values(scan, "estimate", e, parameter)[use] for e in found["estimators"]}
        if parameter in relative:
            values = {e: v - np.nanmedian(v) if np.isfinite(v).any() else v for e, v in values.items()}
        others = {
            e: v for e, v in values.items() if e != reference and matrices["pearson"][place][_at(found, e)] is not None
        }
        if not others or not np.isfinite(values[reference]).any():
            continue
        words = {e: f", r = {_two(matrices['pearson'][place][_at(found, e)])}" for e in others}
        said = joined([f"{e}{words[e]}" for e in others])
        pictures.append(
            gallery.add(
                f"{name}-agreement-{parameter}",
                drawing.scatter(
                    parameter, unit(scan, parameter), (reference, values[reference]), others, styles, words
                ),
                f"{drawing.symbol(parameter)} by the other estimators against {reference}, point by point. {said}.",
                f"{upper(drawing.symbol(parameter))} against {reference}: {said}. n = {found['points']:,} points with "
                "signal, evenly thinned where there are many.",
            )
        )
    for parameter, matrices in found["parameters"].items():
        pearson, in_errors = (np.array(matrices[key], dtype=float) for key in ("pearson", "rms_in_sd"))
        if not np.isfinite(pearson[~np.eye(len(pearson), dtype=bool)]).any():
            continue
        name_of = drawing.symbol(parameter)
        pictures.append(
            gallery.add(
                f"{name}-agreement-matrix-{parameter}",
                mapagreement.matrix(found["estimators"], pearson, in_errors, upper(name_of)),
                f"Agreement of every pair of estimators in {name_of}: Pearson r below the diagonal, rms difference over "
                "the stated errors above it; the table has the numbers.",
                f"{upper(name_of)}, every pair: Pearson r (colour), and rms difference over the errors that both state, "
                f"added in squares; these explain up to 1. {NONE}: an answer does not vary, or states no error.",
            )
        )
    tables = [maptables.agreement(found)]
    return Section(f"agreement-{name}", title, maptables.agreement_lead(found, reference), pictures, tables=tables)


def _two(value: float) -> str:
    return minus(f"{value:.2f}")


def _deviances(found: Mapping[str, Any]) -> dict[str, mapagreement.Deviance]:
    return {
        name: mapagreement.Deviance(at["5"], at["50"], at["95"], entry["threshold"])
        for name, entry in found["estimators"].items()
        if (at := entry["quantiles"])
    }


def _at(found: Mapping[str, Any], estimator: str) -> int:
    estimators: Sequence[str] = found["estimators"]
    return estimators.index(estimator)


def film_section(scans: Scans, judged: Mapping[str, Any], styles: Mapping[str, Style], gallery: Gallery) -> Section:
    """Where the reconstructions do not reproduce the frames."""
    title = "Is the sample a film at all?"
    if not judged:
        return Section("film", title, missing=EVALUATE)
    pictures = []
    for name, scan in in_order(scans):
        if name not in judged:
            continue
        found = judged[name]["goodness"]
        best = found["verdict"]["estimator"] or maps.names(scan, "estimator")[0]
        values = np.where(maps.signal(scan), scan["goodness"].sel(estimator=best).values.astype(float), np.nan)
        limit = found["estimators"][best]["threshold"]
        pictures.append(
            gallery.add(
                f"{name}-goodness",
                drawing.goodness(values, extent(scan), limit, best),
                f"Map and histogram of the deviance of each frame over its expectation, over {judged[name]['title']}: "
                f"{found['verdict']['why']}.",
                f"{upper(judged[name]['title'])}: {found['verdict']['status']}; {found['verdict']['why']}."
                f"{' Hatched: no signal.' if not maps.signal(scan).all() else ''}",
                png=True,
            )
        )
        if not maps.simulated(scan) and len(known := _deviances(found)) > 1:
            medians = joined([f"{estimator} {significant(entry.median)}" for estimator, entry in known.items()])
            told = judged[name]["title"]
            pictures.append(
                gallery.add(
                    f"{name}-deviances",
                    mapagreement.deviances(known, styles),
                    f"Median, 5 % and 95 % quantiles of the deviance by every estimator, over {told}: {medians}.",
                    f"{upper(told)}, every estimator: median and central 90 % of the deviances over their expectation; "
                    f"dashed: the threshold. Medians: {medians}.",
                )
            )
    table = maptables.goodness(judged)
    number = sum(name in judged for name in scans)
    lead = (
        f"{count(number, 'scan')}. Where frames are not reproduced, strain and tilt of a film mean nothing. Points "
        f"with less than {100 * maps.SIGNAL:g} % of the brightest ones' counts are left out: any model fits the dark."
    )
    return Section("film", title, lead, pictures, tables=[table])
