"""The Zarr stores of simulations and of their features: create, write a shard, read.

Dims `simulation`, `z_<view>`, `y_<view>`, `parameter`; arrays: one per view (float32 expected counts, NaN = missing), or
one per feature and mask, `parameters` (float64) and `status` (uint8: 0 missing, 1 ok, 2 failed). The shard is the unit of
writing: a writer owns whole shards, so writers never share a file. Each chunk inside carries a CRC-32C, so a flipped bit
never reads as data. Nothing in a store depends on time or machine: equal configurations give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import ZarrUserWarning

from scatterflow import manifest
from scatterflow.errors import SimulationError, StoreError
from scatterflow.files import PARTIAL, disk_error, disk_errors, sweep, sync, write_atomic
from scatterflow.manifest import Shard

MISSING, OK, FAILED = 0, 1, 2
PARAMETERS, STATUS = "parameters", "status"
_CHUNK_BYTES = 4_000_000  # inner chunks of 1-10 MB: small enough to read a few rows, large enough for a parallel disk
_CODECS = (ZstdCodec(level=3), Crc32cCodec())  # the default has no checksum: flipped bits would read as data
ROOT = "zarr.json"  # metadata of the store itself
Arrays = dict[str, NDArray[Any]]


def _remedy(path: Path) -> str:
    return f"run `scatterflow {manifest.stage_of(path)}` again: it makes what is missing or damaged"


def create(
    path: Path, example: xr.Dataset, theta: xr.DataArray, simulations: int, shard_size: int, attrs: Mapping[str, Any]
) -> None:
    """Make the store at `path`, extend it to `simulations` rows, or mend its metadata: only what is needed.

    `example` is the simulation of at least one row, a variable (simulation, z_<view>, y_<view>) per view with its
    coordinates (or of features); `theta` the parameters (simulation, parameter) of such rows. Shards that were written
    stay untouched.
    """
    for left in path.parent.glob(f"{path.stem}-*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)  # of a killed process
    with tempfile.TemporaryDirectory(prefix=f"{path.stem}-", suffix=PARTIAL, dir=path.parent) as scratch:
        new = Path(scratch) / path.name
        _write_template(new, example, theta, -(-simulations // shard_size) * shard_size, shard_size, attrs)
        for file in sorted(new.rglob("*"), key=lambda file: file == new / ROOT):  # last: without it, it is no store
            place = path / file.relative_to(new)
            same = _same_root if file == new / ROOT else _same_bytes
            if file.is_file() and not (place.is_file() and same(place, file)):
                place.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(place, file.read_bytes())
        for stray in {file.name for file in path.iterdir() if file.is_dir()} - {file.name for file in new.iterdir()}:
            shutil.rmtree(path / stray)  # an array that stores of this identity no longer have


def _same_bytes(old: Path, new: Path) -> bool:
    return old.read_bytes() == new.read_bytes()


def _same_root(old: Path, new: Path) -> bool:
    """True if both hold the same but for the consolidated metadata, which `finalise` renews."""
    ignored = {"consolidated_metadata": None}
    try:
        return {**json.loads(old.read_bytes()), **ignored} == {**json.loads(new.read_bytes()), **ignored}
    except (ValueError, TypeError):
        return False  # damaged: replace it


def _write_template(
    path: Path, example: xr.Dataset, theta: xr.DataArray, rows: int, shard_size: int, attrs: Mapping[str, Any]
) -> None:
    """Metadata and coordinates of a store of `rows` simulations, no simulation in it."""
    import dask.array as da  # not what a task needs, and a second of its time

    texts = {name: ("parameter", theta[name].values.astype(object)) for name in ("parameter", "unit")}
    template = example.drop_vars(["simulation", *example.data_vars], errors="ignore").assign_coords(texts)
    template["parameter"].attrs["long_name"] = "name of the parameter"
    template["unit"].attrs["long_name"] = "unit of the parameter"
    plain = {"compressors": _CODECS, "_FillValue": None}
    encoding: dict[str, dict[str, Any]] = {str(name): dict(plain) for name in template.coords}
    for name, variable in _variables(example, theta).items():
        shape, fill = variable.shape[1:], np.nan if variable.dtype.kind == "f" else MISSING
        blank = da.full(
            (rows, *shape), fill, dtype=variable.dtype, chunks=-1
        )  # never computed: one chunk, however many shards
        template[name] = (variable.dims, blank, variable.attrs)
        inner = _inner_rows(shard_size, math.prod(shape) * variable.dtype.itemsize)
        cut = {"chunks": (inner, *shape), "shards": (shard_size, *shape)}
        kind = {"dtype": variable.dtype} if variable.dtype.kind == "b" else {}  # else xarray stores them as int8
        encoding[name] = {**plain, **cut, **kind, "fill_value": fill}
    template.attrs = dict(attrs)
    template.to_zarr(path, mode="w", compute=False, encoding=encoding, zarr_format=3, consolidated=False)


def _variables(example: xr.Dataset, theta: xr.DataArray) -> dict[str, xr.Variable]:
    """An empty variable per array of the store, with its dims, dtype and attributes."""
    found = {
        str(name): xr.Variable(array.dims, np.empty((0, *array.shape[1:]), array.dtype), array.attrs)
        for name, array in example.items()
    }
    text = {"units": "see coordinate unit", "long_name": "sample parameters"}
    found[PARAMETERS] = xr.Variable(("simulation", "parameter"), np.empty((0, theta.sizes["parameter"])), text)
    text = {"units": "1", "long_name": "state: 0 missing, 1 ok, 2 failed"}
    found[STATUS] = xr.Variable("simulation", np.empty(0, np.uint8), text)
    return found


def _inner_rows(shard_size: int, row_bytes: int) -> int:
    """Rows per inner chunk: the largest divisor of the shard that stays below the size of a chunk."""
    most = max(1, min(shard_size, _CHUNK_BYTES // max(row_bytes, 1)))
    return next(rows for rows in range(most, 0, -1) if shard_size % rows == 0)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _open(path: Path, mode: Any) -> zarr.Group:
    """The store without its consolidated metadata, which lag behind while it is extended."""
    if not (path / ROOT).is_file():
        raise StoreError(f"store {path}", "must be a Zarr store", f"no {ROOT} in it", _remedy(path))
    try:
        return zarr.open_group(path, mode=mode, use_consolidated=False)
    except OSError as error:
        raise disk_error(path, error) from error
    except Exception as error:  # whatever damaged metadata make the library raise
        raise StoreError(f"store {path}", "must have whole metadata", _line(error), _remedy(path)) from error


@dataclass(frozen=True)
class Layout:
    """How a store is cut: `arrays` maps names to (shape of one simulation, dtype), in order of writing."""

    path: Path
    simulations: int
    shard_size: int
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]

    def check(self, shard: Shard) -> None:
        """Raise StoreError unless `shard` is exactly one: two writers in one lose rows, and zarr does not notice."""
        size = self.shard_size
        if shard.start < 0 or shard.start % size or shard.stop != shard.start + size or shard.stop > self.simulations:
            must = f"must be one whole shard of {size} of its {self.simulations} simulations"
            raise StoreError(f"range {shard} of store {self.path}", must, remedy="write shard by shard")

    def files(self, shard: Shard) -> list[Path]:
        """Files that hold one shard, one per array."""
        self.check(shard)
        index = str(shard.start // self.shard_size)
        return [self.path.joinpath(name, "c", index, *["0"] * len(row)) for name, (row, _) in self.arrays.items()]

    def is_there(self, shard: Shard) -> bool:
        """True if all its files are there (whether they are whole, only decoding can tell)."""
        return shard.stop <= self.simulations and all(file.is_file() for file in self.files(shard))


def layout(path: Path) -> Layout:
    """The layout of a store. Raises StoreError if its metadata are damaged."""
    group = _open(path, "r")
    try:
        found = {name: array for name, array in sorted(group.arrays()) if array.shards is not None}
        found[STATUS] = found.pop(STATUS)  # written last: it says that the rest is there
        sizes = {array.shards[0] for array in found.values() if array.shards is not None}
        (shard_size,), (simulations,) = sizes, {array.shape[0] for array in found.values()}
    except Exception as error:  # whatever damaged metadata make the library raise
        raise StoreError(f"store {path}", "must have whole metadata", _line(error), _remedy(path)) from error
    arrays = {name: (array.shape[1:], np.dtype(array.dtype)) for name, array in found.items()}
    return Layout(path, simulations, shard_size, arrays)


def attributes(path: Path) -> dict[str, Any]:
    """The attributes of a store: identity, engine, seed, instrument, sample."""
    return dict(_open(path, "r").attrs)


def write_shard(path: Path, shard: Shard, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Write one shard of every array and mark it ok; on return it is on the disk.

    `arrays` holds `parameters` (simulation, parameter) and each view (simulation, z, y). Returns the sha256 of each
    array's bytes. Raises SimulationError for values that are not finite, StoreError for a shard that does not fit.
    """
    where = layout(path)
    whole = {**arrays, STATUS: np.full(shard.stop - shard.start, OK, dtype=np.uint8)}
    if set(whole) != set(where.arrays):
        raise StoreError(f"shard {shard}", f"must hold the arrays {sorted(where.arrays)}", sorted(whole))
    for name, values in whole.items():
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            row = shard.start + int(np.argmin(finite))
            raise SimulationError(f"{name} of simulation {row}", "must be finite", "NaN or infinity")
    _write(where, shard, {name: whole[name] for name in where.arrays})
    return {name: digest(whole[name]) for name in where.arrays}


def mark_failed(path: Path, shard: Shard) -> None:
    """Say in the store that the simulations of a shard failed."""
    _write(layout(path), shard, {STATUS: np.full(shard.stop - shard.start, FAILED, dtype=np.uint8)})


def _write(where: Layout, shard: Shard, arrays: Mapping[str, NDArray[Any]]) -> None:
    where.check(shard)
    for name, values in arrays.items():
        row, dtype = where.arrays[name]
        if values.dtype != dtype or values.shape != (where.shard_size, *row):
            must = f"must be {dtype} of shape {(where.shard_size, *row)}"
            raise StoreError(f"{name} of shard {shard}", must, f"{values.dtype} {values.shape}")
    # the global setting, also at opening: the argument of open_array is ignored (zarr 3.1.6), and without it an inner
    # chunk that equals the fill value is left out
    with disk_errors(where.path), zarr.config.set({"array.write_empty_chunks": True}):
        group = _open(where.path, "r+")
        for file, name in zip(where.files(shard), where.arrays, strict=True):
            if name not in arrays:
                continue
            array = group[name]
            assert isinstance(array, zarr.Array)  # `layout` has listed it among the arrays
            file.unlink(missing_ok=True)  # zarr reads what it overwrites, and fails if that is damaged
            array[shard.start : shard.stop] = arrays[name]
            for path in (file, *file.parents):  # the file, then the folders that name it
                if path == where.path:
                    break
                sync(path)
        sync(where.path)


def reader(where: Layout) -> Callable[[Shard], Arrays]:
    """What reads all arrays of a shard, decoded; it raises StoreError if one is missing or its checksums disagree."""
    arrays = {name: _Rows(where, name) for name in where.arrays}

    def read(shard: Shard) -> Arrays:
        for file in where.files(shard):
            if not file.is_file():
                got = f"{file.relative_to(where.path)} is missing"
                raise StoreError(f"shard {shard} of {where.path}", "must be whole", got, _remedy(where.path))
        return {name: array[slice(*shard)] for name, array in arrays.items()}

    return read


def read_shard(where: Layout, shard: Shard) -> Arrays:
    """All arrays of one shard, decoded. Raises StoreError if it is missing or its checksums disagree."""
    return reader(where)(shard)


class _Rows:
    """An array of the store that Dask can slice; what cannot be decoded raises StoreError."""

    def __init__(self, where: Layout, name: str) -> None:
        self.path, self.name = where.path, name
        row, self.dtype = where.arrays[name]
        self.shape = (where.simulations, *row)
        self.ndim = len(self.shape)

    @cached_property
    def _array(self) -> zarr.Array[Any]:
        array = _open(self.path, "r")[self.name]
        assert isinstance(array, zarr.Array)  # `layout` has listed it among the arrays
        return array

    def __getitem__(self, key: Any) -> NDArray[Any]:
        try:
            return np.asarray(self._array[key])
        except StoreError:
            raise
        except Exception as error:  # whatever a damaged file makes the codecs raise
            what = f"{self.name} of {self.path}, rows {key[0] if isinstance(key, tuple) else key}"
            raise StoreError(what, "must be whole", _line(error), _remedy(self.path)) from error


def finalise(path: Path) -> None:
    """Remove what killed writers left and consolidate the metadata. Only when all writers are done."""
    with disk_errors(path):
        sweep(path)
        with warnings.catch_warnings():
            # no part of format 3 yet, but zarr and xarray have read it since 3.0; without it readers list the folder
            warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", ZarrUserWarning)
            zarr.consolidate_metadata(path)
        root = path / ROOT
        content = json.loads(root.read_bytes())
        members = content["consolidated_metadata"]["metadata"]
        content["consolidated_metadata"]["metadata"] = dict(sorted(members.items()))  # not as the disk lists them
        write_atomic(root, json.dumps(content, indent=2).encode())


def check_consolidated(path: Path, simulations: int) -> None:
    """Raise StoreError if the metadata at the root, which other readers use, are not those of the arrays.

    While a store is being extended they speak of fewer simulations, but never of less than the `simulations` finished.
    """
    try:
        found = json.loads((path / ROOT).read_bytes())["consolidated_metadata"]["metadata"]
        arrays = {file.parent.name: json.loads(file.read_bytes()) for file in path.glob(f"*/{ROOT}")}
        for metadata in (*found.values(), *arrays.values()):
            if metadata["dimension_names"][0] == "simulation":
                metadata["shape"][0] = min(metadata["shape"][0], simulations)
        same = found == arrays
    except (OSError, ValueError, LookupError, TypeError):
        same = False
    if not same:
        raise StoreError(
            f"consolidated metadata of store {path}", "must repeat those of the arrays", remedy=_remedy(path)
        )


def digest(values: NDArray[Any]) -> str:
    """sha256 of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).data).hexdigest()


def open_store(path: str | Path) -> xr.Dataset:
    """A store, lazy through Dask with one chunk per shard; reading a damaged part raises StoreError.

    `path` is the store's manifest (then the dataset holds the simulations that it covers) or the store itself. Raises
    StoreError if a simulation of it is missing.
    """
    path = Path(path)
    simulations = None
    if path.suffix == ".json":
        entry = manifest.read(path, manifest.StoreManifest)
        path, simulations = path.parent / entry.store, entry.simulations
        if attributes(path).get("identity") != entry.identity:
            raise StoreError(f"store {path}", f"must be the one of {entry.identity[:12]}", "another", _remedy(path))
    where = layout(path)
    for shard in manifest.plan(min(simulations or where.simulations, where.simulations), where.shard_size):
        for file in where.files(shard):
            if not file.is_file():
                raise StoreError(
                    f"store {path}", "must be complete", f"{file.relative_to(path)} is missing", _remedy(path)
                )
    dataset = lazy(where).isel(simulation=slice(simulations))
    unfinished = int((dataset[STATUS] != OK).sum()) + max(0, (simulations or 0) - where.simulations)
    if unfinished:
        raise StoreError(
            f"store {path}", "must be complete", f"{unfinished} simulations missing or failed", _remedy(path)
        )
    return dataset


def _plain_text(variable: xr.Variable) -> xr.Variable:
    """Texts as numpy's fixed-width strings, which every writer knows (zarr reads numpy's newer StringDType)."""
    if variable.dtype.kind not in "OT":
        return variable
    return xr.Variable(variable.dims, np.array(variable.values.tolist(), dtype=str), variable.attrs)


def lazy(where: Layout) -> xr.Dataset:
    """The store as it is, complete or not, coordinates in memory."""
    import dask.array as da  # see above

    try:
        dataset = xr.open_zarr(where.path, chunks=None, consolidated=False, mask_and_scale=False)
        coordinates = {name: _plain_text(dataset.coords[name].load().variable) for name in dataset.coords}
    except Exception as error:  # whatever a damaged file makes the libraries raise
        raise StoreError(
            f"coordinates of store {where.path}", "must be whole", _line(error), _remedy(where.path)
        ) from error
    index = np.arange(where.simulations)
    coordinates["simulation"] = xr.Variable("simulation", index, {"units": "1", "long_name": "index of the simulation"})
    result = xr.Dataset(coords=coordinates, attrs=dataset.attrs)
    for name, (row, dtype) in where.arrays.items():
        blank = np.empty((0,) * (1 + len(row)), dtype)
        chunks = (where.shard_size, *row)
        array = da.from_array(_Rows(where, name), chunks=chunks, name=False, asarray=False, meta=blank)
        result[name] = (dataset[name].dims, array, dataset[name].attrs)
    return result
