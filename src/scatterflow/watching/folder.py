"""A folder in which files of one frame each appear, in the order of the last number in their names.

The folder is read again and again: network file systems tell nobody that a file has come. A file that cannot be read
yet is tried again until it has not changed for a while; a writer that renames complete files into the folder is never
misunderstood.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow.errors import FrameError
from scatterflow.files import disk_errors
from scatterflow.framefiles import reading, text
from scatterflow.frames import open_stack
from scatterflow.watching.arrivals import Arrival, Block, Patience, Pause, Room, rest

IDLE = "no new frame came"
SUFFIXES = {".tif", ".tiff", ".edf", ".cbf", ".h5", ".hdf5", ".hdf", ".nxs"}
_RECENT_S = 2.0  # a folder changed less than this ago may change again under the same time stamp
_AGAIN_S = 0.02  # before a file that could not be read is tried again
_BLOCK = 64  # files read at once, so that answers flow while a backlog is worked off
_JUMP = 10_000  # numbers between two files: more are no missing frames but another way of counting


@dataclass
class _Series:
    """Files whose names differ in their last number only. `next` is the number expected, `last` the file given last."""

    waiting: list[tuple[int, str]] = field(default_factory=list)  # a heap
    next: int | None = None
    last: str = ""
    missing: dict[int, str] = field(default_factory=dict)


@dataclass
class _File:
    appeared: float
    changed: float  # when size or time stamp were last seen to change
    stamp: tuple[int, int] = (-1, -1)
    again: float = 0.0  # not to be tried before


def follow(
    folder: Path, patience: Patience, room: Room, pause: Pause, say: Callable[[str], None]
) -> Generator[Block, None, str]:
    """Frames of the files in `folder`, those that are there first; ends with IDLE.

    Files of a series are given in the order of their numbers: a gap, or a file that is not complete, is waited for
    `patience.gap` seconds from when the next file came. Then the frame that fills it is late, or in the end missing.
    Memory: the names of all files of the folder.
    """
    series: dict[tuple[str, str], _Series] = {}
    active: dict[tuple[str, str], _Series] = {}  # those with files that wait
    files: dict[str, _File] = {}
    seen: set[str] = set()
    others: set[str] = set()
    stamp, scanned, took, last, size = -1, 0.0, 0.0, time.monotonic(), 0
    while True:
        now = time.monotonic()
        with disk_errors(folder):
            changed = folder.stat().st_mtime_ns
            recent = changed != stamp or time.time() - changed / 1e9 < _RECENT_S or now - scanned > _RECENT_S
            if recent and now - scanned > 3 * took:  # a large folder takes long to list
                names = [each.name for each in os.scandir(folder) if each.name not in seen]
                stamp, scanned, took = changed, now, time.monotonic() - now
                seen.update(names)
                for name in names:
                    if name.startswith(".") or Path(name).suffix.lower() not in SUFFIXES:
                        others.add(name)
                        continue
                    key, number = _place(name)
                    of_it = series.setdefault(key, _Series())
                    if text(name) in patience.done:
                        of_it.next = max(of_it.next or 0, number + 1)
                        continue
                    heapq.heappush(of_it.waiting, (number, name))
                    active[key] = of_it
                    files[name] = _File(now, now)
        arrivals: list[Arrival] = []
        for key, each in list(active.items()):
            while each.waiting and len(arrivals) < min(_BLOCK, room(size)):
                arrival = _next(folder, each, files, patience, now, say)
                if arrival is None:
                    break
                size = arrival.values.nbytes if arrival.values is not None else size
                arrivals.append(arrival)
            if not each.waiting:
                del active[key]
        if files or arrivals:
            last = now
        elif now - last > patience.idle:
            break
        yield Block(arrivals, len(files))
        if not arrivals and pause(rest(last)):
            return "stopped"
    if others:
        say(f"{text(folder)}: {len(others)} files are no frames by their names ({text(min(others))}), ignored")
    now = time.monotonic()
    missing = [(number, name) for each in series.values() for number, name in each.missing.items()]
    yield Block([Arrival(text(name), n, now, status="missing", why="never came") for n, name in missing], 0)
    return IDLE


def _place(name: str) -> tuple[tuple[str, str], int]:
    """Series and number of a file: the last number of its stem; names without one are series of their own."""
    stem, suffix = os.path.splitext(name)
    found = re.fullmatch(r"(.*?)(\d+)(\D*)", stem, re.DOTALL)
    if found is None:
        return (name, ""), 0
    return (found[1], found[3] + suffix), int(found[2])


def _next(
    folder: Path, series: _Series, files: dict[str, _File], patience: Patience, now: float, say: Callable[[str], None]
) -> Arrival | None:
    """The next frame of a series, if it is its turn and the file is complete, or can be waited for no longer."""
    number, name = series.waiting[0]
    file = files[name]
    expected = number if series.next is None else series.next
    gap = number - expected
    if 0 < gap < _JUMP and now - file.appeared < patience.gap:
        return None
    if now < file.again:
        return None
    shown = text(name)
    late = f"came after {series.last}" if gap < 0 else ""
    status = "late" if late else "ok"
    try:
        values, limit = _read(folder / name)
        error = "" if values.any() else "zero in every pixel"  # perhaps space that was only reserved so far
    except FrameError as problem:
        values, limit, error = None, float(np.inf), str(problem)
    if error:
        with contextlib.suppress(OSError):  # it has been taken away again: `error` says so
            found = (folder / name).stat()
            if file.stamp != (found.st_size, found.st_mtime_ns):
                file.stamp, file.changed = (found.st_size, found.st_mtime_ns), now
        if now - file.changed < patience.gap:
            file.again = now + _AGAIN_S
            return None
    heapq.heappop(series.waiting)
    del files[name]
    if late:
        series.missing.pop(number, None)
    else:
        if 0 < gap < _JUMP:
            say(f"{shown}: {gap} frames before it have not come: going on without them")
            series.missing |= {n: _named(name, n) for n in range(expected, number)}
        series.next, series.last = number + 1, shown
    if values is None:
        return Arrival(shown, number, file.appeared, status="broken", why=error)
    return Arrival(shown, number, file.appeared, values, limit, status, late)


def _named(name: str, number: int) -> str:
    """The name that a file of another number has in the series of `name`."""
    (before, after), _ = _place(name)
    return f"{before}{number:0{len(name) - len(before) - len(after)}d}{after}"


def _read(path: Path) -> tuple[NDArray[Any], float]:
    """Values (row, column) of the only frame of a file and the counts from which its pixels are saturated."""
    with contextlib.closing(open_stack(path, wait_s=0)) as stack:  # `_next` tries again, and others have their turn
        if stack.frames != 1:
            must, remedy = "must hold one frame to be watched in a folder", "watch the file itself"
            raise FrameError(f"frame {text(path)}", must, stack.frames, remedy)
        with reading(path):
            values, header = stack.read(0)
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "iuf":
        got = f"shape {values.shape} and type {values.dtype}"
        raise FrameError(f"frame {text(path)}", "must be one image of rows x columns of numbers", got)
    limit = float(np.iinfo(values.dtype).max) if values.dtype.kind in "iu" else float(np.inf)
    own = header.get("saturation", np.inf)
    return values, min(limit, float(own))
