"""What the stages of kind `particles` do beside the sample: engine, baselines, inference and evaluation."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from scatterflow.config.base import Section, option
from scatterflow.config.inference import FramesConfig

ParticleMethod = Literal["cut-fit", "abc", "peak", "uniform"]


class ParticleForwardConfig(Section):
    """Which engine computes expected counts of particles."""

    engine: Literal["dwba", "bornagain"] = option(
        "dwba",
        help="dwba: tables of form factors, or every pixel where particles lie inside a layer; bornagain: the reference",
    )
    roughness: bool = option(
        True, help="add what the rough interfaces scatter by themselves (engine dwba; bornagain always does)"
    )
    table_tolerance: float = option(
        1e-6, gt=0, le=1e-2, help="largest error of the tables' interpolation along a row, over Porod's law"
    )
    accelerator: Literal["cpu", "gpu"] = option(
        "cpu", help="processor of engine dwba; particles inside a layer are computed on the CPU"
    )
    cross_check: int = option(
        2, ge=1, help="stored simulations that stage cross-check computes again with the other engine"
    )
    tolerance: float = option(
        1e-2,
        gt=0,
        lt=1,
        help="largest relative deviation between the engines that stage cross-check accepts in any bin; tables are good to "
        "1e-4 but beside the beam",
    )
    batch_bytes: int = option(64_000_000, ge=1_000_000, help="memory of the images that are computed at once", unit="B")


class ParticleBaselinesConfig(Section):
    """What people do today, on the same images."""

    methods: tuple[ParticleMethod, ...] = option(
        ("cut-fit", "abc", "peak", "uniform"),
        help="cut-fit: least squares on an in-plane and an out-of-plane cut; abc: the nearest stored simulations; peak: "
        "2 pi over the position of the correlation peak; uniform: no measurement at all",
        min_length=1,
    )
    starts: int = option(8, ge=1, le=256, help="starts of the least-squares fit, the best of random ones")
    fitted: int = option(100, ge=1, help="held-back images that are fitted; fits take most of the time")
    accepted: int = option(100, ge=10, help="simulations that ABC accepts")


class ParticleInferenceConfig(Section):
    """Posterior samples, and the verdict whether a model may be trusted on an image."""

    samples: int = option(400, ge=50, le=100_000, help="posterior samples per image")
    interval: float = option(0.68, gt=0, lt=1, help="share that central intervals and bands hold")
    predictive_draws: int = option(
        16, ge=4, le=1000, help="posterior samples that are simulated for the check of an image"
    )
    predictive_references: int = option(200, ge=20, help="validation simulations that set the threshold of the check")
    false_alarm_rate: float = option(
        0.01, gt=0, lt=0.5, help="share of in-range simulations that the verdict calls 'outside', per score"
    )
    misfit_starts: int = option(
        8,
        ge=0,
        le=100,
        help="measured frames that fail the check of a model with refine_steps are answered from what the model does "
        "explain by a search from so many points: a second of one core each for 64 x 160 bins; 0: answered as others are",
    )
    frames: tuple[FramesConfig, ...] = option((), help="real frames to infer in this run")


class ParticleEvaluationConfig(Section):
    """On which simulated images every method is judged."""

    total_counts: float = option(1e5, gt=0, help="the sample's counts in the view of the test images", unit="counts")
    counts_series: tuple[float, ...] = option(
        (1e3, 1e4, 1e5, 1e6), help="counts at which errors are shown beside the Cramer-Rao bound", unit="counts"
    )
    series_rows: int = option(200, ge=10, help="held-back simulations of each point of a series")
    beyond_disorder: tuple[float, float] = option(
        (0.4, 0.6), help="disorder beyond the prior's, on which intervals must widen and the verdict must tell"
    )
    bound_rows: int = option(50, ge=2, help="held-back simulations whose Cramer-Rao bound is computed")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        low, high = self.beyond_disorder
        if not 0 < low < high <= 1:
            raise ValueError(f"beyond_disorder must ascend between 0 and 1, got {[low, high]}")
        if any(value <= 0 for value in self.counts_series):
            raise ValueError(f"counts_series must be above 0, got {list(self.counts_series)}")
        return self
