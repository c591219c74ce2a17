"""Progress with time left: a bar on a terminal, plain lines in a log. All on stderr: stdout is for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

Advance = Callable[[int], None]  # call with the number of items that were just finished
Tracker = Callable[[str, int], AbstractContextManager[Advance]]  # label and total -> advance
_LINE_INTERVAL_S = 5.0


def say(text: str) -> None:
    """One line to the person who waits."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Time span for people, in its two largest units: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name} {rest} {small_name}" if rest else f"{whole // size} {name}"
    return f"{whole} s"


def size(number: float) -> str:
    """Bytes for people, in powers of 1000: 3.8 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


@contextmanager
def track(label: str, total: int) -> Iterator[Advance]:
    """Show how much of `total` is done and how long is left; yields the function to call on progress."""
    how = _bar if sys.stderr.isatty() else _lines
    with how(label, total, sys.stderr) as advance:
        yield advance


@contextmanager
def quiet(label: str, total: int) -> Iterator[Advance]:
    """Show nothing, in place of `track`."""
    del label, total
    yield lambda _: None


@contextmanager
def _bar(label: str, total: int, stream: TextIO) -> Iterator[Advance]:
    from rich import progress
    from rich.console import Console

    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
    times = (progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn())
    with progress.Progress(*columns, *times, console=Console(file=stream)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda n: bar.advance(task, n)


@contextmanager
def _lines(label: str, total: int, stream: TextIO, interval_s: float = _LINE_INTERVAL_S) -> Iterator[Advance]:
    began = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last < interval_s and done < total:
            return
        last = now
        left = f"{duration((now - began) / done * (total - done))} left" if done < total else duration(now - began)
        print(f"{label}: {done} of {total} ({done / total:.0%}), {left}", file=stream, flush=True)

    yield advance
