"""What is done and what is missing: a record per shard, the manifest of a store, the plan of ranges.

A shard counts as done when its record is valid, has the identity of the study, and the files it speaks of are there;
the record is written after they are on the disk. The manifest of the whole store comes last, after every shard was
verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self, TypeVar

from pydantic import AwareDatetime, Field, StringConstraints, ValidationError, model_validator

from scatterflow.config.base import Section, option
from scatterflow.errors import StoreError
from scatterflow.files import write_atomic

FORMAT = 1
STAGE = "simulate"
_STORES = {STAGE: "store", "preprocess": "features"}  # what a stage's store is called
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Index = Annotated[int, Field(ge=0)]


class Shard(NamedTuple):
    """Simulations `start` to `stop`, the last excluded."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.start:09d}-{self.stop:09d}"


class Place(NamedTuple):
    """Where what a stage stores of one identity lives below `results/<run>/<study>/`."""

    study_folder: Path
    identity: str
    stage: str = STAGE

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return self.study_folder / self.stage

    @property
    def store(self) -> Path:
        """The Zarr store."""
        return self.folder / f"{_STORES[self.stage]}-{self.identity[:12]}.zarr"

    @property
    def records(self) -> Path:
        """Folder of the shard records."""
        return self.folder / f"shards-{self.identity[:12]}"

    @property
    def manifest(self) -> Path:
        """Manifest of the store that was finished last, whatever its identity."""
        return self.folder / "manifest.json"

    @property
    def status(self) -> Path:
        """What was begun last."""
        return self.folder / "status.json"

    def record(self, shard: Shard) -> Path:
        """Record of one shard."""
        return self.records / f"{shard}.json"


class _Document(Section):
    """A JSON file with a format number."""

    format: Literal[1] = option(FORMAT, help="number of this format")


class ShardRecord(_Document):
    """What is known of one shard: how it ended, the hashes of its arrays, and who made it when."""

    identity: Sha256 = option(help="identity of the simulations")
    start: Index = option(help="first simulation")
    stop: Index = option(help="simulation after the last")
    state: Literal["ok", "failed"] = option(help="ok: every simulation is stored; failed: see error")
    sha256: dict[str, Sha256] = option({}, help="hash of the decoded bytes of each array (C order, little-endian)")
    error: str = option("", help="why the shard failed")
    seed: int = option(help="seed of the run")
    engine: str = option(help="forward model")
    source: str = option(help="hash of the code that determines the numbers")
    versions: dict[str, str] = option(help="versions of Python and the libraries")
    seconds: float = option(ge=0, help="time on one core", unit="s")
    host: str = option(help="machine")
    finished: AwareDatetime = option(help="when it was finished")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.start >= self.stop:
            raise ValueError(f"start={self.start} must be below stop={self.stop}")
        if (self.state == "ok") != bool(self.sha256):
            raise ValueError("a shard that is ok has hashes, a failed one has none")
        return self

    @property
    def shard(self) -> Shard:
        """Its range."""
        return Shard(self.start, self.stop)


class StoredShard(Section):
    """One line of the store's manifest."""

    start: Index = option(help="first simulation")
    stop: Index = option(help="simulation after the last")
    sha256: dict[str, Sha256] = option(help="hash of the decoded bytes of each array")


class StoreManifest(_Document):
    """A finished store: every shard was decoded and agreed with its record."""

    identity: Sha256 = option(help="identity of the simulations")
    study: str = option(help="name of the study")
    kind: str = option(help="technique of the study")
    store: str = option(
        help="folder of the store, relative to this file", pattern=r"^(store|features)-[0-9a-f]{12}\.zarr$"
    )
    simulations: int = option(gt=0, help="the first rows of the store that this manifest covers; it may hold more")
    shard_size: int = option(gt=0, help="simulations per shard")
    views: tuple[str, ...] = option(help="views stored")
    parameters: tuple[str, ...] = option(help="names of the parameters, in order")
    shards: tuple[StoredShard, ...] = option(help="shards in ascending order")
    checksum: Sha256 = option(help="hash of all decoded arrays and attributes, whatever the shard size")
    seed: int = option(help="seed of the run")
    engine: str = option(help="forward model")
    source: str = option(help="hash of the code that determines the numbers")
    core_seconds: float = option(ge=0, help="time of all shards, summed over cores", unit="s")
    wall_seconds: float = option(ge=0, help="time during which at least one shard was being computed", unit="s")
    versions: dict[str, str] = option(help="versions of Python and the libraries")
    splits: dict[str, Index] = option({}, help="simulations of each role (features only)")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        ranges = tuple(Shard(shard.start, shard.stop) for shard in self.shards)
        if ranges != plan(self.simulations, self.shard_size):
            raise ValueError("shards must cover the simulations without gap or overlap")
        return self

    def same_content(self, other: StoreManifest) -> bool:
        """True if both speak of the same data; times and versions may differ."""
        facts = {"core_seconds", "wall_seconds", "versions"}
        return self.model_dump(exclude=facts) == other.model_dump(exclude=facts)


class RunStatus(_Document):
    """What was begun last in the stage's folder: counts of done and failed shards come from the records."""

    identity: Sha256 = option(help="identity of the simulations")
    simulations: int = option(gt=0, help="number of simulations asked for")
    shard_size: int = option(gt=0, help="simulations per shard")
    backend: str = option(help="what the shards are computed with: local or slurm")
    host: str = option(help="machine of the controlling process")
    process: int = option(help="its process id")
    started: AwareDatetime = option(help="when it began")


Document = TypeVar("Document", bound=_Document)


def write(path: Path, document: _Document) -> None:
    """Write a document atomically; on return it is on the disk."""
    write_atomic(path, (document.model_dump_json(indent=2) + "\n").encode())


def read(path: Path, kind: type[Document]) -> Document:
    """The document in `path`. Raises StoreError if it is missing, unreadable or not of this kind and format."""
    what = f"{path}"
    stage = next((stage for stage in _STORES if stage in path.parts[-3:-1]), STAGE)
    remedy = f"run `scatterflow {stage}` again: it makes what is missing"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(what, "must exist", remedy=remedy) from None
    except OSError as error:
        raise StoreError(what, "must be readable", error.strerror, "check its permissions") from None
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StoreError(what, f"must be a whole {kind.__name__}", f"{place}: {first['msg']}", remedy) from None


def plan(simulations: int, shard_size: int) -> tuple[Shard, ...]:
    """Ranges that cover `simulations`, each of `shard_size`: a larger number only appends ranges."""
    return tuple(Shard(start, start + shard_size) for start in range(0, simulations, shard_size))


def read_records(place: Place, shards: Iterable[Shard] | None = None) -> dict[Shard, ShardRecord]:
    """The valid records of the place's identity; damaged ones and those of another identity count as missing.

    Of all shards, or of `shards` only.
    """
    records = {}
    paths = sorted(place.records.glob("*.json")) if shards is None else map(place.record, shards)
    for path in paths:
        try:
            record = read(path, ShardRecord)
        except StoreError:
            continue  # a damaged record is a missing one: its shard is made anew
        if record.identity == place.identity and path == place.record(record.shard):
            records[record.shard] = record
    return records


def hashes(records: Mapping[Shard, ShardRecord]) -> dict[Shard, dict[str, str]]:
    """sha256 of each array of the shards that are stored."""
    return {shard: record.sha256 for shard, record in records.items() if record.state == "ok"}


def stage_of(store: Path) -> str:
    """The stage that makes a store, by the store's name."""
    return next((stage for stage, name in _STORES.items() if store.name.startswith(f"{name}-")), STAGE)


def wall_seconds(records: Iterable[ShardRecord]) -> float:
    """Time during which at least one of the shards was being computed [s], whatever stops lay between."""
    ends = ((record.finished.timestamp(), record.seconds) for record in records)
    spans = sorted((end - seconds, end) for end, seconds in ends)
    total, reached = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def shard_size_of(records: Mapping[Shard, ShardRecord], default: int) -> int:
    """Simulations per shard of what is there already, else `default`."""
    return next((shard.stop - shard.start for shard in records), default)
