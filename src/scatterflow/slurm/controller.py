"""The fan-out `slurm`: submit array jobs, follow them, submit again what they lost, cancel them when stopped.

What is done is decided by the records on the shared disk, never by Slurm: the queue only tells which tasks have ended.
Two writers of one shard do no harm: both write the same bytes, and a task leaves alone what it finds finished. So a
task may be given up too early, started twice, or outlive its node.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from scatterflow.errors import ConfigError, ScatterflowError, StoreError
from scatterflow.fanout import Outcome, Shared
from scatterflow.manifest import Shard
from scatterflow.progress import duration, say
from scatterflow.slurm import campaign as campaigns
from scatterflow.slurm import commands, options, task
from scatterflow.slurm.campaign import Campaign, Task
from scatterflow.slurm.commands import CrowdedError, Queued, UnreachableError
from scatterflow.slurm.options import SlurmOptions

_TOLD_EVERY_S, _TOLD_FIRST_S = 60.0, 5.0
_GOODBYE_S = 60.0  # so long tasks that are no longer needed get to end (Slurm's KillWait is 30 s)
_HARMLESS = "B:CONT@1"  # in place of submitit's signal before the time limit, which would cost what is being simulated
_SETUP = ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"]  # since Slurm 22.05 srun does not take it over by itself


def run(shards: Sequence[Shard], work: Callable[[Shard], Any], shared: Shared) -> Iterator[Outcome[Any]]:
    """The backend: do `work` on every shard in Slurm tasks and yield how each ended.

    Raises ConfigError where Slurm is missing or refuses the jobs, StoreError when it stays silent or tasks end without
    any result.
    """
    commands.require()
    chosen = options.from_environment()
    try:
        largest = commands.max_array_size(commands.configuration())
    except UnreachableError as error:
        remedy = "see `scatterflow doctor`; run the same command again when it does: tasks that were submitted go on"
        raise StoreError("Slurm", "must answer", error, remedy) from None
    controller = _Controller(list(shards), work, shared, chosen, largest)
    try:
        yield from controller.run()
    finally:
        controller.close()


class _Controller:
    """One run of the fan-out. `left` are the shards that have not ended; each is in flight or waits."""

    def __init__(
        self, shards: list[Shard], work: Callable[[Shard], Any], shared: Shared, chosen: SlurmOptions, largest: int
    ) -> None:
        self.work, self.shared, self.options, self.largest = work, shared, chosen, largest
        self.campaign: Campaign = campaigns.load(shared.folder.absolute(), shared.name)
        self.left = dict.fromkeys(shards)
        self.waiting: deque[list[list[Shard]]] = deque()
        self.done: list[Shard] = []
        self.tries: Counter[Shard] = Counter()
        self.lost = 0  # tasks that ended without their shards since the last shard that ended
        self.first = 1  # tasks of the first submission
        self.silent: float | None = None  # since when Slurm has not answered
        self.told = time.monotonic() - _TOLD_EVERY_S + _TOLD_FIRST_S, ""
        self.failed = False
        self.avoided: dict[str, str] = {}  # nodes on which a task failed before it had begun, and how

    def run(self) -> Iterator[Outcome[Any]]:
        yield from self._attach()
        flying = {shard for each in self.campaign.tasks.values() for shard in each.left}
        tasks = self._share([shard for shard in self.left if shard not in flying])
        self.first = max(1, len(tasks) + len(self.campaign.tasks))
        self.waiting.extend(campaigns.batches(tasks, self.largest))
        while self.left:
            self._submit()
            time.sleep(self.options.poll_s)
            self._look()
            yield from self._end(self._lines())
            yield from self._collect()
        self._settle()

    def _share(self, shards: list[Shard]) -> list[list[Shard]]:
        if self.shared.alone:
            return [[shard] for shard in shards]
        return campaigns.share(shards, self.options.tasks, self.options.cpus)

    def _attach(self) -> Iterator[Outcome[Any]]:
        """Follow what an earlier controller has submitted; a batch that it was just submitting is cancelled."""
        unsure = [batch for batch in self.campaign.batches if batch.job is None]
        with self._patience():
            commands.cancel(names=[batch.name for batch in unsure])
        for batch in unsure:
            self.campaign.refused(batch)
        if not self.campaign.tasks:
            return
        self._look()
        for key, each in list(self.campaign.tasks.items()):
            each.left = [shard for shard in each.left if shard in self.left]
            if each.ended is not None or not each.left:
                del self.campaign.tasks[key]  # what it has not finished is submitted again
        self.campaign.write()
        if self.campaign.tasks:
            say(f"slurm: going on with tasks that were submitted before: {len(self.campaign.tasks)}")
        still = set(self.shared.missing(list(self.left)))  # some have ended since the stage looked
        yield from self._end(Outcome[Any](shard) for shard in list(self.left) if shard not in still)
        # what a task says to have finished may have been damaged since: believe only its errors
        yield from self._end(outcome for outcome in self._lines() if outcome.error)

    def _submit(self) -> None:
        """Hand the next batches to Slurm: all at once, or with a throttle one after the other."""
        while self.waiting and not (self.options.parallel and self.campaign.tasks):
            tasks = self.waiting[0]
            batch = self.campaign.announce(tasks)
            try:
                with self._patience():
                    job = self._sbatch(batch)
                    self.campaign.started(batch, job)
                    self.waiting.popleft()
                    continue
            except BaseException:
                self._forget(batch)
                raise
            self._forget(batch)  # it may be in Slurm although sbatch had no answer
            return

    def _forget(self, batch: campaigns.Batch) -> None:
        if batch in self.campaign.batches:
            with suppress(UnreachableError, ScatterflowError):
                commands.cancel(names=[batch.name])
                self.campaign.refused(batch)

    def _sbatch(self, batch: campaigns.Batch) -> int:
        """Submit a batch; returns the id of its job."""
        import submitit
        from submitit.core.utils import FailedJobError

        chosen = self.options
        executor = submitit.SlurmExecutor(folder=self.campaign.folder, python=chosen.python)
        executor.update_parameters(
            job_name=batch.name,
            partition=chosen.partition,
            account=chosen.account,
            qos=chosen.qos,
            time=chosen.minutes,
            cpus_per_task=chosen.cpus,
            mem=f"{chosen.memory_mb * chosen.cpus}M",
            ntasks_per_node=1,
            array_parallelism=chosen.parallel or len(batch.tasks),
            setup=_SETUP,
            additional_parameters=self._additional(),
        )
        indices = range(len(batch.tasks))
        workers = 1 if self.shared.alone else chosen.cpus
        lines = [str(self.campaign.lines(batch.name, index)) for index in indices]
        with _outside():
            try:
                jobs = executor.map_array(
                    task.run, [self.work] * len(lines), batch.tasks, [workers] * len(lines), lines
                )
            except FailedJobError as error:
                site = {"partition": chosen.partition, "account": chosen.account, "qos": chosen.qos}
                asked = ", ".join(f"{name} {value}" for name, value in site.items() if value)
                refusal = commands.refusal("sbatch", str(error), f" ({asked})" if asked else "")
                if self.avoided and isinstance(refusal, ConfigError):
                    raise self._no_node() from None
                raise refusal from None
        return int(jobs[0].job_id.split("_")[0])

    def _additional(self) -> dict[str, Any]:
        """Options of sbatch that submitit has no name for."""
        warned = self.shared.alone  # the others lose the shard at work at most
        chosen: dict[str, Any] = {"signal": f"USR2@{self.options.warning_s}" if warned else _HARMLESS}
        if self.options.gres:
            chosen["gres"] = self.options.gres
        if self.avoided:
            chosen["exclude"] = ",".join(self.avoided)
        return chosen | {"requeue": True}  # started again after the failure of a node, and after preemption

    def _no_node(self) -> StoreError:
        why = list(self.avoided.values())[-1]
        remedy = "have Python and this folder on every node (`scatterflow doctor`), or choose another partition"
        return StoreError("Slurm nodes", "must be able to start tasks", why, remedy)

    def _look(self) -> None:
        """Ask Slurm once which tasks have ended."""
        if not self.campaign.tasks:
            return
        found: dict[tuple[int, int], Queued] | None = None
        with self._patience():
            found = commands.queued(self.campaign.jobs)
        if found is None:
            return
        now = time.monotonic()
        for key, each in self.campaign.tasks.items():
            shown = found.get(key)
            if shown is None or shown.ended:
                each.ended = each.ended or now
            else:
                each.ended = None
            if shown is not None:
                each.state, each.node = shown.state, shown.node or each.node
        self._tell(found)

    def _tell(self, found: dict[tuple[int, int], Queued]) -> None:
        """One line when the numbers change, at most once a minute."""
        mine = [found[key] for key in self.campaign.tasks if key in found]
        running = sum(each.state == "RUNNING" for each in mine)
        pending = [each.reason for each in mine if each.state == "PENDING"]
        reasons = Counter(reason for reason in pending if reason != "None").most_common(1)
        text = f"tasks: {running} running, {len(pending)} queued" + (f" ({reasons[0][0]})" if reasons else "")
        now = time.monotonic()
        if text != self.told[1] and now - self.told[0] >= _TOLD_EVERY_S:
            self.told = now, text
            say(f"slurm: {text}; shards left: {len(self.left)}")

    def _lines(self) -> list[Outcome[Any]]:
        """What tasks have written down since the last look."""
        ended: list[Outcome[Any]] = []
        for each in self.campaign.tasks.values():
            said = task.read(self.campaign.lines(each.batch, each.index), each.offset)
            each.offset = said.offset
            each.begun = each.begun or said.begun
            each.again = said.again if said.begun or said.again else each.again
            ended += said.outcomes
        return ended

    def _end(self, outcomes: Iterable[Outcome[Any]]) -> Iterator[Outcome[Any]]:
        for outcome in outcomes:
            if outcome.shard in self.left:
                del self.left[outcome.shard]
                self.lost = 0
                if outcome.error:
                    self.failed = True
                else:
                    self.done.append(outcome.shard)
                yield outcome

    def _collect(self) -> Iterator[Outcome[Any]]:
        """Take tasks that have ended off the list; what they lost is submitted again or, after some tries, failed."""
        late = time.monotonic() - self.options.latency_s
        gone: list[Task] = []
        for key, each in list(self.campaign.tasks.items()):
            each.left = [shard for shard in each.left if shard in self.left]
            if each.ended is not None and (not each.left or each.ended <= late):
                gone.append(self.campaign.tasks.pop(key))
        if not gone:
            return
        lost = [shard for each in gone for shard in each.left]
        still = set(self.shared.missing(lost)) if lost else set()  # its line may be lost, its record is not
        yield from self._end(Outcome[Any](shard) for shard in lost if shard not in still)
        alone: list[list[Shard]] = []
        others: list[Shard] = []
        why = ""
        for each in gone:
            left = [shard for shard in each.left if shard in still]
            if left and each.again:  # it has kept what it has done: this is no failure, however often
                why, alone = "the time limit was near", alone + [[shard] for shard in left]
            elif left:
                self.lost += 1
                why = self._why(each)
                if each.node and each.state == "FAILED" and not each.begun:  # it would fail all others as fast
                    self.avoided[each.node] = why
                    say(f"slurm: node {each.node} is left out from now on")
                suspects = left[: self.options.cpus] if each.begun else left  # at work when it ended
                self.tries.update(suspects)
                dead = [shard for shard in suspects if self.tries[shard] >= self.options.tries]
                yield from self._end(Outcome[Any](shard, error=why) for shard in dead)
                again = [shard for shard in left if shard in self.left]
                if each.begun:
                    alone += [[shard] for shard in again if shard in suspects]
                    others += [shard for shard in again if shard not in suspects]
                else:
                    others += again
        if self.lost > self.options.tries * self.first:
            raise StoreError(
                "Slurm tasks",
                "must finish shards",
                f"{self.lost} tasks in a row that finished none; the last: {why}",
                "mend it and run the same command again: what is finished is kept",
            )
        tasks = alone + self._share(others)
        if tasks:
            number = len(alone) + len(others)
            say(f"slurm: {number} shard{'s' if number > 1 else ''} submitted again ({why})")
            self.waiting.extend(campaigns.batches(tasks, self.largest))
        self.campaign.write()

    def _why(self, each: Task) -> str:
        """How a task ended, in one line for people."""
        log = self.campaign.log(each)
        line = campaigns.last_error(log)
        state = "ended" if each.state in ("PENDING", "RUNNING") else each.state.lower().replace("_", " ")
        where = f" on {each.node}" if each.node else ""
        if each.node and not log.exists():
            return (
                f"Slurm task {each.job}_{each.index}{where}: {state}, no log: is {self.campaign.folder} visible there?"
            )
        return f"Slurm task {each.job}_{each.index}{where}: {state}" + (f", {line} (log: {log})" if line else "")

    def _settle(self) -> None:
        """Wait until tasks that nobody needs any more have ended, and what the nodes have written shows here."""
        patient = (
            time.monotonic() + self.options.latency_s
        )  # those that have just done their last shard end by themselves
        end = patient + _GOODBYE_S
        cancelled = False
        while self.campaign.tasks and time.monotonic() < end:
            if not cancelled and time.monotonic() > patient:
                cancelled = True
                with suppress(UnreachableError, ScatterflowError):
                    commands.cancel(self.campaign.jobs)
            self._look()
            ended = [key for key, each in self.campaign.tasks.items() if each.ended is not None]
            for key in ended:
                del self.campaign.tasks[key]
            if self.campaign.tasks:
                time.sleep(self.options.poll_s)
        while self.shared.missing(self.done) and time.monotonic() < end:
            time.sleep(self.options.poll_s)

    def close(self) -> None:
        """Cancel what is in flight; after a good end nothing stays behind."""
        jobs = self.campaign.jobs
        names = [batch.name for batch in self.campaign.batches if batch.job is None]
        try:
            commands.cancel(jobs, names)
        except (UnreachableError, ScatterflowError) as error:
            if jobs:
                say(f"slurm: cannot cancel jobs {', '.join(map(str, jobs))} ({error}); use scancel when Slurm answers")
        if not (self.left or self.failed):
            self.campaign.clean()

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Pass over a refusal that ends by itself, until the deadline. Raises StoreError then."""
        try:
            yield
        except CrowdedError as error:
            if not self.campaign.tasks:  # none of ours that could make room
                remedy = "lower SCATTERFLOW_SLURM_TASKS, or wait until your other jobs have ended"
                raise ConfigError("sbatch", "must be accepted by Slurm", error, remedy) from None
        except UnreachableError as error:
            now = time.monotonic()
            if self.silent is None:
                self.silent = now
                say(f"slurm: no answer ({error}); trying again for {duration(self.options.deadline_s)}")
            if now - self.silent > self.options.deadline_s:
                got = f"{error} for {duration(now - self.silent)}"
                remedy = "run the same command again when it does: what is finished is kept"
                raise StoreError("Slurm", "must answer", got, remedy) from None
        else:
            self.silent = None


@contextmanager
def _outside() -> Iterator[None]:
    """Without the variables of a Slurm job in which this process may itself run: its tasks would inherit them."""
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(hidden)
