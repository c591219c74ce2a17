"""What the likelihood-free baselines do: approximate Bayesian computation (ABC) on the stored simulations."""

from __future__ import annotations

from typing import Literal

from scatterflow.config.base import Section, option

_PAPER = "Zhdanov et al. (2022), section 3, Baselines and evaluation"

_TUNED = (
    "largest information gain among 8, 16, 32, 64 components and 500, 1000, 1500, 3000 accepted, measured on 3,000 "
    "simulations of the 3-layer study"
)

AbcMethod = Literal["abc-kde", "abc-kde-normal", "abc-regression"]


class BaselinesConfig(Section):
    """ABC rejection with a kernel density estimate as published, and stronger ABC on the same simulations."""

    methods: tuple[AbcMethod, ...] = option(
        ("abc-kde", "abc-regression"),
        help="baselines to run: `abc-kde` is the published one (fixed Gaussian kernel on box-scaled parameters, which "
        "leaks out of the prior's support), `abc-kde-normal` puts the kernel into the unbounded coordinate (no leak), "
        "`abc-regression` also moves the accepted parameters to the observation by local regression",
        source=_PAPER + "; regression: doi:10.1093/genetics/162.4.2025, doi:10.1007/s11222-009-9116-0",
        min_length=1,
    )
    acceptance: float = option(
        0.002,
        help="share of the library that rejection accepts, by quantile of the distance",
        source=_PAPER,
        gt=0,
        le=1,
    )
    min_accepted: int = option(
        200,
        help="accept at least so many simulations, whatever the acceptance (small libraries)",
        source="design choice: below it an 18-parameter density estimate is noise",
        ge=10,
    )
    kde_bandwidth: float = option(
        0.2, help="kernel standard deviation of `abc-kde` in box-scaled parameters", source=_PAPER, gt=0
    )
    regression_acceptance: float = option(
        0.005,
        help="share of the library that the regression is fitted on; larger than `acceptance` because the regression "
        "corrects for the distance",
        source="Beaumont et al. (2002), doi:10.1093/genetics/162.4.2025: regression tolerates wider acceptance",
        gt=0,
        le=1,
    )
    regression_min_accepted: int = option(
        500, help="fit the regression on at least so many simulations (all, if there are fewer)", source=_TUNED, ge=50
    )
    regression_components: int = option(
        32, help="principal components of the features that the regression uses", source=_TUNED, ge=1
    )
