"""Sections on single observations: held-back examples, the experiment, real frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.report import tables
from scatterflow.report.depth import depth_profile
from scatterflow.report.figures import detector, posterior, profiles
from scatterflow.report.gallery import Gallery, Picture, Row, Section
from scatterflow.report.headline import best_model, label
from scatterflow.report.numbers import significant
from scatterflow.report.products import Products
from scatterflow.report.style import estimator_styles

Array = NDArray[np.float64]
_PRIOR_DRAWS = 4000
_DEPTH_DRAWS = 400
_MODELS, _BASELINES = 2, 1  # more curves in a small panel cannot be told apart


def lines_of(instrument: InstrumentConfig, deltas: dict[str, float]) -> dict[str, float]:
    """qz [nm^-1] of horizon, specular reflection and the Yoneda lines at the critical angles sqrt(2 delta)."""
    k, incidence = geometry.wavenumber(instrument), np.radians(instrument.incidence_deg)
    lines = {"horizon": k * np.sin(incidence), "specular": 2 * k * np.sin(incidence)}
    for name, delta in deltas.items():
        lines[f"Yoneda {name}"] = k * (np.sin(incidence) + np.sin(np.sqrt(2 * delta)))
    return {name: float(value) for name, value in lines.items()}


def masked_in_q(instrument: InstrumentConfig) -> list[tuple[float, float, float, float]]:
    """The instrument's masked rectangles as (qy0, qz0, qy1, qz1) [nm^-1] through the beam."""
    corners = []
    foot_y = np.array(geometry.foot_px(instrument)[1])
    row = geometry.rows_px(instrument, np.radians(instrument.incidence_deg))
    for rectangle in instrument.masked:
        alpha, _ = geometry.angles(instrument, np.array(rectangle.z, dtype=float), foot_y)
        qz = geometry.scattering_vector(instrument, alpha, np.zeros(2))[2]
        alpha_beam, phi = geometry.angles(instrument, row, np.array(rectangle.y, dtype=float))
        qy = geometry.scattering_vector(instrument, alpha_beam, phi)[1]
        corners.append((float(qy[0]), float(qz[0]), float(qy[1]), float(qz[1])))
    return corners


def yoneda_layers(products: Products, truth: Array) -> dict[str, float]:
    """The substrate's delta and that of the densest free layer."""
    names, sample = products.study.prior.names, products.study.config.sample
    free = {name.split(".")[0].split("_", 1)[1]: truth[i] for i, name in enumerate(names) if name.endswith(".delta")}
    densest = max(free, key=lambda name: free[name])
    return {sample.substrate.material: sample.substrate.delta, densest: float(free[densest])}


def view_axes(instrument: InstrumentConfig, view: str) -> tuple[Array, Array]:
    """qz and qy [nm^-1] of the bin centres of a view."""
    coordinates = geometry.coordinates(instrument, view)
    return coordinates[f"qz_{view}"][1], coordinates[f"qy_{view}"][1]


def image_picture(products: Products, data: xr.Dataset, name: str, what: str, gallery: Gallery) -> Picture | None:
    """The detector image of one observation (`full` if there, else the network's coarse `image`)."""
    instrument = products.study.config.instrument
    if "full" in data:
        counts, qz, qy = data["full"].values.astype(float), data["qz_full"].values, data["qy_full"].values
        kind, unit = "whole detector", "counts per pixel"
    elif "image" in data:
        counts = data["image"].values.astype(float)
        if "mask_image" in data:
            counts = np.where(data["mask_image"].values.astype(bool), counts, np.nan)
        qz, qy = view_axes(instrument, "image")
        kind, unit = "coarse image that the network sees", "counts per bin"
    else:
        return None
    truth = data["truth"].values.astype(float)
    lines = lines_of(instrument, yoneda_layers(products, truth))
    figure = detector.detector_image(counts, qz, qy, lines, masked_in_q(instrument), unit)
    named = ", ".join(f"{key} {value:.3f} nm⁻¹" for key, value in lines.items())
    valid = counts[np.isfinite(counts)]
    return gallery.add(
        f"{name}-image",
        figure,
        f"Detector image of {what} against q y and q z on a logarithmic colour scale, with {named}; masked: hatched.",
        f"Detector image of {what} ({kind}, {counts.shape[0]} by {counts.shape[1]} bins, "
        f"{significant(float(valid.min()))} to {significant(float(valid.max()))} {unit}). Hatched: masked. "
        f"Lines: {named}.",
        png=True,
    )


def profile_picture(qz: Array, data: xr.Dataset, name: str, what: str, gallery: Gallery, source: str) -> Picture | None:
    """The in-plane profile with its posterior predictive band and residuals, as far as `data` holds them."""
    if "profile" not in data:
        return None
    profile = data["profile"].values.astype(float)
    mask = data["mask_profile"].values.astype(bool) if "mask_profile" in data else np.isfinite(profile)
    bands: dict[float, Array] = {}
    if "predictive" in data:
        levels = [round(float(level), 6) for level in data["quantile"].values]
        bands = dict(zip(levels, data["predictive"].values.astype(float), strict=True))
    residual, words = None, ""
    if {"predictive_mean", "predictive_sd"} <= set(data):
        sd = np.maximum(data["predictive_sd"].values.astype(float), 1e-4)
        residual = (profile - data["predictive_mean"].values.astype(float)) / sd
        inside = float((np.abs(residual[mask]) < 2).mean())
        words = (
            f" {100 * inside:.0f} % of the {int(mask.sum())} valid points lie within 2 standard deviations of the "
            "predictive mean."
        )
    lowest = min(bands, default=0.5)
    if lowest < 0.5:
        within = (profile >= bands[lowest]) & (profile <= bands[round(1 - lowest, 6)])
        level = 100 * (1 - 2 * lowest)
        words = f" The {level:.0f} % band holds {100 * float(within[mask].mean()):.0f} % of the valid points.{words}"
    return gallery.add(
        f"{name}-profile",
        profiles.profile_fit(qz, profile, mask, bands, residual),
        f"In-plane profile of {what} against q z{' with its posterior predictive band' if bands else ''}"
        f"{' and residuals below' if residual is not None else ''}.{words}",
        f"In-plane profile of {what}, both parts scaled to [0, 1] as the network sees it{source}.{words}",
    )


def observation(
    products: Products, group: str, index: int, key: str, title: str, what: str, gallery: Gallery
) -> Section:
    """Image, profile, depth profile and all marginals of one observation of a group of the evaluation's arrays."""
    study = products.study
    dataset = products.arrays.get(group)
    if dataset is None or "samples" not in dataset or index >= dataset.sizes.get("example", 0):
        return Section(key, title, missing="Nothing to show: run `snakemake evaluate`.")
    data = dataset.isel(example=index)
    names = [str(name) for name in data["estimator"].values]
    styles, labels = estimator_styles(names), {name: label(products.metrics, name) for name in names}
    samples = {name: data["samples"].sel(estimator=name).values.astype(float) for name in names}
    truth = data["truth"].values.astype(float)
    best = best_model(products.metrics)
    best = best if best in samples else names[0]
    qz = data["qz"].values if "qz" in data else view_axes(study.config.instrument, "profile")[0]
    source = ""
    if "predictive_estimator" in dataset.attrs:
        predictive = _label_of_model(products, str(dataset.attrs["predictive_estimator"]))
        number = dataset.attrs.get("predictive_draws", "some")
        source = f"; posterior predictive of {predictive} from {number} simulated draws, with counting noise"
    pictures = [
        image_picture(products, data, key, what, gallery),
        profile_picture(qz, data, key, what, gallery, source),
        _depth_picture(products, samples[best], truth, key, what, labels[best], gallery),
    ]
    prior_draws = study.prior.sample(_PRIOR_DRAWS, seed=study.seed).values
    shown = _compared(products, names, best)
    rows = [_key(products, shown, styles, key, len(samples[best]), gallery)]
    rows += _marginals(products, {name: samples[name] for name in shown}, styles, prior_draws, truth, key, gallery)
    table = tables.intervals(study.prior, prior_draws, samples, labels, truth)
    return Section(key, title, "", [p for p in pictures if p], rows, [table])


def _label_of_model(products: Products, name: str) -> str:
    """Readable name of an estimator, or of the first estimator of a model."""
    estimators = products.metrics.estimators
    of_model = [key for key, entry in estimators.items() if (entry.model_extra or {}).get("model") == name]
    return label(products.metrics, name if name in estimators or not of_model else of_model[0])


def _compared(products: Products, names: list[str], best: str) -> list[str]:
    """The estimators that share a panel: the best model, one more model, and the best baseline."""
    estimators = products.metrics.estimators

    def gain(name: str) -> float:
        found = estimators[name].information_gain if name in estimators else None
        return found.mean if found and found.mean is not None else -np.inf

    models = [best, *(name for name in names if not name.startswith("abc") and name != best)]
    baselines = sorted((name for name in names if name.startswith("abc") and name != best), key=gain, reverse=True)
    return models[:_MODELS] + baselines[:_BASELINES]


def _key(products: Products, shown: list[str], styles: dict[str, Any], key: str, draws: int, gallery: Gallery) -> Row:
    labels = {name: label(products.metrics, name) for name in shown}
    picture = gallery.add(
        f"{key}-key",
        posterior.key({labels[name]: styles[name][:2] for name in shown}),
        f"Legend: prior filled, truth dashed, lines: {', '.join(labels.values())}.",
        f"Marginals of every parameter: {draws:,} posterior samples each, {_PRIOR_DRAWS:,} of the prior, seed "
        f"{products.study.seed}.",
    )
    return Row("", [picture])


def _depth_picture(
    products: Products, draws: Array, truth: Array, key: str, what: str, estimator: str, gallery: Gallery
) -> Picture:
    study = products.study
    names, sample = list(study.prior.names), study.config.sample
    thickness = [truth[i] for i, name in enumerate(names) if name.endswith(".thickness_nm")]
    used = draws[:_DEPTH_DRAWS]
    columns = [i for i, name in enumerate(names) if name.endswith(".thickness_nm")]
    bottom = max(float(np.sum(thickness)), float(np.quantile(used[:, columns].sum(axis=1), 0.9)))
    grid = np.linspace(-4.0, bottom + 6.0, 240)
    curves = depth_profile(sample, used, names, grid)
    true = depth_profile(sample, truth[None], names, grid)[0]
    starts = np.cumsum([0.0, *thickness])
    below = (*sample.fixed, sample.substrate)[0].material
    layers = [name.split(".")[0].split("_", 1)[1] for name in names if name.endswith(".delta")] + [below]
    interfaces = [(layer, float(z)) for layer, z in zip(layers, starts, strict=True)]
    low, high = np.quantile(curves, [0.05, 0.95], axis=0)
    share = float(((true >= low) & (true <= high)).mean())
    return gallery.add(
        f"{key}-depth",
        profiles.depth(grid, curves, true, interfaces),
        f"Dispersion delta against depth of {what}: posterior median and bands of {estimator}, and the truth; the "
        f"90 percent band holds the truth over {100 * share:.0f} percent of the depth.",
        f"Layer profile of {what}: {len(used)} posterior samples of {estimator} with graded ({sample.transient}) "
        f"interfaces, seed {study.seed}; the 90 % band holds the truth over {100 * share:.0f} % of the depth shown. "
        "Dotted: true interfaces.",
    )


def _marginals(
    products: Products, samples: dict[str, Array], styles: dict[str, Any], prior_draws: Array, truth: Array, key: str,
    gallery: Gallery,
) -> list[Row]:  # fmt: skip
    prior = products.study.prior
    rows: dict[str, list[Picture]] = {}
    shown = list(samples)
    for i, name in enumerate(prior.names):
        curves = [posterior.Curve(samples[other][:, i], styles[other][0], styles[other][1]) for other in shown]
        figure = posterior.marginal(
            name, prior.units[i], (prior.lower[i], prior.upper[i]), prior_draws[:, i], curves, float(truth[i])
        )
        low, middle, high = np.quantile(samples[shown[0]][:, i], [0.05, 0.5, 0.95])
        alt = (
            f"{name}: truth {significant(float(truth[i]))}, {label(products.metrics, shown[0])} median "
            f"{significant(float(middle))}, 90 percent from {significant(float(low))} to {significant(float(high))} "
            f"{prior.units[i] if prior.units[i] != '1' else ''}".strip()
        )
        rows.setdefault(name.split(".")[0], []).append(gallery.add(f"{key}-marginal-{name}", figure, alt))
    return [Row(layer.replace("_", ": ").replace("layer", "Layer "), pictures) for layer, pictures in rows.items()]
