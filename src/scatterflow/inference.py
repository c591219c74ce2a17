"""Real frames and their verdict: read, resample to the model's views, infer, and say whether to believe it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from scatterflow import instrument as geometry
from scatterflow import verdict
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import FrameError
from scatterflow.frames import read_frames
from scatterflow.multilayer import MultilayerStudy
from scatterflow.preprocess.resample import to_views

if TYPE_CHECKING:
    from scatterflow.models import Model

THUMBNAIL_ROWS = 400  # rows to which a frame is binned down for pictures
_VIEWS = ("profile", "image")


@dataclass(frozen=True)
class FrameResult:
    """What is known of one frame. `status`: ok, outside, unreadable, masked-out or wrong-instrument; `why` in words.

    Where the frame could be read, `scores` holds value, threshold and in-range quantiles of each score; `estimates`
    (value, sd, unit) by parameter, to be believed only with status ok; `features`, `recorded` and `predictive` are what
    pictures need.
    """

    file: str
    status: str
    why: str
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    estimates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: xr.DataArray | None = None
    features: xr.Dataset | None = None
    recorded: xr.Dataset | None = None
    frame: xr.Dataset | None = None
    predictive: xr.DataArray | None = None

    def summary(self) -> dict[str, Any]:
        """Plain JSON: without arrays."""
        return {
            "file": self.file,
            "status": self.status,
            "why": self.why,
            "scores": {name: dict(score) for name, score in self.scores.items()},
            "estimates": {name: dict(estimate) for name, estimate in self.estimates.items()},
        }


def infer_frames(
    paths: Iterable[str | Path], model: Model, instrument: InstrumentConfig | None = None, seed: int = 0
) -> Iterator[FrameResult]:
    """Infer frames one after the other; a frame that cannot be used gives a result with its status, never an exception.

    `instrument` is the frames' own; none: that of the model's study. Stacks give one result per frame.
    """
    study = model.study
    own = instrument or study.config.instrument
    flat = own.model_copy(update={"geometry": "flat"})  # a real detector is a plane
    for name, frame in read_frames(paths, own):
        if isinstance(frame, FrameError):
            yield FrameResult(name, frame.status, str(frame))
            continue
        try:
            yield _infer(name, frame, flat, model, seed)
        except FrameError as error:
            yield FrameResult(name, error.status, str(error), frame=frame)


def _infer(name: str, frame: xr.Dataset, instrument: InstrumentConfig, model: Model, seed: int) -> FrameResult:
    study = model.study
    check_horizon(name, instrument)
    recorded = to_views(frame, instrument, study.config.instrument, _VIEWS, study.config.observe.min_valid_share)
    features = study.preprocess(recorded)
    scores, draws = score(model, study, features, seed)
    values = {key: float(value[0]) for key, value in scores.items()}
    status, why = verdict.judge(values, model.verdict)
    posterior = model.posterior(features)
    samples = posterior.sample(study.config.inference.samples, seed=seed).isel(observation=0)
    estimates = {
        parameter: {"value": float(np.median(column)), "sd": float(np.std(column, ddof=1)), "unit": unit}
        for parameter, unit, column in zip(study.prior.names, study.prior.units, samples.values.T, strict=True)
    }
    return FrameResult(
        name,
        status,
        why,
        {key: {"value": values[key], **model.verdict[key]} for key in values},
        estimates,
        samples,
        features,
        recorded,
        frame,
        draws.isel(observation=0),
    )


def score(
    model: Model, study: MultilayerStudy, features: xr.Dataset, seed: int, experiment: bool = False
) -> tuple[dict[str, np.ndarray[Any, np.dtype[np.float64]]], xr.DataArray]:
    """Both scores of the verdict, (simulation,) each, and the posterior predictive profiles (observation, draw, point)."""
    draws = verdict.predictive_draws(
        study, model.posterior(features), study.config.inference.predictive_draws, seed, experiment
    )
    found = {"features": model.feature_score.score(features), "predictive": verdict.predictive_score(features, draws)}
    return found, draws


def check_horizon(name: str, instrument: InstrumentConfig) -> None:
    """Raise FrameError where the sample's horizon lies outside the frame: nothing above it could have been measured."""
    row, rows = geometry.horizon_px(instrument), instrument.shape[0]
    if not 0 <= row < rows:
        raise FrameError(
            f"{name}: the horizon (exit angle 0)",
            f"must lie inside the frame's {rows} rows",
            f"row {row:.0f}",
            "check beam centre, incidence, distance and pixel size of the instrument file",
            status="wrong-instrument",
        )


def thumbnail(frame: xr.Dataset, instrument: InstrumentConfig) -> xr.DataArray:
    """Mean counts per valid pixel of a frame, binned to about `THUMBNAIL_ROWS` rows, NaN where masked; q on the axes."""
    step = max(1, -(-frame.sizes["z"] // THUMBNAIL_ROWS))
    values = frame["counts"].where(frame["mask"])
    small = values.coarsen(z=step, y=step, boundary="trim").mean()
    z, y = ((np.arange(small.sizes[axis]) * step + step / 2).astype(np.float64) for axis in ("z", "y"))
    _, foot_y = geometry.foot_px(instrument)
    alpha, _ = geometry.angles(instrument, z, np.array(foot_y))
    beam = geometry.rows_px(instrument, np.radians(instrument.incidence_deg))
    alpha_beam, phi = geometry.angles(instrument, beam, y)
    qz = geometry.scattering_vector(instrument, alpha, np.zeros_like(alpha))[2]
    qy = geometry.scattering_vector(instrument, alpha_beam, phi)[1]
    return small.astype(np.float32).assign_coords(
        qz=("z", qz, {"units": "nm^-1", "long_name": "scattering vector q_z"}),
        qy=("y", qy, {"units": "nm^-1", "long_name": "scattering vector q_y"}),
    )
