"""Command `infer SCAN` with an estimator of kind nanodiffraction: every frame of a scan, and its maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow.cli.output import complain, result
from scatterflow.config.scan import ScanConfig
from scatterflow.errors import ScatterflowError
from scatterflow.models import FrameModel
from scatterflow.nexus import write_maps
from scatterflow.stages.nanodiffraction import scans

FAINT = "faint"  # a frame that shows no peak


def infer_scans(paths: Sequence[str], model: FrameModel, output: Path | None, as_json: bool) -> int:
    """Infer every frame of the scans `paths`; returns the exit status, 2 if a frame or a scan got no answer.

    A scan is cut and binned as the first one of the model's study. One line per frame: status, why, and values with their
    standard deviations. `output` receives a NeXus file of maps for each scan.
    """
    summaries: list[dict[str, Any]] = []
    written: list[str] = []
    for path in paths:
        try:
            found = _read(model, Path(path))
        except ScatterflowError as error:
            summaries.append({"file": path, "status": "unreadable", "why": str(error)})
            if not as_json:
                print(f"{path}: unreadable, {error}", flush=True)
            continue
        values, sd = found.spread(*model.regressor.predict(found.lit))
        answer = scans.result(model.study, found, {model.name: (values, sd)})
        for summary in _summaries(path, model, found, answer, scans.signal(found, values)):
            summaries.append(summary)
            if not as_json:
                print(_line(summary), flush=True)
        if output is not None:
            place = output / f"{found.name}.nxs"
            write_maps(place, answer)
            written.append(str(place))
    statuses = Counter(str(summary["status"]) for summary in summaries)
    document = {"command": "infer", "statuses": statuses, "maps": written, "frames": summaries}
    result(document, written, as_json)
    refused = sum(number for status, number in statuses.items() if status not in ("ok", "outside", FAINT))
    if refused:
        listed = ", ".join(f"{number} {status}" for status, number in statuses.items())
        complain(f"{refused} of {len(summaries)} frames got no answer ({listed})")
    return 2 if refused else 0


def _read(model: FrameModel, path: Path) -> scans.Scan:
    known = model.study.config.scans
    config = known[0] if known else ScanConfig(file=str(path))
    return scans.read(model.study, path, config.model_copy(update={"file": str(path), "name": path.stem}))


def _summaries(
    path: str, model: FrameModel, found: scans.Scan, answer: Any, seen: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """What is said of every frame, in order."""
    values, sd = (answer[what].values[0].reshape(len(found.frames), -1) for what in ("estimate", "sd"))
    deviance = answer["goodness"].values[0].ravel()
    summaries = []
    for index, recorded in enumerate(found.status):
        summary: dict[str, Any] = {"file": path, "index": index, "status": str(recorded), "why": f"frame is {recorded}"}
        if np.isfinite(values[index]).all():
            outside = not deviance[index] <= model.threshold
            summary["status"] = "outside" if outside else "ok"
            summary["why"] = (
                f"deviance {deviance[index]:.3g}, {'above' if outside else 'at most'} {model.threshold:.3g}"
            )
            if not outside and not seen[index]:
                summary["status"] = FAINT
                summary["why"] = "an even background explains the frame as well: the values mean nothing"
            summary["values"] = dict(zip(model.names, values[index].tolist(), strict=True))
            summary["sd"] = dict(zip(model.names, sd[index].tolist(), strict=True))
        summaries.append(summary)
    return summaries


def _line(summary: dict[str, Any]) -> str:
    text = f"{summary['file']}[{summary['index']}]: {summary['status']}, {summary['why']}"
    if "values" in summary:
        told = (f"{name} {value:.4g} +- {summary['sd'][name]:.2g}" for name, value in summary["values"].items())
        text += "; " + ", ".join(told)
    return text
