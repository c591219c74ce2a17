"""Real time: frames of a running measurement, answered as they come, while a training elsewhere refreshes the model.

A source (folder, or an HDF5 file written in SWMR mode) fills a bounded queue from a thread of its own; all that waits is
answered in one batch, so batches are small when frames come slowly and large when they come fast. Nothing is dropped:
every frame gets a line that says what became of it. (Figure 4b of Li et al., DONUT.)
"""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scatterflow import progress
from scatterflow.errors import ConfigError, FrameError
from scatterflow.framefiles import text
from scatterflow.frames import PathLike, split_path
from scatterflow.interruption import heeded
from scatterflow.products import write_json
from scatterflow.watching import checking, folder, growing
from scatterflow.watching.answers import Answer, Estimator, answer
from scatterflow.watching.arrivals import Arrival, Patience, Queue, Source, filled
from scatterflow.watching.checking import Checks
from scatterflow.watching.cutting import Cut, Cutting, Scanned, as_scanned
from scatterflow.watching.records import SUMMARY, Latencies, Summary, line, read_records, record, recording
from scatterflow.watching.refresh import Load, Refreshed

__all__ = ["Cut", "Estimator", "Scanned", "Settings", "Summary", "as_scanned", "read_records", "watch"]

_COMPLAIN_S = 5.0  # between two lines that say by how much the answers lag behind
_WAIT_S = 0.1  # for frames, before the signals are looked at
_HDF5 = {".h5", ".hdf5", ".hdf", ".nxs"}


@dataclass(frozen=True)
class Settings:
    """How to watch.

    Parameters
    ----------
    frames : end after so many; None: do not.
    idle_s : end when no new frame came for so long [s].
    gap_s : wait so long for a frame whose successors are there, and for a file that is not complete [s].
    deadline_ms : an answer that took longer than this from the frame's appearance is late; None: none is.
    saturation : counts from which a pixel is saturated, beside what the file and its integer type say.
    queue, queue_bytes : limits of the queue, in frames and in bytes.
    batch : largest number of frames answered at once.
    check : share of the time for checking whether the model describes the frames; 1: every answer is checked, whatever it
        takes, 0: none is.
    """

    frames: int | None = None
    idle_s: float = 30.0
    gap_s: float = 1.0
    deadline_ms: float | None = None
    saturation: float | None = None
    queue: int = 1024
    queue_bytes: int = 2**28
    batch: int = 256
    check: float = 0.15

    def __post_init__(self) -> None:
        """Refuse what makes no sense, with a ConfigError."""
        for name in ("frames", "idle_s", "deadline_ms", "saturation", "queue", "queue_bytes", "batch"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} of a watch", "must be positive", value)
        if not (self.gap_s >= 0 and math.isfinite(self.gap_s)):
            raise ConfigError("gap_s of a watch", "must be a time of 0 or more", self.gap_s)
        if not 0 <= self.check <= 1:
            raise ConfigError("check of a watch", "must be a share from 0 to 1", self.check)


@contextmanager
def _settled() -> Iterator[None]:
    """Python's collector looks no more at what is there already, libraries above all: a pass takes tens of milliseconds."""
    if gc.get_freeze_count():  # somebody else did it, and may want to undo it
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def watch(
    source: PathLike,
    bundle: Path,
    load: Load,
    *,
    output: Path | None = None,
    cut: Cut | Scanned | None = None,
    settings: Settings | None = None,
    tell: Callable[[str], None] = print,
    say: Callable[[str], None] = progress.say,
) -> Summary:
    """Answer the frames of `source` as they appear, until it ends.

    Parameters
    ----------
    source : a folder in which files of one frame appear, or an HDF5 file that is written in SWMR mode
        (`scan.h5::/entry/data/data` names the dataset). A file that does not exist yet is waited for.
    bundle, load : folder of the model and what makes an estimator of it. The folder is looked at all the time: a new
        bundle.json is loaded beside the work and used from the next batch on; one that cannot be used leaves the old.
    output : receives `frames.jsonl`, one record per frame as it is answered, and `summary.json`; the same call with the
        same folder continues. Read them with `read_records`.
    cut : what makes counts (z, y) of the model of a frame as stored; None: it is counts already. Of a known scan:
        `as_scanned`; `Scanned` finds it from the first frames, which are answered when it is found.
    tell : takes the lines of a batch, one per frame; `say` takes what else people should know.

    Returns
    -------
    Summary, after the source has ended, `settings.frames` frames, or with a writer that died (`died`).

    Raises
    ------
    FrameError, BundleError, ConfigError, StoreError : the source, the model, or the output cannot be used at all.
    Stopped : a signal asked for the end; the batch is answered, the records and the summary are written.
    """
    settings = settings or Settings()
    follow = _source(source)
    with heeded() as requests, ExitStack() as stack:
        model = stack.enter_context(Refreshed(bundle, load, say))
        names = tuple(model.current[0].names)
        records = stack.enter_context(recording(output, str(source), names)) if output is not None else None
        done = records.done if records else frozenset()
        cutting = Cutting(cut, model.current[0].shape, str(source), output, settings.queue_bytes, say)
        checks = Checks(settings.check)
        if done:
            cutting.restore()
            say(f"continues: {len(done)} frames of {text(source)} are answered already")
        patience = Patience(settings.idle_s, settings.gap_s, done)
        queue = stack.enter_context(filled(follow, patience, settings.queue, settings.queue_bytes, say))
        tally = _Tally(str(source), len(done))
        stack.enter_context(_settled())
        ended = ""
        try:
            while not ended:
                left = math.inf if settings.frames is None else settings.frames - tally.frames - len(cutting.held)
                arrivals = _limited(queue.take(int(min(settings.batch, left)), _WAIT_S), settings.saturation)
                arrivals = cutting.released(arrivals, last=queue.over() or left <= len(arrivals))
                if arrivals:
                    estimator, identity = model.current
                    answers = answer(arrivals, estimator, cutting.cut, checks, queue.lag)
                    told = tally.count(answers, names, identity, settings.deadline_ms)
                    if records:
                        records.write(told)
                    tell("\n".join(line(each) for each in told))
                    tally.complain(queue, say)
                if requests.number is not None:
                    if cutting.held:
                        say(f"{len(cutting.held)} frames wait for a cut: the same call will answer them")
                    ended = "stopped by a signal"
                elif settings.frames is not None and tally.frames >= settings.frames:
                    ended = f"{settings.frames} frames are done"
                elif queue.over() and not cutting.held:
                    ended = str(queue.ended)
            summary = tally.summary(queue, model, cutting.told, ended)
        except BaseException as error:  # what is known when it ends is known
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            summary = tally.summary(queue, model, cutting.told, reason)
            raise
        finally:
            if output is not None:
                write_json(output / SUMMARY, summary.as_json())
            say(f"{text(source)}: {summary.line()}")
    return summary


def _source(path: PathLike) -> Source:
    """What follows `path`. Raises FrameError where it is neither a folder nor an HDF5 file that is or may come."""
    file, dataset = split_path(path)
    if file.is_dir() and not dataset:
        return partial(folder.follow, file)
    if file.is_file() or (file.suffix.lower() in _HDF5 and file.parent.is_dir()):
        return partial(growing.follow, file, dataset)
    must = "must be a folder or an HDF5 file"
    raise FrameError(f"frames of {text(path)}", must, "nothing there", "check the path; a folder must exist already")


def _limited(arrivals: list[Arrival], saturation: float | None) -> list[Arrival]:
    if saturation is None:
        return arrivals
    return [each._replace(limit=min(each.limit, saturation)) for each in arrivals]


class _Tally:
    """What has been answered so far."""

    def __init__(self, source: str, continued: int) -> None:
        self._source, self._continued = source, continued
        self._began = time.monotonic()
        self._statuses: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._latencies = Latencies()
        self._longest = 0.0
        self._first: float | None = None  # when the first frame appeared
        self._last = self._began  # when the last one was answered
        self._complained = 0.0

    @property
    def frames(self) -> int:
        """Frames that came."""
        return self._statuses.total() - self._statuses["missing"]

    def count(
        self, answers: list[Answer], names: tuple[str, ...], identity: str, deadline_ms: float | None
    ) -> list[dict[str, Any]]:
        """Records of answers that are given now."""
        now = time.monotonic()
        if deadline_ms is not None:
            answers = [_in_time(each, now, deadline_ms) for each in answers]
        self._statuses.update(each.status for each in answers)
        self._verdicts.update(each.verdict for each in answers)
        came = [now - each.arrival.appeared for each in answers if each.status != "missing"]
        if came:
            self._latencies.add(came)
            self._longest = max(self._longest, *came)
            self._first = now - max(came) if self._first is None else self._first
            self._last = now
        return [record(each, names, identity, now) for each in answers]

    def complain(self, queue: Queue, say: Callable[[str], None]) -> None:
        """Say that the answers lag behind, now and then."""
        now = time.monotonic()
        if queue.was_full() and now - self._complained > _COMPLAIN_S:
            self._complained = now
            say(f"{text(self._source)}: the queue is full, {queue.lag} frames wait; they are kept and answered in turn")

    def summary(self, queue: Queue, model: Refreshed, cut: str, ended: str) -> Summary:
        """How it went."""
        took = self._last - self._first if self._first is not None else 0.0
        p50, p99 = (self._latencies.quantile_ms(q) for q in (0.5, 0.99))
        return Summary(
            source=self._source,
            frames=self.frames,
            **{status: self._statuses[status] for status in ("ok", "late", "broken", "missing")},
            described=self._verdicts[checking.OK],
            outside=self._verdicts[checking.OUTSIDE],
            unchecked=self._verdicts[checking.UNCHECKED],
            cut=cut,
            continued=self._continued,
            p50_ms=p50,
            p99_ms=p99,
            max_ms=1e3 * self._longest if p50 is not None else None,
            rate_hz=self.frames / took if took > 0 else None,
            seconds=time.monotonic() - self._began,
            largest_lag=queue.largest_lag,
            bundles=model.loaded,
            refused=model.refused,
            ended=ended,
            died=ended == growing.DIED,
        )


def _in_time(given: Answer, now: float, deadline_ms: float) -> Answer:
    took = 1e3 * (now - given.arrival.appeared)
    if given.status != "ok" or took <= deadline_ms:
        return given
    return given._replace(status="late", why=f"answered after {took:.0f} ms, the deadline is {deadline_ms:g} ms")
