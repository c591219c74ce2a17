"""Command `infer FRAMES`: the model's answer and its verdict, frame by frame."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from scatterflow.cli.output import complain, result
from scatterflow.cli.scans import infer_scans
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.config.instrument_file import read_instrument
from scatterflow.errors import ConfigError
from scatterflow.exports import write_posterior, write_tree
from scatterflow.files import disk_errors
from scatterflow.inference import FrameResult, infer_frames
from scatterflow.models import FrameModel, Model, ParticleModel, load_model
from scatterflow.products import write_json

ANSWERED = ("ok", "outside")  # the model gave an answer, to be believed only where it is ok


def infer(
    frames: Sequence[str],
    bundle: Path,
    instrument: Path | None,
    incidence_deg: float | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Infer `frames` with the model in `bundle`; returns the exit status, 2 if a frame got no answer.

    `output` receives `frames.json` and, per answered frame, the posterior samples (NetCDF in ArviZ layout).
    """
    if incidence_deg is not None and instrument is None:
        raise ConfigError("--incidence-deg", "needs the --instrument whose incidence it is")
    if output is not None:
        with disk_errors(output):
            output.mkdir(parents=True, exist_ok=True)  # now, not after an hour of frames
    own = read_instrument(instrument, incidence_deg) if instrument is not None else None
    model = load_model(bundle)
    if isinstance(model, ParticleModel):
        return _particles(frames, model, own, output, as_json, str(bundle))
    if isinstance(model, FrameModel):
        if own is not None:
            what, got = "--instrument", "a bundle of kind nanodiffraction, which has its own beam"
            raise ConfigError(what, "needs a bundle of kind multilayer or particles", got, "leave it out")
        return infer_scans(frames, model, output, as_json)
    summaries: list[dict[str, Any]] = []
    written: set[Path] = set()
    try:
        for each in infer_frames(frames, model, own):
            summaries.append(each.summary())
            if not as_json:
                print(f"{each.file}: {each.status}, {each.why}", flush=True)
            if output is not None and each.samples is not None and each.features is not None:
                path = _free(output, each.file, written)
                _write(path, model, each, each.samples, each.features)
                summaries[-1]["samples"] = str(path)
    finally:  # what is known when a run is stopped is known
        if output is not None:
            write_json(output / "frames.json", summaries)
    return _ending(summaries, str(bundle), as_json)


def _particles(
    frames: Sequence[str],
    model: ParticleModel,
    own: InstrumentConfig | None,
    output: Path | None,
    as_json: bool,
    bundle: str,
) -> int:
    """The same by a model of particles: p(R), spacing and disorder, with intervals and a file for each frame."""
    from scatterflow import particleframes  # torch is only needed here

    summaries: list[dict[str, Any]] = []
    written: set[Path] = set()
    try:
        for each in particleframes.infer_frames(frames, model, own):
            summaries.append(each.summary())
            if not as_json:
                print(particleframes.line(summaries[-1]), flush=True)
            if output is not None and each.answer is not None:
                path = _free(output, each.file, written)
                write_tree(path, {"/": particleframes.result_dataset(each)})
                summaries[-1]["result"] = str(path)
    finally:  # what is known when a run is stopped is known
        if output is not None:
            write_json(output / "frames.json", summaries)
    return _ending(summaries, bundle, as_json)


def _ending(summaries: Sequence[dict[str, Any]], bundle: str, as_json: bool) -> int:
    """The document of --json, a complaint about frames without an answer, and the exit status: 2 if there are any."""
    statuses = Counter(str(summary["status"]) for summary in summaries)
    result({"command": "infer", "model": bundle, "statuses": statuses, "frames": summaries}, [], as_json)
    refused = {status: number for status, number in statuses.items() if status not in ANSWERED}
    if refused:
        listed = ", ".join(f"{number} {status}" for status, number in refused.items())
        rest = "; the others are done" if len(refused) < len(statuses) else ""
        complain(f"{sum(refused.values())} of {len(summaries)} frames got no answer ({listed}){rest}")
    return 2 if refused else 0


def _free(folder: Path, file: str, written: set[Path]) -> Path:
    """A path in `folder` after the frame's own name that this run has not written yet."""
    name, _, inside = file.partition("::")  # of a stack: the dataset and the index
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).name + inside).strip("-") or "frame"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    path = next(path for name in names if (path := folder / f"{name}.nc") not in written)
    written.add(path)
    return path


def _write(path: Path, model: Model, frame: FrameResult, samples: xr.DataArray, features: xr.Dataset) -> None:
    """Posterior samples (sample, parameter) of a frame with their log densities."""
    labelled = samples.expand_dims(observation=[0])
    density = model.posterior(features).log_prob(labelled)
    attrs = {"study": model.study.name, "estimator": model.name, "frame": frame.file, "status": frame.status}
    attrs |= {"log_prob_of": "box-scaled parameters, natural log"}
    write_posterior(path, labelled, density, features, attrs)
