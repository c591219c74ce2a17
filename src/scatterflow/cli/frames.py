"""Command `infer FRAMES`: the model's answer and its verdict, frame by frame."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scatterflow.cli.output import complain, result
from scatterflow.config.instrument_file import read_instrument
from scatterflow.errors import ConfigError
from scatterflow.exports import write_posterior
from scatterflow.inference import FrameResult, infer_frames
from scatterflow.models import Model, load_model
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
    own = read_instrument(instrument, incidence_deg) if instrument is not None else None
    model = load_model(bundle)
    summaries, names = [], Counter[str]()
    try:
        for each in infer_frames(frames, model, own):
            summaries.append(each.summary())
            if not as_json:
                print(f"{each.file}: {each.status}, {each.why}", flush=True)
            if output is not None and each.samples is not None:
                summaries[-1]["samples"] = str(_write(output, model, each, names))
    finally:  # what is known when a run is stopped is known
        if output is not None:
            write_json(output / "frames.json", summaries)
    statuses = Counter(str(summary["status"]) for summary in summaries)
    result({"command": "infer", "model": str(bundle), "statuses": statuses, "frames": summaries}, [], as_json)
    refused = {status: number for status, number in statuses.items() if status not in ANSWERED}
    if refused:
        listed = ", ".join(f"{number} {status}" for status, number in refused.items())
        complain(f"{sum(refused.values())} of {len(summaries)} frames got no answer ({listed}); the others are done")
    return 2 if refused else 0


def _write(output: Path, model: Model, frame: FrameResult, names: Counter[str]) -> Path:
    """Posterior samples of a frame, in a file named after it."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(frame.file).name).strip("-") or "frame"
    names[name] += 1
    path = output / (f"{name}.nc" if names[name] == 1 else f"{name}-{names[name]}.nc")
    assert frame.samples is not None and frame.features is not None  # the caller saw samples  # noqa: PT018
    samples = frame.samples.expand_dims(observation=[0])
    density = model.posterior(frame.features).log_prob(samples)
    attrs = {"study": model.study.name, "estimator": model.name, "frame": frame.file, "status": frame.status}
    return write_posterior(path, samples, density, frame.features, attrs)
