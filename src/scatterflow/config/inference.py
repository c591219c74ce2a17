"""Inference on held-back simulations, on the expert sample and on real frames."""

from __future__ import annotations

from scatterflow.config.base import Section, option


class FramesConfig(Section):
    """A set of real frames that are inferred and shown in the report."""

    name: str = option(pattern=r"^[A-Za-z0-9_-]+$", help="short name of the set")
    files: tuple[str, ...] = option(
        min_length=1, help="paths of the frames, below the folder SCATTERFLOW_DATA (default ../shared/data)"
    )
    instrument: str = option(help="instrument file of these frames (YAML), relative to the configuration file")
    source: str = option("", help="where the frames come from and under which licence")


class InferenceConfig(Section):
    """Posterior samples and the verdict whether a model may be trusted on a frame."""

    samples: int = option(1000, ge=10, le=100_000, help="posterior samples per observation")
    false_alarm_rate: float = option(
        0.01,
        gt=0,
        lt=0.5,
        help="share of in-range simulations that the verdict calls 'outside' (per score, on validation)",
    )
    predictive_draws: int = option(
        16, ge=4, le=1000, help="posterior draws that are simulated for the posterior predictive check of a frame"
    )
    predictive_references: int = option(
        100, ge=20, help="validation simulations that set the threshold of the posterior predictive check"
    )
    frames: tuple[FramesConfig, ...] = option((), help="real frames to infer in this run")
