"""Models: train, save and load them. `train` imports Lightning on its first call, nothing else does."""

from scatterflow.models.model import Model, load_model, save, train

__all__ = ["Model", "load_model", "save", "train"]
