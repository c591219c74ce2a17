"""What pages of kinds nanodiffraction and particles have in common: their last sections, and all around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scatterflow.config.study import NanodiffractionConfig, ParticlesConfig
from scatterflow.report import mapconvergence, spent, sweeps
from scatterflow.report.costs import study_costs
from scatterflow.report.gallery import Gallery, Section
from scatterflow.report.metrics import Verdict
from scatterflow.report.page import StudyPage, Tile
from scatterflow.report.products import StudyFolder
from scatterflow.trials import SweepManifest


def finished(
    at: StudyFolder,
    gallery: Gallery,
    verdict: Verdict | None,
    tiles: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    found: Mapping[str, Any],
    swept: SweepManifest | None,
) -> StudyPage:
    """The page of `sections` and those on trainings, sweep and cost; `found` are the figures of merit as evaluated.

    Raises StoreError for damaged products.
    """
    study, composed, metrics = at.study, list(sections), dict(found)
    config = study.config
    assert isinstance(config, NanodiffractionConfig | ParticlesConfig)  # the other kind's page has an order of its own
    manifest, histories = at.manifest(), at.histories()
    if histories:
        composed.append(mapconvergence.section(histories, config.models, gallery, study.seed))
    if (section := sweeps.section(config, swept)) is not None:
        composed.append(section)
    if costs := study_costs(at.path):
        metrics["cost"] = {name: entry.model_dump(mode="json") for name, entry in costs.items()}
        composed.append(spent.section(costs, gallery))
    identity = {"simulations": study.simulation_identity()}
    identity |= {str(key): str(value) for key, value in metrics.get("identity", {}).items()}
    numbers = [Tile(*tile) for tile in tiles]
    return StudyPage(study.name, study.kind, verdict, numbers, composed, at.missing, manifest, metrics, identity)
