"""Opening HDF5 files that others write."""

from __future__ import annotations

import time
from pathlib import Path

import h5py

WAIT_S = 2.0  # for a lock that is held briefly
_POLL_S = 0.01


def open_readable(file: Path, wait_s: float = WAIT_S) -> h5py.File:
    """Open an HDF5 file for reading; the caller closes it. A lock that another process holds is waited for.

    Writers that open, append and close for every frame hold it for a moment; so does a process that was forked off a
    writer, until it runs its own program. Whoever holds it for longer than `wait_s` [s] is writing the file: then
    BlockingIOError is raised, and OSError for whatever else is wrong, at once.
    """
    end = time.monotonic() + wait_s
    while True:
        try:
            return h5py.File(file, "r", locking="best-effort")  # some file systems of clusters know no locks
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(_POLL_S)
