"""Stage infer: posteriors of held-back simulations, of the expert's sample, and of real frames."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scatterflow import experiment, provenance
from scatterflow.config.inference import FramesConfig
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.instrument_file import read_instrument
from scatterflow.errors import BundleError
from scatterflow.exports import write_tree
from scatterflow.frames import short_name
from scatterflow.inference import FrameResult, infer_frames, score, thumbnail
from scatterflow.instrument import wavenumber
from scatterflow.models import Model
from scatterflow.models.model import load_posterior_model
from scatterflow.multilayer import MultilayerStudy
from scatterflow.products import write_json
from scatterflow.progress import say
from scatterflow.stages import preprocess
from scatterflow.stages.posteriors import Posterior, write_result
from scatterflow.verdict import QUANTILES

LABELS = {
    "summary-maf.image": "summary + flow, image and profile",
    "summary-maf.profile": "summary + flow, profile only",
    "cvae-maf.image": "CVAE + flow, image and profile",
    "cvae-maf.profile": "CVAE + flow, profile only",
    "maf-profile": "flow on the profile alone (control)",
}
EXAMPLES = 3  # held-back observations that the report shows
_EXAMPLE_DRAWS = 64  # posterior draws simulated for their predictive bands
_SCORE_DRAWS = 4  # latent draws that the density of a sample is averaged over for its rank
_SHOWN = ("0.05", "0.25", "0.5", "0.75", "0.95")


def run(study: MultilayerStudy, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Write posteriors, verdicts and pictures' arrays to `infer/` below `folder`; returns the manifest's path."""
    held_back = preprocess.rows(preprocess.load(study, folder), "held_back").load()
    models = {name: trained(study, folder, name) for name in study.config.models}
    estimators = {}
    for name, model in models.items():
        for mode in model.modes:
            estimator = estimator_name(name, mode, model.modes)
            estimators[estimator] = (model, mode)

            def posterior(rows: slice, model: Model = model, mode: str = mode) -> Posterior:
                return model.posterior(held_back.isel(simulation=rows), mode=mode)

            extra = {"label": LABELS.get(estimator, estimator), "model": name, "mode": mode, **model.facts(mode)}
            write_result(study, folder / "infer" / f"{estimator}.nc", posterior, held_back, extra, tell, _score)
    lead = next(iter(models.values()))
    write_tree(folder / "infer" / "examples.nc", {"/": _examples(study, lead, held_back)})
    out_of_range = _false_alarms(study, lead, held_back)
    tell(f"verdict on {out_of_range['n']} held-back simulations: {out_of_range['flagged']} called outside")
    known = experiment.record(study)
    if known is not None:
        write_tree(folder / "infer" / "experiment.nc", _experiment(study, estimators, known, tell))
    frames = _frames(study, lead, folder, tell)
    return write_json(
        folder / "infer" / "manifest.json",
        {
            "format": 1,
            "estimators": list(estimators),
            "model": lead.name,
            "examples": EXAMPLES,
            "experiment": known is not None,
            "frames": frames,
            "out_of_range": out_of_range,
            "versions": provenance.versions(("numpy", "torch", "nflows", "bornagain")),
        },
    )


def _score(posterior: Any, theta: Any) -> xr.DataArray:
    """Log density averaged over few z: cheap enough for every sample."""
    density: xr.DataArray = posterior.log_prob(theta, draws=_SCORE_DRAWS)
    return density


def trained(study: MultilayerStudy, folder: Path, name: str) -> Model:
    """Model `name` of the run. Raises BundleError if it was trained on other features than the study's now."""
    bundle = folder / "models" / name
    model = load_posterior_model(bundle)
    if model.training.get("features") != study.features_identity():
        raise BundleError(
            f"bundle {bundle}",
            "must be trained on this configuration's features",
            f"those of {str(model.training.get('features'))[:12]}",
            "run `scatterflow train`",
        )
    return model


def estimator_name(model: str, mode: str, modes: tuple[str, ...]) -> str:
    """Name of an estimator: the model's, with the mode's first word where the model has several."""
    return model if len(modes) == 1 else f"{model}.{mode.split('+')[0]}"


def _examples(study: MultilayerStudy, model: Model, held_back: xr.Dataset) -> xr.Dataset:
    """The first held-back observations with recorded counts and the posterior predictive band of their profile."""
    rows = held_back.isel(simulation=slice(0, EXAMPLES))
    counts = study.simulate(rows["parameters"])
    recorded = study.observe(counts)
    return _with_predictive(study, model, rows, recorded, rows["parameters"], False)


def _with_predictive(
    study: MultilayerStudy,
    model: Model,
    features: xr.Dataset,
    recorded: xr.Dataset,
    truth: xr.DataArray,
    experiment: bool,
) -> xr.Dataset:
    from scatterflow.verdict import predictive_draws

    draws = predictive_draws(study, model.posterior(features), _EXAMPLE_DRAWS, study.seed + 1, experiment)
    quantiles = draws.quantile([float(q) for q in _SHOWN], dim="draw").transpose("observation", "quantile", ...)
    values = {
        "truth": (("example", "parameter"), study.prior.values(truth)),
        "profile": (("example", "profile_point"), features["profile"].values),
        "mask_profile": (("example", "profile_point"), features["mask_profile"].values),
        "predictive": (("example", "quantile", "profile_point"), quantiles.values.astype(np.float32)),
        "predictive_mean": (("example", "profile_point"), draws.mean("draw").values.astype(np.float32)),
        "predictive_sd": (("example", "profile_point"), draws.std("draw", ddof=1).values.astype(np.float32)),
        "image": (("example", "z_image", "y_image"), recorded["image"].values),
        "mask_image": (("example", "z_image", "y_image"), recorded["mask_image"].values),
    }
    coords = {
        "observation": ("example", np.asarray(features["simulation"].values)),
        "parameter": list(study.prior.names),
        "quantile": [float(q) for q in _SHOWN],
        "qz": ("profile_point", recorded["qz_profile"].values, {"units": "nm^-1"}),
        "qz_image": ("z_image", recorded["qz_image"].values, {"units": "nm^-1"}),
        "qy_image": ("y_image", recorded["qy_image"].values, {"units": "nm^-1"}),
    }
    attrs = {"predictive_estimator": model.name, "predictive_draws": _EXAMPLE_DRAWS}
    return xr.Dataset(values, coords=coords, attrs=attrs)


def _false_alarms(study: MultilayerStudy, model: Model, held_back: xr.Dataset) -> dict[str, Any]:
    """How often the verdict calls an in-range simulation 'outside', on simulations that set no threshold."""
    from scipy.stats import binomtest

    rows = held_back.isel(simulation=slice(0, study.config.inference.predictive_references))
    scores, _ = score(model, study, rows, study.seed + 2)
    flags = {name: values > model.verdict[name]["threshold"] for name, values in scores.items()}
    flagged, n = int(np.any(list(flags.values()), axis=0).sum()), len(rows["simulation"])
    interval = binomtest(flagged, n).proportion_ci(0.99)
    return {
        "n": n,
        "flagged": flagged,
        "false_alarm": {"rate": flagged / n, "low": interval.low, "high": interval.high, "n": n, "confidence": 0.99},
        "by_score": {name: float(np.mean(flag)) for name, flag in flags.items()},
        "scores": {
            name: {
                **model.verdict[name],
                "held_back_quantiles": {f"{100 * q:g}": float(np.quantile(scores[name], q)) for q in QUANTILES},
            }
            for name in scores
        },
    }


def _experiment(
    study: MultilayerStudy,
    estimators: dict[str, tuple[Model, str]],
    known: tuple[xr.DataArray, xr.Dataset, xr.Dataset],
    tell: Callable[[str], None],
) -> dict[str, xr.Dataset]:
    """The experiment inferred by every model, and what the report draws of it."""
    expert, recorded, features = known
    lead = next(iter(estimators.values()))[0]
    dataset = _with_predictive(study, lead, features, recorded, expert, True)
    picture = thumbnail(experiment.full_frame(study), study.config.instrument)
    dataset["full"] = picture.rename(z="z_full", y="y_full", qz="qz_full", qy="qy_full")
    groups = {"/": dataset}
    for name, (model, mode) in estimators.items():
        result = experiment.result(study, model.posterior(features, mode=mode), expert)
        groups[f"/{experiment.GROUP}/{name}"] = result
        tell(f"experiment: log density of the expert's values {float(result['log_prob'][0]):.2f} by {name}")
    scores, _ = score(lead, study, features, study.seed, experiment=True)
    dataset.attrs |= {f"score_{name}": float(value[0]) for name, value in scores.items()}
    return groups


def data_folder() -> Path:
    """Folder of the real frames: SCATTERFLOW_DATA, default ../shared/data."""
    return Path(os.environ.get("SCATTERFLOW_DATA") or Path("..") / "shared" / "data")


def _frames(study: MultilayerStudy, model: Model, folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Infer the configured real frames; those that are not there are listed as missing."""
    found: list[dict[str, Any]] = []
    groups: dict[str, xr.Dataset] = {}
    for frames in study.config.inference.frames:
        for summary, dataset in _frame_set(study, model, frames):
            groups |= {f"/{len(found)}": dataset} if dataset is not None else {}
            found.append(summary)
            tell(f"{summary['file']}: {summary['status']}")
    if groups:
        write_tree(folder / "infer" / "frames.nc", {"/": xr.Dataset(), **groups})
    write_json(folder / "infer" / "frames.json", found)
    return found


def _frame_set(
    study: MultilayerStudy, model: Model, frames: FramesConfig
) -> Iterator[tuple[dict[str, Any], xr.Dataset | None]]:
    facts = {"set": frames.name, "source": frames.source}
    instrument = read_instrument(study.folder / frames.instrument)
    for file in frames.files:
        path = data_folder() / file
        if not path.exists():
            yield facts | {"file": path.name, "status": "missing", "why": "get it by `make data`"}, None
            continue
        for result in infer_frames([path], model, instrument, study.seed):
            summary = facts | result.summary() | {"file": short_name(result.file)}
            yield summary, _frame_arrays(result, instrument.model_copy(update={"geometry": "flat"}))


def _frame_arrays(result: FrameResult, instrument: InstrumentConfig) -> xr.Dataset | None:
    """What the report draws of one frame; None where it could not be read."""
    if result.frame is None:
        return None
    dataset = thumbnail(result.frame, instrument).to_dataset(name="counts")
    sine = np.sin(np.radians(instrument.incidence_deg)) * wavenumber(instrument)
    dataset.attrs = {"horizon_qz": sine, "specular_qz": 2 * sine}
    if result.features is None or result.predictive is None or result.recorded is None:
        return dataset
    draws = result.predictive
    return dataset.assign(
        profile=("profile_point", result.features["profile"].values[0]),
        mask_profile=("profile_point", result.features["mask_profile"].values[0]),
        qz_profile=("profile_point", result.recorded["qz_profile"].values),
        predictive=(("quantile", "profile_point"), draws.quantile([float(q) for q in _SHOWN], dim="draw").values),
        predictive_mean=("profile_point", draws.mean("draw").values),
        predictive_sd=("profile_point", draws.std("draw", ddof=1).values),
    ).assign_coords(quantile=[float(q) for q in _SHOWN])
