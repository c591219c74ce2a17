"""Maps as NeXus files: what NeXus readers need is there, and everything comes back."""

from __future__ import annotations

import contextlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from scatterflow.errors import StoreError
from scatterflow.nexus import read_maps, write_maps

CUBE = ("estimator", "row", "column", "parameter")


def maps(seed: int = 0, rows: int = 3, columns: int = 4) -> xr.Dataset:
    """Maps of two estimators; the centroid knows neither strain nor errors, and one point has no answer."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(2, rows, columns, 3))
    values[0, 0, 1] = np.nan
    values[1, ..., 2] = np.nan
    errors = np.abs(values)
    errors[1] = np.nan
    status = np.full((rows, columns), "ok", dtype="U10")
    status[0, 1] = "unreadable"
    return xr.Dataset(
        {
            "estimate": (CUBE, values),
            "sd": (CUBE, errors),
            "goodness": (CUBE[:3], generator.random((2, rows, columns))),
            "truth": (CUBE[1:], generator.normal(size=(rows, columns, 3))),
            "intensity": (CUBE[1:3], generator.poisson(9, (rows, columns)), {"units": "counts"}),
            "status": (CUBE[1:3], status),
        },
        coords={
            "estimator": ["maximum likelihood", "2 centroids"],
            "parameter": ["chi_deg", "omega_deg", "strain"],
            "y_um": ("row", generator.normal(size=rows), {"units": "um"}),
            "x_um": ("column", generator.normal(size=columns), {"units": "um"}),
        },
        attrs={"title": "a particle", "seed": 7, "map_shape": [rows, columns]},
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 5))
def test_maps_come_back(tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, columns: int) -> None:
    path = tmp_path_factory.mktemp("maps") / "maps.nxs"
    written = maps(seed, rows, max(columns, 2))
    found = read_maps(write_maps(path, written))
    order = sorted(written["estimator"].values)
    xr.testing.assert_equal(found.drop_vars("status"), written.drop_vars("status").sel(estimator=order))
    np.testing.assert_array_equal(found["status"].astype(str), written["status"])
    assert found.attrs["title"] == "a particle"
    assert found.attrs["seed"] == 7
    assert list(found.attrs["map_shape"]) == written.attrs["map_shape"]


def test_a_reader_finds_the_default_plot(tmp_path: Path) -> None:
    """The chain of `default` leads from the file to a signal with axes, units and errors, as NXdata asks for."""
    written = maps()
    with h5py.File(write_maps(tmp_path / "maps.nxs", written)) as file:
        group: h5py.Group = file
        steps = 0
        while "default" in group.attrs:
            group, steps = group[group.attrs["default"]], steps + 1
        assert steps == 3
        assert group.attrs["NX_class"] == "NXdata"
        signal = group[group.attrs["signal"]]
        expected = written.isel(estimator=0, parameter=0)
        np.testing.assert_array_equal(signal, expected["estimate"])
        assert (signal.attrs["units"], signal.attrs["long_name"]) == ("deg", "tilt out of the scattering plane")
        np.testing.assert_array_equal(group[f"{group.attrs['signal']}_errors"], expected["sd"])
        assert list(group.attrs["axes"]) == ["y_um", "x_um"]
        for number, axis in enumerate(group.attrs["axes"]):
            assert group[axis].shape == (signal.shape[number],)
            assert group[axis].attrs["units"] == "um"
            assert group.attrs[f"{axis}_indices"] == number

        def check(name: str, item: h5py.Group | h5py.Dataset) -> None:
            assert all(part.isidentifier() and part.isascii() for part in name.split("/")), name
            if isinstance(item, h5py.Group):
                assert item.attrs["NX_class"].startswith("NX")
            if item.attrs.get("NX_class") == "NXdata":
                assert item.attrs["signal"] in item

        file.visititems(check)
        centroid = file["entry/_2_centroids"]
        assert "strain" not in centroid  # it only held NaN
        assert "chi_deg_errors" not in centroid["chi_deg"]


def test_maps_without_estimators_and_positions(tmp_path: Path) -> None:
    written = maps().isel(estimator=0, drop=True).drop_vars(["x_um", "y_um"])
    found = read_maps(write_maps(tmp_path / "maps.nxs", written))
    assert "estimator" not in found.dims
    np.testing.assert_array_equal(found["estimate"], written["estimate"])
    np.testing.assert_array_equal(found["row"], np.arange(3))


def test_frames_beside_the_maps_stay_out(tmp_path: Path) -> None:
    written = maps().assign(frames=(("shown", "z", "y"), np.ones((1, 2, 2))))
    assert "frames" not in read_maps(write_maps(tmp_path / "maps.nxs", written))


def test_a_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_maps(tmp_path / "maps.nxs", maps())
    before = path.read_bytes()
    same = maps().assign_coords(estimator=["a b", "a_b"])  # one NeXus name for two
    with pytest.raises(StoreError, match="must differ as NeXus names, got a_b"):
        write_maps(path, same)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["maps.nxs"]


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"must be written from maps \(row, column\)"):
        write_maps(tmp_path / "maps.nxs", xr.Dataset({"a": ("point", [1.0])}))
    (tmp_path / "text.nxs").write_text("no HDF5")
    with contextlib.closing(h5py.File(tmp_path / "other.nxs", "w")) as file:
        file["entry/data/data"] = 1
    for name in ("text.nxs", "other.nxs", "none.nxs"):
        with pytest.raises(StoreError, match="must hold maps"):
            read_maps(tmp_path / name)
