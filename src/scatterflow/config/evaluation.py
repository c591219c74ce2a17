"""How posteriors are judged on simulations that no training and no ABC library has seen."""

from __future__ import annotations

from scatterflow.config.base import Section, option


class EvaluationConfig(Section):
    """The levels at which calibration is read."""

    coverage_levels: tuple[float, ...] = option(
        (0.5, 0.68, 0.9, 0.95), help="credibility levels at which coverage is read", min_length=1
    )
    coverage_confidence: float = option(
        0.99, help="confidence of the binomial interval that a coverage must lie in", gt=0, lt=1
    )
    significance: float = option(
        0.01, help="level of the calibration tests, after Holm's correction over the parameters", gt=0, lt=1
    )
    trim: float = option(
        0.05,
        help="share cut from each tail for the trimmed mean that stands beside a mean log-probability (its "
        "outliers are huge)",
        ge=0,
        lt=0.5,
    )
