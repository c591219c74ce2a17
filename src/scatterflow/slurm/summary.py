"""What Slurm does for the jobs of a stage right now, for people who wait."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from scatterflow.errors import ScatterflowError
from scatterflow.slurm import campaign, commands
from scatterflow.slurm.commands import UnreachableError

_LOGS = 50  # the newest logs in which an error is looked for


@dataclass(frozen=True)
class Summary:
    """Tasks in Slurm, why most of them wait, and the last error in their logs. `silent`: why Slurm gave no answer."""

    running: int = 0
    queued: int = 0
    reason: str = ""
    error: str = ""
    log: str = ""
    silent: str = ""

    def __str__(self) -> str:
        if self.silent:
            return f"Slurm does not answer ({self.silent})"
        why = f" ({self.reason})" if self.reason else ""
        return f"Slurm tasks: {self.running} running, {self.queued} queued{why}"


def summarise(*folders: Path) -> Summary | None:
    """The summary of what was submitted from `folders` of a fan-out; None if nothing was or all is done."""
    states = [state for folder in folders if (state := campaign.read_state(folder)) is not None]
    if not states:
        return None
    error, log = next((each for folder in folders if (each := _last_error(folder))[0]), ("", ""))
    jobs = [batch.job for state in states for batch in state.batches if batch.job is not None]
    try:
        commands.require()
        found = commands.queued(jobs).values() if jobs else ()
    except (UnreachableError, ScatterflowError) as trouble:
        return Summary(error=error, log=log, silent=str(trouble))
    pending = [each for each in found if each.state == "PENDING"]
    reasons = Counter(each.reason for each in pending if each.reason != "None").most_common(1)
    running = sum(each.state == "RUNNING" for each in found)
    return Summary(running, len(pending), reasons[0][0] if reasons else "", error, log)


def _last_error(folder: Path) -> tuple[str, str]:
    """The error in the newest log that has one, and the log's path."""
    try:
        logs = sorted(folder.glob("*_log.err"), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:  # they are being removed: all is done
        return "", ""
    for path in logs[:_LOGS]:
        if error := campaign.last_error(path):
            return error, str(path)
    return "", ""
