"""Models: train, save and load them. `train` imports Lightning on its first call, nothing else does."""

from __future__ import annotations

from pathlib import Path

from scatterflow.models.bundle import read_bundle_json
from scatterflow.models.frames import FrameModel, load_frame_model
from scatterflow.models.model import Model, load_posterior_model, save, train
from scatterflow.models.particlebundle import load_particle_model
from scatterflow.models.particlemodel import KIND as PARTICLES
from scatterflow.models.particlemodel import ParticleModel
from scatterflow.models.regressor import KIND as NANODIFFRACTION

__all__ = ["FrameModel", "Model", "ParticleModel", "load_model", "save", "train"]


def load_model(folder: str | Path) -> Model | FrameModel | ParticleModel:
    """Read the bundle `folder` of any kind. Raises BundleError if it is missing, damaged or of another format."""
    kind = read_bundle_json(Path(folder) / "bundle.json").get("kind")
    if kind == NANODIFFRACTION:
        return load_frame_model(folder)
    return load_particle_model(folder) if kind == PARTICLES else load_posterior_model(folder)
