"""Posterior files and cuts: round trips, the ArviZ layout, and errors that leave the old file alone."""

from __future__ import annotations

import resource

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scatterflow.errors import StoreError
from scatterflow.exports import read_posterior, write_cut, write_posterior

NAMES = ["layer01_TaO.delta", "layer01_TaO.thickness_nm", "layer02_Ta.hurst"]
UNITS = ["", "nm", ""]


def posterior_of(observations: int, draws: int) -> tuple[xr.DataArray, xr.DataArray, xr.Dataset]:
    rng = np.random.default_rng(observations)
    labels = np.arange(7, 7 + observations)
    samples = xr.DataArray(
        rng.normal(size=(observations, draws, len(NAMES))),
        dims=("observation", "sample", "parameter"),
        coords={"observation": labels, "parameter": NAMES, "unit": ("parameter", UNITS)},
    )
    log_prob = xr.DataArray(rng.normal(size=(observations, draws)), dims=("observation", "sample"))
    observed = xr.Dataset(
        {
            "profile": (("simulation", "profile_point"), rng.random((observations, 5), dtype=np.float32)),
            "mask_profile": (("simulation", "profile_point"), rng.random((observations, 5)) > 0.5),
            "parameters": (("simulation", "parameter"), rng.random((observations, len(NAMES)))),
        },
        coords={"simulation": labels, "parameter": NAMES, "unit": ("parameter", UNITS)},
    )
    return samples, log_prob, observed


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "new" / "cvae-maf.nc"
    attrs = {"study": "multilayer", "estimator": "cvae-maf", "seed": 3}
    content = (*posterior_of(4, 6), attrs)
    write_posterior(path, *content)
    return path, content


def test_posterior_returns_as_written(written):
    path, (samples, log_prob, observed, attrs) = written
    back = read_posterior(path)
    xr.testing.assert_identical(back.samples, samples)
    xr.testing.assert_identical(back.log_prob, log_prob)
    assert back.attrs == attrs
    assert back.observed["mask_profile"].dtype == bool
    for name in observed.data_vars:
        np.testing.assert_array_equal(back.observed[name], observed[name])
    assert back.observed["profile"].dims == ("observation", "profile_point")
    write_posterior(path, *back)  # what is read can be written again
    xr.testing.assert_identical(read_posterior(path).samples, samples)


def test_file_has_the_groups_and_dimensions_of_arviz(written):
    path, (samples, log_prob, _, _) = written
    with xr.open_dataset(path, group="posterior", engine="h5netcdf") as group:
        assert list(group.data_vars) == NAMES
        assert group["layer01_TaO.thickness_nm"].dims == ("chain", "draw", "observation")
        assert group["layer01_TaO.thickness_nm"].attrs["units"] == "nm"
        np.testing.assert_array_equal(group["layer02_Ta.hurst"][0].T, samples[..., 2])
        np.testing.assert_array_equal(group["observation"], samples["observation"])
    with xr.open_dataset(path, group="sample_stats", engine="h5netcdf") as group:
        np.testing.assert_array_equal(group["lp"][0].T, log_prob)
    with h5py.File(path) as file:
        assert set(file) >= {"posterior", "sample_stats", "observed_data", "constant_data"}
        assert "parameters" not in file["observed_data"]  # the truth was not observed


def test_observations_without_truth_have_no_constant_data(tmp_path):
    samples, log_prob, observed = posterior_of(2, 3)
    path = write_posterior(tmp_path / "experiment.nc", samples, log_prob, observed.drop_vars("parameters"), {})
    assert "parameters" not in read_posterior(path).observed
    with h5py.File(path) as file:
        assert "constant_data" not in file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, lp, o: (s.where(s.sample > 0), lp, o), "must be finite, got 12 values"),
        (lambda s, lp, o: (s, lp.where(lp.sample > 0), o), "must be finite, got 4 values"),
        (lambda s, lp, o: (s, lp[:, :-1], o), "log_prob for .* must have 6 of sample, got 5"),
        (lambda s, lp, o: (s, lp, o.isel(simulation=slice(3))), "observed for .* must have 4 of observation, got 3"),
        (lambda s, lp, o: (s[0], lp, o), "must have dimensions"),
    ],
)
def test_bad_posterior_is_refused_and_the_old_file_stays(written, change, message):
    path, (*content, attrs) = written
    before = path.read_bytes()
    with pytest.raises(StoreError, match=message):
        write_posterior(path, *change(*content), attrs)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.fixture
def small_files():
    """No file may grow beyond 4 KiB, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_keeps_the_old_file(written, small_files):
    path, content = written
    before = path.read_bytes()
    with pytest.raises(StoreError, match="cannot be read or written"):
        write_posterior(path, *content)
    with pytest.raises(StoreError, match="cannot be read or written"):
        write_cut(path, *np.ones((3, 5000)), {})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_unreadable_posteriors_are_store_errors(written, tmp_path):
    path, _ = written
    with pytest.raises(StoreError, match="must be an existing file"):
        read_posterior(tmp_path / "none.nc")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="must be a complete posterior file"):
        read_posterior(path)
    path.write_bytes(b"text")
    with pytest.raises(StoreError, match="must be a complete posterior file"):
        read_posterior(path)
    xr.Dataset({"a": 1}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(StoreError, match="must be a complete posterior file"):
        read_posterior(path)


@settings(max_examples=25, deadline=None)
@given(
    table=arrays(
        float, st.tuples(st.integers(1, 20), st.just(3)), elements=st.floats(allow_nan=False, allow_infinity=False)
    )
)
def test_cut_keeps_every_digit(tmp_path_factory, table):
    path = write_cut(tmp_path_factory.mktemp("cut") / "cut.dat", *table.T, {"frame": "scan\n3"})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["# frame: scan 3", "# q [nm^-1]  intensity [counts]  sd [counts]"]
    np.testing.assert_array_equal(np.loadtxt(path, ndmin=2), table)


def test_bad_cuts_are_refused(tmp_path):
    path = tmp_path / "cut.dat"
    with pytest.raises(StoreError, match="three columns of equal length"):
        write_cut(path, [1, 2], [1, 2], [1], {})
    with pytest.raises(StoreError, match="must be finite, got 1 values"):
        write_cut(path, [1, 2], [1, np.nan], [1, 1], {})
    assert not path.exists()
