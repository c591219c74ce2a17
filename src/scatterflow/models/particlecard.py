"""What a person should know before using a model of kind particles: card.md of its bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scatterflow.models.particlemodel import ParticleModel


def card(model: ParticleModel) -> str:
    """What a person should know before using the model, as Markdown."""
    study, training, scores = model.study, model.training, model.scores
    lines = [
        f"# {model.name} of study {study.name}",
        "",
        f"p(R), spacing and disorder of particles, and the posterior of {len(study.prior.names)} parameters, from one "
        f"GISAXS image of {model.reduction.shape[0]} x {model.reduction.shape[1]} bins (z, y) in counts with its mask, by "
        f"{model.config.members} network(s) of kind {model.config.kind} (trunk: {model.config.trunk.kind}).",
        "",
        f"Trained on {training.get('rows', {}).get('train', 0):,} simulations, recorded anew with other artefacts, chosen "
        f"on {training.get('rows', {}).get('validation', 0):,} others.",
        "",
        "## On the validation simulations",
        "",
        *(f"- {name}: {value:.4g}" for name, value in scores.items() if isinstance(value, float)),
        "",
        "These set the widths of the intervals, too; scores on simulations that nothing was set on are in the evaluation.",
        "",
        "## Limits",
        "",
        "It knows samples within the ranges of its prior, measured in its own geometry, and nothing else. Do not believe "
        "its answer on an image whose verdict is not 'ok'. The verdict's thresholds:",
        "",
        *(f"- {name}: {limit['threshold']:.3g}" for name, limit in model.verdict.items()),
        "",
        *(f"- {unit.name}: {unit.lower:g} to {unit.upper:g} {unit.unit}" for unit in study.prior.parameters),
        "",
    ]
    return "\n".join(lines)
