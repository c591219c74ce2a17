"""What holds for every number of simulations, shard size and order of writing."""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scatterflow import manifest, store
from scatterflow.manifest import Place, Shard, ShardRecord, plan
from scatterflow.verify import verify_shards
from tests.store_study import THETA, example

NUMBERS = st.integers(1, 500)


@given(NUMBERS, st.integers(1, 60))
def test_shards_cover_every_simulation_once(simulations: int, size: int) -> None:
    shards = plan(simulations, size)
    rows = [row for shard in shards for row in range(*shard)]
    assert rows[:simulations] == list(range(simulations))
    assert len(rows) < simulations + size
    assert {shard.stop - shard.start for shard in shards} == {size}


@given(NUMBERS, NUMBERS, st.integers(1, 60))
def test_raising_the_number_keeps_the_shards_there_are(simulations: int, more: int, size: int) -> None:
    before = plan(simulations, size)
    assert plan(simulations + more, size)[: len(before)] == before


@given(st.integers(0, 10**9 - 100), st.integers(1, 99))
def test_names_of_records_sort_as_the_shards(start: int, size: int) -> None:
    names = [str(Shard(start, start + size)), str(Shard(start + size, start + 2 * size))]
    assert sorted(names) == names


def record(begin: float, seconds: float) -> ShardRecord:
    return ShardRecord(
        identity="0" * 64, start=0, stop=1, state="failed", seed=0, engine="", source="", versions={}, seconds=seconds,
        host="", finished=datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=begin + seconds),
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 50)), max_size=20))
def test_wall_time_counts_every_second_once(spans: list[tuple[int, int]]) -> None:
    covered = {second for begin, length in spans for second in range(begin, begin + length)}
    assert manifest.wall_seconds(record(*span) for span in spans) == len(covered)


def rows(simulations: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {"image": rng.random((simulations, 4, 3), np.float32), "parameters": rng.random((simulations, 2))}


def written(folder: Path, simulations: int, size: int, order: list[Shard]) -> tuple[str, dict[str, bytes]]:
    """Checksum and files of a store that was written in this order."""
    place = Place(folder, "cd" * 32)
    place.folder.mkdir()
    store.create(place.store, example(), THETA, simulations, size, {"identity": place.identity})
    values = rows(simulations)
    hashes = {
        shard: store.write_shard(place.store, shard, {k: v[slice(*shard)] for k, v in values.items()})
        for shard in order
    }
    store.finalise(place.store)
    report = verify_shards(place, hashes, simulations)
    assert report.ok
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    return report.checksum, files


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), sizes=st.lists(st.sampled_from([1, 2, 3, 6]), min_size=2, max_size=2))
def test_order_and_shard_size_never_change_what_is_stored(data: st.DataObject, sizes: list[int]) -> None:
    checksums = set()
    for size in sizes:
        ascending = list(plan(6, size))
        results = []
        for order in (ascending, data.draw(st.permutations(ascending))):
            with tempfile.TemporaryDirectory() as folder:
                results.append(written(Path(folder), 6, size, order))
        assert results[0] == results[1]
        checksums.add(results[0][0])
    assert len(checksums) == 1


@settings(max_examples=60, deadline=None)
@given(start=st.integers(-20, 40), length=st.integers(-5, 40))
def test_only_whole_shards_are_aligned(start: int, length: int) -> None:
    where = store.Layout(Path("none"), 20, 5, {"image": ((4, 3), np.dtype("f4"))})
    shard = Shard(start, start + length)
    try:
        where.check(shard)
        aligned = True
    except store.StoreError:
        aligned = False
    assert aligned == (shard in plan(20, 5))
