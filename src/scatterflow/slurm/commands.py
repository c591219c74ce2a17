"""Slurm's own commands: what they answer, and which of their refusals pass by themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from scatterflow.errors import ConfigError

_TIMEOUT_S = 120
# refusals that end by themselves: the controller restarts, the network or munge is down, a limit of jobs is reached
_PASSING = (
    "unable to contact slurm controller",
    "unable to establish",
    "socket timed out",
    "connection",
    "zero bytes",
    "transport endpoint",
    "authentication",
    "munge",
    "temporarily",
    "in standby",
    "try again",
    "timed out",
)
_CROWDED = ("submit limit", "submitjob", "queue is full", "max submit")
_REMEDIES = {  # the first that fits: what is said of an account names the partition, too
    "account": "see `sacctmgr show associations user=$USER`; set SCATTERFLOW_SLURM_ACCOUNT, or slurm_account in the profile",
    "partition": "see `sinfo` for the partitions; set SCATTERFLOW_SLURM_PARTITION, or slurm_partition in the profile",
    "qos": "set SCATTERFLOW_SLURM_QOS, or qos in the profile",
    "time limit": "lower SCATTERFLOW_SLURM_MINUTES below the partition's limit (`sinfo -o '%P %l'`)",
    "node configuration": "lower SCATTERFLOW_SLURM_CPUS or SCATTERFLOW_SLURM_MEMORY_MB, or choose another partition",
    "configuration source": "this machine belongs to no cluster: run the command where Slurm works",
    "memory": "lower SCATTERFLOW_SLURM_MEMORY_MB",
}


class UnreachableError(Exception):
    """Slurm does not answer now; it may later."""


class CrowdedError(UnreachableError):
    """Slurm takes no more jobs of this user until some have ended."""


class Queued(NamedTuple):
    """One task as squeue shows it."""

    state: str
    node: str
    reason: str

    @property
    def ended(self) -> bool:
        """True once its processes are gone or about to go."""
        return self.state not in _ALIVE or self.held

    @property
    def held(self) -> bool:
        """True if Slurm put it back after a failed start and will not start it again by itself."""
        return self.state == "PENDING" and self.reason.replace("_", " ").lower() in _HELD


_ALIVE = frozenset(
    ("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT")
)
_HELD = frozenset(("launch failed requeued held", "jobholdmaxrequeue", "job hold max requeue"))


def require() -> None:
    """Raise ConfigError unless Slurm's commands are on this machine."""
    lacking = [name for name in ("sbatch", "squeue", "scancel", "scontrol", "srun") if shutil.which(name) is None]
    if lacking:
        remedy = "load the cluster's module for it (`scatterflow doctor`), or unset SCATTERFLOW_FANOUT to simulate here"
        raise ConfigError(
            "Slurm", "must be installed where the fan-out slurm starts", f"no {', '.join(lacking)}", remedy
        )


def call(*command: str) -> str:
    """Output of a command of Slurm. Raises UnreachableError, ConfigError for a refusal that will come again."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"{command[0]} did not answer in {_TIMEOUT_S} s") from None
    except OSError as error:
        raise ConfigError(command[0], "must be a command that runs", error.strerror) from None
    if done.returncode:
        raise refusal(command[0], done.stderr or done.stdout)
    return done.stdout


def refusal(command: str, text: str, asked: str = "") -> Exception:
    """The error that `text`, which a command has printed, stands for; `asked` is what of the site was asked for."""
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")
    line = line.removeprefix(f"{command}: ").removeprefix("error: ")
    low = line.lower()
    if any(words in low for words in _CROWDED):
        return CrowdedError(line)
    if any(words in low for words in _PASSING):
        return UnreachableError(line)
    remedy = next(
        (remedy for words, remedy in _REMEDIES.items() if words in low), "mend it and run the same command again"
    )
    return ConfigError(
        command, "must be accepted by Slurm" if command == "sbatch" else "must work here", line + asked, remedy
    )


def configuration() -> dict[str, str]:
    """Slurm's configuration: MaxArraySize, MinJobAge, AccountingStorageType and the rest. Raises as `call`."""
    pairs = (line.split("=", 1) for line in call("scontrol", "show", "config").splitlines() if " = " in line)
    return {name.strip(): value.strip() for name, value in pairs}


def max_array_size(config: Mapping[str, str]) -> int:
    """How many tasks one array may have, at least 1."""
    return max(1, int(config.get("MaxArraySize", "1001")) - 1)


def queued(jobs: Iterable[int]) -> dict[tuple[int, int], Queued]:
    """The tasks of `jobs` that Slurm still knows, by job and index (0 for a job that is no array); one call of squeue."""
    ids = ",".join(map(str, jobs))
    try:
        text = call("squeue", "--noheader", "--array", "--states=all", "--format=%F|%K|%T|%N|%r", f"--jobs={ids}")
    except ConfigError as error:
        if "invalid job id" in str(error).lower():
            return {}  # Slurm has forgotten all of them
        raise
    found = {}
    for line in text.splitlines():
        job, index, state, node, reason = line.strip().split("|", 4)
        if job.isdigit():
            found[int(job), int(index) if index.isdigit() else 0] = Queued(state, node, reason)
    return found


def cancel(jobs: Iterable[int] = (), names: Iterable[str] = ()) -> None:
    """Cancel jobs by id, and this user's jobs of a name. Raises as `call`."""
    ids = [str(job) for job in jobs]
    if ids:
        call("scancel", "--quiet", *ids)
    for name in names:
        call("scancel", "--quiet", f"--user={os.getuid()}", f"--name={name}")
