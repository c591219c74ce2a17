"""What `scatterflow doctor` reports, and how it asks other programs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

OK, WARNING, MISSING = "ok", "warning", "missing"
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `state`: ok; warning (works without it); missing (every run needs it)."""

    what: str
    state: str
    found: str
    remedy: str = ""


def call(*command: str) -> subprocess.CompletedProcess[str] | None:
    """The finished command; None if it cannot be started or does not end in time."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
