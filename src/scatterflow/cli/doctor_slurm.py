"""Check a cluster: whether Slurm answers, what it lets us do, and whether its nodes can see what they need."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from scatterflow.cli.findings import OK, WARNING, Finding, call
from scatterflow.errors import ScatterflowError
from scatterflow.slurm import commands, options
from scatterflow.slurm.commands import UnreachableError

_PLUGIN_POLL_S = 40.0  # snakemake-executor-plugin-slurm's first look at a job
_LOOKS = 3  # so many looks must fit into the time for which Slurm remembers a job that has ended
_SHARED = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "panfs",
    "wekafs",
    "afs",
    "cifs",
    "smb",
    "orangefs",
    "quobyte",
    "fuse",
)
_LOCAL_REMEDY = "the nodes must see it under the same path: use a folder on the cluster's shared disk"


def slurm(results: Path) -> Iterator[Finding]:
    """Findings about Slurm; one warning where there is none."""
    if shutil.which("sbatch") is None:
        yield Finding("Slurm", WARNING, "no sbatch", "simulations run on this machine; on a cluster load its module")
        return
    try:
        config = commands.configuration()
    except (UnreachableError, ScatterflowError) as error:
        remedy = "ask whether the controller is up (`scontrol ping`); munge must run here, too"
        yield Finding("Slurm", WARNING, f"sbatch is there, Slurm does not answer: {error}", remedy)
        return
    yield Finding("Slurm", OK, f"{config.get('SLURM_VERSION', 'unknown version')}, cluster {config.get('ClusterName')}")
    yield _accounting(config)
    yield _arrays(config)
    yield _memory_of_jobs(config)
    yield from _partitions()
    yield from _shared({"results": results.absolute(), "Python": Path(sys.prefix)})
    yield from _quota()


def _accounting(config: dict[str, str]) -> Finding:
    kind = config.get("AccountingStorageType", "unknown")
    if kind.endswith("none"):
        remedy = "nothing to do: jobs are followed by squeue; core-hours come from our own records"
        return Finding("Slurm accounting", WARNING, "none (sacct does not work)", remedy)
    return Finding("Slurm accounting", OK, kind)


def _arrays(config: dict[str, str]) -> Finding:
    largest = commands.max_array_size(config)
    found = f"MaxArraySize {config.get('MaxArraySize', 'unknown')}: up to {largest} tasks in one call of sbatch"
    if largest < 10:
        remedy = "each call submits few tasks; keep SCATTERFLOW_SLURM_TASKS low, or ask for a larger MaxArraySize"
        return Finding("Slurm arrays", WARNING, found, remedy)
    return Finding("Slurm arrays", OK, found)


def _memory_of_jobs(config: dict[str, str]) -> Finding:
    """How long an ended job is listed: a state that is forgotten between two looks is never seen."""
    words = config.get("MinJobAge", "0").split()
    seconds = float(words[0]) if words and words[0].isdigit() else 0.0
    try:
        poll = options.from_environment().poll_s
    except ScatterflowError:  # the finding about the fan-out tells
        poll = options.SlurmOptions().poll_s
    longest = max(poll, _PLUGIN_POLL_S)
    found = f"{seconds:.0f} s, looks every {poll:.0f} s (simulations) and {_PLUGIN_POLL_S:.0f} s (snakemake)"
    if seconds < _LOOKS * longest:
        remedy = (
            f"below {_LOOKS * longest:.0f} s: use sacct (`slurm-status-command: sacct` in profiles/slurm) if there is "
            "accounting, else look more often (`slurm-init-seconds-before-status-checks`)"
        )
        return Finding("Slurm MinJobAge", WARNING, found, remedy)
    return Finding("Slurm MinJobAge", OK, found)


def _partitions() -> Iterator[Finding]:
    done = call("sinfo", "--noheader", "--format=%P|%a|%l|%D|%c|%m|%G")
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 6] if done else []
    if not rows:
        yield Finding("Slurm partitions", WARNING, "none", "ask for access to a partition")
        return
    texts = [
        f"{name}: {state}, {nodes} nodes of {cpus} cores and {memory} MB, limit {limit}"
        for name, state, limit, nodes, cpus, memory, _ in rows
    ]
    yield Finding("Slurm partitions", OK, "; ".join(texts))
    gpus = [f"{row[0].rstrip('*')} ({row[6]})" for row in rows if "gpu" in row[6]]
    if gpus:
        yield Finding("Slurm GPUs", OK, f"{', '.join(gpus)}; profiles/slurm names one for training")
    else:
        remedy = "training uses CPUs: remove gres and slurm_partition of train_model from profiles/slurm"
        yield Finding("Slurm GPUs", WARNING, "in no partition", remedy)


def _shared(folders: dict[str, Path]) -> Iterator[Finding]:
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    mounts = {Path(fields[1]): fields[2] for fields in (line.split() for line in lines) if len(fields) > 2}
    for name, folder in folders.items():
        point = next(each for each in (folder, *folder.parents) if each in mounts or each == each.parent)
        kind = mounts.get(point, "unknown")
        if kind.startswith(_SHARED):
            yield Finding(f"shared disk ({name})", OK, f"{folder} is on {kind}")
        else:
            yield Finding(
                f"shared disk ({name})", WARNING, f"{folder} is on {kind}, a disk of one machine", _LOCAL_REMEDY
            )


def _quota() -> Iterator[Finding]:
    done = call("quota", "--quiet")  # prints only what is above its limit
    if done is not None and done.stdout.strip():
        line = " ".join(done.stdout.split())
        yield Finding("quota", WARNING, line, "free some space: a full disk stops the run, finished shards are kept")
    elif done is not None:
        yield Finding("quota", OK, "no limit is exceeded")
