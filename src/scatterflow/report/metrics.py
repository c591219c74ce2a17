"""What `evaluate/metrics.json` of a study holds, as far as the report reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from scatterflow.errors import StoreError
from scatterflow.products import read_json


class Loose(BaseModel):
    """A part of the metrics: what is not named here is kept as it is; no NaN, no infinity."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class Mean(Loose):
    """A mean over `n` observations with its standard error; `sd` where the spread is meant, `sigmas` = mean / se.

    A mean of log-probabilities is none (minus infinity) where `impossible` truths have zero density.
    """

    mean: float | None = None
    se: float | None = None
    sd: float | None = None
    n: int | None = None
    truncated_mean: float | None = None
    sigmas: float | None = None
    impossible: int | None = None


class Coverage(Loose):
    """Share of observations whose truth lies in the joint credible region, with the interval it must lie in."""

    levels: list[float] = []
    joint: list[float | None] = []
    low: list[float] = []
    high: list[float] = []

    def at(self, level: float) -> tuple[float, float, float] | None:
        """(coverage, low, high) at a level; None where it was not computed."""
        for i, other in enumerate(self.levels):
            joint = self.joint[i]
            if abs(other - level) < 1e-9 and joint is not None:
                return joint, self.low[i], self.high[i]
        return None

    def within(self) -> bool | None:
        """Whether every coverage lies in its interval; None where there is none."""
        rows = [row for row in zip(self.joint, self.low, self.high, strict=True) if row[0] is not None]
        return all(low <= joint <= high for joint, low, high in rows if joint is not None) if rows else None


class Ranks(Loose):
    """Simulation-based calibration: p-value of uniform ranks per parameter, and which Holm's correction rejects."""

    ks_p: dict[str, float | None] = {}
    holm_rejected: list[str] = []


class Estimator(Loose):
    """Figures of merit of one estimator on the held-back simulations."""

    label: str = ""
    works: bool | None = None
    log_prob: Mean | None = None
    information_gain: Mean | None = None
    mae_median: Mean | None = None
    mae_map: Mean | None = None
    wasserstein_to_abc: Mean | None = None
    outside_support_share: Mean | float | None = None
    coverage: Coverage | None = None
    tarp: dict[str, Any] | None = None
    sbc: Ranks | None = None
    seconds_per_observation: float | None = None


class Score(Loose):
    """A score of a frame: above its threshold the frame is unlike every simulation."""

    value: float | None = None
    threshold: float | None = None
    in_range_quantiles: dict[str, float] = {}


class FrameVerdict(Loose):
    """Whether the model may be trusted on a real frame, and why."""

    set: str = ""
    file: str = ""
    status: str = ""
    why: str = ""
    scores: dict[str, Score] = {}


class FalseAlarm(Loose):
    """Share of in-range simulations called outside, with its confidence interval."""

    rate: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None


class OutOfRange(Loose):
    """The verdict on frames: its scores on in-range simulations and how often it is wrong there."""

    scores: dict[str, Score] = {}
    false_alarm: FalseAlarm | None = None


class PaperRow(Loose):
    """A row of the paper's Table 1."""

    wasserstein: float | None = None
    wasserstein_sd: float | None = None
    log_prob: float | None = None
    mae: float | None = None
    inference_s: float | None = None
    data_set_s: float | None = None
    amortized: bool | None = None


class ExperimentRow(Loose):
    """One estimator on the expert's sample."""

    log_prob: float | None = None
    information_gain: float | None = None
    mae_map: float | None = None
    mae_median: float | None = None


class Cost(Loose):
    """What a job took: wall time, core time of all its processes and tasks, peak memory of one process tree.

    `shards` were made, and `disk_mb` are what its folder holds.
    """

    seconds: float | None = None
    core_seconds: float | None = None
    max_rss_mb: float | None = None
    shards: int | None = None
    disk_mb: float | None = None


class Verdict(Loose):
    """The headline of a study."""

    ok: bool
    sentences: list[str]


class Remaining(Loose):
    """Standard deviation that a measurement leaves at least, over the prior's: median and quantiles over samples."""

    low: float
    median: float
    high: float


class Sensitivity(Loose):
    """The Fisher information of each view, per parameter, over `n` samples."""

    n: int
    levels: list[float]
    views: dict[str, dict[str, Remaining]]


class Deviation(Loose):
    """How far a view's bins lie from the other engine's, relative to the expected counts."""

    largest: float
    median: float
    simulation: int


class CrossCheck(Loose):
    """The comparison of the engines (stage cross-check)."""

    engine: str
    reference: str
    geometry: str
    simulations: int
    stored: bool
    tolerance: float
    views: dict[str, Deviation]
    core_seconds_per_simulation: dict[str, float]


class StudyMetrics(Loose):
    """All metrics of a study. Everything may be missing: the report says so."""

    kind: str = ""
    n_held_back: int | None = None
    samples: int | None = None
    verdict: Verdict | None = None
    prior: dict[str, Mean] = {}
    estimators: dict[str, Estimator] = {}
    paper: dict[str, PaperRow] = {}
    experiment: dict[str, ExperimentRow] = {}
    frames: list[FrameVerdict] = []
    out_of_range: OutOfRange | None = None
    reconstruction: dict[str, Any] | None = None
    sensitivity: Sensitivity | None = None
    cross_check: CrossCheck | None = None
    abc_library: dict[str, Any] | None = None
    cost: dict[str, Cost] = {}
    identity: dict[str, Any] = {}


def read_metrics(path: Path) -> tuple[dict[str, Any], StudyMetrics]:
    """`evaluate/metrics.json` as it is and checked. Raises StoreError naming the field."""
    raw = read_json(path, "scatterflow evaluate")
    try:
        return raw, StudyMetrics.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise StoreError(
            f"{place} in {path}", first["msg"], str(first["input"])[:80], "run `scatterflow evaluate` again"
        ) from None
