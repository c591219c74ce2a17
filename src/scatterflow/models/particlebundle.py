"""Bundles of dual-branch models: read one, add the verdict to one. Reading runs nothing from it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scatterflow.config.dualbranch import DualBranchConfig
from scatterflow.config.loading import validate
from scatterflow.config.study import ParticlesConfig
from scatterflow.errors import BundleError, ConfigError
from scatterflow.models.bundle import mode_fit
from scatterflow.models.bundlefile import read_bundle
from scatterflow.models.particlemodel import EXTRA, FORMAT, KIND, ParticleModel, untrained
from scatterflow.particles import ParticlesStudy
from scatterflow.verdict import FeatureScore

_AGAIN = "train the model again, or copy the bundle again"


def with_verdict(folder: Path, score: FeatureScore, limits: Mapping[str, dict[str, Any]]) -> Path:
    """Add the verdict's feature score and thresholds to the bundle `folder`; returns the path of its bundle.json.

    Then removes the training's checkpoints.
    """
    model = replace(load_particle_model(folder), verdict=dict(limits), arrays=score.arrays())
    path = model.save(folder, {"history.csv": (folder / "history.csv").read_text(encoding="utf-8")})
    shutil.rmtree(work_folder(folder), ignore_errors=True)
    return path


def work_folder(folder: Path) -> Path:
    """Where the checkpoints of a bundle's training lie."""
    return folder.with_name(folder.name + ".training")


def load_particle_model(folder: str | Path) -> ParticleModel:
    """Read a bundle of kind particles. Runs nothing from it; raises BundleError, in one line, where it is not sound."""
    content, tensors = read_bundle(folder, KIND, FORMAT)
    place = f"bundle {folder}"
    try:
        meta = content["meta"]
        told = meta["study"]
        study = ParticlesStudy(
            str(told["name"]),
            validate(ParticlesConfig, told["config"], place),
            int(told["seed"]),
            str(told["run"]),
        )
        config = DualBranchConfig.model_validate(content["model"])
        fits = tuple(mode_fit(fit) for fit in content["fits"])
        factors, refined = (
            {str(name): tuple(map(float, each)) for name, each in content[key].items()}
            for key in ("factors", "refined_factors")
        )
        known = (*factors.values(), *refined.values())
        if len(fits) != config.members or not all(each and np.isfinite(each).all() for each in known):
            raise ValueError("fits must be those of its members, factors finite")
        networks = untrained(study, config)
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in networks.state_dict().items()}
        arrays = {
            name.removeprefix(EXTRA): tensor.numpy() for name, tensor in tensors.items() if name.startswith(EXTRA)
        }
        model = ParticleModel(
            str(meta["name"]), study, config, networks, fits, factors, refined, dict(content["scores"]),
            str(meta["identity"]), dict(meta["training"]), dict(meta["verdict"]), arrays,
        )  # fmt: skip
        prior = study.prior.spec()
    except ConfigError as error:
        raise BundleError(place, "must hold the study of this version of scatterflow", error, "train again") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise BundleError(place, "must describe a model", " ".join(str(error).split())[:200], _AGAIN) from None
    if prior != content.get("prior"):
        raise BundleError(place, "must have the prior of its own study", remedy="train the model again")
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(EXTRA)}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise BundleError(f"weights of {place}", "must fit its networks", f"{len(odd)} others: {odd[0]}", _AGAIN)
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise BundleError(f"weights of {place}", "must be finite", remedy=_AGAIN)
    networks.load_state_dict(weights)
    networks.eval().requires_grad_(False)
    return model
