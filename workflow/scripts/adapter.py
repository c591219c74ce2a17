"""What the adapters share: output goes to the rule's log file, and what this process prints also to the terminal."""

import io
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from scatterflow.errors import ScatterflowError


class _Tee(io.TextIOBase):
    """Text goes to the log as it comes, and line by line, with the job's name, to the terminal."""

    def __init__(self, log: TextIO, terminal: TextIO, job: str) -> None:
        self.log, self.terminal, self.job, self.rest = log, terminal, job, ""

    def write(self, text: str) -> int:
        self.log.write(text)
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.terminal.write(f"{self.job}: {line}\n")  # one write per line: jobs run side by side
        return len(text)

    def fileno(self) -> int:
        return self.log.fileno()


_FAREWELL_S = 30  # so long a stage that is stopping already may take


def _end_with_snakemake() -> None:
    """Stop this process when a snakemake above it has gone, also by kill -9: the next run must not meet this one."""
    above = [os.pidfd_open(process) for process in _ancestors() if b"snakemake" in _command(process)]
    if not above:
        return
    gone = select.poll()
    for handle in above:
        gone.register(handle, select.POLLIN)
    gone.poll()
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # at work; otherwise not yet, or stopping
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_FAREWELL_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _ancestors() -> Iterator[int]:
    process = os.getppid()
    while process > 1:
        yield process
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _command(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


@contextmanager
def logged(snakemake: Any) -> Iterator[None]:
    """Log what is written inside, by libraries and child processes too; show on the terminal what this process prints.

    An error of scatterflow's own ends the process with one line and exit code 2; any other with one line
    and exit code 1: its traceback is in the log file.
    """
    threading.Thread(target=_end_with_snakemake, daemon=True).start()
    path = snakemake.log[0]
    job = " ".join([snakemake.rule, *snakemake.wildcards])
    with open(path, "w", buffering=1) as log, os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1) as terminal:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        warnings.showwarning = lambda message, category, file, line, *_: (
            log.write(  # of libraries: not for the terminal
                warnings.formatwarning(message, category, file, line)
            )
        )
        tee = _Tee(log, terminal, job)
        with redirect_stdout(tee), redirect_stderr(tee):
            try:
                yield
            except ScatterflowError as error:
                print(error)
                sys.exit(2)
            except Exception as error:
                traceback.print_exc(file=log)
                print(f"{type(error).__name__}: {error} (traceback: {path})")
                sys.exit(1)
