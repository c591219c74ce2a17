"""Run the tests that failed last time once more, by themselves, if they are few: `python -m tests.again OPTIONS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

MOST = 3  # more is no accident


def main(options: list[str]) -> int:
    """Exit status: of the second run, 1 where there is none."""
    path = Path(".pytest_cache/v/cache/lastfailed")
    failed = sorted(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []
    print(f"{len(failed)} failed, at most {MOST} are run once more", *failed, sep="\n  ", flush=True)
    return int(pytest.main([*options, *failed])) if 0 < len(failed) <= MOST else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
