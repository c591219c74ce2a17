"""The store on disk: layout, alignment, checksums, damage, extension."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from scatterflow import store
from scatterflow.errors import SimulationError, StoreError
from scatterflow.files import PARTIAL
from scatterflow.manifest import Shard
from tests.store_study import THETA, example

ROWS, SHARD = 20, 5
ATTRS = {"identity": "ab" * 32, "seed": 3}


def values(shard: Shard) -> dict[str, Any]:
    rng = np.random.default_rng(abs(shard.start))
    n = shard.stop - shard.start
    return {"image": rng.random((n, 4, 3), np.float32), "parameters": rng.random((n, 2))}


def shards(rows: int = ROWS) -> list[Shard]:
    return [Shard(start, start + SHARD) for start in range(0, rows, SHARD)]


def make(path: Path, rows: int = ROWS) -> Path:
    store.create(path, example(), THETA, rows, SHARD, ATTRS)
    return path


def full(path: Path, rows: int = ROWS) -> Path:
    make(path, rows)
    for shard in shards(rows):
        store.write_shard(path, shard, values(shard))
    store.finalise(path)
    return path


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_what_is_written_is_read_with_units_and_names(tmp_path: Path) -> None:
    data = store.open_store(full(tmp_path / "s.zarr"))
    for shard in shards():
        part = data.isel(simulation=slice(*shard))
        for name, written in values(shard).items():
            np.testing.assert_array_equal(part[name].values, written)
    assert data["image"].dims == ("simulation", "z_image", "y_image")
    assert data["image"].dtype == np.float32
    assert data["parameters"].dtype == np.float64
    assert data["image"].chunks[0] == (SHARD,) * (ROWS // SHARD)
    assert data["parameter"].values.tolist() == ["a", "b_nm"]
    assert data["unit"].values.tolist() == ["1", "nm"]
    assert data["image"].attrs == {"units": "counts", "long_name": "expected counts"}
    assert data["qz_image"].attrs["units"] == "nm^-1"
    assert all("long_name" in variable.attrs for variable in data.variables.values())
    assert data.attrs == ATTRS


def test_other_readers_need_no_scatterflow(tmp_path: Path) -> None:
    path = full(tmp_path / "s.zarr")
    plain = xr.open_zarr(path, consolidated=True)
    np.testing.assert_array_equal(plain["image"].values, store.open_store(path)["image"].values)
    assert "qz_image" in plain.coords


def test_shards_are_one_file_per_array_with_checksums_inside(tmp_path: Path) -> None:
    path = full(tmp_path / "s.zarr")
    image = zarr.open_group(path, mode="r")["image"]
    assert isinstance(image, zarr.Array)
    assert image.shards == (SHARD, 4, 3)
    assert len(list((path / "image" / "c").rglob("*/0/0"))) == ROWS // SHARD
    inner = json.loads((path / "image" / "zarr.json").read_text())["codecs"][0]["configuration"]
    assert [codec["name"] for codec in inner["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert inner["codecs"][1]["configuration"]["level"] == 3
    assert np.isnan(image.fill_value)


def test_inner_chunks_stay_small_and_divide_the_shard(tmp_path: Path) -> None:
    big = xr.Dataset({"full": (("simulation", "z_full", "y_full"), np.zeros((1, 500, 500), np.float32))})
    store.create(tmp_path / "b.zarr", big, THETA, 1200, 600, ATTRS)
    array = zarr.open_group(tmp_path / "b.zarr", mode="r")["full"]
    assert isinstance(array, zarr.Array)
    assert 600 % array.chunks[0] == 0
    assert 1e6 <= array.chunks[0] * 500 * 500 * 4 <= 1e7


@pytest.mark.parametrize("shard", [Shard(1, 6), Shard(0, 10), Shard(0, 4), Shard(20, 25), Shard(-5, 0)])
def test_a_range_that_is_no_shard_is_refused(tmp_path: Path, shard: Shard) -> None:
    path = make(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="must be one whole shard of 5 of its 20 simulations"):
        store.write_shard(path, shard, values(shard))
    assert not list(path.glob("image/c/**/0"))


def test_arrays_of_another_shape_type_or_name_are_refused(tmp_path: Path) -> None:
    path, good = make(tmp_path / "s.zarr"), values(Shard(0, 5))
    with pytest.raises(StoreError, match=r"must be float32 of shape \(5, 4, 3\), got float64"):
        store.write_shard(path, Shard(0, 5), {**good, "image": good["image"].astype(float)})
    with pytest.raises(StoreError, match=r"got float32 \(5, 4, 2\)"):
        store.write_shard(path, Shard(0, 5), {**good, "image": good["image"][..., :2]})
    with pytest.raises(StoreError, match="must hold the arrays"):
        store.write_shard(path, Shard(0, 5), {"image": good["image"]})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_never_enter(tmp_path: Path, bad: float) -> None:
    path, arrays = make(tmp_path / "s.zarr"), values(Shard(5, 10))
    arrays["image"][2, 1, 1] = bad
    with pytest.raises(SimulationError, match="image of simulation 7 must be finite"):
        store.write_shard(path, Shard(5, 10), arrays)
    assert not store.layout(path).is_there(Shard(5, 10))


def test_an_unfinished_store_does_not_open(tmp_path: Path) -> None:
    path = make(tmp_path / "s.zarr")
    for shard in shards()[:-1]:
        store.write_shard(path, shard, values(shard))
    with pytest.raises(StoreError, match=r"must be complete, got .* is missing; run `scatterflow simulate`"):
        store.open_store(path)


def test_failed_simulations_are_marked_and_refused(tmp_path: Path) -> None:
    path = full(tmp_path / "s.zarr")
    store.mark_failed(path, Shard(5, 10))
    with pytest.raises(StoreError, match="5 simulations missing or failed"):
        store.open_store(path)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_never_reads_as_data(tmp_path: Path, place: float) -> None:
    path = full(tmp_path / "s.zarr")
    file = store.layout(path).files(Shard(5, 10))[0]
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 4
    file.write_bytes(content)
    data = store.open_store(path)
    np.testing.assert_array_equal(data["image"][:5].values, values(Shard(0, 5))["image"])
    with pytest.raises(StoreError, match="must be whole"):
        data["image"].compute()


def test_extension_appends_and_equals_a_store_made_at_once(tmp_path: Path) -> None:
    small = full(tmp_path / "small.zarr", 10)
    before = {file: file.stat().st_mtime_ns for file in small.glob("*/c/**/*") if file.is_file()}
    make(small, ROWS)
    after = {file: file.stat().st_mtime_ns for file in small.glob("*/c/**/*") if file.is_file()}
    assert after == before
    for shard in shards()[2:]:
        store.write_shard(small, shard, values(shard))
    store.finalise(small)
    assert files(small) == files(full(tmp_path / "s.zarr"))


def test_create_changes_nothing_that_is_right_and_mends_the_rest(tmp_path: Path) -> None:
    path = full(tmp_path / "s.zarr")
    right = files(path)
    make(path)
    assert files(path) == right
    for name in ("zarr.json", "image/zarr.json", "qz_image/c/0", "parameter/c/0"):
        (path / name).write_bytes((path / name).read_bytes()[:-7])
    with pytest.raises(StoreError, match="must have whole metadata"):
        store.open_store(path)
    make(path)
    store.finalise(path)
    assert files(path) == right


def test_finalise_sweeps_what_killed_writers_left(tmp_path: Path) -> None:
    path = full(tmp_path / "s.zarr")
    right = files(path)
    (path / "image" / "c" / "1" / "0" / f"0.0123{PARTIAL}").write_bytes(b"half")
    (tmp_path / f"s-abc{PARTIAL}").mkdir()
    make(path)
    store.finalise(path)
    assert files(path) == right
    assert [each.name for each in tmp_path.iterdir()] == ["s.zarr"]


def test_what_is_no_store_is_refused_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.zarr"):
        with pytest.raises(StoreError, match=r"must be a Zarr store, got no zarr\.json in it") as caught:
            store.open_store(path)
        assert "\n" not in str(caught.value)
