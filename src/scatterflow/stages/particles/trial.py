"""What a trained trial of a sweep is worth, for kind particles: from its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scatterflow.models.particlebundle import load_particle_model
from scatterflow.particles import ParticlesStudy


def score(_study: ParticlesStudy, _folder: Path, bundle: Path) -> dict[str, Any]:
    """Fields of the trial's record from the bundle whose bundle.json is at `bundle`: information gain and time.

    Raises BundleError.
    """
    trained = load_particle_model(bundle.parent)
    scores = trained.scores
    return {"score": scores["gain"], "score_se": scores["gain_se"], "seconds": trained.training["seconds"]}
