"""The command line: `scatterflow COMMAND`. Every command is a thin adapter of a function of the package."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: run the command of sys.argv and exit.

    Exit status: 0 done, 1 a bug (the traceback goes to a file), 2 something that the user can mend, 130 interrupted.
    """
    from scatterflow.cli.running import run  # here, so that importing the package imports no command line

    sys.exit(run(sys.argv[1:]))
