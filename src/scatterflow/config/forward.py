"""Which engine computes expected counts."""

from __future__ import annotations

from typing import Literal

from scatterflow.config.base import Section, option


class ForwardConfig(Section):
    """The forward model."""

    engine: Literal["bornagain"] = option(
        "bornagain",
        help="engine of the simulations: BornAgain 25",
        source="Pospelov et al., J. Appl. Cryst. 53, 262 (2020)",
    )
