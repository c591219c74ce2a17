"""Run one command and turn whatever happens into an exit status, one line on stderr and, with --json, one document."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from scatterflow.cli import output
from scatterflow.errors import FrameError, ScatterflowError

INTERNAL, USER, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
_SIGNALS = 128  # a process that a signal ended has this plus the signal's number as its status

# click's own class, which typer carries inside: unknown options and commands, missing and malformed values
_USAGE: type[Exception] = typer.BadParameter.__bases__[0]


def run(arguments: Sequence[str]) -> int:
    """Run `scatterflow` with `arguments`; returns the exit status."""
    output.open_closed()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, to developers; python -W shows them
    try:
        with output.stdout(as_json="--json" in arguments and not {"-h", "--help"} & set(arguments)) as emit:
            status, document = _attempt(arguments)
            if document is not None:
                emit(document)
            return status
    except BrokenPipeError:  # whoever read our output has gone: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes at exit
        return BROKEN_PIPE


def _attempt(arguments: Sequence[str]) -> tuple[int, Any]:
    """Exit status, and the JSON document of an error (None where the command has written its own)."""
    from scatterflow.cli.app import app

    try:
        status = app(list(arguments), prog_name="scatterflow", standalone_mode=False)
        if status == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return status if isinstance(status, int) else 0, None
    except ScatterflowError as error:
        return USER, _problem(str(error), error)
    except _USAGE as error:
        return USER, _problem(_usage(error))
    except typer.Exit as error:
        return error.exit_code, None
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED, _problem("interrupted; what is finished is kept, the same command continues")
    except BrokenPipeError:
        raise
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer makes an exit of it
            raise error.__context__ from None
        return _exit(error.code)
    except Exception as error:
        return INTERNAL, _problem(f"internal error, {type(error).__name__}: {error}; please report it with {_log()}")


def _exit(code: Any) -> tuple[int, Any]:
    """A stage that was stopped by a signal has said so; a library that gives up has not."""
    status = code if isinstance(code, int) else INTERNAL
    if status > _SIGNALS:
        return status, {"error": {"message": f"stopped by signal {status - _SIGNALS}"}}
    return status, _problem(f"stopped: {code}") if status else None


def _usage(error: Any) -> str:
    """One line of a click usage error, with the command whose help tells more."""
    command = error.ctx.command_path if error.ctx is not None else "scatterflow"
    message = str(error.format_message()).strip() or "a command is missing"
    return f"{message.rstrip('.')}; see `{command} --help`"


def _problem(text: str, error: ScatterflowError | None = None) -> dict[str, Any]:
    """Say `text` in one line on stderr; returns it as a JSON document, in its parts where they are known."""
    line = " ".join(text.split())
    output.complain(line)
    if error is None:
        return {"error": {"message": line}}
    parts = {
        "kind": type(error).__name__,
        "message": line,
        "what": error.what,
        "must": error.must,
        "got": None if error.got is None else str(error.got),
        "remedy": error.remedy,
    }
    if isinstance(error, FrameError):
        parts["status"] = error.status
    return {"error": parts}


def _log() -> str:
    """Write the traceback of the current exception to a file; returns the file's path."""
    try:
        handle, path = tempfile.mkstemp(prefix="scatterflow-", suffix=".log", text=True)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(f"{json.dumps(sys.argv)}\n{traceback.format_exc()}")
    except OSError:  # no space for the log either
        return "what you did"
    return path
