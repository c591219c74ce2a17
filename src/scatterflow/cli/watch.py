"""Command `infer --watch`: the model's answer to every frame of a running measurement, as it comes."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow.cli.output import complain, result
from scatterflow.config.scan import ScanConfig
from scatterflow.errors import FrameError
from scatterflow.framefiles import reading, text
from scatterflow.frames import open_stack, split_path
from scatterflow.scanfile import place
from scatterflow.watch import Settings, Summary, watch
from scatterflow.watching.answers import Estimator, Named
from scatterflow.watching.checking import Check
from scatterflow.watching.cutting import Cut, Scanned
from scatterflow.watching.refresh import Load


def follow(
    source: str,
    bundle: Path,
    output: Path | None,
    settings: Settings,
    as_json: bool,
    *,
    mask: Path | None = None,
    load: Load | None = None,
) -> int:
    """Answer the frames of `source` until it ends; returns the exit status, 2 if a frame got no answer.

    One line per frame on stdout, with `as_json` one document at the end; what else there is to say on stderr. `mask` is
    a file whose non-zero pixels mean nothing. Frames are cut and binned as the first scan of the model's study, or are
    taken as they are where they have the model's shape. `load` makes an estimator of a bundle without a study, of such
    frames. Raises Stopped where a signal ended it, after the batch and the summary.
    """
    import torch

    torch.set_num_threads(1)  # small batches gain nothing from more, and the writer's machine has other things to do
    if load is None:
        config = _scan_config(bundle)
        mask = Path(config.mask_file) if mask is None and config.mask_file else mask
    excluded = _excluded(mask) if mask is not None else None
    cut: Cut | Scanned = Cut(excluded=excluded, valid=None if excluded is None else ~excluded)
    if load is None:
        config = config.model_copy(update={"mask_file": str(mask or "")})
        if settings.saturation is None:
            settings = replace(settings, saturation=config.saturation)
        if not Path(split_path(source)[0]).is_dir():
            source = place(source, config)
        cut = Scanned(config, excluded)
    summary = watch(
        source,
        bundle,
        load or load_estimator,
        output=output,
        cut=cut,
        settings=settings,
        tell=_silent if as_json else _print,
    )
    result(
        {"command": "infer", "model": str(bundle), "output": str(output) if output else None} | summary.as_json(),
        [],
        as_json,
    )
    return _status(summary)


def load_estimator(folder: Path) -> Estimator:
    """The estimator of a bundle, with what the watch asks of one; the verdict is that of `infer` on a scan."""
    from scatterflow.baselines.likelihood import rebuild  # here, since they import torch
    from scatterflow.models.frames import load_frame_model

    found = load_frame_model(folder)
    at = found.study.kinematics

    def deviance(
        counts: NDArray[np.float32], values: NDArray[np.float64], valid: NDArray[np.bool_] | None
    ) -> NDArray[np.float64]:
        return rebuild(counts, at, values, valid, background=True)[1]

    return Named(found.names, found.regressor.beam.shape, found.regressor.predict, Check(found.threshold, deviance))


def _scan_config(bundle: Path) -> ScanConfig:
    """How scans of the model's study are cut: as the first of them, or as usual."""
    from scatterflow.models.frames import load_frame_model

    known = load_frame_model(bundle).study.config.scans
    return known[0] if known else ScanConfig(file=".")


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
