"""Sections on a study as a whole: estimators, calibration, reconstruction, training, cost."""

from __future__ import annotations

import numpy as np

from scatterflow.report import tables
from scatterflow.report.costs import RULES
from scatterflow.report.figures import calibration, detector, overview
from scatterflow.report.gallery import Gallery, Section
from scatterflow.report.headline import label, works
from scatterflow.report.metrics import Mean
from scatterflow.report.numbers import estimate, percent, seconds, significant
from scatterflow.report.observation import view_axes
from scatterflow.report.products import Products
from scatterflow.report.style import estimator_styles

_ENGINES = {"bornagain": "BornAgain", "dwba": "Engine dwba"}
_EVALUATE = "Nothing to show: run `snakemake evaluate`."


def comparison(products: Products, gallery: Gallery) -> Section:
    """Information gain of all estimators, the table of all, and the paper's Table 1."""
    metrics, title = products.metrics, "Which estimator tells how much?"
    if not metrics.estimators:
        return Section("estimators", title, missing=_EVALUATE)
    styles = estimator_styles(metrics.estimators)
    gains, words = [], []
    for name, estimator in metrics.estimators.items():
        gain = estimator.information_gain
        if gain and (gain.mean is not None or gain.impossible):
            trimmed = gain.truncated_mean if gain.mean is not None else None
            full, color = label(metrics, name), styles[name][0]
            gains.append(overview.Gain(full, gain.mean, gain.se or 0.0, trimmed, works(estimator), color))
            words.append(f"{full} {estimate(gain)} nats")
    pictures = []
    if gains:
        pictures.append(
            gallery.add(
                "information-gain",
                overview.information_gain(gains),
                f"Information gain of each estimator over the exact prior with error bars. {'; '.join(words)}.",
                "Mean of log q(θ|x) \N{MINUS SIGN} log p(θ), the information gained over the exact prior (zero "
                f"line). Bars: 5 standard errors; tick: trimmed mean; hollow: does not work. {products.samples}.",
            )
        )
    count = len(products.study.prior.names)
    core = products.manifest.get("core_seconds")
    lead = (
        "An estimator below zero is worse than not measuring at all. The information gain is a lower bound of what the "
        "measurement tells about the sample."
    )
    both = [tables.table_1(metrics, core, count), tables.estimators(metrics)]
    return Section("estimators", title, lead, pictures, tables=both)


def calibrated(products: Products, gallery: Gallery) -> Section:
    """Joint coverage, TARP and rank ECDFs."""
    metrics, title = products.metrics, "Are the uncertainties right?"
    arrays = products.arrays
    pictures = []
    confidence = products.study.config.evaluation.coverage_confidence
    if "coverage" in arrays:
        data = arrays["coverage"]
        names = [str(name) for name in data["estimator"].values]
        styles = estimator_styles([*metrics.estimators, *(name for name in names if name not in metrics.estimators)])
        labels = {name: label(metrics, name) for name in names}
        n = int(data.attrs.get("n", metrics.n_held_back or 1))
        for variable, what in (
            ("joint", "joint credible regions (highest density)"),
            ("tarp", "TARP regions (random balls)"),
        ):
            if variable not in data:
                continue
            level = data["level"].values.astype(float)
            curves = {name: data[variable].sel(estimator=name).values.astype(float) for name in names}
            worst = {name: float(np.abs(values - level).max()) for name, values in curves.items()}
            words = "; ".join(f"{labels[name]} at most {100 * gap:.1f} points off" for name, gap in worst.items())
            pictures.append(
                gallery.add(
                    f"coverage-{variable}",
                    calibration.curve_against_diagonal(
                        level,
                        curves,
                        styles,
                        labels,
                        n,
                        "credibility level",
                        "coverage \N{MINUS SIGN} level / points",
                        confidence,
                    ),
                    f"Coverage of {what} minus the level, for each estimator. {words}.",
                    f"Coverage of {what}: above zero too wide, below too narrow; grey: {100 * confidence:.0f} % "
                    f"binomial band. {words}. {products.samples}.",
                )
            )
    if "sbc" in arrays:
        data = arrays["sbc"]
        draws = int(data.attrs.get("samples", metrics.samples or 1))
        parameters = [str(name) for name in data["parameter"].values]
        for name in (str(name) for name in data["estimator"].values):
            ranks = data["ranks"].sel(estimator=name).transpose("observation", "parameter").values.astype(float)
            outside = calibration.outside_band(ranks, draws, confidence)
            leaving = [parameter for parameter, flag in zip(parameters, outside, strict=True) if flag]
            words = f"{len(leaving)} of {len(parameters)} parameters leave the band"
            words += f" ({', '.join(leaving[:4])}{' ...' if len(leaving) > 4 else ''})" if leaving else ""
            pictures.append(
                gallery.add(
                    f"sbc-{name}",
                    calibration.rank_ecdf(ranks, draws, parameters, confidence),
                    f"Rank ECDF differences of every parameter for {label(metrics, name)}: {words}.",
                    f"{label(metrics, name)}: {words} (thick), simultaneous {100 * confidence:.0f} % band. "
                    f"n = {len(ranks):,} held-back simulations, {draws:,} samples each, seed {products.study.seed}.",
                )
            )
    found = [table for table in (tables.coverage(metrics), tables.ranks(metrics)) if table]
    if not pictures and not found:
        return Section("calibration", title, missing=_EVALUATE)
    lead = "Curves inside the grey bands are what a calibrated posterior gives by chance."
    return Section("calibration", title, lead, pictures, tables=found)


def forward(products: Products) -> Section:
    """Whether the engine computes what BornAgain does, and what the measurement can see at all."""
    metrics, title = products.metrics, "Is the forward model right, and what can it see?"
    found = [tables.cross_check(metrics.cross_check)] if metrics.cross_check else []
    found += [tables.sensitivity(metrics.sensitivity)] if metrics.sensitivity else []
    if not found:
        return Section("forward", title, missing="Nothing to show: run `snakemake cross_check evaluate`.")
    lead = ""
    if metrics.cross_check:
        check = metrics.cross_check
        largest = max(part.largest for part in check.views.values())
        lead = (
            f"{_ENGINES.get(check.engine, check.engine)} and {_ENGINES.get(check.reference, check.reference)} agree within "
            f"{largest:.1e} of the counts of every bin."
        )
    return Section("forward", title, lead, tables=found)


def rebuilt(products: Products, gallery: Gallery) -> Section:
    """The paper's figure 3: the image rebuilt from its in-plane profile alone."""
    title = "The image rebuilt from its profile"
    data = products.arrays.get("reconstruction")
    if data is None or not {"image", "rebuilt"} <= set(data):
        return Section("reconstruction", title, missing=_EVALUATE)
    qz, qy = view_axes(products.study.config.instrument, "image")
    facts = products.metrics.reconstruction or {}
    overall = {key: Mean.model_validate(value) for key, value in facts.items() if isinstance(value, dict)}
    words = "; ".join(f"{key.replace('_', ' ')} {estimate(value)}" for key, value in overall.items())
    words += f" (n = {max(value.n or 0 for value in overall.values()):,})" if overall else ""
    pictures = []
    shown = data if "example" in data.dims else data.expand_dims("example")
    for index in range(min(shown.sizes["example"], 2)):
        one = shown.isel(example=index)
        image, mean = one["image"].values.astype(float), one["rebuilt"].values.astype(float)
        if "mask_image" in one:
            valid = one["mask_image"].values.astype(bool)
            image, mean = np.where(valid, image, np.nan), np.where(valid, mean, np.nan)
        sd = one["rebuilt_sd"].values.astype(float) if "rebuilt_sd" in one else None
        error = float(np.nanmean(np.abs(image - mean)))
        pictures.append(
            gallery.add(
                f"reconstruction-{index}",
                detector.reconstruction(image, mean, sd, qz, qy),
                f"Image, image rebuilt from its profile, and difference; mean absolute error {significant(error)}.",
                f"Held-back example {index + 1}: mean absolute error {significant(error)} of the scaled log counts. "
                f"{'Over all held-back simulations: ' + words + '. ' if words else ''}Seed {products.study.seed}.",
                png=True,
            )
        )
    lead = (
        "As in the paper's figure 3: image, mean of images decoded from the profile with z from the prior, difference."
    )
    return Section("reconstruction", title, lead, pictures)


def training(products: Products, gallery: Gallery) -> Section:
    """Losses of every model."""
    title = "Training"
    if not products.histories:
        return Section("training", title, missing="No losses to show: run `snakemake train`.")
    pictures = []
    for model, history in products.histories.items():
        lowest = significant(float(history["val_loss"].min()), 4)
        by_phase = history.groupby("phase", sort=False) if "phase" in history else [("", history)]
        phases = [str(phase) for phase, _ in by_phase]
        # the clock of each phase starts at 0
        took = sum(float(part["seconds"].max()) for _, part in by_phase) if "seconds" in history else None
        duration = f", {seconds(took)}" if took is not None else ""
        parts = f" in phases {', '.join(phases)}" if len(phases) > 1 else ""
        pictures.append(
            gallery.add(
                f"losses-{model}",
                overview.losses(history),
                f"Training and validation loss of {model} against epoch; lowest validation loss {lowest}.",
                f"{model}: {len(history)} epochs{parts}{duration}; "
                f"dot: lowest validation loss. n = {_training_rows(products):,} training and "
                f"{products.study.config.simulate.validation:,} validation simulations, seed {products.study.seed}.",
            )
        )
    return Section("training", title, pictures=pictures)


def _training_rows(products: Products) -> int:
    config = products.study.config.simulate
    return config.simulations - config.held_back - config.validation


def costs(products: Products, gallery: Gallery) -> Section:
    """What each rule took, and the forward model's share."""
    metrics, manifest, title = products.metrics, products.manifest, "What it cost"
    if not metrics.cost:
        return Section("cost", title, missing="No cost was recorded: `snakemake` measures it while it runs the stages.")
    expected = [rule for rule in RULES if rule != "run_sweep" or products.study.config.sweep is not None]
    wall = {
        name.replace("_", " ").replace(".", " "): entry.seconds
        for name, entry in tables.in_order(metrics)
        if entry.seconds is not None
    }
    pictures = []
    if wall:
        total = sum(wall.values())
        longest = max(wall, key=lambda stage: wall[stage])
        pictures.append(
            gallery.add(
                "cost",
                overview.cost(wall),
                f"Wall time per job; the longest is {longest} with {seconds(wall[longest])} of {seconds(total)}.",
                f"Wall time per job: {seconds(total)} in all; {longest} takes {percent(wall[longest] / total)}.",
            )
        )
    core = manifest.get("engine_core_seconds", manifest.get("core_seconds"))
    simulations = manifest.get("simulations", manifest.get("n"))
    lead = ""
    if core and simulations:
        every = sum(entry.core_seconds or 0.0 for entry in metrics.cost.values())
        share = f", {percent(min(core / every, 1.0))} of all core time" if every else ""
        engine = str(manifest.get("engine", products.study.config.forward.engine))
        version = manifest.get("versions", {}).get(engine, "")
        lead = (
            f"{_ENGINES.get(engine, engine)} {version} simulated {simulations:,} samples in {seconds(core)} "
            f"of core time{share} ({seconds(core / simulations)} each)."
        )
    return Section("cost", title, lead, pictures, tables=[tables.cost(metrics, expected)])
