"""What a training does when it is told to stop: it ends its step, writes a checkpoint, and only then obeys.

SIGTERM and SIGINT end it, and so does SIGUSR2, with which the fan-out of `slurm` warns a task of its time limit.
SIGURG is the warning in a Slurm job of its own: the job goes back into the queue. Every other process ignores this
signal, also the snakemake between Slurm and the training, which SIGUSR2 would kill.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from scatterflow.fanout import Stopped

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
_JOB = "SLURM_JOB_ID"
_ANSWER_S = 60  # so long `scontrol` may take
_GOODBYE_S = 180.0  # so long Slurm may take to end a job that it has put back into the queue


class Requests:
    """The signal that has asked the training to stop: `number`, None so far if none has."""

    def __init__(self) -> None:
        self.number: int | None = None

    def install(self) -> None:
        """Note signals from now on; called again where a library has set handlers of its own."""
        if threading.current_thread() is threading.main_thread():  # no other may
            for number in _heeded():
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:  # a person who presses Ctrl-C twice means it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self.number in (None, signal.SIGURG):  # clusters send SIGTERM several times: that changes nothing
            self.number = number

    def obey(self, where: str, log: Callable[[str], None]) -> None:
        """End as asked, now that the checkpoint is written: raises Stopped.

        On SIGURG the job goes back into Slurm's queue, and Slurm ends this process; where it does not, this returns.
        """
        if self.number == signal.SIGURG:
            job = os.environ[_JOB]
            refusal = _requeue(job)
            if not refusal:
                log(f"{where}: the time limit is near, Slurm job {job} goes back into the queue")
                end = time.monotonic() + _GOODBYE_S
                while self.number == signal.SIGURG and time.monotonic() < end:
                    time.sleep(0.1)
                refusal = "it was not ended"
            if self.number == signal.SIGURG:
                log(f"{where}: Slurm job {job} cannot be requeued ({refusal}): training goes on to the time limit")
                self.number = None
        if self.number is not None:
            log(f"{where}: stopped by {signal.Signals(self.number).name}; the same command continues from here")
            raise Stopped(self.number)


def _heeded() -> tuple[int, ...]:
    return (*_ENDING, signal.SIGURG) if os.environ.get(_JOB) else _ENDING


def _requeue(job: str) -> str:
    """Put the Slurm job in which this process runs back into the queue; returns why that did not work, or ""."""
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return " ".join(str(error).split())
    said = " ".join((done.stderr or done.stdout).split())
    return said[:200] or f"exit status {done.returncode}" if done.returncode else ""


@contextmanager
def heeded() -> Iterator[Requests]:
    """Note signals within the block instead of ending at once. Raises Stopped at its end where nobody has obeyed."""
    requests = Requests()
    before = {number: signal.getsignal(number) for number in _heeded()}
    requests.install()
    try:
        yield requests
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
    if requests.number in _ENDING:  # it came after the last step
        raise Stopped(requests.number)
