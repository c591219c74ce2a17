"""What has been submitted: batches of tasks, kept in a file so that a controller started anew finds them again."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from scatterflow.config.base import Section, option
from scatterflow.files import write_atomic
from scatterflow.manifest import Shard

STATE = "state.json"
_LAST_BYTES = 4000


class Batch(Section):
    """One call of sbatch: `tasks` are the ranges of each task, by array index."""

    name: str = option(help="name of the job in Slurm")
    job: int | None = option(None, help="id of the job; none while it is being submitted")
    tasks: tuple[tuple[tuple[int, int], ...], ...] = option(help="ranges of simulations of each task")


class State(Section):
    """All batches whose tasks may still run."""

    format: Literal[1] = option(1, help="number of this format")
    submitted: int = option(0, ge=0, help="batches so far: names are never used twice")
    batches: tuple[Batch, ...] = option((), help="in the order of submission")


@dataclass
class Task:
    """A task in flight: `left` are its shards that have not ended, in the order in which it takes them."""

    batch: str
    job: int
    index: int
    left: list[Shard]
    offset: int = 0  # of its file of lines
    begun: bool = False
    state: str = "PENDING"
    node: str = ""
    ended: float | None = None  # when Slurm was first seen to have ended it [s]
    again: bool = False  # it has stopped in time before its limit, to be started again

    @property
    def key(self) -> tuple[int, int]:
        """Job and index."""
        return self.job, self.index


@dataclass
class Campaign:
    """The folder of a fan-out and what is in flight."""

    folder: Path
    name: str  # of its jobs in the queue, before its key
    submitted: int = 0
    batches: list[Batch] = field(default_factory=list)
    tasks: dict[tuple[int, int], Task] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Marks this folder's jobs in Slurm."""
        return hashlib.sha256(str(self.folder).encode()).hexdigest()[:10]

    @property
    def jobs(self) -> list[int]:
        """Jobs with tasks in flight."""
        return sorted({task.job for task in self.tasks.values()})

    def lines(self, batch: str, index: int) -> Path:
        """File in which a task says what has ended."""
        return self.folder / f"{batch}-{index}.jsonl"

    def write(self) -> None:
        """Put the state on the disk."""
        alive = {task.batch for task in self.tasks.values()}
        self.batches = [batch for batch in self.batches if batch.job is None or batch.name in alive]
        state = State(submitted=self.submitted, batches=tuple(self.batches))
        write_atomic(self.folder / STATE, (state.model_dump_json() + "\n").encode())

    def announce(self, tasks: list[list[Shard]]) -> Batch:
        """A new batch, on the disk before it is in Slurm."""
        self.submitted += 1
        ranges = tuple(tuple((shard.start, shard.stop) for shard in task) for task in tasks)
        batch = Batch(name=f"{self.name}-{self.key}-{self.submitted}", tasks=ranges)
        self.batches.append(batch)
        self.write()
        return batch

    def started(self, batch: Batch, job: int) -> None:
        """Slurm has taken the batch."""
        self.batches[self.batches.index(batch)] = batch.model_copy(update={"job": job})
        for index, task in enumerate(batch.tasks):
            shards = [Shard(start, stop) for start, stop in task]
            self.tasks[job, index] = Task(batch.name, job, index, shards)
        self.write()

    def refused(self, batch: Batch) -> None:
        """Slurm has not taken the batch."""
        self.batches.remove(batch)
        self.write()

    def log(self, task: Task) -> Path:
        """Log of a task (submitit's name)."""
        batch = next((batch for batch in self.batches if batch.job == task.job), None)
        alone = batch is not None and len(batch.tasks) == 1
        return self.folder / f"{task.job}_{'' if alone else f'{task.index}_'}0_log.err"

    def clean(self) -> None:
        """Remove the folder: everything has ended well."""
        shutil.rmtree(self.folder, ignore_errors=True)


def load(folder: Path, name: str) -> Campaign:
    """The campaign of a folder, with the tasks that an earlier controller submitted."""
    folder.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(folder, name)
    state = read_state(folder)
    if state is None:
        # without it nothing is known of earlier batches but their names: take none of these again
        numbers = [re.fullmatch(r"[a-z-]+-[0-9a-f]{10}-(\d+)-\d+\.jsonl", path.name) for path in folder.iterdir()]
        campaign.submitted = max((int(found[1]) for found in numbers if found), default=0)
        return campaign
    campaign.submitted, campaign.batches = state.submitted, list(state.batches)
    for batch in state.batches:
        if batch.job is not None:
            for index, ranges in enumerate(batch.tasks):
                shards = [Shard(start, stop) for start, stop in ranges]
                campaign.tasks[batch.job, index] = Task(batch.name, batch.job, index, shards)
    return campaign


def read_state(folder: Path) -> State | None:
    """The state in a folder; None if there is none or it is damaged."""
    try:
        return State.model_validate_json((folder / STATE).read_bytes())
    except (OSError, ValidationError):
        return None


def share(shards: list[Shard], tasks: int, workers: int) -> list[list[Shard]]:
    """Shards in order, in at most `tasks` equal parts of at least `workers` shards."""
    size = max(workers, -(-len(shards) // tasks))
    return [shards[first : first + size] for first in range(0, len(shards), size)]


def batches(tasks: list[list[Shard]], size: int) -> Iterator[list[list[Shard]]]:
    """Tasks in groups of at most `size`."""
    for first in range(0, len(tasks), size):
        yield tasks[first : first + size]


def last_error(path: Path) -> str:
    """The last line of a log that names an exception, else an error, else the last line; "" if there is none."""
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - _LAST_BYTES))
            text = handle.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line for line in reversed(text.split("\n")) if line.strip()]
    telling = (r"[\w.]*(Error|Exception|Interrupt)\b", r".*(exceeded|DUE TO|oom|execve)", r".*\berror: ", r"")
    chosen = next((line for pattern in telling for line in lines if re.match(pattern, line)), "")
    return "".join(character for character in chosen if character.isprintable())[:200]
