"""Models: train, save and load them. `train` imports Lightning on its first call, nothing else does."""

from __future__ import annotations

from pathlib import Path

from scatterflow.models.bundle import read_bundle_json
from scatterflow.models.frames import FrameModel, load_frame_model
from scatterflow.models.model import Model, load_posterior_model, save, train
from scatterflow.models.regressor import KIND

__all__ = ["FrameModel", "Model", "load_model", "save", "train"]


def load_model(folder: str | Path) -> Model | FrameModel:
    """Read the bundle `folder` of any kind. Raises BundleError if it is missing, damaged or of another format."""
    kind = read_bundle_json(Path(folder) / "bundle.json").get("kind")
    return load_frame_model(folder) if kind == KIND else load_posterior_model(folder)
