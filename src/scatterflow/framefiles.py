"""Files of detector frames: CBF, TIFF and EDF as stacks of raw images (HDF5 and NeXus: framehdf5.py).

Only complete data leave this module: what is cut off or damaged is a FrameError, where fabio pads with zeros, logs or
waits. Nothing is unpickled, and no header makes us read another file.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from fabio.compression import decByteOffset
from fabio.edfimage import EdfImage
from fabio.TiffIO import TiffIO
from numpy.typing import NDArray

from scatterflow.errors import FrameError

Header = dict[str, float | str]

FORMATS = "CBF, TIFF, EDF or HDF5/NeXus file"
LARGEST_PX = 2**28  # pixels of one frame; detectors have up to 2e7, more is a damaged header or no frame


class Stack(NamedTuple):
    """An open file of frames: `read(i)` gives frame i (row, column) as stored, the top row first, and its header."""

    format: str
    dataset: str
    frames: int
    read: Callable[[int], tuple[NDArray[Any], Header]]
    close: Callable[[], None]


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, as in a SHA256SUMS file."""
    with reading(file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Whatever a reading library raises inside, for it may be anything, becomes one FrameError."""
    try:
        yield
    except FrameError:
        raise
    except Exception as error:
        reason = re.split(r"[\r\n]", str(error).strip() or type(error).__name__)[0]
        raise damaged(file, text(reason)) from error


def text(value: object, longest: int = 300) -> str:
    """Words from a file in one printable line of bounded length."""
    printable = "".join(c if c.isprintable() else " " for c in str(value))
    return " ".join(printable.split())[:longest]


def damaged(file: Path, reason: str) -> FrameError:
    """The error of a file that does not hold what its format promises."""
    return FrameError(f"frame {text(file)}", f"must be a complete {FORMATS}", reason, "copy the file again")


def _pilatus_header(comments: str) -> Header:
    """Metadata in the comment lines that Dectris detectors write into CBF and TIFF files."""
    header: Header = {}
    numbers = {
        "exposure_time_s": (r"Exposure_time\s+([\d.eE+-]+)\s*s\b", 1.0),
        "saturation": (r"Count_cutoff\s+([\d.eE+-]+)\s*counts", 1.0),
        "pixel_mm": (r"Pixel_size\s+([\d.eE+-]+)\s*m\s*x", 1e3),
    }
    for key, (pattern, unit) in numbers.items():
        if found := re.search(pattern, comments):
            value = float(found[1]) * unit
            if math.isfinite(value) and value > 0:
                header[key] = value
    for key, pattern in {
        "detector": r"Detector:\s*(.+)",
        "timestamp": r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*)",
    }.items():
        if found := re.search(pattern, comments):
            header[key] = text(found[1])
    return header


CBF_SECTION = b"--CIF-BINARY-FORMAT-SECTION--"
CBF_START = b"\x0c\x1a\x04\xd5"  # stands between the header and the binary data


def open_cbf(file: Path) -> Stack:
    """A CBF file as a stack of one frame."""
    return Stack("CBF", "", 1, lambda _: _read_cbf(file), lambda: None)


def _read_cbf(file: Path) -> tuple[NDArray[Any], Header]:
    """A byte-offset compressed CBF (Pilatus and others), with its sizes and its checksum verified.

    fabio's own CbfImage is not used: it waits for ever on a file cut in the header and only logs a wrong checksum.
    """
    if file.stat().st_size > 4 * LARGEST_PX:
        raise damaged(file, f"{file.stat().st_size} bytes")
    blob = file.read_bytes()
    comments, found, rest = blob.partition(CBF_SECTION)
    section, started, data = rest.partition(CBF_START)
    if not found or not started:
        raise damaged(file, "a CBF file cut off in its header")
    header = section.decode("latin-1")

    def field(name: str, pattern: str) -> str:
        match = re.search(rf"{name}:?\s*{pattern}", header)
        if match is None:
            raise damaged(file, f"a CBF header without {name}")
        return match[1]

    size = int(field("X-Binary-Size", r"(\d+)"))
    columns = int(field("X-Binary-Size-Fastest-Dimension", r"(\d+)"))
    rows = int(field("X-Binary-Size-Second-Dimension", r"(\d+)"))
    kind = field("X-Binary-Element-Type", r'"?((?:un)?signed (?:8|16|32|64)-bit integer)')
    if field("conversions", r'="?([\w-]+)').upper() != "X-CBF_BYTE_OFFSET":
        raise damaged(
            file, f"CBF compression {text(field('conversions', '=(.*)'))}, only x-CBF_BYTE_OFFSET can be read"
        )
    if len(data) < size:
        raise damaged(file, f"{len(data)} of {size} bytes of image data: the file is cut off")
    if re.search(CBF_SECTION + rb"\r?\n", data[size:]):
        raise damaged(file, "a CBF file with several images")
    data = data[:size]
    if "Content-MD5:" in header:
        expected = base64.b64decode(field("Content-MD5", "(.*)").strip(), validate=True)
        if hashlib.md5(data, usedforsecurity=False).digest() != expected:
            raise damaged(file, "image data that contradict the checksum in the header")
    if not 0 < rows * columns <= size:  # a pixel takes at least one byte
        raise damaged(file, f"{rows} x {columns} pixels in {size} bytes")
    words = kind.split()
    dtype = np.dtype(f"{'u' if words[0] == 'unsigned' else ''}int{words[1].partition('-')[0]}")
    values = np.asarray(decByteOffset(data, size=rows * columns, dtype="int32" if dtype == np.int32 else "int64"))
    if values.size != rows * columns:
        raise damaged(file, f"{values.size} of {rows * columns} pixels: the image data are damaged")
    if values.min() < np.iinfo(dtype).min or values.max() > np.iinfo(dtype).max:
        raise damaged(file, f"values outside {dtype}: the image data are damaged")
    return values.astype(dtype, copy=False).reshape(rows, columns), _pilatus_header(comments.decode("latin-1"))


_FABIO = threading.Lock()


class _Complaints(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def _silent(file: Path) -> Iterator[None]:
    """Keep fabio's log off the user's terminal; what it logs as an error refuses the file."""
    handler = _Complaints(logging.ERROR)
    logger = logging.getLogger("fabio")
    with _FABIO:  # handlers and `propagate` belong to the process, not to the thread
        propagate, logger.propagate = logger.propagate, False
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagate
    if handler.said:
        raise damaged(file, text(handler.said[0]))


def _check_directories(file: Path, stream: BinaryIO) -> None:
    """Walk the chain of image directories once: fabio would follow a circle for ever."""
    order = "<" if stream.read(4)[:2] == b"II" else ">"
    seen: set[int] = set()
    (offset,) = struct.unpack(f"{order}I", stream.read(4))
    while offset:
        if offset in seen:
            raise damaged(file, "TIFF directories in a circle")
        seen.add(offset)
        stream.seek(offset)
        (entries,) = struct.unpack(f"{order}H", stream.read(2))
        stream.seek(12 * entries, os.SEEK_CUR)
        (offset,) = struct.unpack(f"{order}I", stream.read(4))
    stream.seek(0)


def open_tiff(file: Path) -> Stack:
    """Open an uncompressed TIFF file of one or more images; the caller closes the stack."""
    stream = file.open("rb")
    try:
        with _silent(file):
            _check_directories(file, stream)
            tiff = TiffIO(stream, cache_length=0)
            count = tiff.getNumberOfImages()
    except BaseException:
        stream.close()
        raise

    def read(index: int) -> tuple[NDArray[Any], Header]:
        with _silent(file):
            info = tiff.getInfo(index)
            if info["compression"]:
                raise FrameError(
                    f"frame {text(file)}",
                    "must be an uncompressed TIFF",
                    f"compression {info['compression_type']}",
                    "save it uncompressed",
                )
            strips = list(zip(info["stripOffsets"], info["stripByteCounts"], strict=True))
            end, stored = max(a + n for a, n in strips), sum(n for _, n in strips)
            if end > file.stat().st_size:
                raise damaged(file, f"{file.stat().st_size} of at least {end} bytes: the file is cut off")
            needed = info["nRows"] * info["nColumns"] * int(np.sum(info["nBits"])) // 8
            if stored != needed or info["nRows"] * info["nColumns"] > LARGEST_PX:
                raise damaged(file, f"{stored} bytes for {info['nRows']} x {info['nColumns']} pixels of {needed} bytes")
            values = np.asarray(tiff.getData(index))
        return values, _pilatus_header(str(info["imageDescription"]))

    return Stack("TIFF", "", count, read, stream.close)


def open_edf(file: Path) -> Stack:
    """Open an uncompressed EDF file of one or more images; the caller closes the stack."""
    with _silent(file):
        image = EdfImage().read(str(file))
        count = image.nframes

    def read(index: int) -> tuple[NDArray[Any], Header]:
        with _silent(file):
            frame = image.get_frame(index)
            header = {str(key).lower(): value for key, value in frame.header.items()}
            if "edf_binaryfilename" in header:
                raise FrameError(
                    f"frame {text(file)}",
                    "must hold its own data",
                    "an EDF header that names another file",
                    "save the image in one file",
                )
            if not str(header.get("compression", "none")).lower().startswith("no"):
                raise FrameError(
                    f"frame {text(file)}",
                    "must be an uncompressed EDF",
                    text(header["compression"]),
                    "save it uncompressed",
                )
            if len(frame.shape) != 2 or not 0 < math.prod(frame.shape) <= LARGEST_PX:
                raise wrong_shape(file, frame.shape)
            needed = math.prod(frame.shape) * frame.dtype.itemsize
            if frame.incomplete_data or needed > file.stat().st_size:  # fabio would fill the rest with zeros
                raise damaged(file, "an EDF frame cut off")
            values = np.asarray(frame.data)
        exposure = re.match(r"[\d.eE+-]+", str(header.get("exposuretime", header.get("exposure_time", ""))))
        return values, {"exposure_time_s": float(exposure[0])} if exposure else {}

    return Stack("EDF", "", count, read, image.close)


def wrong_shape(file: Path, shape: object) -> FrameError:
    """The error of an array that is no image."""
    return FrameError(
        f"frame {text(file)}",
        "must be one image of rows x columns of a detector",
        f"an array of shape {shape}",
        "name another dataset or file",
    )
