"""Results as files for other programs: posterior samples as NetCDF in the layout of ArviZ, cuts as text columns.

A posterior file holds the groups `posterior` (one variable per parameter: chain, draw, observation), `sample_stats`
(`lp`, the log density of each sample), `observed_data` (what was inferred from) and, where the truth is known,
`constant_data` (`parameters`). `arviz.from_netcdf` opens it (schema: arviz-devs, doi:10.21105/joss.01143).
"""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from scatterflow.errors import StoreError
from scatterflow.files import disk_errors, write_atomic

Attrs = Mapping[str, str | int | float]

TRUTH = "parameters"  # the variable of `observed` that holds the true parameters of simulations


class StoredPosterior(NamedTuple):
    """What `write_posterior` takes and `read_posterior` gives back."""

    samples: xr.DataArray
    log_prob: xr.DataArray | None
    observed: xr.Dataset
    attrs: dict[str, str | int | float]


def write_posterior(
    path: Path, samples: xr.DataArray, log_prob: xr.DataArray | None, observed: xr.Dataset, attrs: Attrs
) -> Path:
    """Write posterior samples of one or more observations; the file is either the old or the complete new one.

    Parameters
    ----------
    samples : (observation, sample, parameter), physical units, with coordinates `observation`, `parameter` and `unit`
        (parameter).
    log_prob : (observation, sample), the estimator's log density of each sample; the attribute `log_prob_of` should
        name its measure; none: not stored.
    observed : features with the leading dimension `observation` or `simulation`; `parameters`, if there, is the truth.
    attrs : plain facts: study, estimator, identity.

    Raises
    ------
    StoreError : sizes contradict each other, a sample is not finite, a density is NaN, or the disk refuses.
    """
    observed = observed.rename(simulation="observation") if "simulation" in observed.dims else observed
    _check(path, samples, log_prob, observed)
    index = {"observation": samples["observation"].values}
    units = samples["unit"].values if "unit" in samples.coords else [""] * samples.sizes["parameter"]
    draws = samples.transpose("sample", "observation", "parameter").values[np.newaxis]
    dims = ("chain", "draw", "observation")
    coords = {"chain": [0], "draw": np.arange(samples.sizes["sample"]), **index}
    posterior = xr.Dataset(
        {
            str(name): (dims, draws[..., i], {"units": str(unit), "long_name": str(name)})
            for i, (name, unit) in enumerate(zip(samples["parameter"].values, units, strict=True))
        },
        coords=coords,
    )
    lp_attrs = {"long_name": "natural logarithm of the estimator's density"}
    groups = {
        "/": xr.Dataset(attrs=dict(attrs)),
        "/posterior": posterior,
        "/observed_data": observed.drop_vars(TRUTH, errors="ignore").drop_dims("parameter", errors="ignore")
        .assign_coords(index),
    }  # fmt: skip
    if log_prob is not None:
        density = log_prob.transpose("sample", "observation").values[np.newaxis]
        groups["/sample_stats"] = xr.Dataset({"lp": (dims, density, lp_attrs)}, coords=coords)
    if TRUTH in observed:
        groups["/constant_data"] = observed[[TRUTH]].reset_coords(drop=True).assign_coords(
            index | {"parameter": samples["parameter"].values}
        )  # fmt: skip
    return write_tree(path, groups)


def write_tree(path: Path, groups: Mapping[str, xr.Dataset]) -> Path:
    """Write datasets by group ("/", "/name") as one NetCDF file, which is either the old or the complete new one."""
    # through memory: on a full disk HDF5 leaves a broken handle behind that crashes the interpreter at its end
    return _write(path, bytes(xr.DataTree.from_dict(groups).to_netcdf(engine="h5netcdf")))


def _check(path: Path, samples: xr.DataArray, log_prob: xr.DataArray | None, observed: xr.Dataset) -> None:
    needed = {"observation", "sample", "parameter"}
    if set(samples.dims) != needed or "observation" not in samples.coords or "parameter" not in samples.coords:
        raise StoreError(f"samples for {path}", f"must have dimensions {sorted(needed)} with labels", samples.dims)
    sized: list[tuple[str, Mapping[Hashable, int], str]] = [("observed", observed.sizes, "observation")]
    if log_prob is not None:
        sized += [("log_prob", log_prob.sizes, dim) for dim in ("observation", "sample")]
    for what, sizes, dim in sized:
        if sizes.get(dim) != samples.sizes[dim]:
            raise StoreError(f"{what} for {path}", f"must have {samples.sizes[dim]} of {dim}", sizes.get(dim, 0))
    bad = int(np.count_nonzero(~np.isfinite(samples.values)))
    if log_prob is not None:
        bad += int(np.count_nonzero(np.isnan(log_prob.values)))
    if bad:
        raise StoreError(f"posterior for {path}", "must be finite", f"{bad} values that are not")


def read_posterior(path: Path) -> StoredPosterior:
    """Samples (observation, sample, parameter), log_prob (observation, sample), observed features and attributes.

    Raises StoreError where the file is missing, damaged or no posterior.
    """
    if not path.is_file():
        raise StoreError(f"posterior {path}", "must be an existing file", remedy="run the stage that makes it")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            groups = {name: tree[name].to_dataset().load() for name in tree.children}
            attrs = {str(k): v.item() if isinstance(v, np.generic) else v for k, v in tree.attrs.items()}
        posterior = groups["posterior"].isel(chain=0, drop=True)
        density = groups["sample_stats"]["lp"].isel(chain=0, drop=True) if "sample_stats" in groups else None
        observed = groups["observed_data"]
    except (OSError, KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise StoreError(f"posterior {path}", "must be a complete posterior file", error, "make it again") from error
    names = [str(name) for name in posterior.data_vars]
    units = [posterior[name].attrs["units"] for name in names]
    samples = xr.DataArray(
        np.stack([posterior[name].transpose("observation", "draw").values for name in names], axis=-1),
        dims=("observation", "sample", "parameter"),
        coords={
            "observation": posterior["observation"].values,
            "parameter": names,
            "unit": ("parameter", units),
        },
    )
    log_prob = None
    if density is not None:
        log_prob = xr.DataArray(density.transpose("observation", "draw").values, dims=("observation", "sample"))
    if "constant_data" in groups:
        observed = observed.merge(groups["constant_data"])
    return StoredPosterior(samples, log_prob, observed, attrs)


def write_cut(
    path: Path,
    q: ArrayLike,
    intensity: ArrayLike,
    sd: ArrayLike,
    attrs: Attrs,
    *,
    units: tuple[str, str] = ("nm^-1", "counts"),
) -> Path:
    """Write a cut as text: columns q, intensity and its standard deviation, with their units and `attrs` in the header.

    Numbers keep every digit that a float64 has. Raises StoreError for unequal lengths or values that are not finite.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in (q, intensity, sd)]
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        shapes = ", ".join(str(column.shape) for column in columns)
        raise StoreError(f"cut for {path}", "must have three columns of equal length", shapes)
    table = np.column_stack(columns)
    if not np.isfinite(table).all():
        bad = int(np.count_nonzero(~np.isfinite(table)))
        raise StoreError(f"cut for {path}", "must be finite", f"{bad} values that are not", "leave masked points out")
    header = [f"{' '.join(str(key).split())}: {' '.join(str(value).split())}" for key, value in attrs.items()]
    header.append(f"q [{units[0]}]  intensity [{units[1]}]  sd [{units[1]}]")
    text = io.StringIO()
    np.savetxt(text, table, fmt="%.17g", header="\n".join(header))
    return _write(path, text.getvalue().encode())


def _write(path: Path, data: bytes) -> Path:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    return path
