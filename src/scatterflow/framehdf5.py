"""Frames in HDF5 and NeXus files: one dataset is a stack of images over its leading dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # importing it registers the compression filters of detectors with h5py
import numpy as np
from numpy.typing import NDArray

from scatterflow.errors import FrameError
from scatterflow.framefiles import LARGEST_PX, Header, Stack, damaged, text, wrong_shape
from scatterflow.hdf5 import WAIT_S, open_readable

LISTED = 10  # candidates named in an error
BITSHUFFLE = hdf5plugin.Bitshuffle.filter_id  # its number in the HDF Group's register of filters


def open_hdf5(file: Path, dataset: str, wait_s: float = WAIT_S) -> Stack:
    """Open a dataset of an HDF5 file; without a name the only one that can hold images. The caller closes the stack.

    A lock on the file is waited for `wait_s` [s], see `open_readable`.
    """
    handle = open_readable(file, wait_s)
    try:
        name = dataset or _only_dataset(file, handle)
        data = _dataset(file, handle, name)
        header = _nexus_header(handle, name)
        lead = data.shape[:-2]

        def read(index: int) -> tuple[NDArray[Any], Header]:
            place = tuple(int(i) for i in np.unravel_index(index, lead)) if lead else ()
            _check_written(file, data, place)
            return np.asarray(data[place]), header

        return Stack("HDF5", text(name), math.prod(lead), read, handle.close)
    except BaseException:
        handle.close()
        raise


def _images(group: h5py.Group, seen: set[Any], prefix: str = "") -> Iterator[str]:
    """Paths of all numeric datasets of two or more dimensions, through hard and external links."""
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.SoftLink):  # a second name of something that is found under its first
            continue
        try:
            item = group[name]
        except (KeyError, OSError):  # an external file that is not there: no candidate
            continue
        info = h5py.h5o.get_info(item.id)
        if (key := (info.fileno, info.addr)) in seen:
            continue
        seen.add(key)
        if isinstance(item, h5py.Group):
            yield from _images(item, seen, f"{prefix}/{name}")
        elif isinstance(item, h5py.Dataset) and len(item.shape or ()) >= 2 and item.dtype.kind in "iuf":
            yield f"{prefix}/{name}"


def _only_dataset(file: Path, handle: h5py.File) -> str:
    found = list(_images(handle, set()))
    if len(found) == 1:
        return found[0]
    if not found:
        raise FrameError(
            f"frame {text(file)}",
            "must hold an image",
            "an HDF5 file without a numeric dataset of two or more dimensions",
            "name another file",
        )
    listed = ", ".join(text(name) for name in found[:LISTED]) + (", ..." if len(found) > LISTED else "")
    raise FrameError(
        f"frame {text(file)}",
        "must name its dataset",
        f"{len(found)} candidates: {listed}",
        f"write {text(file)}::{text(found[0])}",
    )


def _dataset(file: Path, handle: h5py.File, name: str) -> h5py.Dataset:
    label = f"frame {text(file)}::{text(name)}"
    try:
        data = handle[name]
    except (KeyError, ValueError, OSError):
        found = [text(other) for other in itertools.islice(_images(handle, set()), LISTED)]
        there = f"write one of {', '.join(found)}" if found else "the file holds no image"
        raise FrameError(label, "must name a dataset of the file", "nothing there", there) from None
    if not isinstance(data, h5py.Dataset):
        raise FrameError(label, "must name a dataset", "a group", "add the name of the dataset in it")
    if data.external:
        raise FrameError(label, "must hold its own data", "a link to a raw file", "convert it with h5repack")
    if data.dtype.kind not in "iuf":
        raise FrameError(label, "must hold numbers", text(data.dtype), "name another dataset")
    if len(data.shape or ()) < 2 or 0 in data.shape or math.prod(data.shape[-2:]) > LARGEST_PX:
        raise wrong_shape(file, data.shape)
    return data


def _nexus_header(handle: h5py.File, name: str) -> Header:
    """Exposure time and saturation from the NXdetector beside a dataset, where they are single numbers."""
    header: Header = {}
    entry = name.strip("/").partition("/")[0]
    for key, field in {"exposure_time_s": "count_time", "saturation": "saturation_value"}.items():
        item = handle.get(f"{entry}/instrument/detector/{field}")
        if isinstance(item, h5py.Dataset) and item.size == 1 and item.dtype.kind in "iuf":
            value = float(np.ravel(item[()])[0])
            if math.isfinite(value) and value > 0:
                header[key] = value
    return header


def _check_written(file: Path, data: h5py.Dataset, place: tuple[int, ...]) -> None:
    """Refuse a frame whose values were never written: HDF5 would silently give its fill value."""
    missing = FrameError(
        f"frame {text(file)}::{text(data.name)}{list(place) if place else ''}",
        "must have been written",
        "an empty place of the dataset",
        "choose another index; was the scan aborted?",
    )
    if data.is_virtual:
        for source in data.virtual_sources():
            other = file if source.file_name == "." else file.parent / source.file_name
            if _covers(source.vspace, place) and "%" not in source.file_name and not other.is_file():
                raise FrameError(
                    f"frame {text(file)}::{text(data.name)}",
                    "must have all its parts",
                    f"no file {text(other)}",
                    "copy that file beside it",
                )
        return
    if data.chunks is None:
        if data.id.get_offset() is None and data.id.get_storage_size() == 0:
            raise missing
        return
    rows = range(0, data.shape[-2], data.chunks[-2])
    columns = range(0, data.shape[-1], data.chunks[-1])
    for z, y in itertools.product(rows, columns):
        corner = tuple(i - i % n for i, n in zip((*place, z, y), data.chunks, strict=True))
        if data.id.get_chunk_info_by_coord(corner).byte_offset is None:
            raise missing
        check_bitshuffle(file, data, corner)


def _covers(space: h5py.h5s.SpaceID, place: tuple[int, ...]) -> bool:
    """Whether a part of a virtual dataset may hold the frame at `place`; parts without an end may hold any."""
    try:
        low, high = space.get_select_bounds()
    except RuntimeError:  # HDF5 knows no bounds of an unlimited selection
        return True
    return all(a <= i <= b for a, i, b in zip(low, place, high, strict=False))


def is_bitshuffled(data: h5py.Dataset) -> bool:
    """Whether chunks are compressed by the bitshuffle filter, and by nothing else."""
    settings = data.id.get_create_plist()
    if settings.get_nfilters() != 1:
        return False
    code, _, options, _ = settings.get_filter(0)
    # without compression there are no sizes that could be wrong
    return bool(code == BITSHUFFLE and len(options) >= 5 and options[4] != 0)


def check_bitshuffle(file: Path, data: h5py.Dataset, corner: tuple[int, ...]) -> None:
    """Refuse a compressed chunk whose sizes do not add up: the bitshuffle filter trusts them and crashes.

    A chunk is its size (8 bytes), the size of a block (4 bytes), and per block its length (4 bytes) and data; elements
    beyond a multiple of 8 follow as they are (github.com/kiyo-masui/bitshuffle, src/bshuf_h5filter.c).
    """
    if not is_bitshuffled(data):
        return
    skipped, chunk = data.id.read_direct_chunk(corner)
    if skipped:
        return
    item, size = data.dtype.itemsize, math.prod(data.chunks) * data.dtype.itemsize
    total, block = int.from_bytes(chunk[:8], "big"), int.from_bytes(chunk[8:12], "big")
    sound = total == size and block > 0 and block % (8 * item) == 0
    place, left = 12, size
    while sound and left >= 8 * item:
        place += 4 + int.from_bytes(chunk[place : place + 4], "big")
        left -= min(block, left - left % (8 * item))
        sound = place + left % (8 * item) <= len(chunk)
    if not sound or place + left != len(chunk):
        raise damaged(file, "a compressed chunk whose sizes do not add up")
