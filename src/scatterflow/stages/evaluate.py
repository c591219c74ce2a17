"""Stage evaluate: every estimator judged on the same held-back simulations, beside the prior and the paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import diagnostics, experiment, fisher, seeds
from scatterflow.exports import StoredPosterior, read_posterior, write_tree
from scatterflow.models.model import load_posterior_model
from scatterflow.multilayer import MultilayerStudy
from scatterflow.products import read_json, write_json
from scatterflow.progress import say
from scatterflow.stages import preprocess

Array = NDArray[np.float64]

# table 1 of arXiv 2210.01543; its own log-probabilities are of 72 parameters, so they compare in kind only
PAPER = {
    "ABC + KDE": {
        "wasserstein": None, "wasserstein_sd": None, "log_prob": -22.1, "mae": 0.34, "inference_s": 18e6,
        "inference_reused_s": 45.0, "data_set_s": 18e6, "amortized": False,
    },
    "NFs + CVAEs": {
        "wasserstein": 0.06, "wasserstein_sd": 0.04, "log_prob": -14.9, "mae": 0.33, "inference_s": 4.56,
        "data_set_s": 18e6, "amortized": True,
    },
}  # fmt: skip
PER_OBSERVATION = ("log_prob", "information_gain", "map_error", "credibility", "outside_support")
_REFERENCE = "abc-kde"  # the posterior that the paper measures distances to
_PRIOR_ROWS = 20_000  # draws that the prior's median is taken from; caps make it differ from the middle of the cube
_REBUILD_DRAWS = 16  # latent draws per rebuilt image
_FISHER_ROWS = 50  # held-back samples whose Fisher information is computed: its spread over samples is wide
_LEVEL_GRID = np.linspace(0, 1, 51)


@dataclass(frozen=True)
class Result:
    """One estimator's posteriors of the held-back observations and its own facts."""

    stored: StoredPosterior
    facts: dict[str, Any]
    log_prob: Array  # of the truth, (observation,)
    gain: Array
    map_error: Array
    credibility: Array  # of the truth, by density
    outside: Array  # share of samples outside the prior's support


def run(study: MultilayerStudy, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Write `evaluate/metrics.json` and `evaluate/arrays.nc` below `folder`; returns the path of the metrics."""
    features = preprocess.load(study, folder)
    held_back = preprocess.rows(features, "held_back").load()
    truth = study.prior.values(held_back["parameters"])
    inferred = read_json(folder / "infer" / "manifest.json", "snakemake infer")
    baselines = read_json(folder / "baseline" / "manifest.json", "scatterflow baseline")
    places = {name: folder / "infer" / name for name in inferred["estimators"]}
    places |= {name: folder / "baseline" / name for name in baselines["methods"]}
    results = {name: _read(place) for name, place in places.items()}
    metrics, ranks, curves = {}, {}, {}
    for name, result in results.items():
        metrics[name], ranks[name], curves[name] = judge(study, truth, result, results.get(_REFERENCE))
        gain = metrics[name]["information_gain"]
        tell(f"{name}: information gain {_shown(gain)} nat over the prior, n = {gain['n']}")
    shown, known = _experiment_results(folder)
    groups = _arrays(study, folder, results, ranks, curves, shown, known)
    rebuilt = _reconstruction(study, folder, features, held_back, groups)
    write_tree(folder / "evaluate" / "arrays.nc", {f"/{name}": group for name, group in groups.items()})
    return write_json(
        folder / "evaluate" / "metrics.json",
        {
            "format": 1,
            "study": study.name,
            "kind": study.kind,
            "n_held_back": len(truth),
            "samples": study.config.inference.samples,
            "prior": _prior(study, truth),
            "estimators": metrics,
            "paper": PAPER,
            "experiment": _experiment_rows(study, known, shown["truth"].values) if shown is not None else {},
            "frames": inferred["frames"],
            "out_of_range": inferred["out_of_range"],
            "reconstruction": rebuilt,
            "sensitivity": sensitivity(study, held_back["parameters"]),
            "abc_library": {"n": baselines["library"], "index_seconds": baselines["index_seconds"]},
            "identity": {
                "simulations": study.simulation_identity(),
                "features": study.features_identity(),
                "models": {
                    name: load_posterior_model(folder / "models" / name).identity for name in study.config.models
                },
            },
        },
    )


def judge(
    study: MultilayerStudy, truth: Array, result: Result, reference: Result | None
) -> tuple[dict[str, Any], NDArray[np.int64], dict[str, Array]]:
    """Figures of merit of one estimator; its SBC ranks (observation, parameter); its coverage curves on a level grid."""
    config, prior = study.config.evaluation, study.prior
    samples, draws = result.stored.samples, result.stored.samples.sizes["sample"]
    gain = diagnostics.log_prob(result.gain, config.trim)
    ranks = diagnostics.ranks(truth, samples, prior)
    sbc = diagnostics.sbc(ranks, draws, prior.names, config.significance, study.seed)
    tarp = diagnostics.tarp_credibility(truth, samples, prior, study.seed)
    joint = diagnostics.coverage(result.credibility, config.coverage_levels, config.coverage_confidence)
    metrics = {
        **{key: value for key, value in result.facts.items() if key not in PER_OBSERVATION},
        "works": bool(gain.mean is not None and gain.sigmas is not None and gain.sigmas > 5),
        "log_prob": _summary(diagnostics.log_prob(result.log_prob, config.trim)),
        "information_gain": _summary(gain),
        "mae_median": _estimate(diagnostics.point_error(diagnostics.median(samples, prior), truth, prior).overall),
        "mae_map": _estimate(diagnostics.mean(result.map_error)),
        "outside_support_share": _estimate(diagnostics.mean(result.outside)),
        "coverage": {**_coverage(joint), "passed": joint.passed, "n": len(truth)},
        "tarp": {**_coverage(diagnostics.coverage(tarp, config.coverage_levels, config.coverage_confidence))},
        "sbc": {
            "ks_p": sbc.p_value,
            "holm_rejected": [name for name, p in sbc.p_value_holm.items() if p < config.significance],
            "passed": sbc.passed,
        },
    }
    if reference is not None and reference is not result:
        distance = diagnostics.wasserstein(samples, reference.stored.samples, prior)
        metrics["wasserstein_to_abc"] = {**_estimate(distance.overall), "sd": distance.sd, "floor": distance.floor}
    curves = {
        name: (values[:, None] <= _LEVEL_GRID).mean(axis=0)
        for name, values in (("joint", result.credibility), ("tarp", tarp))
    }
    return metrics, ranks, curves


def _read(place: Path) -> Result:
    facts = read_json(place.with_name(f"{place.name}.json"), "snakemake infer")
    stored = read_posterior(place.with_name(f"{place.name}.nc"))
    columns = [np.array([-np.inf if x is None else x for x in facts[name]]) for name in PER_OBSERVATION]
    return Result(stored, facts, *columns)


def _prior(study: MultilayerStudy, truth: Array) -> dict[str, Any]:
    """The same figures for the exact prior: what knowing nothing of the observation scores."""
    prior = study.prior
    median = np.median(prior.sample(_PRIOR_ROWS, seed=seeds.integer(study.seed, "prior median")).values, axis=0)
    return {
        "log_prob": _summary(diagnostics.log_prob(prior.log_prob_box(truth), study.config.evaluation.trim)),
        "mae_median": _estimate(diagnostics.point_error(median, truth, prior).overall),
    }


def sensitivity(study: MultilayerStudy, truth: xr.DataArray) -> dict[str, Any] | None:
    """What each view can see of each parameter, over held-back samples; None without counting noise (it sees all)."""
    if study.config.observe.noise == "none":
        return None
    few = truth.isel(simulation=slice(0, _FISHER_ROWS))
    low, middle, high = 0.05, 0.5, 0.95
    views = {}
    for view in ("image", "profile"):
        remaining = fisher.remaining_sd(study, few, view)
        quantiles = np.quantile(remaining, [low, middle, high], axis=0)
        views[view] = {
            name: dict(zip(("low", "median", "high"), quantiles[:, index].tolist(), strict=True))
            for index, name in enumerate(study.prior.names)
        }
    return {"n": len(few), "levels": [low, high], "views": views}


def _experiment_rows(study: MultilayerStudy, results: dict[str, xr.Dataset], truth: Array) -> dict[str, Any]:
    """Every estimator on the expert's sample: log density of the expert's values, and the errors of median and MAP."""
    expert = study.expert()
    assert expert is not None  # there are results
    log_prior = float(study.prior.log_prob_box(experiment.off_the_border(study, expert))[0])
    box = study.prior.to_box
    rows = {}
    for name, group in results.items():
        samples = group["samples"].values.astype(np.float64)
        best = samples[0, int(group["lp"].values[0].argmax())]
        log_prob = float(group["log_prob"][0])
        rows[name] = {
            "log_prob": log_prob,
            "information_gain": log_prob - log_prior,
            "mae_map": float(np.abs(box(best[None]) - box(truth)).mean()),
            "mae_median": float(np.abs(box(np.median(samples, axis=1)) - box(truth)).mean()),
        }
    return rows


def _experiment_results(folder: Path) -> tuple[xr.Dataset | None, dict[str, xr.Dataset]]:
    """What the report draws of the experiment, and the result of every estimator; (None, {}) without an expert."""
    shown: xr.Dataset | None = None
    results: dict[str, xr.Dataset] = {}
    for place in ("infer", "baseline"):
        path = folder / place / "experiment.nc"
        if not path.is_file():
            return None, {}
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            shown = tree.to_dataset().load() if place == "infer" else shown
            found = tree[experiment.GROUP]
            results |= {str(name): found[name].to_dataset().load() for name in found.children}
    return shown, results


def _arrays(
    study: MultilayerStudy,
    folder: Path,
    results: dict[str, Result],
    ranks: dict[str, NDArray[np.int64]],
    curves: dict[str, dict[str, Array]],
    shown: xr.Dataset | None,
    known: dict[str, xr.Dataset],
) -> dict[str, xr.Dataset]:
    """What the report draws."""
    names = list(results)
    coords = {"estimator": names, "parameter": list(study.prior.names)}
    with xr.open_datatree(folder / "infer" / "examples.nc", engine="h5netcdf") as tree:
        example = tree.to_dataset().load()
    number = example.sizes["example"]
    stacked = np.stack([result.stored.samples.values[:number] for result in results.values()])
    example["samples"] = (("estimator", "example", "draw", "parameter"), stacked.astype(np.float32))
    groups = {"example": example.assign_coords(estimator=names)}
    if shown is not None:
        stacked = np.stack([group["samples"].values for group in known.values()])
        shown["samples"] = (("estimator", "example", "draw", "parameter"), stacked)
        groups["experiment"] = shown.assign_coords(estimator=list(known))
    groups["sbc"] = xr.Dataset(
        {"ranks": (("estimator", "observation", "parameter"), np.stack(list(ranks.values())).astype(np.int32))},
        coords=coords,
        attrs={"samples": study.config.inference.samples},
    )
    groups["coverage"] = xr.Dataset(
        {
            kind: (("estimator", "level"), np.stack([curve[kind] for curve in curves.values()]))
            for kind in ("joint", "tarp")
        },
        coords={"estimator": names, "level": _LEVEL_GRID},
        attrs={"n": len(next(iter(ranks.values())))},
    )
    return groups


def _reconstruction(
    study: MultilayerStudy, folder: Path, features: xr.Dataset, held_back: xr.Dataset, groups: dict[str, xr.Dataset]
) -> dict[str, Any]:
    """Images rebuilt from the profile alone (figure 3), against the mean image of the training rows; adds its arrays."""
    able = [model for name in study.config.models if (model := load_posterior_model(folder / "models" / name)).rebuilds]
    if not able:
        return {}
    model = able[0]
    rebuilt = model.reconstruct(held_back, n=_REBUILD_DRAWS, seed=study.seed)
    mask, image = held_back["mask_image"].values, held_back["image"].values
    typical = preprocess.rows(features, "train")["image"].mean("simulation").values
    errors = {
        key: (np.abs(values - image) * mask).sum(axis=(1, 2)) / mask.sum(axis=(1, 2))
        for key, values in (("rebuilt", rebuilt["image"].values), ("mean_image", typical[None]))
    }
    shown = groups["example"].sizes["example"]
    groups["reconstruction"] = xr.Dataset(
        {
            "image": (("example", "z_image", "y_image"), image[:shown]),
            "rebuilt": (("example", "z_image", "y_image"), rebuilt["image"].values[:shown]),
            "rebuilt_sd": (("example", "z_image", "y_image"), rebuilt["image_sd"].values[:shown]),
            "mask_image": (("example", "z_image", "y_image"), mask[:shown]),
        },
        coords={key: groups["example"][key] for key in ("qz_image", "qy_image")},
        attrs={"model": model.name, "draws": _REBUILD_DRAWS},
    )
    return {f"mean_absolute_error_{key}": _estimate(diagnostics.mean(value)) for key, value in errors.items()} | {
        "model": model.name
    }


def _estimate(estimate: diagnostics.Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {"mean": None, "se": None, "n": None}
    return {"mean": estimate.value, "se": estimate.standard_error, "n": estimate.n}


def _summary(found: diagnostics.LogProb) -> dict[str, Any]:
    return {
        **_estimate(found.mean),
        "n": found.n,
        "sigmas": found.sigmas,
        "median": found.median,
        "truncated_mean": found.trimmed.value if found.trimmed else None,
        "truncated_se": found.trimmed.standard_error if found.trimmed else None,
        "impossible": found.impossible,
    }


def _coverage(found: diagnostics.Coverage) -> dict[str, Any]:
    return {
        "levels": list(found.level),
        "joint": [share.value for share in found.share],
        "low": list(found.low),
        "high": list(found.high),
        "se": [share.standard_error for share in found.share],
        "area": _estimate(found.area),
        "ks_p": found.p_value,
    }


def _shown(gain: dict[str, Any]) -> str:
    if gain["mean"] is None:
        return f"minus infinity (median {gain['median']})"
    return f"{gain['mean']:.2f} +- {gain['se']:.2f}"
