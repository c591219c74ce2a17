"""Real GISAXS frames of particles: read, resample to the model's view, answer, check, rebuild."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import imagecheck, misfit, verdict
from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import BundleError, FrameError
from scatterflow.frames import read_frames
from scatterflow.inference import check_horizon
from scatterflow.particles import QUANTITIES, VIEW, ParticlesStudy
from scatterflow.preprocess.resample import to_views

if TYPE_CHECKING:
    from scatterflow.models.particlemodel import ParticleModel

Array = NDArray[np.float64]
_AROUND = 0.1  # of its wave number, to either side, that a correlation peak has to be seen at
_SHOWN = (0.05, 0.5, 0.95)  # quantiles of the cuts that posterior samples predict


@dataclass(frozen=True)
class ParticleFrame:
    """What is known of one frame. `status`: ok, outside, unreadable, masked-out or wrong-instrument; `why` in words.

    Where there is an answer: `answer`, a dataset over one simulation (see `estimates`), `scores` by name with their
    thresholds, `samples` (sample, parameter), and `shown`: recorded and rebuilt image, cuts with predictive bands.
    `despite`: the model cannot reproduce the frame, and the answer is that of `misfit`.
    """

    file: str
    status: str
    why: str
    answer: xr.Dataset | None = None
    scores: dict[str, dict[str, Any]] | None = None
    samples: xr.DataArray | None = None
    shown: xr.Dataset | None = None
    despite: bool = False

    def summary(self) -> dict[str, Any]:
        """Plain JSON: values with their intervals, without arrays."""
        found: dict[str, Any] = {"file": self.file, "status": self.status, "why": self.why}
        if self.answer is None:
            return found
        found["estimates"] = {
            name: {
                "value": float(self.answer[name][0]),
                **{key: float(self.answer[f"{name}_{key}"][0]) for key in ("sd", "low", "high")},
                "unit": self.answer[name].attrs["units"],
            }
            for name in QUANTITIES
            if name in self.answer
        }
        found["scores"], found["despite_misfit"] = self.scores, self.despite
        if self.shown is not None:
            places = {key: float(self.shown.attrs[key]) for key in ("peak_px_measured", "peak_px_rebuilt")}
            found["peak"] = {key: value if np.isfinite(value) else None for key, value in places.items()}
        return found


def infer_frames(
    paths: Iterable[str | Path], model: ParticleModel, instrument: InstrumentConfig | None = None, seed: int = 0
) -> Iterator[ParticleFrame]:
    """Answer frames one after the other; a frame that cannot be used gives a result with its status, never an exception.

    `instrument` is the frames' own; none: that of the model's study. Stacks give one result per frame.
    """
    own = instrument or model.study.config.instrument
    flat = own.model_copy(update={"geometry": "flat"})  # a real detector is a plane
    for name, frame in read_frames(paths, own):
        if isinstance(frame, FrameError):
            yield ParticleFrame(name, frame.status, str(frame))
            continue
        try:
            yield _answer(name, frame, flat, model, seed)
        except FrameError as error:
            yield ParticleFrame(name, error.status, str(error))


def _answer(
    name: str, frame: xr.Dataset, instrument: InstrumentConfig, model: ParticleModel, seed: int
) -> ParticleFrame:
    study = model.study
    check_horizon(name, instrument)
    recorded = to_views(frame, instrument, study.config.instrument, (VIEW,), study.config.artefacts.min_valid_share)
    features = study.seen(recorded)
    _check_counts(name, features)
    settings = study.config.inference
    samples = model.samples(features, settings.samples, seed)
    found = imagecheck.scores(study, model.feature_score, samples, features)
    values = {key: float(each[0]) for key, each in found.items()}
    if missing := sorted(set(values) - set(model.verdict)):
        must = "must hold a threshold for every score of this version"
        raise BundleError(f"bundle of model {model.name}", must, f"none for {', '.join(missing)}", "train it again")
    status, why = verdict.judge(values, model.verdict)
    scores = {key: {"value": values[key], **model.verdict[key]} for key in values}
    fails = not values["predictive"] <= model.verdict["predictive"]["threshold"]
    best = None
    if fails and model.config.refine_steps and settings.misfit_starts:
        samples, best = misfit.resampled(study, samples, features, seed)
        why = f"{why}; answered with scales of rows, tails and interfaces free"
        model = replace(model, refined_factors={})  # they are those of images that are reproduced
    answer = model.predict(features, settings.samples, seed, samples=samples)
    shown = _shown(study, samples.values[0, : settings.predictive_draws], features, instrument, best)
    return ParticleFrame(
        name, status, why, answer, scores, samples.isel(observation=0), shown, despite=best is not None
    )


def _check_counts(name: str, features: xr.Dataset) -> None:
    """Raise FrameError for an image without any counts."""
    if not float(features[VIEW].sum()) > 0:
        what, must = f"frame {name}", "must hold counts in the valid bins of the model's view"
        raise FrameError(what, must, 0, "check mask and instrument file", status="masked-out")


def _shown(
    study: ParticlesStudy, theta: Array, features: xr.Dataset, instrument: InstrumentConfig, best: Array | None
) -> xr.Dataset:
    """What the report draws: recorded and rebuilt image, and cuts (mean counts of the valid bins) with bands.

    The bands are those of posterior samples `theta` (sample, parameter), each with the scale and the even background that
    fit best, the rebuilt image is the mean of these. Where `best` (1, parameter) is what `misfit` found, the rebuilt image
    is that of it, and all that `misfit` adds is in both. Attributes: where the correlation peak is in both images, in the
    brightest rows, in pixels of the frame's own detector from its beam.
    """
    counts, valid = (features[name].values for name in (VIEW, f"mask_{VIEW}"))
    if best is None:
        recorded_often, valid_often = (np.repeat(each, len(theta), axis=0) for each in (counts, valid))
        images = imagecheck.fitted(study.expected(theta), recorded_often, valid_often).image
        rebuilt = images.mean(axis=0)
    else:
        of, each = misfit.seen(study, counts[0], valid[0]), study.of_particles(np.concatenate([best, theta]))
        images = np.stack([misfit.explain(one.astype(np.float64), of).image for one in each])
        rebuilt, images = images[0], images[1:]
    coordinates = study.coordinates(VIEW)
    result = xr.Dataset(
        {
            "recorded": (("z", "y"), counts[0]),
            "valid": (("z", "y"), valid[0]),
            "rebuilt": (("z", "y"), rebuilt.astype(np.float32)),
        }
    )
    for along, name in (("z", "qz"), ("y", "qy")):
        result[name] = (along, coordinates[f"{name}_{VIEW}"][1], {"units": "nm^-1"})
    for axis, other, name in ((1, "y", "in_plane"), (2, "z", "out_of_plane")):
        number = np.maximum(valid[0].sum(axis - 1), 1)
        result[f"{name}_recorded"] = (other, (counts[0] * valid[0]).sum(axis - 1) / number)
        result[f"{name}_valid"] = (other, valid[0].any(axis - 1))
        cuts = (images * valid).sum(axis) / number
        low, middle, high = np.quantile(cuts, _SHOWN, axis=0)
        if best is not None:  # samples of a wrong model lie about it on one side
            middle = (rebuilt * valid[0]).sum(axis - 1) / number
        bands = np.stack([np.minimum(low, middle), middle, np.maximum(high, middle)])
        result[f"{name}_rebuilt"] = (("quantile", other), bands)
    result = result.assign_coords(quantile=list(_SHOWN))
    rows = None if study.config.sample.layer else brightest_rows(study, counts[0], valid[0])
    for what, image, seen in (("measured", counts[0], valid[0]), ("rebuilt", rebuilt, np.ones_like(valid[0]))):
        result.attrs[f"peak_px_{what}"] = peak_px(study, image, seen, instrument, rows)
    return result


def brightest_rows(study: ParticlesStudy, counts: Array, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """As many neighbouring rows (z,) above the horizon as an in-plane cut sums, those with the most counts beside the beam.

    In a frame whose geometry is known these are the rows of the Yoneda line.
    """
    cuts = study.cuts
    number = int(cuts.yoneda.sum())
    totals = np.where(cuts.above, (counts * valid)[:, cuts.beside].sum(axis=1, dtype=float), 0.0)
    first = int(np.convolve(totals, np.ones(number), "valid").argmax())
    return np.isin(np.arange(len(totals)), np.arange(first, first + number))


def peak_px(
    study: ParticlesStudy,
    image: Array,
    valid: NDArray[np.bool_],
    instrument: InstrumentConfig,
    rows: NDArray[np.bool_] | None = None,
) -> float:
    """Pixels between beam and correlation peak on the frame's detector; NaN where there is no peak.

    In the sum of `rows` (z,), by default those of the in-plane cut. Mean of the sides of the beam on which nothing around
    the peak is masked: a gap beside it moves what is left of it.
    """
    from scatterflow.baselines.cuts import peak_distance  # of the cuts' modules only here

    if study.config.sample.layer:
        return float("nan")  # cuts are those of particles on the surface
    cuts, wavenumber = study.cuts, geometry.wavenumber(instrument)
    cuts = cuts if rows is None else replace(cuts, yoneda=rows)
    beam = geometry.foot_px(study.config.instrument)[1]
    places = []
    for side in (-1, 1):
        here = side * (cuts.columns.mean(axis=1) - beam) > 0
        found = peak_distance(image[None], (valid & here)[None], cuts)
        peak = float(2 * np.pi / found["distance_nm"][0])
        whole = valid[np.ix_(cuts.yoneda, here & (np.abs(np.log(cuts.q / peak)) < _AROUND))]
        if bool(found["success"][0]) and whole.all():
            column = geometry.columns_px(instrument, np.arcsin(np.array(peak / wavenumber)))
            places.append(float(column - geometry.foot_px(instrument)[1]))
    return float(np.mean(places)) if places else float("nan")


def line(summary: dict[str, Any]) -> str:
    """What is said of a frame, in one line."""
    told = []
    for name, entry in summary.get("estimates", {}).items():
        unit = "" if entry["unit"] == "1" else f" {entry['unit']}"
        told.append(f"{name} {entry['value']:.3g} ({entry['low']:.3g} to {entry['high']:.3g}){unit}")
    return ": ".join([summary["file"], ", ".join([summary["status"], summary["why"], *told])])


def result_dataset(frame: ParticleFrame) -> xr.Dataset:
    """All that was found of a frame, as a NetCDF file keeps it."""
    assert frame.answer is not None
    assert frame.samples is not None
    answer = frame.answer.isel(simulation=0)
    answer["samples"] = (("sample", "parameter"), frame.samples.values)
    return answer.assign_coords(parameter=list(frame.samples["parameter"].values)).assign_attrs(
        file=frame.file, status=frame.status, why=frame.why
    )
