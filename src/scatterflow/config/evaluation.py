"""How posteriors are judged on simulations that no training and no ABC library has seen."""

from __future__ import annotations

from scatterflow.config.base import Section, option


class EvaluationConfig(Section):
    """Size of the evaluation and the levels at which calibration is read."""

    observations: int = option(
        500, help="held-back simulations that every estimator is judged on (the first ones)", ge=100
    )
    samples: int = option(1000, help="posterior samples per observation", ge=100)
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
    c2st_observations: int = option(
        10, help="observations on which two posteriors are told apart by a classifier (costly)", ge=2
    )
