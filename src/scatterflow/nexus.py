"""Maps of a scan as a NeXus file, which h5py, silx, PyMca and NeXpy open: one NXdata for each map, with axes, units, errors.

    entry                NXentry       default: the first estimator
      <estimator>        NXprocess     default: its first parameter
        <parameter>      NXdata        signal <parameter>, <parameter>_errors; axes y_um, x_um
        goodness ...     NXdata        maps of an estimator without parameters
      intensity ...      NXdata        maps of the scan
      truth ...          NXcollection  maps of the scan for each parameter
      status             NXdata        one word for each point
      facts              NXcollection  attributes of the maps

NXdata as in the NeXus definitions (Konnecke et al. 2015, doi:10.1107/S1600576714027575).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import __version__
from scatterflow.errors import StoreError
from scatterflow.framefiles import text
from scatterflow.hdf5 import open_readable
from scatterflow.products import replacing
from scatterflow.units import LONG_NAMES, UNITS

MAP = ("row", "column")
POSITIONS = {"row": "y_um", "column": "x_um"}
SIGNAL, ERRORS = "estimate", "sd"


def write_maps(path: Path, maps: xr.Dataset) -> Path:
    """Write maps so that `path` is either the old or the complete new file.

    Parameters
    ----------
    maps : variables (row, column), each with or without the further dimensions `estimator` and `parameter`, which have
        coordinates. `estimate` becomes the signals, `sd` their errors; parameters that an estimator does not estimate (only
        NaN) are left out. Coordinates y_um (row) and x_um (column) [um] are the axes, else the numbers of rows and columns.
        Variables that are no maps (frames to show) are left out.

    Raises
    ------
    StoreError : there is no map, or the disk refuses.
    """
    if not set(MAP) <= set(maps.dims):
        raise StoreError(str(path), "must be written from maps (row, column)", sorted(map(str, maps.dims)))
    with replacing(path) as partial, h5py.File(partial, "w") as file:
        file.attrs.update(NX_class="NXroot", default="entry", creator=f"scatterflow {__version__}")
        entry = _group(file, "entry", "NXentry")
        entry["program_name"] = "scatterflow"
        entry["program_name"].attrs["version"] = __version__
        if "title" in maps.attrs:
            entry["title"] = str(maps.attrs["title"])
        for name, variable in maps.data_vars.items():
            if not set(MAP) <= set(variable.dims) <= {"estimator", "parameter", *MAP}:
                continue
            errors = maps[ERRORS] if name == SIGNAL and ERRORS in maps else None
            if name != ERRORS or SIGNAL not in maps:
                _write(entry, str(name), variable, errors)
        facts = _group(entry, "facts", "NXcollection")
        for key, fact in maps.attrs.items():
            facts[_safe(str(key))] = fact
            facts[_safe(str(key))].attrs["name"] = str(key)
    return path


def _write(entry: h5py.Group, name: str, variable: xr.DataArray, errors: xr.DataArray | None) -> None:
    """One variable as NXdata, below a group for each estimator and, but for the signals, one of its name."""
    estimators = variable["estimator"].values if "estimator" in variable.dims else [None]
    parameters = variable["parameter"].values if "parameter" in variable.dims else [None]
    for estimator in estimators:
        for parameter in parameters:
            where = {k: v for k, v in (("estimator", estimator), ("parameter", parameter)) if v is not None}
            values = variable.sel(where).transpose(*MAP)
            if parameter is not None and np.isnan(values.values.astype(float)).all():
                continue
            group = entry if estimator is None else _group(entry, str(estimator), "NXprocess")
            if parameter is not None and name != SIGNAL:
                group = _group(group, name, "NXcollection")
            data = _data(group, name if parameter is None else str(parameter), values)
            data.attrs.update(variable=name, estimator=str(estimator or ""), parameter=str(parameter or ""))
            if errors is not None and np.isfinite(uncertain := errors.sel(where).transpose(*MAP).values).any():
                signal = data.attrs["signal"]
                data[f"{signal}_errors"] = uncertain
                data[f"{signal}_errors"].attrs["units"] = data[signal].attrs["units"]


def _data(parent: h5py.Group, title: str, values: xr.DataArray) -> h5py.Group:
    """An NXdata with its axes; the first one that is made is the default of the groups above it."""
    group = _group(parent, title, "NXdata")
    signal = _safe(title)
    numeric = values.dtype.kind in "biuf"
    group[signal] = values.values if numeric else values.values.astype(str).astype(h5py.string_dtype())
    unit = UNITS.get(title, str(values.attrs.get("units", "")))
    group[signal].attrs.update(units=unit, long_name=LONG_NAMES.get(title, title.replace("_", " ")))
    axes = []
    for number, dim in enumerate(MAP):
        known = POSITIONS[dim] in values.coords and values[POSITIONS[dim]].dims == (dim,)
        axis = POSITIONS[dim] if known else dim
        along = values[axis].values if known or dim in values.coords else np.arange(values.sizes[dim])
        group[axis] = along
        group[axis].attrs.update(units="um" if known else "", long_name=f"position {axis[0]}" if known else dim)
        group.attrs[f"{axis}_indices"] = number
        axes.append(axis)
    group.attrs.update(signal=signal, axes=axes)
    child = group
    while numeric and child.name != "/entry":
        if "default" not in child.parent.attrs:
            child.parent.attrs["default"] = child.name.rpartition("/")[2]
        child = child.parent
    return group


def _group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    """The group of a name, made where it is not there; the name as it was is kept beside one that NeXus allows."""
    group = parent.require_group(_safe(name))
    if group.attrs.get("name", name) != name or group.attrs.get("NX_class", nx_class) != nx_class:
        raise StoreError(f"maps named {name!r} and {group.attrs['name']!r}", "must differ as NeXus names", _safe(name))
    group.attrs["NX_class"] = nx_class
    group.attrs["name"] = name
    return group


def _safe(name: str) -> str:
    """A name that NeXus allows: letters, digits and underscores, no digit first."""
    allowed = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"_{allowed}" if allowed[:1].isdigit() or not allowed else allowed


def read_maps(path: Path) -> xr.Dataset:
    """What `write_maps` wrote, estimators and parameters in alphabetical order. Raises StoreError for any other file."""
    try:
        with open_readable(path) as file:
            return _read(file["entry"])
    except (OSError, KeyError, ValueError, AttributeError) as error:
        remedy = "name a file of maps that scatterflow wrote"
        raise StoreError(str(path), "must hold maps", text(error), remedy) from None


def _read(entry: h5py.Group) -> xr.Dataset:
    """The dataset of an entry."""
    pieces: dict[str, dict[tuple[str, str], NDArray[Any]]] = {}
    coords: dict[str, Any] = {}

    def visit(_: str, group: Any) -> None:
        if "variable" not in group.attrs:
            return
        name, *where = (str(group.attrs[key]) for key in ("variable", "estimator", "parameter"))
        data = group[group.attrs["signal"]]
        pieces.setdefault(name, {})[where[0], where[1]] = data.asstr()[()] if data.dtype.kind == "O" else data[()]
        if f"{data.name}_errors" in group:
            pieces.setdefault(ERRORS, {})[where[0], where[1]] = group[f"{data.name}_errors"][()]
        for dim, axis in zip(MAP, group.attrs["axes"], strict=True):
            coords[axis] = (dim, group[axis][()], {"units": str(group[axis].attrs["units"])})

    entry.visititems(visit)
    labels = {
        dim: sorted({key[number] for piece in pieces.values() for key in piece} - {""})
        for number, dim in enumerate(("estimator", "parameter"))
    }
    arrays = {name: _assembled(piece, labels) for name, piece in pieces.items()}
    facts = {str(group.attrs["name"]): _fact(group[()]) for group in entry["facts"].values()}
    return xr.Dataset(arrays, coords | {dim: values for dim, values in labels.items() if values}, facts)


def _assembled(piece: dict[tuple[str, str], NDArray[Any]], labels: dict[str, list[str]]) -> xr.DataArray:
    """One variable from its maps by (estimator, parameter), NaN where there is none."""
    used = [dim for number, dim in enumerate(labels) if any(key[number] for key in piece)]
    first = next(iter(piece.values()))
    if not used:
        return xr.DataArray(first, dims=MAP)
    whole = xr.DataArray(
        np.full((*(len(labels[dim]) for dim in used), *first.shape), np.nan),
        coords={dim: labels[dim] for dim in used},
        dims=(*used, *MAP),
    )
    for (estimator, parameter), values in piece.items():
        where = {"estimator": estimator, "parameter": parameter}
        whole.loc[{dim: where[dim] for dim in used}] = values
    order = ("estimator", *MAP, "parameter")
    return whole.transpose(*(dim for dim in order if dim in whole.dims))


def _fact(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
