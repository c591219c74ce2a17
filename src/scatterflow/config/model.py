"""Placeholder by the lead so that the package imports; helper `models` overwrites this file with its own."""

from __future__ import annotations

from scatterflow.config.base import Section, option


class ModelConfig(Section):
    """Placeholder."""

    kind: str = option("cvae-maf", help="kind of model")
