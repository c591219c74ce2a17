"""What is cut out of the frames of a watch: as it was found for scans of the study, from the first frames that come."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.config.scan import ExitAngle, ScanConfig
from scatterflow.errors import ConfigError, FrameError, StoreError
from scatterflow.framefiles import reading, text
from scatterflow.preprocess.bragg import bin_sums
from scatterflow.products import replacing
from scatterflow.scan import read_scan, turned
from scatterflow.watching.arrivals import Arrival

FIRST = 20  # frames from which the cut is found
MOST = 10 * FIRST  # frames without a Bragg peak after which there is none
FILE = "cut.npz"  # beside the records, so that the next call cuts alike

Flags = NDArray[np.bool_]
Prepare = Callable[[NDArray[Any]], NDArray[Any]]  # region (row, column) as stored -> counts (z, y)
Region = tuple[slice, slice]  # rows and columns of a frame as stored


@dataclass(frozen=True)
class Cut:
    """From a frame as stored to counts (z, y) of the model.

    Of a frame only its `region` counts, and `prepare` makes counts of it (orientation, binning); None: all, as it is.
    `excluded (row, column)` are pixels of a whole frame whose values mean nothing, `valid (z, y)` those of the counts
    whose values mean something.
    """

    region: Region | None = None
    prepare: Prepare | None = None
    excluded: Flags | None = None
    valid: Flags | None = None


@dataclass(frozen=True)
class Scanned:
    """Frames are cut as those of a scan: around `config.centre`, or around the Bragg peak of the first `FIRST` frames.

    Frames that have the model's shape already are taken as they are; then `excluded` of their pixels mean nothing.
    """

    config: ScanConfig
    excluded: Flags | None = None


def as_scanned(scan: xr.Dataset) -> Cut:
    """The cut of frames like those of a scan that `read_scan` has read."""
    rows, columns = (np.asarray(scan.attrs[name], dtype=int) for name in ("roi_rows", "roi_columns"))
    turn: ExitAngle = scan.attrs["exit_angle"]
    whole = scan["overview_mask"].values  # (z, y)
    stored = whole.shape if turn in ("up", "down") else whole.shape[::-1]
    excluded = np.empty(whole.size, dtype=bool)
    excluded[turned(np.arange(whole.size).reshape(stored), turn).ravel()] = ~whole.ravel()
    region = slice(int(rows[0]), int(rows[1]) + 1), slice(int(columns[0]), int(columns[1]) + 1)
    return _cut(region, excluded.reshape(stored), scan["mask"].values, turn, int(scan.attrs["binning"]))


def _cut(region: Region, excluded: Flags, valid: Flags, turn: ExitAngle, binning: int) -> Cut:
    def prepare(raw: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(bin_sums(turned(raw, turn).astype(np.float64), binning) * valid)

    return Cut(region, prepare, excluded, valid)


class Cutting:
    """The cut of a watch. Frames are held, `limit` bytes of them at most, until enough have come to find it."""

    def __init__(
        self,
        wanted: Cut | Scanned | None,
        shape: tuple[int, int],
        source: str,
        folder: Path | None,
        limit: int,
        say: Callable[[str], None],
    ) -> None:
        """With `folder` what an earlier watch has found there is used, and what is found is kept there."""
        self._scanned = wanted if isinstance(wanted, Scanned) else None
        self.cut = wanted if isinstance(wanted, Cut) else Cut()
        self.told = ""  # in words; "" where frames are taken as they are
        self.held: list[Arrival] = []
        self._shape, self._source, self._folder = shape, text(source), folder
        self._limit, self._say = limit, say
        self._try_at = FIRST

    def restore(self) -> None:
        """Use the cut of an earlier watch, if it has found one. Raises StoreError where it cannot be read."""
        if self._scanned is None or self._folder is None or not (self._folder / FILE).is_file():
            return
        path = self._folder / FILE
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                (top, bottom), (left, right) = found["region"].tolist()
                turn = next(word for word in get_args(ExitAngle) if word == found["exit_angle"])
                region = slice(int(top), int(bottom)), slice(int(left), int(right))
                self.cut = _cut(region, found["excluded"] != 0, found["valid"] != 0, turn, int(found["binning"]))
                self.told = text(found["told"])
        except (OSError, ValueError, KeyError, EOFError, StopIteration, zipfile.BadZipFile) as error:
            remedy = "give another folder"
            raise StoreError(f"{path}", "must hold the cut of a watch", text(error), remedy) from None
        self._scanned = None
        self._say(f"as before, {self.told}")

    def released(self, arrivals: list[Arrival], last: bool) -> list[Arrival]:
        """The frames that can be answered now, in order; with `last` no more will come.

        Raises FrameError where no cut is found, ConfigError where the configuration does not fit the frames.
        """
        if self._scanned is None:
            return arrivals
        self.held += arrivals
        frames = [each for each in self.held if each.values is not None]
        if not frames:  # nothing but broken ones so far
            return self._all()
        first = frames[0].values
        if first is not None and first.shape == self._shape:
            excluded = self._scanned.excluded
            self.cut = Cut(excluded=excluded, valid=None if excluded is None else ~excluded)
            self._scanned = None
            self._say(f"frames of {self._source} have the model's {_size(self._shape)} pixels: taken as they are")
            return self._all()
        size = sum(each.values.nbytes for each in frames if each.values is not None)
        last = last or size >= self._limit
        while len(frames) >= self._try_at or last:
            try:
                self._find(self._scanned.config, frames[: self._try_at])
            except FrameError:  # no peak, perhaps not yet
                if self._try_at >= min(len(frames) if last else MOST, MOST):
                    raise
                self._try_at = min(2 * self._try_at, MOST)
                continue
            self._scanned = None
            return self._all()
        return []

    def _all(self) -> list[Arrival]:
        held, self.held = self.held, []
        return held

    def _find(self, config: ScanConfig, frames: list[Arrival]) -> None:
        """Decide on the first frames as on a scan of them. Raises as `read_scan`."""
        alike = [each for each in frames if _kind(each) == _kind(frames[0])]
        limit = min([each.limit for each in alike] + [config.saturation or np.inf])
        changes: dict[str, Any] = {"dataset": "", "map_shape": (1, len(alike)), "step_um": None}
        changes["saturation"] = float(limit) if np.isfinite(limit) else None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "first.h5"
            with reading(path), h5py.File(path, "w") as file:
                file["frames"] = np.stack([each.values for each in alike])  # type: ignore[misc]  # those without were left out
            try:
                scan = read_scan(path, config.model_copy(update=changes), self._shape)
            except (FrameError, ConfigError) as error:
                first = f"the first {len(alike)} frames of {self._source}"
                what = error.what.replace(f"scan {text(os.fspath(path))}", first)
                raise type(error)(what, error.must, error.got, error.remedy) from None
        self.cut = as_scanned(scan)
        self.told = _told(scan.attrs, len(alike), int(scan["mask"].size - np.count_nonzero(scan["mask"])))
        self._say(f"{self._source}: {self.told}")
        if self._folder is not None:
            _save(self._folder / FILE, self.cut, self.told, scan.attrs)


def _save(path: Path, cut: Cut, told: str, attrs: dict[Any, Any]) -> None:
    content: dict[str, Any] = {"excluded": cut.excluded, "valid": cut.valid, "told": told}
    content["region"] = [[part.start, part.stop] for part in cut.region or ()]
    content |= {name: attrs[name] for name in ("exit_angle", "binning")}
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **content)


def _kind(arrival: Arrival) -> tuple[Any, ...]:
    values = arrival.values
    return (None,) if values is None else (values.shape, values.dtype.str)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _told(attrs: dict[Any, Any], frames: int, masked: int) -> str:
    """The cut in words."""
    rows, columns = ("-".join(map(str, attrs[name])) for name in ("roi_rows", "roi_columns"))
    found = "around the given centre"
    if attrs["roi_found"] == "automatic":
        part = f"{attrs['roi_sigmas']:.0f} sigma, {attrs['roi_fraction']:.0%} of what is above background"
        found = f"around the Bragg peak of the first {frames} frames ({part})"
    binning = f"binned {attrs['binning']} x {attrs['binning']}"
    return f"cut to rows {rows}, columns {columns} {found}, {binning}, {masked} binned pixels masked"
