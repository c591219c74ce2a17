"""What a Slurm task does on its node: shard after shard, and a line for each that has ended.

The lines are how a task speaks to the controller: they survive the task, and one file per task stays small. A task
that is started again (requeued) appends to its file.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from scatterflow import fanout
from scatterflow.fanout import Outcome
from scatterflow.manifest import Shard


def run(work: Callable[[Shard], Any], shards: Sequence[tuple[int, int]], workers: int, lines: str) -> None:
    """Do `work` on the ranges in `workers` processes and append a line per ended shard to the file `lines`."""
    path = Path(lines)
    with _noted(path), fanout.stop_on_signals(signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        _append(path, {"host": socket.gethostname(), "process": os.getpid()})
        ranges = [Shard(start, stop) for start, stop in shards]
        with closing(fanout.run_shards(ranges, work, workers)) as outcomes:
            for outcome in outcomes:
                ending = {"error": outcome.error, "details": outcome.details, "fatal": outcome.fatal}
                _append(path, {"start": outcome.shard.start, "stop": outcome.shard.stop, **ending})


@contextmanager
def _noted(path: Path) -> Iterator[None]:
    """Say so where the signal before the time limit ended the task: it is to be started again."""
    try:
        yield
    except fanout.Stopped as stop:
        if stop.signal_name == "SIGUSR2":
            _append(path, {"again": True})
        raise


def _append(path: Path, line: dict[str, Any]) -> None:
    """Add one line and wait until it is on the disk: other machines see what is there when a file is closed."""
    with path.open("ab") as handle:
        handle.write(f"{json.dumps(line)}\n".encode())
        handle.flush()
        os.fsync(handle.fileno())


class Said(NamedTuple):
    """What a task has written: shards that have ended, whether it has begun, whether it is to be started again."""

    outcomes: list[Outcome[Any]]
    begun: bool
    again: bool
    offset: int  # where to read on


def read(path: Path, offset: int) -> Said:
    """What stands in whole lines beyond `offset`.

    A line that a killed task has left torn is passed over: its shard counts as not ended.
    """
    try:
        with path.open("rb") as handle:
            handle.seek(offset)
            content = handle.read()
    except FileNotFoundError:
        return Said([], begun=False, again=False, offset=offset)
    whole = content[: content.rfind(b"\n") + 1]
    outcomes, begun, again = [], False, False
    for line in whole.splitlines():
        try:
            found = json.loads(line)
            begun = begun or "host" in found
            again = "again" in found or (again and "host" not in found)  # the last start counts
            if "start" in found:
                shard = Shard(int(found["start"]), int(found["stop"]))
                error, details = str(found["error"]), str(found["details"])
                outcomes.append(Outcome[Any](shard, error=error, details=details, fatal=bool(found["fatal"])))
        except (ValueError, TypeError, KeyError):
            continue  # torn
    return Said(outcomes, begun, again, offset + len(whole))
