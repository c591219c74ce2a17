"""An HDF5 file that grows while it is read (SWMR): frames along axis 0 of one dataset.

HDF5 lets readers see a file that one process writes, if the reader refreshes the dataset. Nothing tells a reader that
the writer has died: the flags of the file, which a writer clears when it closes it, stay set, and no frame comes.
(support.hdfgroup.org/documentation/hdf5/latest/_s_w_m_r.html; flags: byte 11 of superblocks of version 2 and 3.)
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from scatterflow.errors import FrameError
from scatterflow.framefiles import LARGEST_PX, text
from scatterflow.framehdf5 import check_bitshuffle, is_bitshuffled
from scatterflow.watching.arrivals import Arrival, Block, Patience, Pause, Room, rest

CLOSED, DIED = "the writer closed the file", "no new frame came, and the file is still open for writing"
_FLAGS_AT = 11  # byte of the superblock
_OPEN = 0b101  # open for writing, open for writing in SWMR mode
_BLOCK = 64  # frames read at once, so that answers flow while a backlog is worked off
_BLOCK_BYTES = 2**23  # at most, but one frame
_PROBE_S = 0.1  # between two looks at places that were passed over, and beyond a place that is waited for


def follow(
    path: Path, dataset: str, patience: Patience, room: Room, pause: Pause, say: Callable[[str], None]
) -> Generator[Block, None, str]:
    """Frames of `dataset` (by default the only one of three dimensions) from the first on, in order.

    A place that was not written is waited for; when frames after it are there and `patience.gap` has passed, it is
    passed over, and answered as late when it is written after all. Ends with CLOSED or DIED. Frames appear when the
    dataset grows; those of a dataset that has its full size from the beginning, and those that are there when the watch
    begins, when they are read.

    Raises FrameError where there is no such file or dataset within `patience.idle`.
    """
    with _opened(path, dataset, patience, pause, say) as found:
        if found is None:
            return "stopped"
        handle, data, descriptor = found
        yield from _Growing(path, data, patience, say).frames(descriptor, handle.userblock_size, room, pause)
        return CLOSED if not _being_written(descriptor, handle.userblock_size) else DIED


class _Growing:
    """How far a dataset has been read. `next` is the first frame not given yet, `holes` those passed over."""

    def __init__(self, path: Path, data: h5py.Dataset, patience: Patience, say: Callable[[str], None]) -> None:
        self.data, self.patience, self.say = data, patience, say
        self.path, self.shuffled = path, is_bitshuffled(data)
        self.label = f"{text(path.name)}::{text(data.name)}"
        self.size = int(np.prod(data.shape[1:])) * data.dtype.itemsize
        self.first = data.shape[0]
        self.limit = _saturation(data)
        self.fill = data.fillvalue
        self.next = 0
        self.total = 0
        self.marks: deque[tuple[int, float]] = deque()  # (number of frames, when it was first seen)
        self.holes: list[int] = []
        self.waits: float | None = None  # since when the frame `next` is waited for
        self.looked = self.probed = 0.0  # when: beyond the frame `next`, at the holes
        self.alone = data.chunks is not None and data.chunks[0] == 1  # then HDF5 knows of each frame if it is there

    def frames(self, descriptor: int, offset: int, room: Room, pause: Pause) -> Iterator[Block]:
        """Blocks until the writer closes the file, is silent for too long, or the watch is over."""
        last = time.monotonic()
        while True:
            closed = not _being_written(descriptor, offset)  # asked before the refresh: what it wrote last is seen
            self.data.refresh()
            now = time.monotonic()
            if self.data.shape[0] > self.total:
                self.total = self.data.shape[0]
                self.marks.append((self.total, now))
                last = now
            free = room(self.size)
            arrivals = self._filled_holes(now, free)
            arrivals += self._block(now, closed, free - len(arrivals))
            if arrivals or not free:
                last = now
            elif (closed and self.next == self.total) or now - last > self.patience.idle:
                break
            waiting = self.total - self.next if self.waits is None else 0
            yield Block([each for each in arrivals if each.name not in self.patience.done], waiting)
            # a block that took all there was leaves nothing to look at: looks cost as much as reading
            if not (arrivals and waiting) and pause(rest(last)):
                return
        for index in self.holes:
            while not room(self.size):
                yield Block([], 0)
                if pause(rest(last)):
                    return
            yield Block([self._late(index) or self._missing(index)], 0)

    def _missing(self, index: int) -> Arrival:
        return Arrival(self._name(index), index, time.monotonic(), status="missing", why="never written")

    def _name(self, index: int) -> str:
        return f"{self.label}[{index}]"

    def _block(self, now: float, closed: bool, most: int) -> list[Arrival]:
        """The next frames that are there, and places to be passed over."""
        count = min(self.total - self.next, most, _BLOCK, max(1, _BLOCK_BYTES // self.size))
        if count < 1 or (self._waits_for_head(now) and not closed):
            return []
        self.looked = now
        try:
            values = self._read(self.next, count)
        except (OSError, FrameError) as error:
            return self._block(now, closed, 1) if count > 1 else self._unreadable(now, closed, text(error))
        there = self._written(values, closed, now)
        arrivals: list[Arrival] = []
        for image, written in zip(values, there, strict=True):
            if not written:
                break
            arrivals.append(Arrival(self._name(self.next), self.next, self._appeared(now), image, self.limit))
            self._go_on(1)
        return arrivals or self._passed_over(there, closed, now)

    def _read(self, first: int, count: int) -> NDArray[Any]:
        """Frames (frame, row, column). Raises OSError or FrameError where they cannot be read.

        The bitshuffle filter trusts the sizes in a chunk, and ends this process where they are wrong: they are checked.
        """
        if self.shuffled:
            starts = zip((first, 0, 0), (first + count, *self.data.shape[1:]), self.data.chunks, strict=True)
            for corner in itertools.product(*(range(low - low % size, high, size) for low, high, size in starts)):
                with contextlib.suppress(RuntimeError, OSError, MemoryError):  # not written yet: see `_allocated`
                    check_bitshuffle(self.path, self.data, corner)
        return np.asarray(self.data[first : first + count])

    def _go_on(self, places: int) -> None:
        self.next += places
        self.waits = None

    def _unreadable(self, now: float, closed: bool, why: str) -> list[Arrival]:
        """The frame `next`, of which HDF5 says that it cannot be read; while it is new it is tried again."""
        self.waits = now if self.waits is None else self.waits
        if not closed and now - self.waits <= self.patience.gap:
            return []
        broken = Arrival(self._name(self.next), self.next, self.waits, status="broken", why=f"unreadable: {why}")
        self._go_on(1)
        return [broken]

    def _passed_over(self, there: NDArray[np.bool_], closed: bool, now: float) -> list[Arrival]:
        """Go on after the places that are not `there` if they have been waited for; missing where that is certain."""
        self.waits = now if self.waits is None else self.waits
        if closed:
            empty = range(self.next, self.next + (int(np.argmax(there)) if there.any() else len(there)))
            self._go_on(len(empty))
            return [self._missing(index) for index in empty]
        if there.any() and now - self.waits > self.patience.gap:
            empty = range(self.next, self.next + int(np.argmax(there)))
            self.say(f"{self._name(self.next)}: not written, frames after it are: going on without {len(empty)} frames")
            self.holes += empty
            self._go_on(len(empty))
        return []

    def _waits_for_head(self, now: float) -> bool:
        """Whether the frame `next` was not there, is not there now, and it is too early to look beyond it."""
        if self.waits is None or now - self.looked > _PROBE_S:
            return False
        try:
            return not (self._differs(self._read(self.next, 1)).any() or self._allocated(self.next))
        except (OSError, FrameError):  # `_block` will see, too
            return False

    def _appeared(self, now: float) -> float:
        while self.marks and self.marks[0][0] <= self.next:
            self.marks.popleft()
        if self.waits is not None or self.first > self.next or not self.marks:
            return now
        return self.marks[0][1]

    def _written(self, values: NDArray[Any], closed: bool, now: float) -> NDArray[np.bool_]:
        """Which frames (frame, row, column) have been written: those of nothing but the fill value may not have been.

        Where a chunk is one frame, HDF5 knows. Otherwise a frame counts as written when one after it is, when the file
        is closed, or when a dataset that grows has waited for it.
        """
        there = np.asarray(self._differs(values).any(axis=(1, 2)))
        if there.all():
            return there
        if self.alone:
            for i in np.flatnonzero(~there):
                if not self._allocated(self.next + int(i)):  # those behind it have time
                    break
                there[i] = True
            return there
        waited = self.waits is not None and now - self.waits > self.patience.gap and self.total > self.first
        if closed or waited:
            return np.ones_like(there)
        return np.asarray(np.logical_or.accumulate(there[::-1])[::-1])

    def _differs(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which pixels hold something else than what HDF5 gives for a place that was not written."""
        return np.asarray(~np.isnan(values) if self.fill != self.fill else values != self.fill)

    def _allocated(self, index: int) -> bool:
        """Whether the chunk of a frame of its own exists."""
        if not self.alone:
            return False
        try:
            self.data.id.read_direct_chunk((index, 0, 0))  # get_chunk_info walks through all chunks: slower
        except (
            RuntimeError,
            OSError,
            MemoryError,
        ):  # where nothing is allocated; now and then its size is read as garbage
            return False
        return True

    def _filled_holes(self, now: float, most: int) -> list[Arrival]:
        """Frames that were written after they had been passed over; looks at some of them, then at the next ones."""
        if not self.holes or now - self.probed < _PROBE_S:
            return []
        self.probed = now
        asked, self.holes = self.holes[: min(most, _BLOCK)], self.holes[min(most, _BLOCK) :]
        found = {index: self._late(index) for index in asked}
        self.holes += [index for index in asked if found[index] is None]
        return [each for each in found.values() if each is not None]

    def _late(self, index: int) -> Arrival | None:
        """The frame that was passed over, if it is there now."""
        why = f"written after frame {self.next - 1}"
        try:
            image = self._read(index, 1)[0]
        except (OSError, FrameError) as error:
            return Arrival(
                self._name(index), index, time.monotonic(), status="broken", why=f"{why}, unreadable: {text(error)}"
            )
        if not (self._differs(image).any() or self._allocated(index)):
            return None
        return Arrival(self._name(index), index, time.monotonic(), image, self.limit, "late", why)


@contextmanager
def _opened(
    path: Path, dataset: str, patience: Patience, pause: Pause, say: Callable[[str], None]
) -> Iterator[tuple[h5py.File, h5py.Dataset, int] | None]:
    """The open file, the dataset and a descriptor of the file, once the writer has made them; None if stopped."""
    began, told = time.monotonic(), False
    while True:
        try:
            handle = h5py.File(path, "r", swmr=True, locking="best-effort")
        except OSError as error:  # not there, being made, or not written in SWMR mode (yet)
            reason = "no such file" if isinstance(error, FileNotFoundError) else text(error)
        else:
            try:
                data = _dataset(path, handle, dataset)
                if data is not None:
                    break
                reason = "no dataset of three dimensions"
            except BaseException:
                handle.close()
                raise
            handle.close()
        if time.monotonic() - began > patience.idle:
            remedy = "the writer must open it with libver='latest' and set swmr_mode = True"
            raise FrameError(f"frames of {text(path)}", "must be readable while they are written", reason, remedy)
        if not told:
            say(f"waiting for {text(path)}: {reason}")
            told = True
        if pause(10 * rest(began)):
            yield None
            return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield handle, data, descriptor
    finally:
        os.close(descriptor)
        handle.close()


def _dataset(path: Path, handle: h5py.File, name: str) -> h5py.Dataset | None:
    """The dataset of that name, by default the only numeric one (frame, row, column); None if there is none yet."""
    found: list[str] = []

    def visit(place: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and len(item.shape or ()) == 3 and item.dtype.kind in "iuf":
            found.append(f"/{place}")

    if name:
        data = handle.get(name)
        if data is None:
            return None
        if not isinstance(data, h5py.Dataset) or len(data.shape or ()) != 3 or data.dtype.kind not in "iuf":
            must = "must be a dataset of numbers (frame, row, column)"
            got = f"shape {data.shape} and type {data.dtype}" if isinstance(data, h5py.Dataset) else "a group"
            raise FrameError(f"frames {text(path)}::{text(name)}", must, text(got), "name another dataset")
    else:
        handle.visititems(visit)
        if len(found) > 1:
            listed = ", ".join(text(each) for each in sorted(found)[:10])
            remedy = f"write {text(path)}::{text(sorted(found)[0])}"
            raise FrameError(f"frames of {text(path)}", "must name their dataset", f"{len(found)}: {listed}", remedy)
        if not found:
            return None
        data = handle[found[0]]
    if data.external or data.is_virtual:
        must = "must hold its own data to be watched"
        raise FrameError(f"frames {text(path)}::{text(data.name)}", must, "links to other files", "name those files")
    if not 0 < np.prod(data.shape[1:]) <= LARGEST_PX:
        must = "must hold images of rows x columns of a detector"
        raise FrameError(f"frames {text(path)}::{text(data.name)}", must, f"shape {data.shape}", "name another dataset")
    return data


def _saturation(data: h5py.Dataset) -> float:
    """Counts from which a pixel is saturated: the largest value of integers, else none."""
    return float(np.iinfo(data.dtype).max) if data.dtype.kind in "iu" else float(np.inf)


def _being_written(descriptor: int, offset: int) -> bool:
    """Whether the file says that a writer has it open; files of older formats say nothing: False."""
    byte = os.pread(descriptor, 1, offset + _FLAGS_AT)
    return bool(byte and byte[0] & _OPEN)
