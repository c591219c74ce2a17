"""The fan-out over Slurm, as far as it needs none: options, lines of tasks, shares, refusals, a machine without Slurm."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scatterflow import fanout
from scatterflow.errors import ConfigError
from scatterflow.manifest import Shard, plan
from scatterflow.slurm import campaign, commands, options, task
from scatterflow.slurm.commands import CrowdedError, UnreachableError


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SCATTERFLOW_SLURM_", "SCATTERFLOW_FANOUT"))]:
        monkeypatch.delenv(name)


def test_a_machine_without_slurm_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCATTERFLOW_FANOUT", "slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"Slurm must be installed .*, got no sbatch, .*unset SCATTERFLOW_FANOUT"):
        fanout.backend_name()


def test_options_come_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options.from_environment() == options.SlurmOptions()
    for name, text in {"ACCOUNT": "0815", "CPUS": "4", "POLL_S": "2.5", "PARALLEL": "", "QOS": "yes"}.items():
        monkeypatch.setenv(f"SCATTERFLOW_SLURM_{name}", text)
    chosen = options.from_environment()
    assert (chosen.account, chosen.cpus, chosen.poll_s, chosen.parallel, chosen.qos) == ("0815", 4, 2.5, None, "yes")


def test_options_come_from_the_resources_of_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCATTERFLOW_SLURM_ACCOUNT", "mine")
    before = dict(os.environ)
    options.take_from({"runtime": 60, "slurm_partition": "cpu"})
    assert dict(os.environ) == before  # the profile does not fan out
    try:
        resources = {
            "fanout": "slurm",
            "slurm_partition": "cpu",
            "slurm_account": "site",
            "task_minutes": 5,
            "mem_mb": 1,
        }
        options.take_from(resources)
        chosen = options.from_environment()
        assert os.environ["SCATTERFLOW_FANOUT"] == "slurm"
        assert (chosen.partition, chosen.account, chosen.minutes) == ("cpu", "mine", 5)
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_shares_hold_each_shard_once(shards: int, tasks: int, workers: int, size: int) -> None:
    planned = list(plan(shards, 1))
    shared = campaign.share(planned, tasks, workers)
    assert [shard for share in shared for shard in share] == planned
    assert len(shared) <= tasks
    assert all(len(share) >= workers for share in shared[:-1])
    groups = list(campaign.batches(shared, size))
    assert [share for group in groups for share in group] == shared
    assert all(len(group) <= size for group in groups)


@given(st.lists(st.sampled_from(["ok", "failed"]), max_size=8), st.data())
def test_lines_of_a_killed_task(endings: list[str], data: st.DataObject) -> None:
    """However a file is cut, whole lines are read once and torn ones never; what is appended later is read later."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.jsonl"
        task._append(path, {"host": "node", "process": 1})
        ends = [path.stat().st_size]
        for number, ending in enumerate(endings):
            error = "" if ending == "ok" else "line\nbreak"
            task._append(path, {"start": number, "stop": number + 1, "error": error, "details": "", "fatal": False})
            ends.append(path.stat().st_size)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        outcomes, begun, _, offset = task.read(path, 0)
        assert begun == (cut >= ends[0])
        assert len(outcomes) == sum(end <= cut for end in ends[1:])
        path.write_bytes(whole)
        later, _, _, offset = task.read(path, offset)
        assert offset == len(whole)
        assert [outcome.shard for outcome in outcomes + later] == [Shard(n, n + 1) for n in range(len(endings))]
        assert [bool(outcome.error) for outcome in outcomes + later] == [ending == "failed" for ending in endings]


def test_a_task_started_again_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(b'{"host": "a", "process": 1}\n{"start": 0, "stop": 1, "err')
    task._append(path, {"host": "b", "process": 2})
    task._append(path, {"start": 0, "stop": 1, "error": "", "details": "", "fatal": False})
    outcomes, begun, _, _ = task.read(path, 0)
    assert begun
    assert [outcome.shard for outcome in outcomes] == [Shard(0, 1)]


def test_a_task_does_its_shards_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    task.run(str, [(0, 2), (4, 6)], 1, str(path))
    outcomes, begun, _, _ = task.read(path, 0)
    assert begun
    assert [outcome.shard for outcome in outcomes] == [Shard(0, 2), Shard(4, 6)]


REFUSALS = {
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)": UnreachableError,
    "slurm_load_jobs error: Protocol authentication error": UnreachableError,
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation": UnreachableError,
    "sbatch: error: QOSMaxSubmitJobPerUserLimit": CrowdedError,
    "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified": ConfigError,
    "sbatch: error: Batch job submission failed: Invalid qos specification": ConfigError,
}


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_that_pass_and_others(text: str) -> None:
    error = commands.refusal("sbatch", f"{text}\n")
    assert type(error) is REFUSALS[text]
    if isinstance(error, ConfigError):
        assert "SCATTERFLOW_SLURM_" in error.remedy


def test_the_state_is_found_again(tmp_path: Path) -> None:
    first = campaign.load(tmp_path, "simulate")
    batch = first.announce([[Shard(0, 1), Shard(1, 2)], [Shard(2, 3)]])
    (unsure,) = campaign.load(tmp_path, "simulate").batches
    assert (unsure.name, unsure.job) == (batch.name, None)
    first.started(batch, 17)
    again = campaign.load(tmp_path, "simulate")
    assert again.tasks == first.tasks
    assert set(again.tasks) == {(17, 0), (17, 1)}
    assert again.announce([[Shard(3, 4)]]).name != batch.name
    (tmp_path / campaign.STATE).write_text("{}[")
    (tmp_path / f"{batch.name}-0.jsonl").touch()
    damaged = campaign.load(tmp_path, "simulate")
    assert not damaged.tasks
    assert damaged.announce([[Shard(3, 4)]]).name != batch.name


def test_the_telling_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert campaign.last_error(log) == ""
    log.write_text("loading\nbye\n\n")
    assert campaign.last_error(log) == "bye"
    log.write_text("srun: error: cpu1: task 0: Killed\nsrun: Force Terminated\n")
    assert campaign.last_error(log) == "srun: error: cpu1: task 0: Killed"
    limit = "slurmstepd: error: *** JOB 7 ON cpu1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***"
    log.write_text(f"{limit}\nsrun: error: cpu1: task 0: Killed\n")
    assert campaign.last_error(log) == limit
    log.write_text("x" * 10_000 + "\nModuleNotFoundError: No module named 'numpy'\x1b[0m\nsrun: error: task 0\n")
    assert campaign.last_error(log) == "ModuleNotFoundError: No module named 'numpy'[0m"
