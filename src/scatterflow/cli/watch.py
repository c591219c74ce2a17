"""Command `infer --watch`: the model's answer to every frame of a running measurement, as it comes."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow.cli.output import complain, result
from scatterflow.errors import FrameError
from scatterflow.framefiles import reading, text
from scatterflow.frames import open_stack, split_path
from scatterflow.watch import Settings, Summary, watch
from scatterflow.watching.answers import Estimator, Named, Prepare, Region
from scatterflow.watching.refresh import Load


def follow(
    source: str,
    bundle: Path,
    output: Path | None,
    settings: Settings,
    as_json: bool,
    *,
    mask: Path | None = None,
    region: Region | None = None,
    prepare: Prepare | None = None,
    load: Load | None = None,
) -> int:
    """Answer the frames of `source` until it ends; returns the exit status, 2 if a frame got no answer.

    One line per frame on stdout, with `as_json` one document at the end; what else there is to say on stderr. `mask` is
    a file whose non-zero pixels mean nothing, `load` makes an estimator of a bundle (default: `load_regressor`). Raises
    Stopped where a signal ended it, after the batch and the summary.
    """
    import torch

    torch.set_num_threads(1)  # small batches gain nothing from more, and the writer's machine has other things to do
    excluded = _excluded(mask) if mask is not None else None
    summary = watch(
        source,
        bundle,
        load or _regressor,
        output=output,
        region=region,
        prepare=prepare,
        excluded=excluded,
        settings=settings,
        tell=_silent if as_json else _print,
    )
    result(
        {"command": "infer", "model": str(bundle), "output": str(output) if output else None} | summary.as_json(),
        [],
        as_json,
    )
    return _status(summary)


def _regressor(folder: Path) -> Estimator:
    """The estimator of a bundle, with what the watch asks of one."""
    from scatterflow.models.regressor import load_regressor  # here, since it imports torch

    found = load_regressor(folder)
    return Named(found.box.names, found.beam.shape, found.predict)


def _print(lines: str) -> None:
    sys.stdout.write(lines + "\n")
    sys.stdout.flush()


def _silent(_lines: str) -> None:
    """With --json, stdout holds one document and nothing else."""


def _status(summary: Summary) -> int:
    if summary.died:
        what, must = f"frames of {summary.source}", "must be closed by their writer"
        remedy = f"the {summary.frames} frames that came are answered; did the writer die? See its log"
        complain(FrameError(what, must, summary.ended, remedy))
    refused = {status: number for status in ("broken", "missing") if (number := getattr(summary, status))}
    if refused:
        listed = ", ".join(f"{number} {status}" for status, number in refused.items())
        complain(f"{sum(refused.values())} of {summary.frames + summary.missing} frames got no answer ({listed})")
    return 2 if summary.died or refused else 0


def _excluded(mask: Path) -> NDArray[np.bool_]:
    """Pixels (row, column) that are not zero in a file of one image, as stored."""
    with contextlib.closing(open_stack(mask)) as stack, reading(split_path(mask)[0]):
        if stack.frames != 1:
            raise FrameError(f"mask {text(mask)}", "must hold one image", stack.frames, "give the mask of the detector")
        values: NDArray[Any] = stack.read(0)[0]
    if values.ndim != 2:
        raise FrameError(f"mask {text(mask)}", "must be one image of rows x columns", f"shape {values.shape}")
    return np.asarray(values != 0)
