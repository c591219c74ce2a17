"""What a watch leaves behind: one JSON line per frame, appended as frames are answered, and a summary at the end."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.errors import ConfigError, StoreError
from scatterflow.files import disk_errors, exclusive
from scatterflow.watching.answers import Answer

FRAMES, SUMMARY = "frames.jsonl", "summary.json"
FORMAT = 2
ANSWERED = ("ok", "late")
_FINEST_S, _RATIO, _BINS = 1e-6, 1.01, 3000  # up to 1e7 s


class Latencies:
    """Quantiles of any number of latencies within 1 %, in little memory: a histogram of their logarithms."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, dtype=np.int64)

    def add(self, seconds: Sequence[float]) -> None:
        """Count latencies [s]."""
        bins = np.log(np.maximum(seconds, _FINEST_S) / _FINEST_S) / math.log(_RATIO)
        np.add.at(self._counts, np.minimum(bins.astype(int), _BINS - 1), 1)

    def quantile_ms(self, q: float) -> float | None:
        """The latency [ms] that a share `q` of them does not exceed; None where there are none."""
        below = np.cumsum(self._counts)
        if not below[-1]:
            return None
        place = int(np.searchsorted(below, q * below[-1]))
        return float(1e3 * _FINEST_S * _RATIO ** (place + 0.5))


@dataclass(frozen=True)
class Summary:
    """How a watch went. `frames` = ok + late + broken; `missing` never came. Latency: from appearance to answer.

    Of the answers, ok + late, the model `described` the frame, or it was `outside`, or `unchecked`. `cut` says in words
    what was cut out of the frames; empty where nothing was.
    `ended` says why; `died` is True when that was a writer that stopped without closing its file. `largest_lag` is the
    largest number of frames that were there without an answer, `bundles` how many were used, `refused` how many new
    ones could not be. `rate_hz` is frames per second from the first appearance to the last answer.
    """

    source: str
    frames: int
    ok: int
    late: int
    broken: int
    missing: int
    described: int
    outside: int
    unchecked: int
    cut: str
    continued: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    rate_hz: float | None
    seconds: float
    largest_lag: int
    bundles: int
    refused: int
    ended: str
    died: bool

    def line(self) -> str:
        """The summary for people."""
        parts = [f"{self.frames} frames: {self.ok} ok, {self.late} late, {self.broken} broken, {self.missing} missing"]
        if self.ok or self.late:
            parts.append(f"answers: {self.described} ok, {self.outside} outside, {self.unchecked} unchecked")
        if self.p50_ms is not None and self.p99_ms is not None:
            parts.append(f"latency p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms, at most {self.max_ms:.1f} ms")
        if self.rate_hz is not None:
            parts.append(f"{self.rate_hz:.4g} frames/s")
        parts.append(f"at most {self.largest_lag} waiting")
        return f"{'; '.join(parts)}; {self.ended}"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def record(answer: Answer, names: Sequence[str], bundle: str, now: float) -> dict[str, Any]:
    """Plain JSON of one answer that was given at `now` (`time.monotonic`)."""
    given = answer.values is not None and answer.sd is not None
    return {
        "frame": answer.arrival.name,
        "number": answer.arrival.number,
        "status": answer.status,
        "why": answer.why,
        "estimate": dict(zip(names, map(float, answer.values), strict=True)) if given else None,  # type: ignore[arg-type]  # given
        "sd": dict(zip(names, map(float, answer.sd), strict=True)) if given else None,  # type: ignore[arg-type]  # given
        "verdict": answer.verdict,
        "deviance": answer.deviance if answer.deviance is not None and math.isfinite(answer.deviance) else None,
        "bundle": bundle if given else None,
        "latency_ms": round(1e3 * (now - answer.arrival.appeared), 3),
        "answered_s": round(time.time(), 6),
    }


def line(told: Mapping[str, Any]) -> str:
    """A record for people: of a frame that came in time, the verdict on the answer."""
    if told["estimate"] is None:
        return f"{told['frame']}: {told['status']}, {told['why']}"
    status = told["verdict"] if told["status"] == "ok" else f"{told['status']}, {told['verdict']}"
    deviance = f", deviance {told['deviance']:.3g}" if told["deviance"] is not None else ""
    values = ", ".join(f"{name} {value:.3e} (sd {told['sd'][name]:.1e})" for name, value in told["estimate"].items())
    why = f", {told['why']}" if told["why"] else ""
    return f"{told['frame']}: {status}, {values}{deviance}, {told['latency_ms']:.1f} ms{why}"


class Records:
    """The open file of records of a watch; `done` are the names of the frames in it that have come."""

    def __init__(self, path: Path, handle: IO[bytes], done: frozenset[str]) -> None:
        self.done = done
        self._path, self._handle = path, handle

    def write(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Append records. Raises StoreError where the disk refuses."""
        with disk_errors(self._path):
            _append(self._handle, told)


@contextmanager
def recording(folder: Path, source: str, names: Sequence[str]) -> Iterator[Records]:
    """The file of records in `folder`, continued where an earlier watch of the same source ended.

    What is written is safe from the end of this process, however it ends: a line is complete or is cut off at the next
    start, and its frame answered again. At the end of the block it is on the disk. Raises ConfigError where the folder
    holds records of something else, StoreError where another process writes there.
    """
    path = folder / FRAMES
    head = {"format": FORMAT, "source": source, "parameters": list(names)}
    with ExitStack() as stack:
        with disk_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(folder))
            handle = stack.enter_context(path.open("a+b"))
            handle.seek(0)
            before, told, end = _parsed(path, handle.read())
            if not told:  # of whatever source: nothing is lost
                before, end = head, 0
            handle.truncate(end)
            if not told:
                _append(handle, [head])
        if before is not None and before != head:
            got = f"those of {before.get('source')} ({', '.join(map(str, before.get('parameters', [])))})"
            raise ConfigError(f"{path}", "must hold records of this source", got, "give another folder")
        try:
            yield Records(path, handle, frozenset(each["frame"] for each in told if each["status"] != "missing"))
        finally:
            with disk_errors(path):
                os.fsync(handle.fileno())


def _append(handle: IO[bytes], told: Sequence[Mapping[str, Any]]) -> None:
    handle.write("".join(json.dumps(each, allow_nan=False) + "\n" for each in told).encode())
    handle.flush()


def _parsed(path: Path, content: bytes) -> tuple[dict[str, Any] | None, list[dict[str, Any]], int]:
    """Head and records of the complete lines of a file, and where they end."""
    end = content.rfind(b"\n") + 1
    try:
        lines = [json.loads(each) for each in content[:end].splitlines()]
        if lines and (lines[0].get("format") != FORMAT or any("status" not in each for each in lines[1:])):
            raise ValueError("no records of a watch")
    except (ValueError, AttributeError, RecursionError):
        raise StoreError(f"{path}", "must hold records of a watch", "something else", "give another folder") from None
    return (lines[0], lines[1:], end) if lines else (None, [], 0)


def read_records(folder: Path) -> xr.Dataset:
    """Records of a watch in the order of the frames: `estimate`, `sd` (frame, parameter), NaN where there is no answer.

    `status`, `why`, `verdict`, `latency_ms` and `number` (frame,), coordinates `frame` (names) and `parameter`. Of a frame
    with several records (missing, then late) the last counts. Raises StoreError where there are none.
    """
    path = folder / FRAMES
    with disk_errors(path):
        head, told, _ = _parsed(path, path.read_bytes())
    if head is None:
        raise StoreError(f"{path}", "must hold records of a watch", "an empty file", "watch something first")
    last = {each["frame"]: each for each in told}
    rows = sorted(last.values(), key=lambda each: (each["number"], each["frame"]))
    names = head["parameters"]

    def table(key: str) -> NDArray[np.float64]:
        nothing = dict.fromkeys(names, np.nan)
        values = [[(each[key] or nothing)[name] for name in names] for each in rows]
        return np.array(values, dtype=np.float64).reshape(len(rows), len(names))

    columns = {key: ("frame", np.array([each[key] for each in rows])) for key in ("number", "latency_ms")}
    words = {
        key: ("frame", np.array([each[key] for each in rows], dtype=object)) for key in ("status", "why", "verdict")
    }
    return xr.Dataset(
        {"estimate": (("frame", "parameter"), table("estimate")), "sd": (("frame", "parameter"), table("sd"))}
        | columns
        | words,
        coords={"frame": [each["frame"] for each in rows], "parameter": names},
        attrs={"source": head["source"]},
    )
