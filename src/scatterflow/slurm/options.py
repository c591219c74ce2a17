"""What a site asks for and what tasks need, from environment variables: none of it may enter an identity."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from scatterflow.config.base import Section, option
from scatterflow.config.loading import parse_yaml, validate
from scatterflow.fanout import VARIABLE

PREFIX = "SCATTERFLOW_SLURM_"
_Name = str | None


class SlurmOptions(Section):
    """Options of the fan-out; the variable of `minutes` is SCATTERFLOW_SLURM_MINUTES.

    What is not here (reservation, constraint, ...) goes by the variables that sbatch itself reads: SBATCH_RESERVATION.
    """

    partition: _Name = option(None, help="partition of the tasks; none: the cluster's default")
    account: _Name = option(None, help="account that pays; none: the user's default")
    qos: _Name = option(None, help="quality of service; none: the cluster's default")
    gres: _Name = option(None, help="what else a task asks for, as sbatch --gres takes it: gpu:1")
    python: _Name = option(
        None, help="what starts Python in a task: `apptainer exec IMAGE python`; none: the Python that submits"
    )
    cpus: int = option(1, ge=1, help="cores of a task; simulations use each for one shard at a time")
    memory_mb: int = option(2000, ge=100, help="memory per core", unit="MB")
    minutes: int = option(
        60, ge=1, help="time limit of a task; what it has not finished is submitted again", unit="min"
    )
    warning_s: int = option(
        120, ge=1, le=65535, help="so long before its time limit training writes a checkpoint and ends", unit="s"
    )
    tasks: int = option(200, ge=1, help="at most so many tasks: each gets an equal share of the shards")
    parallel: int | None = option(None, ge=1, help="at most so many tasks run at once; none: as many as Slurm starts")
    tries: int = option(3, ge=1, help="of a shard whose task ends without it, whatever ended the task")
    poll_s: float = option(10.0, gt=0, help="time between two looks at the queue", unit="s")
    latency_s: float = option(15.0, ge=0, help="a file written on a node may show so late here", unit="s")
    deadline_s: float = option(3600.0, gt=0, help="give up when Slurm has not answered for so long", unit="s")


def from_environment() -> SlurmOptions:
    """The options of this process. Raises ConfigError for an unknown one or a wrong value."""
    given: dict[str, object] = {}
    for variable, text in os.environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and text:
            given[name] = (
                text if name in ("partition", "account", "qos", "gres", "python") else parse_yaml(text, variable)
            )
    return validate(SlurmOptions, given, f"environment variables {PREFIX}*")


def take_from(resources: Mapping[str, Any]) -> None:
    """Set the variables from a rule's resources: `fanout`, `slurm_partition`, `slurm_account`, `qos`, `task_<option>`.

    What the user has set by hand stays.
    """
    if resources.get("fanout") is None:
        return
    os.environ.setdefault(VARIABLE, str(resources["fanout"]))
    for resource, name in (("slurm_partition", "partition"), ("slurm_account", "account"), ("qos", "qos")):
        if resources.get(resource):
            os.environ.setdefault(PREFIX + name.upper(), str(resources[resource]))
    for resource, value in resources.items():
        if resource.startswith("task_"):
            os.environ.setdefault(PREFIX + resource.removeprefix("task_").upper(), str(value))
