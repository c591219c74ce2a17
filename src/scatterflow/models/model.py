"""A trained model of a study, as others use it: posteriors, estimates, rebuilt images, verdict, provenance."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import data, seeds
from scatterflow.config.loading import validate
from scatterflow.config.study import MultilayerConfig
from scatterflow.config.training import MACHINE
from scatterflow.errors import BundleError, ConfigError
from scatterflow.models.bundle import load_bundle, save_bundle
from scatterflow.models.estimator import Estimator
from scatterflow.models.posterior import Posterior
from scatterflow.multilayer import MultilayerStudy
from scatterflow.progress import Tracker, duration, say, track
from scatterflow.provenance import digest, source_hash, versions
from scatterflow.verdict import FeatureScore, score_from_arrays

_MODULES = ("scatterflow.models", "scatterflow.training", "scatterflow.checkpoint", "scatterflow.data")


@dataclass(frozen=True)
class Model:
    """A trained model; made by `train` or `load_posterior_model`. `name` is its name in the configuration.

    `training` says how it was trained (phases, rows, versions), `verdict` holds thresholds by score, `arrays` what the
    feature score needs; `work` is the folder of the training's checkpoints and history, until it is saved.
    """

    name: str
    study: MultilayerStudy
    estimator: Estimator
    identity: str
    training: Mapping[str, Any]
    verdict: Mapping[str, dict[str, Any]]
    arrays: Mapping[str, NDArray[np.float32]]
    work: Path | None = None

    @property
    def modes(self) -> tuple[str, ...]:
        """Ways to infer, the default first."""
        return self.estimator.modes

    @property
    def rebuilds(self) -> bool:
        """True where images can be rebuilt from profiles."""
        return self.estimator.rebuilds

    @cached_property
    def feature_score(self) -> FeatureScore:
        """Score of features that no simulation looks like."""
        return score_from_arrays(dict(self.arrays))

    def posterior(self, features: xr.Dataset, mode: str | None = None) -> Posterior:
        """Posterior of each row of `features`; see `Estimator.posterior`."""
        return self.estimator.posterior(features, mode)

    def predict(self, features: xr.Dataset, mode: str | None = None, n: int = 500, seed: int = 0) -> xr.Dataset:
        """Posterior median and standard deviation of every parameter; see `Estimator.predict`."""
        return self.estimator.predict(features, mode, n, seed)

    def reconstruct(self, features: xr.Dataset, n: int = 16, seed: int = 0) -> xr.Dataset:
        """Images rebuilt from the profile alone; see `Estimator.reconstruct`."""
        return self.estimator.reconstruct(features, n, seed)

    def facts(self, mode: str) -> dict[str, Any]:
        """How `mode` was set up and how the model was trained, as plain JSON."""
        return self.estimator.facts(mode) | {"training": dict(self.training), "identity": self.identity}


def train(
    study: MultilayerStudy,
    name: str,
    rows: xr.Dataset,
    folder: Path,
    tell: Callable[[str], None] = say,
    tracker: Tracker = track,
    counts: xr.Dataset | None = None,
) -> Model:
    """Train model `name` of `study` on the features `rows` (splits "train" and "validation").

    `counts` are the stored expected counts and `parameters` of the training rows, which `training.data: fresh_noise`
    observes anew; lazy counts and rows stay on the disk, see `data`. Checkpoints go to `<folder>/<name>.training/`, from
    which a stopped training of the same configuration, data and code continues. Raises ConfigError for an unknown name,
    or where counts are needed and missing.
    """
    from scatterflow.models.fitting import train_estimator  # imports Lightning, which takes seconds

    if name not in study.config.models:
        raise ConfigError("model", f"must be one of {sorted(study.config.models)}", repr(name))
    config = study.config.models[name]
    splits = {role: int((rows["split"].values == role).sum()) for role in ("train", "validation")}
    identity = digest(
        {
            "model": config.model_dump(mode="json", exclude={"training": set(MACHINE)}),
            "features": study.features_identity(),
            "rows": splits,
            "seed": study.seed,
            "source": source_hash(*_MODULES),
        }
    )
    work = folder / f"{name}.training"
    member = config.training.seed
    seed = seeds.integer(study.seed, f"training {member}") if member else study.seed
    load = None
    if config.training.data == "fresh_noise":
        if counts is None:
            raise ConfigError("training.data: fresh_noise", "must have the stored expected counts", "none")
        load = data.fresh_noise(study, counts, study.seed)
    elif config.training.data == "on_the_fly":
        load = data.on_the_fly(study, study.seed)
    fitted = train_estimator(
        config, rows, study.prior, work, seed=seed, identity=identity, load=load, log=tell, tracker=tracker
    )
    training = {
        "kind": config.kind,
        "rows": splits,
        "data": config.training.data,
        "phases": [history.summary() for history in fitted.histories],
        "seconds": round(sum(history.seconds for history in fitted.histories), 3),
        "weights": sum(weight.numel() for weight in fitted.estimator.networks.parameters()),
        "simulations": study.simulation_identity(),
        "features": study.features_identity(),
        "versions": versions(("torch", "lightning", "nflows", "numpy")),
    }
    return Model(name, study, fitted.estimator, identity, training, {}, {}, work)


def save(folder: Path, model: Model, feature_score: FeatureScore, limits: Mapping[str, dict[str, Any]]) -> Path:
    """Write the bundle `folder` of a trained model with its verdict; returns the path of bundle.json.

    Then removes the training's checkpoints. Raises StoreError where the disk refuses: what was there before stays.
    """
    study = model.study
    meta = {
        "name": model.name,
        "identity": model.identity,
        "training": dict(model.training),
        "verdict": dict(limits),
        "study": {
            "name": study.name,
            "run": study.run,
            "seed": study.seed,
            "config": study.config.model_dump(mode="json"),
        },
    }
    texts = {"card.md": card(model, limits)}
    if model.work is not None and (history := model.work / "history.csv").exists():
        texts["history.csv"] = history.read_text(encoding="utf-8")
    path = save_bundle(folder, model.estimator, meta, feature_score.arrays(), texts)
    if model.work is not None:
        shutil.rmtree(model.work, ignore_errors=True)
    return path


def load_posterior_model(folder: str | Path) -> Model:
    """The model of a bundle folder. Runs nothing from it; raises BundleError, in one line, where it is not sound."""
    bundle = load_bundle(folder)
    where = f"bundle {folder}"
    try:
        told, name, identity = bundle.meta["study"], str(bundle.meta["name"]), str(bundle.meta["identity"])
        training, verdict = dict(bundle.meta["training"]), dict(bundle.meta["verdict"])
        config = validate(MultilayerConfig, told["config"], where)
        study = MultilayerStudy(str(told["name"]), config, int(told["seed"]), str(told["run"]))
        prior = study.prior.spec()
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(where, "must hold a model of a study", repr(error), "train the model again") from None
    except ConfigError as error:
        raise BundleError(where, "must hold the study of this version of scatterflow", error, "train again") from None
    if prior != bundle.estimator.prior.spec():
        raise BundleError(where, "must have the prior of its own study", remedy="train the model again")
    return Model(name, study, bundle.estimator, identity, training, verdict, bundle.arrays)


def card(model: Model, limits: Mapping[str, dict[str, Any]]) -> str:
    """What a person should know before using the model, as Markdown."""
    training, study = model.training, model.study
    lines = [
        f"# {model.name} of study {study.name}",
        "",
        f"Posterior of {len(study.prior.names)} parameters of {len(study.config.sample.layers)} free layers "
        f"({', '.join(study.config.sample.layers)}) from GISAXS, by a model of kind {training['kind']} with "
        f"{training['weights']:,} weights.",
        "",
        "## Trained on",
        "",
        f"{training['rows']['train']:,} simulations, chosen on {training['rows']['validation']:,} others, in "
        f"{duration(training['seconds'])}. Seed {study.seed}. Features {training['features'][:12]}.",
        "",
        *(
            f"- {phase['phase']}: {phase['epochs']} epochs, stopped by {phase['stopped']}, best validation loss "
            f"{phase['best_loss']:.4g} after epoch {phase['best_epoch'] + 1}"
            for phase in training["phases"]
        ),
        "",
        "## Information gain over the prior on validation simulations",
        "",
        *(
            f"- {mode}: {fit.gain:.2f} +- {fit.gain_se:.2f} nat ({fit.draws} latent draws, base "
            f"{fit.mean_width:.3g} times as wide as trained, prior's share {fit.prior_share:.2g})"
            for mode, fit in model.estimator.fits.items()
        ),
        "",
        "## Limits",
        "",
        "It knows samples within the ranges of its prior, measured in its own geometry, and nothing else. Do not believe "
        "its answer on a frame whose verdict is not 'ok'. The verdict's thresholds:",
        "",
        *(f"- {name}: {limit['threshold']:.3g}" for name, limit in limits.items()),
        "",
        *(f"- {unit.name}: {unit.lower:g} to {unit.upper:g} {unit.unit}" for unit in study.prior.parameters),
        "",
    ]
    return "\n".join(lines)
