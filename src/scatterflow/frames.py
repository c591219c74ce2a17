"""Detector frames as users have them, made into counts with a mask: what is measured, what is not, and why.

Files hold row 0 at the top of the detector; frames here have z ascending with the exit angle, so rows are flipped once,
in `read_frame`.
"""

from __future__ import annotations

import contextlib
import hashlib
import operator
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import FrameError
from scatterflow.framefiles import FORMATS, Header, Stack, file_sha256, open_cbf, open_edf, open_tiff, reading, text
from scatterflow.framehdf5 import open_hdf5
from scatterflow.hdf5 import WAIT_S
from scatterflow.instrument import valid_pixels

PathLike = str | os.PathLike[str]
Mask = NDArray[np.bool_]

# A hot pixel exceeds ten times its largest neighbour by 100 counts: neither counting noise nor a peak does that, which
# is spread over neighbours. (P03 Pilatus frames: ratios from 3 to 10 find the same pixels.)
HOT_RATIO = 10.0
HOT_FLOOR = 10.0  # counts, added to the largest neighbour
HOT_NEIGHBOURS = 3  # valid neighbours without which a pixel is not judged

PIXEL_TOLERANCE = 0.01  # relative difference between the pixel size of a file and of its instrument


def read_frame(
    path: PathLike,
    index: int | None = None,
    instrument: InstrumentConfig | None = None,
    *,
    mask: PathLike | None = None,
) -> xr.Dataset:
    """Read one detector frame.

    Parameters
    ----------
    path : a CBF, TIFF, EDF or HDF5/NeXus file; `scan.h5::/entry/data/data` names a dataset, which may be left out where
        the file holds only one.
    index : which frame of a stack, from 0; datasets of more than three dimensions are counted in the order of storage.
    instrument : the frame's own instrument: its shape must fit, its `masked` rectangles and `saturation` apply.
    mask : a file of the same shape whose non-zero pixels are invalid.

    Returns
    -------
    Dataset of `counts (z, y)` float32, 0 where invalid, and `mask (z, y)`, True where valid; z ascends with the exit
    angle (files hold the top row first: flipped here, once). A pixel is invalid when it is not finite, negative (gaps
    and defects), at or above saturation (the instrument's, the file's own, or the largest value of its integer type),
    masked by the instrument or the mask file, or hot. Attributes: file, format, dataset, index, sha256 of the file (of
    the raw values for stacks, see `sha256_of`), metadata of the header, and `masked_<cause>`: pixels by first cause.

    Raises
    ------
    FrameError : whatever is wrong with the file or the frame; its `status` tells the kind.
    """
    excluded = _mask_file(mask)
    with contextlib.closing(open_stack(path)) as stack:
        return _frame(path, stack, _position(path, stack, index), instrument, excluded)


def read_frames(
    paths: PathLike | Iterable[PathLike],
    instrument: InstrumentConfig | None = None,
    *,
    mask: PathLike | None = None,
) -> Iterator[tuple[str, xr.Dataset | FrameError]]:
    """Read many frames, one at a time: pairs of a name and the frame, or the FrameError where it cannot be used.

    Stacks give all their frames, named `scan.h5::/entry/data/data[3]`. A bad frame does not end the series, a bad mask
    file does.
    """
    excluded = _mask_file(mask)
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        try:
            stack = open_stack(path)
        except FrameError as error:
            yield text(os.fspath(path)), error
            continue
        with contextlib.closing(stack):
            for index in range(stack.frames):
                name = _name(path, stack, index)
                try:
                    yield name, _frame(path, stack, index, instrument, excluded)
                except FrameError as error:
                    yield name, error


def short_name(name: str) -> str:
    """A frame's name (see `read_frames`) without folders: `scan.h5::/entry/data/data[3]`."""
    file, mark, inside = name.partition("::")
    return Path(file).name + mark + inside


def file_name(name: str) -> str:
    """The file alone of a frame's name: `scan.h5`."""
    return re.sub(r"\[\d+\]$", "", Path(name.partition("::")[0]).name)


def split_path(path: PathLike) -> tuple[Path, str]:
    """File and dataset of `scan.h5::/entry/data/data`; the dataset is empty where none is named."""
    file, _, dataset = os.fspath(path).partition("::")
    return Path(file), dataset


def open_stack(path: PathLike, wait_s: float = WAIT_S) -> Stack:
    """Open a file of frames; the caller closes it. Raises FrameError for whatever cannot be read as frames.

    A lock that a writer holds on an HDF5 file is waited for `wait_s` [s].
    """
    file, dataset = split_path(path)
    kind = _sniff(file)
    if dataset and kind != "HDF5":
        must = "may name a dataset only in an HDF5 file"
        raise FrameError(f"frame {text(file)}::{text(dataset)}", must, kind, "drop the `::` part")
    with reading(file):
        if kind == "HDF5":
            return open_hdf5(file, dataset, wait_s)
        return {"CBF": open_cbf, "TIFF": open_tiff, "EDF": open_edf}[kind](file)


def _sniff(file: Path) -> str:
    """Format of a file from its first bytes: CBF, TIFF, EDF or HDF5."""
    name = f"frame {text(file)}"
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise FrameError(name, f"must be a {FORMATS}", "a folder", "name the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise FrameError(name, f"must be a {FORMATS}", "a device or pipe", "name a regular file")
        if status.st_size == 0:
            raise FrameError(name, f"must be a {FORMATS}", "an empty file", "copy the file again")
        with file.open("rb") as stream:
            start = stream.read(64)
    except FileNotFoundError:
        raise FrameError(name, "must exist", "no such file", "check the path") from None
    except PermissionError:
        raise FrameError(name, "must be readable", "permission denied", "ask its owner for read access") from None
    except (OSError, ValueError) as error:
        raise FrameError(name, "must be readable", text(error), "check the path") from None
    if start.startswith(b"###CBF"):
        return "CBF"
    if start[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    if start.lstrip(b"\r\n").startswith(b"{") and not start.startswith(b"{\nHEADER_BYTES"):  # that is d*TREK
        return "EDF"
    if h5py.is_hdf5(file):
        return "HDF5"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        raise FrameError(name, f"must be a {FORMATS}", "a compressed file", "unpack it first (gunzip, bunzip2, unxz)")
    got = f"a file that starts with {start[:16]!r}"
    raise FrameError(name, f"must be a {FORMATS}", got, "convert it, for example with fabio-convert")


def _name(path: PathLike, stack: Stack, index: int) -> str:
    file, _ = split_path(path)
    place = f"::{stack.dataset}" if stack.dataset else ""
    return text(file) + place + (f"[{index}]" if stack.frames > 1 else "")


def _position(path: PathLike, stack: Stack, index: int | None) -> int:
    """The index of a frame in its stack; left out it means the only frame."""
    what = f"index of {_name(path, stack, 0).removesuffix('[0]')}"
    must = f"must be an integer from 0 to {stack.frames - 1}"
    if stack.frames == 0:
        raise FrameError(f"frame {_name(path, stack, 0)}", "must hold an image", "none", "name another file")
    if index is None:
        if stack.frames > 1:
            raise FrameError(what, must, f"none for a stack of {stack.frames} frames", "give index=0 for the first")
        return 0
    try:
        position = operator.index(index)
    except TypeError:
        raise FrameError(what, must, repr(index)) from None
    if not 0 <= position < stack.frames:
        raise FrameError(what, must, position, f"the file holds {stack.frames}")
    return position


def _values(path: PathLike, stack: Stack, index: int) -> tuple[NDArray[Any], Header]:
    """Raw values (row, column) of a frame, top row first, and its header."""
    name = _name(path, stack, index)
    with reading(split_path(path)[0]):
        values, header = stack.read(index)
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "iuf":
        got = f"an array of shape {values.shape} and type {values.dtype}"
        raise FrameError(f"frame {name}", "must be one image of rows x columns of numbers", got, "no colour images")
    return values, header


def _frame(
    path: PathLike, stack: Stack, index: int, instrument: InstrumentConfig | None, excluded: Mask | None
) -> xr.Dataset:
    name = f"frame {_name(path, stack, index)}"
    values, header = _values(path, stack, index)
    if instrument is not None:
        _check_fits(name, values.shape, header, instrument)
    if excluded is not None and values.shape != excluded.shape:
        shapes = [f"{rows} rows x {columns} columns" for rows, columns in (excluded.shape, values.shape)]
        raise FrameError(name, f"must have the {shapes[0]} of its mask file", shapes[1], "use this detector's mask")
    values = values[::-1]  # the one flip: the file's top row is the highest exit angle
    limit = _saturation(values.dtype, header, instrument)
    causes: dict[str, Mask] = {
        "nonfinite": ~np.isfinite(values),
        "negative": values < 0,
        "saturated": values >= limit,
    }
    if instrument is not None:
        causes["instrument"] = ~valid_pixels(instrument)
    if excluded is not None:
        causes["file"] = excluded
    valid = ~np.logical_or.reduce(list(causes.values()))
    counts = np.where(valid, values, 0).astype(np.float32)
    causes["hot"] = hot_pixels(counts, valid)
    valid &= ~causes["hot"]
    counts[causes["hot"]] = 0
    masked = _count_by_cause(causes)
    if not valid.any():
        listed = ", ".join(f"{number} {cause}" for cause, number in masked.items() if number)
        got = f"all {valid.size} masked ({listed})"
        raise FrameError(name, "must have a valid pixel", got, "check the file and the mask", status="masked-out")
    if not counts.any():
        raise FrameError(name, "must hold counts", "zero in every valid pixel", "was the shutter open?")
    return xr.Dataset(
        {
            "counts": (("z", "y"), counts, {"units": "counts", "long_name": "counts, 0 where masked"}),
            "mask": (("z", "y"), valid, {"long_name": "True where the pixel is valid"}),
        },
        coords={
            "z": ("z", np.arange(valid.shape[0]) + 0.5, {"units": "pixel", "long_name": "detector row, upwards"}),
            "y": ("y", np.arange(valid.shape[1]) + 0.5, {"units": "pixel", "long_name": "detector column"}),
        },
        attrs=_attributes(path, stack, index, values)
        | header
        | {"saturation": limit}
        | {f"masked_{cause}": number for cause, number in masked.items()},
    )


def _attributes(path: PathLike, stack: Stack, index: int, values: NDArray[Any]) -> dict[str, str | int]:
    file, _ = split_path(path)
    whole = stack.frames == 1 and stack.format != "HDF5"
    digest = file_sha256(file) if whole else hashlib.sha256(values[::-1].tobytes()).hexdigest()
    return {
        "file": text(file.name),
        "format": stack.format,
        "dataset": stack.dataset,
        "index": index,
        "sha256": digest,
        "sha256_of": "file" if whole else "values",
    }


def _check_fits(name: str, shape: tuple[int, ...], header: Header, instrument: InstrumentConfig) -> None:
    rows, columns = instrument.shape
    if shape != instrument.shape:
        must = f"must have the {rows} rows x {columns} columns of its instrument"
        got = f"{shape[0]} rows x {shape[1]} columns"
        remedy = "the frame is turned by 90 degrees" if shape == (columns, rows) else "use its own instrument file"
        raise FrameError(name, must, got, remedy, status="wrong-instrument")
    pixel = header.get("pixel_mm")
    if isinstance(pixel, float) and abs(pixel / instrument.pixel_mm - 1) > PIXEL_TOLERANCE:
        must = f"must have the pixel size {instrument.pixel_mm:g} mm of its instrument"
        raise FrameError(name, must, f"{pixel:g} mm", "use its own instrument file", status="wrong-instrument")


def _saturation(dtype: np.dtype[Any], header: Header, instrument: InstrumentConfig | None) -> float:
    """Counts from which a pixel is invalid: the instrument's limit, else the file's, and never above the type's."""
    own = header.get("saturation", np.inf)
    if instrument is not None and instrument.saturation is not None:
        own = instrument.saturation
    largest = np.iinfo(dtype).max if dtype.kind in "iu" else np.finfo(np.float32).max  # counts become float32
    return min(float(own), float(largest))


def _mask_file(mask: PathLike | None) -> Mask | None:
    """Invalid pixels (z, y) of a mask file: everything that is not zero (the convention of pyFAI)."""
    if mask is None:
        return None
    with contextlib.closing(open_stack(mask)) as stack:
        values, _ = _values(mask, stack, _position(mask, stack, None))
    return np.asarray(values[::-1] != 0)


def _count_by_cause(causes: dict[str, Mask]) -> dict[str, int]:
    """Number of masked pixels by cause, each pixel under its first one."""
    counted = np.zeros_like(next(iter(causes.values())))
    numbers = {}
    for cause, pixels in causes.items():
        numbers[cause] = int(np.count_nonzero(pixels & ~counted))
        counted |= pixels
    return numbers


def hot_pixels(counts: NDArray[np.float32], valid: Mask) -> Mask:
    """Isolated hot pixels (z, y): valid ones far above every one of their up to eight valid neighbours.

    Conservative: clusters stay, and so does whatever the point spread of the detector carries into a neighbour.
    """
    good = np.pad(valid, 1)
    values = np.pad(np.where(valid, counts, 0), 1)
    largest = np.zeros_like(counts)
    neighbours = np.zeros(counts.shape, dtype=np.uint8)
    rows, columns = counts.shape
    for dz in (0, 1, 2):
        for dy in (0, 1, 2):
            if (dz, dy) != (1, 1):
                window = (slice(dz, dz + rows), slice(dy, dy + columns))
                np.maximum(largest, values[window], out=largest)
                neighbours += good[window]
    return np.asarray(valid & (counts > HOT_RATIO * (largest + HOT_FLOOR)) & (neighbours >= HOT_NEIGHBOURS))
