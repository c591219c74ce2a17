"""Spread shards over processes: one interface, several backends, at most one retry.

A backend takes ranges and work and yields how each range ended, in any order; what a shard computes must not depend on
it. The profile chooses by SCATTERFLOW_FANOUT, never the configuration: it must not enter an identity.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, Generic, TypeVar

import dask

from scatterflow.errors import ConfigError, ScatterflowError, StoreError
from scatterflow.manifest import Shard

R = TypeVar("R")
VARIABLE = "SCATTERFLOW_FANOUT"
_RETRIES = 1  # for processes that die and for troubles of the machine; an error that names its remedy is final


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


class Stopped(SystemExit):
    """A signal asked the process to stop; exits with 128 + its number, as a shell expects."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal_name = signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Stopped` within the block; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def backend_name() -> str:
    """The backend of this run: SCATTERFLOW_FANOUT, by default local. Raises ConfigError for an unknown one."""
    name = os.environ.get(VARIABLE) or "local"
    if name not in BACKENDS:
        raise ConfigError(f"environment variable {VARIABLE}", f"must be one of {sorted(BACKENDS)}", name, "unset it")
    return name


def processes(workers: int | None) -> int:
    """Number of processes to use: `workers`, by default one per core that this process may use."""
    return workers or len(os.sched_getaffinity(0))


def run_shards(
    shards: Sequence[Shard], work: Callable[[Shard], R], workers: int, backend: str = "local"
) -> Generator[Outcome[R]]:
    """Do `work` (picklable) on every shard and yield how each ended, as they end; closing the iterator stops the rest.

    An error in one shard leaves the others alone. Close it (contextlib.closing) to stop the processes at once.
    """
    if shards:
        yield from BACKENDS[backend](shards, work, min(workers, len(shards)))


def _attempt(work: Callable[[Shard], R], shard: Shard) -> Outcome[R]:
    """Our own errors are results: trying again would not help."""
    try:
        return Outcome(shard, work(shard))
    except ScatterflowError as error:
        return Outcome(shard, error=str(error), fatal=isinstance(error, StoreError | ConfigError))


def _failed(shard: Shard, error: BaseException) -> Outcome[Any]:
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return Outcome(shard, error=line, details="".join(traceback.format_exception(error)))


def _local(shards: Sequence[Shard], work: Callable[[Shard], R], workers: int) -> Iterator[Outcome[R]]:
    yield from _here(shards, work) if workers == 1 else _dask(shards, work, workers)


def _here(shards: Sequence[Shard], work: Callable[[Shard], R]) -> Iterator[Outcome[R]]:
    """In this process."""
    for shard in shards:
        for left in reversed(range(_RETRIES + 1)):
            try:
                outcome = _attempt(work, shard)
                break
            except Exception as error:
                if not left:
                    outcome = _failed(shard, error)
        yield outcome


def _dask(shards: Sequence[Shard], work: Callable[[Shard], R], workers: int) -> Iterator[Outcome[R]]:
    """In processes of one thread each; they end with this one, however it ends (Dask watches a pipe to it)."""
    distributed: Any = importlib.import_module("distributed")  # 1 s: only where it is needed
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": _RETRIES}),
        _cluster(distributed, workers) as cluster,
        distributed.Client(cluster) as client,
    ):

        def submit(shard: Shard) -> Any:
            running[(future := client.submit(_attempt, work, shard, pure=False, retries=_RETRIES))] = shard
            return future

        # one shard per process at a time: of a process that dies, Dask suspects also what was waiting for it
        running: dict[Any, Shard] = {}
        waiting = iter(shards)
        ended = distributed.as_completed([submit(shard) for shard in itertools.islice(waiting, workers)])
        for future in ended:
            shard, error = running.pop(future), future.exception()
            outcome = future.result() if error is None else _failed(shard, error)  # before its process may die
            for following in itertools.islice(waiting, 1):
                ended.add(submit(following))
            yield outcome


def _cluster(distributed: Any, workers: int) -> Any:
    # Ctrl-C reaches every process of the terminal: block it in those started here, whose mask they inherit
    resource_tracker.ensure_running()  # starting it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # shards have a fixed size; Dask would pause processes by a guess
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError) as error:
        remedy = "set simulate.workers: 1; a script must do its work below `if __name__ == '__main__':`"
        raise ConfigError(f"{workers} worker processes", "must start", error, remedy) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


Backend = Callable[[Sequence[Shard], Callable[[Shard], Any], int], Iterator[Outcome[Any]]]
BACKENDS: dict[str, Backend] = {"local": _local}
