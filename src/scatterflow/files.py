"""Files that are complete or absent: atomic durable writes, one writer per folder, disk troubles in one line."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from scatterflow.errors import StoreError

PARTIAL = ".partial"  # ending of files that are being written (zarr's own choice too); what a kill leaves is swept
_REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again: what is finished is kept",
    errno.EDQUOT: "free some of your quota and run the same command again: what is finished is kept",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) and run the same command again: what is finished is kept",
    errno.EACCES: "make it writable or choose another folder",
    errno.EPERM: "make it writable or choose another folder",
    errno.EROFS: "choose a folder on a writable file system",
    errno.ENOTDIR: "a file stands where a folder must be: move it away",
    errno.EEXIST: "a file stands where a folder must be: move it away",
}


def sync(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that after a kill or a power cut the old or the new content is there, never a part."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sweep(folder: Path) -> int:
    """Remove what killed writers left below `folder`; returns how many files. Only while nobody writes there."""
    left = list(folder.rglob(f"*{PARTIAL}"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def disk_error(path: Path, error: OSError) -> StoreError:
    """The error of a disk that refuses: full, read-only, not permitted."""
    remedy = _REMEDIES.get(error.errno or 0, "check the disk and run the same command again")
    return StoreError(str(path), "cannot be read or written", (error.strerror or str(error)).lower(), remedy)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError that names `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` as its only writer; the kernel lets go when this process dies, however it dies.

    Raises StoreError if another process holds it.
    """
    path = folder / ".lock"
    with path.open("a+", encoding="utf-8") as handle:
        if not _lock(handle):
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            remedy = "wait until it has finished, or stop it"
            raise StoreError(str(folder), "must have one writer at a time", f"a second beside {holder}", remedy)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        try:
            yield
        finally:
            handle.truncate(0)


def _lock(handle: TextIO) -> bool:
    for _ in range(30):  # `is_held` of another process may have it for a moment, one that is stopping a little longer
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def is_held(folder: Path) -> bool:
    """True while a process holds `folder` by `exclusive`."""
    path = folder / ".lock"
    if not path.exists():
        return False
    with path.open("r", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
