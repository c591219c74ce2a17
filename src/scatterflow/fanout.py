"""Spread shards over processes: one interface, several backends, at most one retry.

A backend takes ranges and work and yields how each range ended, in any order; what a shard computes must not depend on
it. The profile chooses by SCATTERFLOW_FANOUT, never the configuration: it must not enter an identity.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

from scatterflow.errors import ConfigError, ScatterflowError, StoreError
from scatterflow.manifest import Shard

R = TypeVar("R")
VARIABLE = "SCATTERFLOW_FANOUT"
_TRIES = 2  # of a shard whose process dies or meets trouble of the machine
_OF_GROUPS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """How one shard ended: `result`, or `error` in one line with `details` (a traceback, if it is none of ours).

    `fatal` says that the other shards will meet the same error (the disk is full).
    """

    shard: Shard
    result: R | None = None
    error: str = ""
    details: str = ""
    fatal: bool = False


@dataclass(frozen=True)
class Shared:
    """What processes on other machines need: a folder on a disk that all see, and which shards are not stored yet.

    `name` is the work's name in a queue. Work that is `alone` uses every core of its task, heeds the signal before a
    time limit (it raises `Stopped`) and goes on from there when it is started again.
    """

    folder: Path
    missing: Callable[[Sequence[Shard]], list[Shard]]
    name: str = "simulate"
    alone: bool = False


class Stopped(SystemExit):
    """A signal asked the process to stop; exits with 128 + its number, as a shell expects."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal_name = signal.Signals(number).name


@contextmanager
def stop_on_signals(*numbers: int) -> Iterator[None]:
    """Turn signals (SIGINT and SIGTERM) into `Stopped` within the block; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in numbers or (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def backend_name() -> str:
    """The backend of this run: SCATTERFLOW_FANOUT, by default local.

    Raises ConfigError for an unknown one, and for one that cannot work here.
    """
    name = os.environ.get(VARIABLE) or "local"
    if name not in BACKENDS:
        raise ConfigError(f"environment variable {VARIABLE}", f"must be one of {sorted(BACKENDS)}", name, "unset it")
    if name == "slurm":
        from scatterflow.slurm import commands, options  # only where it is used

        commands.require()
        options.from_environment()
    return name


def processes(workers: int | None) -> int:
    """Number of processes to use: `workers`, by default one per core that this process may use."""
    return workers or len(os.sched_getaffinity(0))


def run_shards(
    shards: Sequence[Shard],
    work: Callable[[Shard], R],
    workers: int,
    backend: str = "local",
    shared: Shared | None = None,
) -> Generator[Outcome[R]]:
    """Do `work` (picklable) on every shard and yield how each ended, as they end; closing the iterator stops the rest.

    An error in one shard leaves the others alone. Close it (contextlib.closing) to stop the processes at once. Backends
    on other machines need `shared`, and give no results: what a shard made is on the disk.
    """
    if shards:
        yield from BACKENDS[backend](shards, work, min(workers, len(shards)), shared)


def _try(work: Callable[[Shard], R], shard: Shard) -> Outcome[R]:
    """Do the work; what is not one of our errors (those would only come again) is tried once more."""
    outcome = Outcome[R](shard)
    for _ in range(_TRIES):
        try:
            return Outcome(shard, work(shard))
        except ScatterflowError as error:
            return Outcome(shard, error=str(error), fatal=isinstance(error, StoreError | ConfigError))
        except Exception as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())
            outcome = Outcome(shard, error=line, details="".join(traceback.format_exception(error)))
    return outcome


def _local(
    shards: Sequence[Shard],
    work: Callable[[Shard], R],
    workers: int,
    _shared: Shared | None,
) -> Iterator[Outcome[R]]:
    """In this process if it is alone, else in `workers` processes of one thread each."""
    if workers > 1:
        yield from _spread(shards, work, workers)
        return
    for shard in shards:
        yield _try(work, shard)


@dataclass
class _Worker:
    """A process that takes shards through a pipe, one at a time: so it is known which one a death interrupts."""

    process: SpawnProcess
    pipe: Connection
    shard: Shard | None = None
    ready: bool = False


def _spread(shards: Sequence[Shard], work: Callable[[Shard], R], workers: int) -> Iterator[Outcome[R]]:
    waiting = deque(shards)
    deaths: Counter[Shard] = Counter()
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.shard for worker in pool):
            pool += [_start(work) for _ in range(workers - len(pool))]
            for pipe in wait([worker.pipe for worker in pool]):
                worker = next(worker for worker in pool if worker.pipe is pipe)
                shard, outcome = worker.shard, None
                try:
                    outcome = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    pool.remove(worker)
                    error = _ending(worker)
                    if shard:
                        deaths[shard] += 1
                        if deaths[shard] < _TRIES:
                            waiting.append(shard)
                        else:
                            outcome = Outcome(shard, error=error)
                else:
                    worker.ready, worker.shard = True, waiting.popleft() if waiting else None
                    if worker.shard:
                        with suppress(ConnectionError):  # it has just died: the next turn finds out
                            worker.pipe.send(worker.shard)
                if outcome is not None:
                    yield outcome
    finally:
        for worker in pool:
            worker.process.kill()  # what it has finished is on the disk; what it was doing is done anew
            worker.process.join()
            worker.pipe.close()


def _start(work: Callable[[Shard], Any]) -> _Worker:
    """Start a process of one thread. A terminal and Slurm signal every process of a group: only the parent listens."""
    spawn = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of ours may hold
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, work), daemon=True)
    threads = {name: os.environ.get(name) for name in _THREADS}
    resource_tracker.ensure_running()  # starting it later would unblock the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_GROUPS)
    try:
        os.environ.update(dict.fromkeys(_THREADS, "1"))
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in threads.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        there.close()
    return _Worker(process, here)


def _serve(pipe: Connection, work: Callable[[Shard], Any]) -> None:
    """What such a process does: say that it is there, then one shard after the other until its parent has gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):
        pipe.send(None)
        while True:
            pipe.send(_try(work, pipe.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])  # also when it was killed
        os._exit(1)


def _ending(worker: _Worker) -> str:
    """Why a process died. Raises ConfigError if it had not even begun: then no other will."""
    worker.process.join()
    worker.pipe.close()
    code = worker.process.exitcode or 0
    if not worker.ready:
        remedy = "set simulate.workers: 1; a script must do its work below `if __name__ == '__main__':`"
        raise ConfigError("worker processes", "must start", f"exit status {code}", remedy)
    if code >= 0:
        return f"its process ended with exit status {code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its process was ended by {signal.Signals(-code).name}{hint}"


def _slurm(
    shards: Sequence[Shard],
    work: Callable[[Shard], Any],
    _workers: int,  # of this machine
    shared: Shared | None,
) -> Iterator[Outcome[Any]]:
    """In array jobs of a cluster."""
    from scatterflow.slurm import controller  # it needs what stands above

    if shared is None:
        raise ConfigError("fan-out slurm", "must be given a folder on a disk that all machines see")
    yield from controller.run(shards, work, shared)


Backend = Callable[[Sequence[Shard], Callable[[Shard], Any], int, Shared | None], Iterator[Outcome[Any]]]
BACKENDS: dict[str, Backend] = {"local": _local, "slurm": _slurm}
