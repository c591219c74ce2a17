"""Every shard ends exactly once, whatever fails, whoever computes it."""

import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scatterflow import fanout
from scatterflow.errors import ConfigError, SimulationError, StoreError
from scatterflow.fanout import Outcome, run_shards
from scatterflow.manifest import Shard, plan

ENDINGS = st.lists(st.sampled_from(["ok", "simulation", "store", "bug", "bug once"]), max_size=12)


def work(endings: list[str], calls: list[int], shard: Shard) -> int:
    ending = endings[shard.start]
    calls.append(shard.start)
    if ending == "simulation":
        raise SimulationError("row 1", "must be finite")
    if ending == "store":
        raise StoreError("disk", "is full")
    if ending == "bug" or (ending == "bug once" and calls.count(shard.start) == 1):
        raise ZeroDivisionError("of\nsome library")
    return shard.start**2


@given(ENDINGS)
def test_each_shard_ends_once_and_is_tried_again_once_at_most(endings: list[str]) -> None:
    calls: list[int] = []
    shards = plan(len(endings), 1)
    outcomes = {outcome.shard: outcome for outcome in run_shards(shards, partial(work, endings, calls), 1)}
    assert set(outcomes) == set(shards)
    for shard, outcome in outcomes.items():
        ending = endings[shard.start]
        assert calls.count(shard.start) == (2 if ending.startswith("bug") else 1)
        assert bool(outcome.error) == (ending not in ("ok", "bug once"))
        assert outcome.fatal == (ending == "store")
        assert "\n" not in outcome.error
        assert ("Traceback" in outcome.details) == (ending == "bug")
        if not outcome.error:
            assert outcome.result == shard.start**2


def slow_work(folder: str, shard: Shard) -> tuple[int, str]:
    if shard.start == 3:
        raise SimulationError("row 0", "must be finite")
    tries = Path(folder) / str(shard.start)
    with tries.open("a") as handle:
        handle.write("x")
    if shard.start == 4 or (shard.start == 1 and tries.read_text() == "x"):
        os.kill(os.getpid(), 9)
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def test_processes_are_separate_single_threaded_and_a_deadly_shard_does_not_hurt_the_others(tmp_path: Path) -> None:
    shards = plan(8, 1)
    outcomes: dict[Shard, Outcome[tuple[int, str]]] = {}
    for outcome in run_shards(shards, partial(slow_work, str(tmp_path)), 2):
        assert outcome.shard not in outcomes
        outcomes[outcome.shard] = outcome
    assert set(outcomes) == set(shards)
    failed = {shard.start: outcome for shard, outcome in outcomes.items() if outcome.error}
    assert set(failed) == {3, 4}
    assert failed[3].error == "row 0 must be finite"
    assert failed[4].error == "its process was ended by SIGKILL (out of memory?)"
    assert {start: (tmp_path / str(start)).read_text() for start in (1, 4)} == {1: "xx", 4: "xx"}
    results = [outcome.result for outcome in outcomes.values() if outcome.result]
    assert os.getpid() not in {process for process, _ in results}
    assert {threads for _, threads in results} == {"1"}


def test_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fanout.processes(3) == 3
    assert fanout.processes(None) == len(os.sched_getaffinity(0))
    monkeypatch.setenv("SCATTERFLOW_FANOUT", "moon")
    with pytest.raises(ConfigError, match="must be one of"):
        fanout.backend_name()
    monkeypatch.setenv("SCATTERFLOW_FANOUT", "")
    assert fanout.backend_name() == "local"
