"""What a command writes to stdout: lines for people, or exactly one JSON document."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_documents: list[Any] = []  # the result of the command that runs in this process, until it is written


def open_closed() -> None:
    """Give the standard streams that the caller has closed (`>&-`) somewhere to go: libraries expect them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


@contextlib.contextmanager
def stdout(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Within the block stdout belongs to the result: with `as_json`, whatever libraries print goes to stderr.

    Yields the function that sets the document; it is written when the block ends.
    """
    _documents.clear()
    if not as_json:
        yield lambda _: None
        sys.stdout.flush()
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield _documents.append
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
    if _documents:
        print(json.dumps(_documents[-1], indent=1, ensure_ascii=False, allow_nan=False), flush=True)


def result(document: Any, lines: Iterable[str], as_json: bool) -> None:
    """Give the result of a command: `document` with --json, else `lines`."""
    if as_json:
        _documents.append(document)
    else:
        for line in lines:
            print(line)


def complain(problem: object) -> None:
    """One line on stderr, whatever `problem` holds."""
    with contextlib.suppress(OSError):  # stderr may be closed
        print("scatterflow:", " ".join(str(problem).split()), file=sys.stderr, flush=True)
