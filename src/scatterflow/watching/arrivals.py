"""Frames on their way from a source to the estimator: a bounded queue, filled by a thread of its own.

A source is a generator of blocks. It asks for room before it reads, so a full queue makes it wait while the folder or
the file keeps the data, and it goes on noting when frames appear: latencies stay honest under overload.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

POLL_S = 0.002  # between two looks at a source from which frames come; one at a SWMR file takes 0.1 ms
REST_S = 0.02  # between two looks at a source that has been silent for SILENT_S
SILENT_S = 1.0


class Arrival(NamedTuple):
    """A frame of a source, or what became of it.

    `status` is ok, late (out of order), broken (unreadable) or missing (never came), `why` in words; `appeared` is a
    time of `time.monotonic` [s], `values (row, column)` as stored, `limit` the counts from which a pixel is saturated.
    """

    name: str
    number: int
    appeared: float
    values: NDArray[Any] | None = None
    limit: float = np.inf
    status: str = "ok"
    why: str = ""


class Block(NamedTuple):
    """What a look at the source gave: frames in order, and how many more are waiting there."""

    arrivals: list[Arrival]
    waiting: int


@dataclass(frozen=True)
class Patience:
    """How long to wait [s]: `idle` for any new frame, `gap` for one whose successors are there or that is incomplete.

    `done` are names of frames that an earlier run has answered: they are passed over.
    """

    idle: float
    gap: float
    done: frozenset[str]


Room = Callable[[int], int]  # bytes of a frame -> number of frames that may be read now
Pause = Callable[[float], bool]  # sleep so long [s]; True when the watch is over
Source = Callable[[Patience, Room, Pause, Callable[[str], None]], Generator[Block, None, str]]


class Queue:
    """At most `frames` frames and `size` bytes (one frame, if it is larger) between the source and the estimator."""

    def __init__(self, frames: int, size: int) -> None:
        self._frames, self._size = frames, size
        self._waiting: deque[Arrival] = deque()
        self._bytes = 0
        self._ready = threading.Condition()
        self._stop = threading.Event()
        self.ended: str | None = None  # what the source said at its end
        self.error: BaseException | None = None
        self._full = False
        self.lag = self.largest_lag = 0  # frames that are there and not answered

    def room(self, size: int) -> int:
        """Number of frames of `size` bytes for which there is room."""
        with self._ready:
            if not self._waiting:
                return max(1, min(self._frames, self._size // max(size, 1)))
            room = max(0, min(self._frames - len(self._waiting), (self._size - self._bytes) // max(size, 1)))
            self._full = self._full or not room
            return room

    def was_full(self) -> bool:
        """Whether the source has had to wait since this was asked last."""
        with self._ready:
            full, self._full = self._full, False
            return full

    def pause(self, seconds: float) -> bool:
        """Sleep, unless the watch is over: then True."""
        return self._stop.wait(seconds)

    def fill(self, blocks: Generator[Block, None, str]) -> None:
        """Take all that the source gives, in the thread of the source."""
        try:
            while not self._stop.is_set():
                block = next(blocks)
                with self._ready:
                    self._waiting.extend(block.arrivals)
                    self._bytes += sum(each.values.nbytes for each in block.arrivals if each.values is not None)
                    self.lag = block.waiting + len(self._waiting)
                    self.largest_lag = max(self.largest_lag, self.lag)
                    if block.arrivals:
                        self._ready.notify()
        except StopIteration as end:
            self.ended = end.value
        except BaseException as error:  # handed to the thread that takes
            self.error = error
        finally:
            blocks.close()
            with self._ready:
                self.ended = self.ended or "stopped"
                self._ready.notify()

    def take(self, most: int, timeout_s: float) -> list[Arrival]:
        """Up to `most` frames in order, as soon as there is one; [] when none came in time.

        Raises what the source raised, after the frames that it gave.
        """
        with self._ready:
            if not self._waiting and self.ended is None:
                self._ready.wait(timeout_s)
            taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            self._bytes -= sum(each.values.nbytes for each in taken if each.values is not None)
            self.lag -= len(taken)
            if not taken and self.error is not None:
                raise self.error
            return taken

    def over(self) -> bool:
        """Whether the source has ended and all its frames are taken."""
        with self._ready:
            return self.ended is not None and not self._waiting and self.error is None

    def stop(self) -> None:
        """End the source."""
        self._stop.set()


@contextmanager
def filled(source: Source, patience: Patience, frames: int, size: int, say: Callable[[str], None]) -> Iterator[Queue]:
    """A queue that a thread fills from `source` within the block."""
    queue = Queue(frames, size)
    blocks = source(patience, queue.room, queue.pause, say)
    thread = threading.Thread(target=queue.fill, args=(blocks,), name="source", daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        queue.stop()
        thread.join()


def rest(last: float) -> float:
    """How long to sleep before the next look [s], where the last frame came at `last`."""
    return POLL_S if time.monotonic() - last < SILENT_S else REST_S
