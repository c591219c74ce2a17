"""Decode and check every shard of a store, and hash the whole."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from scatterflow import manifest, store
from scatterflow.errors import StoreError
from scatterflow.manifest import STAGE, Place, Shard, StoreManifest
from scatterflow.progress import Tracker, quiet
from scatterflow.provenance import digest
from scatterflow.store import Arrays, Layout

T = TypeVar("T")
R = TypeVar("R")


class Damage(NamedTuple):
    """One shard that cannot be trusted, and why."""

    shard: Shard
    reason: str


@dataclass(frozen=True)
class Report:
    """What a verification found; `checksum` is empty unless everything is whole."""

    store: Path
    identity: str
    simulations: int
    shards: int
    damaged: tuple[Damage, ...]
    checksum: str

    @property
    def ok(self) -> bool:
        """True if every shard is whole and as it was written."""
        return not self.damaged

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON."""
        damaged = [{"start": d.shard.start, "stop": d.shard.stop, "reason": d.reason} for d in self.damaged]
        return {
            "store": str(self.store),
            "identity": self.identity,
            "ok": self.ok,
            "simulations": self.simulations,
            "shards": self.shards,
            "damaged": damaged,
            "checksum": self.checksum,
        }


def verify_shards(
    place: Place, hashes: Mapping[Shard, Mapping[str, str]], simulations: int, tracker: Tracker = quiet
) -> Report:
    """Decode the shards that hold the first `simulations` rows and compare them with `hashes`, the sha256 per array.

    The checksum covers names, types, shapes, attributes and decoded values in the order of the simulations: it depends
    neither on the shard size nor on the compression. Raises StoreError if the store's metadata are damaged.
    """
    where = store.layout(place.store)
    shards = manifest.plan(simulations, where.shard_size)
    whole = {name: hashlib.sha256() for name in where.arrays}
    damaged: list[Damage] = []

    read = store.reader(where)

    def check(shard: Shard) -> tuple[Arrays, str]:
        return _check(read, shard, hashes.get(shard))

    with tracker("verify", min(simulations, where.simulations)) as advance:
        for shard, (arrays, reason) in _ahead(check, shards):
            if reason:
                damaged.append(Damage(shard, reason))
            elif not damaged:
                for name, values in arrays.items():
                    whole[name].update(np.ascontiguousarray(values[: simulations - shard.start]).view(np.uint8).data)
            advance(min(shard.stop, simulations) - shard.start)
    checksum = "" if damaged else _checksum(where, simulations, {name: h.hexdigest() for name, h in whole.items()})
    return Report(place.store, place.identity, simulations, len(shards), tuple(damaged), checksum)


def _check(read: Callable[[Shard], Arrays], shard: Shard, expected: Mapping[str, str] | None) -> tuple[Arrays, str]:
    """The arrays of a shard and why they cannot be trusted ("" if they can)."""
    if expected is None:
        return {}, "no valid record"
    try:
        arrays = read(shard)
    except StoreError as error:
        return {}, " ".join(part for part in (error.must and f"{error.what} {error.must}", f"{error.got}") if part)
    wrong = [name for name, values in arrays.items() if store.digest(values) != expected.get(name)]
    if wrong:
        return {}, f"{', '.join(wrong)}: hash differs from the record's"
    if (arrays[store.STATUS] != store.OK).any():
        return {}, "status is not ok"
    return arrays, ""


def _ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Results in order, computed by a few threads (decoding and hashing let go of the interpreter), few ahead."""
    threads = min(2, os.cpu_count() or 1)  # a shard may have 1 GB, and one more than threads are held
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for item, future in waiting:
            yield item, future.result()


def _checksum(where: Layout, simulations: int, hashes: Mapping[str, str]) -> str:
    dataset = store.lazy(where).isel(simulation=slice(simulations))
    arrays = {}
    for name, variable in dataset.variables.items():
        text = variable.dtype.kind in "U"
        value = variable.values.tolist() if text else hashes.get(str(name)) or store.digest(variable.values)
        kind = "text" if text else variable.dtype.str
        arrays[str(name)] = [kind, list(variable.dims), list(variable.shape), dict(variable.attrs), value]
    return digest({"attrs": dataset.attrs, "arrays": arrays})


def verify(path: str | Path, tracker: Tracker = quiet) -> Report:
    """Check a store: `path` is its manifest, the store itself, or the folder of the study or stage.

    With a manifest, shards are compared with it; without one (the store is not finished) with the records per shard.
    Raises StoreError if there is no store or its metadata are damaged; damaged shards are in the report.
    """
    place, entry = _locate(Path(path))
    if entry is None:
        where = store.layout(place.store)
        return verify_shards(place, manifest.hashes(manifest.read_records(place)), where.simulations, tracker)
    hashes = {Shard(shard.start, shard.stop): shard.sha256 for shard in entry.shards}
    where = store.layout(place.store)
    if (where.shard_size, where.simulations >= entry.simulations) != (entry.shard_size, True):
        got = f"{where.simulations} simulations in shards of {where.shard_size}"
        must = f"must hold {entry.simulations} in shards of {entry.shard_size}, as its manifest says"
        raise StoreError(f"store {place.store}", must, got, f"run `scatterflow {place.stage}` again")
    report = verify_shards(place, hashes, entry.simulations, tracker)
    if report.ok:
        store.check_consolidated(place.store, entry.simulations)
    if report.ok and report.checksum != entry.checksum:
        raise StoreError(
            f"coordinates or attributes of store {place.store}",
            f"must have checksum {entry.checksum[:12]}",
            report.checksum[:12],
            f"run `scatterflow {place.stage}` again: it mends them",
        )
    return report


def _locate(path: Path) -> tuple[Place, StoreManifest | None]:
    """The place of a store and its manifest, if that speaks of it."""
    if path.suffix == ".zarr":
        identity = str(store.attributes(path).get("identity", ""))
        place = Place(path.resolve().parent.parent, identity, manifest.stage_of(path))
        if place.store.name != path.resolve().name:
            raise StoreError(f"store {path}", f"must be named {place.store.name}", remedy="give it its name back")
        entry = manifest.read(place.manifest, StoreManifest) if place.manifest.is_file() else None
        return place, entry if entry and entry.identity == identity else None
    for candidate in (path, path / "manifest.json", path / STAGE / "manifest.json"):
        if candidate.is_file():
            entry = manifest.read(candidate, StoreManifest)
            place = Place(candidate.resolve().parent.parent, entry.identity, manifest.stage_of(Path(entry.store)))
            if place.store.name != entry.store or candidate.resolve() != place.manifest:
                raise StoreError(str(candidate), f"must be the manifest.json beside {place.store.name}", entry.store)
            return place, entry
    for folder in (path, path / STAGE):
        stores = sorted([*folder.glob("store-*.zarr"), *folder.glob("features-*.zarr")])
        if len(stores) == 1:
            return _locate(stores[0])
        if stores:
            raise StoreError(f"{folder}", "must hold one store or a manifest", f"{len(stores)} stores", "name one")
    raise StoreError(str(path), "must be a store or its manifest", "neither", "run `scatterflow simulate` first")
