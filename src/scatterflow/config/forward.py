"""Which engine computes expected counts, and how it is checked."""

from __future__ import annotations

from typing import Literal

from scatterflow.config.base import Section, option


class ForwardConfig(Section):
    """The forward model, and its comparison with the other engine in every run."""

    engine: Literal["dwba", "bornagain"] = option(
        "dwba",
        help="engine of the simulations: `dwba` computes what BornAgain 25 does, in batches and with gradients; "
        "`bornagain` is BornAgain 25 itself",
        source="Sinha et al., Phys. Rev. B 38, 2297 (1988); Pospelov et al., J. Appl. Cryst. 53, 262 (2020)",
    )
    mode: Literal["fast", "reference"] = option(
        "fast",
        help="of engine dwba: fast interpolates between exit angles and columns and sums in single precision; reference "
        "computes every pixel in double precision",
    )
    accelerator: Literal["cpu", "gpu"] = option("cpu", help="processor of engine dwba")
    batch_bytes: int = option(
        2**28, ge=2**20, unit="byte", help="memory that engine dwba may use for one batch, in each process"
    )
    cross_check: int = option(
        20, ge=1, help="simulations that both engines compute in each run; for geometry flat, in geometry bornagain"
    )
    tolerance: float = option(
        1e-4, gt=0, lt=1, help="largest relative deviation of a bin's expected counts between the engines"
    )
