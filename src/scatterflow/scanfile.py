"""The file of a scan: its frames one after another, and what it tells about the map and the geometry."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.config.scan import ScanConfig
from scatterflow.errors import ConfigError, FrameError
from scatterflow.framefiles import Header, Stack, reading, text
from scatterflow.frames import open_stack, split_path
from scatterflow.hdf5 import open_readable

Image = tuple[NDArray[Any], Header] | FrameError

SUFFIXES = (".cbf", ".edf", ".tif", ".tiff", ".h5", ".hdf5", ".nxs")
MILLIMETRES = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "nm": 1e-6}
KEV = {"kev": 1.0, "ev": 1e-3}
DEGREES = {"deg": 1.0, "degree": 1.0, "degrees": 1.0, "rad": math.degrees(1), "mrad": math.degrees(1e-3)}

AGREES = 0.01  # relative difference from which the study's geometry is not the file's

# Where NeXus keeps the geometry (NXmonochromator, NXbeam, NXdetector): paths below the entry, units
_PLACES: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
    "energy_kev": (("instrument/monochromator/energy", "instrument/beam/incident_energy"), KEV),
    "distance_mm": (("instrument/detector/distance",), MILLIMETRES),
    "pixel_mm": (("instrument/detector/x_pixel_size",), MILLIMETRES),
    "two_theta_deg": (("instrument/detector/two_theta",), DEGREES),
}


def place(path: str | os.PathLike[str], config: ScanConfig) -> str:
    """What to open: the path, with the config's dataset unless the path names its own."""
    source = os.fspath(path)
    return f"{source}::{config.dataset}" if config.dataset and "::" not in source else source


def files_of(path: str) -> list[Path] | None:
    """The frames' files of a folder in the order of the numbers in their names; None for a file."""
    folder = Path(path)
    if not folder.is_dir():
        return None
    with reading(folder):
        found = [each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file()]
    if not found:
        raise FrameError(
            f"scan {text(path)}",
            "must hold frames",
            "a folder without any",
            f"their names end in {', '.join(SUFFIXES)}",
        )
    return sorted(found, key=lambda each: [(int(n or 0), w) for n, w in re.findall(r"(\d+)|(\D+)", each.name)])


def open_scan(path: str) -> Stack:
    """Open a file of frames; one that is being written, for longer than `hdf5.WAIT_S`, is refused by that name."""
    with _complete(path):
        return open_stack(path)


@contextlib.contextmanager
def _complete(path: str) -> Iterator[None]:
    """What HDF5 says of a file that is being written, in words for people."""
    try:
        yield
    except FrameError as error:
        if any(words in str(error) for words in ("already open for", "unable to lock")):
            raise FrameError(
                f"scan {text(os.fspath(path))}",
                "must be complete",
                "a file that is still being written",
                "wait for the scan's end; if its writer died, `h5clear -s` makes the file readable",
            ) from error
        raise


def count_frames(path: str) -> int:
    """Number of frames of a scan: of its stack, or of the files of its folder."""
    files = files_of(path)
    if files is not None:
        return len(files)
    with contextlib.closing(open_scan(path)) as stack:
        return stack.frames


def images(path: str) -> Iterator[Image]:
    """The frames of a scan as stored, the top row first, one at a time; a FrameError in place of one that is unreadable."""
    files = files_of(path)
    if files is not None:
        for file in files:
            yield _single(file)
        return
    with contextlib.closing(open_scan(path)) as stack:
        for index in range(stack.frames):
            yield _image(split_path(path)[0], stack, index)


def _single(file: Path) -> Image:
    try:
        stack = open_scan(os.fspath(file))
    except FrameError as error:
        return error
    with contextlib.closing(stack):
        if stack.frames != 1:
            return FrameError(f"frame {text(file)}", "must be alone in its file", stack.frames, "name that file itself")
        return _image(file, stack, 0)


def _image(file: Path, stack: Stack, index: int) -> Image:
    try:
        with reading(file):
            values, header = stack.read(index)
    except FrameError as error:
        return error
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "iuf":
        return FrameError(f"frame {text(file)}[{index}]", "must be one image of numbers", f"shape {values.shape}")
    return values, header


@contextlib.contextmanager
def _entry(path: str) -> Iterator[tuple[h5py.Group, h5py.Dataset] | None]:
    """The NeXus entry of a scan's dataset and the dataset; None where the scan is no HDF5 file."""
    file = split_path(path)[0]
    if not file.is_file() or not h5py.is_hdf5(file):
        yield None
        return
    with contextlib.closing(open_scan(path)) as stack:
        name = stack.dataset
    with _complete(path), reading(file):
        handle = open_readable(file)
    with handle:
        entry = handle.get(name.strip("/").partition("/")[0])
        yield (entry if isinstance(entry, h5py.Group) else handle), handle[name]


def map_shape(path: str, config: ScanConfig, frames: int) -> tuple[int, int]:
    """Rows and columns of the map: the config's, the attribute scan_shape of the dataset or a group above it, or the
    leading dimensions of a dataset (row, column, z, y). Raises where there is none or the number of frames is another."""
    what, shape = f"map_shape of scan {text(path)}", config.map_shape
    if shape is None:
        with _entry(path) as found:
            shape = _stored_shape(found[1]) if found else None
    if shape is None:
        raise ConfigError(
            what, "must be given", "neither config nor file tell it", f"set map_shape for its {frames} frames"
        )
    rows, columns = shape
    if rows * columns != frames:
        missing = rows * columns - frames
        remedy = (
            "correct map_shape" if missing < 0 else f"correct map_shape, or find the {missing} frames that are missing"
        )
        raise FrameError(
            f"scan {text(path)}", f"must hold {rows} x {columns} = {rows * columns} frames", frames, remedy
        )
    return rows, columns


def _stored_shape(data: h5py.Dataset) -> tuple[int, int] | None:
    if data.ndim == 4:
        return int(data.shape[0]), int(data.shape[1])
    node: Any = data
    while True:
        stored = np.ravel(node.attrs.get("scan_shape", []))
        if stored.size == 2 and stored.dtype.kind in "iu" and stored.min() > 0:
            return int(stored[0]), int(stored[1])
        if node.name == "/":
            return None
        node = node.parent


def positions(path: str, config: ScanConfig, shape: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
    """Positions x_um, y_um (row, column) of a map's points [um] from config or file; empty where neither tells them."""
    rows, columns = shape
    if config.step_um is not None:
        y, x = np.indices(shape) * np.reshape(config.step_um, (2, 1, 1))
        return {"x_um": x, "y_um": y}
    axes: dict[str, NDArray[np.float64]] = {}
    with _entry(path) as found:
        if found is None:
            return {}
        for name, along, each in (("x", (1, columns), columns), ("y", (rows, 1), rows)):
            item = found[0].get(f"sample/{name}")
            factor = (
                MILLIMETRES.get(_unit(item)) if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" else None
            )
            if factor is None or item.size not in (each, rows * columns):
                return {}
            values = np.asarray(item[()], dtype=np.float64) * factor * 1e3
            if not np.isfinite(values).all():
                return {}
            axes[f"{name}_um"] = np.broadcast_to(values.reshape(along if item.size == each else shape), shape)
    return axes


def _unit(item: h5py.Dataset) -> str:
    unit = item.attrs.get("units", "")
    return (unit.decode(errors="replace") if isinstance(unit, bytes) else str(unit)).strip().lower()


def check_geometry(
    path: str | os.PathLike[str], config: ScanConfig, beam: NanobeamConfig, film: FilmConfig
) -> dict[str, str]:
    """Compare the study's beam and film with what a scan's file tells, and say for each quantity where it is from.

    Energy, distance, pixel (binned as the scan is) and the scattering angle of the Bragg peak, by Bragg's law with the
    film's lattice parameter, must agree within `AGREES`; what the file does not tell is not checked.

    Returns
    -------
    By quantity (energy_kev, distance_mm, pixel_mm, two_theta_deg): "config", or "config, as the file says" with the
    file's own remark, which tells what there is only assumed.

    Raises
    ------
    ConfigError : the file contradicts the study, gives another unit or a value out of range, or the film's reflection
        cannot be reached at the energy.
    FrameError : the file cannot be read.
    """
    path = place(path, config)
    sine = film.order * beam.wavelength_nm / (2 * film.lattice_nm)
    if sine >= 1:
        must = f"must be above {sine * film.lattice_nm:.6g} nm for order {film.order} at {beam.energy_kev:g} keV"
        raise ConfigError("film.lattice_nm", must, film.lattice_nm, "the reflection cannot be reached otherwise")
    two_theta_deg = math.degrees(2 * math.asin(sine))
    used = {
        "energy_kev": beam.energy_kev,
        "distance_mm": beam.distance_mm,
        "pixel_mm": beam.pixel_mm,
        "two_theta_deg": two_theta_deg,
    }
    origin = {}
    with _entry(path) as found:
        for name, value in used.items():
            stored = _stored(path, found, name)
            if stored is None:
                origin[name] = "config"
                continue
            told, remark = stored
            origin[name] = "config, as the file says" + (f": {remark}" if remark else "")
            wanted = told * config.binning if name == "pixel_mm" else told
            if abs(value - wanted) > AGREES * wanted:
                raise _contradiction(path, name, (value, wanted), config.binning, beam, film)
    return origin


def _contradiction(
    path: str, name: str, values: tuple[float, float], binning: int, beam: NanobeamConfig, film: FilmConfig
) -> ConfigError:
    """The error of a quantity that is one value in the study and another in the file."""
    used, wanted = values
    option, must, mend = f"beam.{name}", f"must be {wanted:.6g} as the file says", f"set it to {wanted:.6g}"
    if name == "pixel_mm":
        must += f" ({wanted / binning:.6g} mm times binning {binning})"
    elif name == "two_theta_deg":
        option = "scattering angle (two_theta_deg) of beam and film"
        lattice = film.order * beam.wavelength_nm / (2 * math.sin(math.radians(wanted / 2)))
        mend = f"correct film.order, or set film.lattice_nm to {lattice:.6g}"
    what = f"{option} of scan {text(path)}"
    return ConfigError(what, f"{must}, within {AGREES:.0%}", f"{used:.6g}", f"{mend}, or correct the file")


def _stored(path: str, found: tuple[h5py.Group, h5py.Dataset] | None, name: str) -> tuple[float, str] | None:
    """A quantity of the file and the file's remark on it; None where the file does not tell it."""
    places, units = _PLACES[name]
    what, remedy = f"{name} of scan {text(path)}", "correct the file"
    highest = 180.0 if units is DEGREES else math.inf
    for where in places:
        item = found[0].get(where) if found else None
        if not isinstance(item, h5py.Dataset) or item.size != 1 or item.dtype.kind not in "iuf":
            continue
        value, unit = float(np.ravel(item[()])[0]), _unit(item)
        if unit not in units:
            raise ConfigError(what, f"must have one of the units {', '.join(units)}", repr(unit), remedy)
        if not 0 < value * units[unit] < highest:
            must = "must be finite and above 0" + (f" and below {highest:g} deg" if units is DEGREES else "")
            raise ConfigError(what, must, f"{value} {unit}", remedy)
        return value * units[unit], text(item.attrs.get("note", ""))
    return None
