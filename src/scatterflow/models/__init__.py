"""Models: train, save and load them. `train` imports Lightning on its first call, nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scatterflow.models.frames import FrameModel
    from scatterflow.models.model import Model, save, train
    from scatterflow.models.particlemodel import ParticleModel

__all__ = ["FrameModel", "Model", "ParticleModel", "load_model", "save", "train"]

_HOME = {
    "FrameModel": "scatterflow.models.frames",
    "Model": "scatterflow.models.model",
    "ParticleModel": "scatterflow.models.particlemodel",
    "save": "scatterflow.models.model",
    "train": "scatterflow.models.model",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a model of one kind needs nothing of the others."""
    if name not in _HOME:
        raise AttributeError(f"module 'scatterflow.models' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def load_model(folder: str | Path) -> Model | FrameModel | ParticleModel:
    """Read the bundle `folder` of any kind. Raises BundleError if it is missing, damaged or of another format."""
    from scatterflow.models.bundlefile import read_bundle_json

    kind = read_bundle_json(Path(folder) / "bundle.json").get("kind")
    if kind == "nanodiffraction":
        from scatterflow.models.frames import load_frame_model

        return load_frame_model(folder)
    if kind == "particles":
        from scatterflow.models.particlebundle import load_particle_model

        return load_particle_model(folder)
    from scatterflow.models.model import load_posterior_model

    return load_posterior_model(folder)
