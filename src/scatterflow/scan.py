"""From a scan of X-ray nanodiffraction to the frames that estimators read: defects, gaps, Bragg peak, binning, status.

The frames pass twice, one at a time: first for their sum, from which it is decided what is invalid and where the Bragg peak
is, then to be cut and binned. So memory holds the cut frames and a few whole ones, however long the scan.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.config.nanodiffraction import NanobeamConfig
from scatterflow.config.scan import ExitAngle, ScanConfig
from scatterflow.errors import ConfigError, FrameError
from scatterflow.framefiles import Header, text
from scatterflow.frames import open_stack
from scatterflow.preprocess.bragg import Peak, bin_mask, bin_sums, centroid, defects, find_peak, module_gaps
from scatterflow.scanfile import count_frames, images, map_shape, place, positions

Mask = NDArray[np.bool_]

_TURNS: dict[ExitAngle, int] = {"up": 0, "right": 1, "down": 2, "left": 3}
STUCK = 0.5  # a pixel saturated in more than this part of the frames is defective, and says nothing about the frames
LISTED = 3  # unreadable frames whose reasons are kept
OVERVIEW = 200  # pixels of the reduced mean frame along each direction, at most


@dataclass
class _Pass:
    """What the first pass over the frames learns of them; arrays are (z, y)."""

    total: NDArray[np.float64]
    valid: Mask  # finite and not negative in every frame
    saturated: NDArray[np.int64]  # frames in which a pixel is at the limit
    read: NDArray[np.bool_]  # (point,)
    limit: float
    reasons: list[str]
    sha256: str


@dataclass(frozen=True)
class _Decision:
    """What is kept of every frame."""

    window: tuple[slice, slice]
    valid: Mask  # of the whole frame
    invalid: dict[str, Mask]  # by cause
    peak: Peak | None  # None where the centre was given


def read_scan(path: str | os.PathLike[str], config: ScanConfig, shape: tuple[int, int] = (64, 64)) -> xr.Dataset:
    """Frames of a scan, cut out around the Bragg peak and binned, with what was decided about them.

    Parameters
    ----------
    path : HDF5 (`scan.h5::/entry/data/data` names the dataset), TIFF or EDF stack, or a folder with one frame per file.
    config : its `file` is not looked at, its `dataset` where the path names none.
    shape : binned pixels (z, y) to keep around the Bragg peak, those of the study's beam.

    Returns
    -------
    Dataset of `counts (point, z, y)` float32, sums of the binned pixels and 0 where masked; `mask (z, y)`, True where
    valid, the same for all frames; `status (point)`: ok, saturated (a valid pixel of the cut at the limit), empty (no counts
    in the cut) or unreadable (no counts: 0 everywhere); `overview (z_frame, y_frame)`, the mean of the whole frames,
    `overview_mask`, and `overview_cause`, why a pixel is not valid (0: it is; else the place in its `flag_meanings`).
    Coordinates `row`, `column`, and `x_um`, `y_um` [um] where they are known (point). z ascends with
    the exit angle, y to the right of it on the frame as stored. Attributes: `map_shape`, `roi_rows`, `roi_columns` (first
    and last on the frame as stored), `roi_sigmas`, `roi_fraction` and `background` of the peak, `masked_<cause>` (pixels
    of the cut), `frames_<status>`, `saturation`, `reasons` of unreadable frames, `sha256` of the values.

    Memory: 4 bytes per point and binned pixel, and about 100 bytes per pixel of a whole frame.

    Raises
    ------
    FrameError : the scan is incomplete, still being written or without counts, no frame can be read, or no peak is found.
    ConfigError : map shape, mask file or cut do not fit the frames.
    """
    source = place(path, config)
    frames = count_frames(source)
    rows, columns = map_shape(source, config, frames)
    first = _first_pass(source, frames, config)
    if not first.read.any():
        reasons = "; ".join(first.reasons)
        raise FrameError(f"scan {text(source)}", "must hold frames that can be read", f"none ({reasons})")
    decision = _decide(source, first, config, shape)
    counts, status = _second_pass(source, first, decision, config, shape)
    mask = bin_mask(decision.valid[decision.window], config.binning)
    counts *= mask
    row, column = (each.ravel() for each in np.indices((rows, columns)))
    coords: dict[str, Any] = {"row": ("point", row), "column": ("point", column)}
    for name, values in positions(source, config, (rows, columns)).items():
        coords[name] = ("point", values.ravel(), {"units": "um", "long_name": f"position {name[0]}"})
    for name, size in zip("zy", mask.shape, strict=True):
        along = "along the exit angle" if name == "z" else "across"
        coords[name] = (name, np.arange(size) + 0.5, {"units": "binned pixel", "long_name": f"detector {along}"})
    overview = first.total / max(int(first.read.sum()), 1)
    return xr.Dataset(
        {
            "counts": (("point", "z", "y"), counts, {"units": "counts", "long_name": "counts, 0 where masked"}),
            "mask": (("z", "y"), mask, {"long_name": "True where the pixel is valid"}),
            "status": (("point",), status),
            "overview": (
                ("z_frame", "y_frame"),
                overview.astype(np.float32),
                {"units": "counts", "long_name": "mean frame"},
            ),
            "overview_mask": (("z_frame", "y_frame"), decision.valid),
            "overview_cause": _causes(decision.invalid),
        },
        coords=coords,
        attrs=_attributes(source, config, (rows, columns), first, decision, status),
    )


def _causes(invalid: dict[str, Mask]) -> xr.Variable:
    """Why a pixel (z_frame, y_frame) is not valid, as a number; the first cause counts."""
    found = np.zeros(next(iter(invalid.values())).shape, dtype=np.int8)
    for number, mask in enumerate(invalid.values(), start=1):
        found[mask & (found == 0)] = number
    return xr.Variable(("z_frame", "y_frame"), found, {"flag_meanings": " ".join(["valid", *invalid])})


def overview(scan: xr.Dataset) -> dict[str, xr.Variable]:
    """The mean frame of a scan with what was decided about it, small enough for every product that shows it.

    `overview (z_overview, y_overview)`: counts per frame and pixel, the mean over the valid pixels of a block, NaN where
    there are none; `overview_cause`: the last cause of the block's pixels, as in `read_scan`; `z_overview`, `y_overview`:
    middles of the blocks [pixel]. Attributes of `overview`: `block` [pixel], `roi` (first z, last z, first y, last y) and
    `centre` (z, y) of the counts above background in it, on the frame turned until z ascends with the exit angle.
    """
    frame, cause = scan["overview"].values.astype(float), scan["overview_cause"]
    valid = scan["overview_mask"].values
    block = math.ceil(max(frame.shape) / OVERVIEW)
    wide = [(0, -size % block) for size in frame.shape]  # the last blocks may be smaller
    counts, pixels = (bin_sums(np.pad(each, wide), block) for each in (np.where(valid, frame, 0), valid.astype(float)))
    mean = np.divide(counts, pixels, out=np.full_like(counts, np.nan), where=pixels > 0)
    padded = np.pad(cause.values, wide)
    rows, columns = counts.shape
    last = padded.reshape(rows, block, columns, block).max((1, 3))
    roi = [int(n) for n in scan.attrs["roi"]]
    level = float(scan.attrs.get("background", np.median(frame[valid])))
    above = np.where(valid, frame - level, 0.0)
    middle = centroid(above, (roi[0], roi[2]), (roi[1] - roi[0] + 1, roi[3] - roi[2] + 1))
    dims = ("z_overview", "y_overview")
    attrs = {"units": "counts", "long_name": "mean frame", "block": block, "roi": roi, "centre": middle}
    places = {
        dim: xr.Variable((dim,), (np.arange(size) + 0.5) * block - 0.5, {"units": "pixel"})
        for dim, size in zip(dims, counts.shape, strict=True)
    }
    return {
        "overview": xr.Variable(dims, mean.astype(np.float32), attrs),
        "overview_cause": xr.Variable(dims, last, cause.attrs),
        **places,
    }


def map_coordinates(scan: xr.Dataset) -> dict[str, Any]:
    """Coordinates of maps (row, column) of a scan: numbers and, where known, y_um (row) and x_um (column) [um]."""
    rows, columns = (int(n) for n in scan.attrs["map_shape"])
    coords: dict[str, Any] = {"row": np.arange(rows), "column": np.arange(columns)}
    for name, dim, axis in (("y_um", "row", 1), ("x_um", "column", 0)):
        if name in scan.coords:
            coords[name] = (dim, scan[name].values.reshape(rows, columns).mean(axis), {"units": "um"})
    return coords


def apparent_tilt(scan: xr.Dataset, beam: NanobeamConfig) -> dict[str, float] | None:
    """How far the peak's direction is a linear function of the position, as behind a beam that is out of focus.

    `explained`: share of the centroids' variance, weighted by counts, over the points with at least a quarter of the
    brightest's counts; `defocus_um`: distance
    from focus to sample that makes such a map of a crystal smaller than the beam, which throws the zone plate's shadow: a
    point sees the beam from direction (x, y) / distance. Tilts from such a scan are the beam's divergence for the most
    part; only an evenly bent film looks the same. None where positions are unknown or too few points are bright.
    """
    if "x_um" not in scan.coords:
        return None
    counts = scan["counts"].values
    totals = counts.sum((1, 2), dtype=np.float64)
    bright = totals > (totals.min() + totals.max()) / 4
    where = np.stack([scan[name].values[bright] for name in ("x_um", "y_um")], axis=1)
    share = totals[bright] / totals[bright].sum()
    where = where - share @ where
    if bright.sum() < 10 or np.linalg.matrix_rank(where) < 2:
        return None
    angle = beam.pixel_mm / beam.distance_mm
    centre = np.stack([counts[bright].sum(axis) @ scan[name].values for axis, name in ((2, "z"), (1, "y"))], axis=1)
    direction = centre / totals[bright, None] * angle
    direction -= share @ direction
    root = np.sqrt(share)[:, None]
    slope = np.linalg.lstsq(where * root, direction * root, rcond=None)[0]  # [rad/um]
    left = share @ (direction - where @ slope) ** 2
    per_um = math.sqrt(abs(float(np.linalg.det(slope))))
    explained = 1 - float(left.sum() / max((share @ direction**2).sum(), np.finfo(float).tiny))
    return {"explained": explained, "defocus_um": 1 / per_um if per_um > 0 else math.inf}


def turned(values: NDArray[Any], exit_angle: ExitAngle) -> NDArray[Any]:
    """A view (z, y) of a frame as stored, its top row first: turned until the exit angle grows upwards."""
    return np.rot90(values, _TURNS[exit_angle])[::-1]


def _first_pass(source: str, frames: int, config: ScanConfig) -> _Pass:
    found: _Pass | None = None
    read, reasons, digest = np.zeros(frames, dtype=bool), list[str](), hashlib.sha256()
    for index, image in enumerate(images(source)):
        if isinstance(image, FrameError):
            reasons.append(f"frame {index}: {image}")
            continue
        digest.update(np.ascontiguousarray(image[0]).tobytes())
        values = turned(image[0], config.exit_angle)
        if found is None:
            shape, limit = values.shape, _limit(image, config)
            empty = np.zeros(shape), np.ones(shape, bool), np.zeros(shape, np.int64)
            found = _Pass(*empty, read, limit, reasons, "")
        elif values.shape != found.total.shape:
            reasons.append(f"frame {index}: shape {values.shape} instead of {found.total.shape}")
            continue
        if values.dtype.kind != "u":
            good = np.isfinite(values) & (values >= 0)
            found.valid &= good
            values = np.where(good, values, 0)
        if values.max() >= found.limit:
            found.saturated += values >= found.limit
            values = np.where(values < found.limit, values, 0)  # or one saturated frame would make a hot pixel
        found.total += values
        read[index] = True
    if found is None:
        return _Pass(np.zeros((1, 1)), np.ones((1, 1), bool), np.zeros((1, 1), np.int64), read, math.inf, reasons, "")
    found.sha256 = digest.hexdigest()
    return found


def _limit(image: tuple[NDArray[Any], Header], config: ScanConfig) -> float:
    """Counts from which a pixel is saturated: the config's or the file's, and never above the type's largest."""
    values, header = image
    largest = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else np.finfo(np.float32).max
    stated = config.saturation if config.saturation is not None else float(header.get("saturation", math.inf))
    return float(min(stated, largest))


def _decide(source: str, first: _Pass, config: ScanConfig, cut: tuple[int, int]) -> _Decision:
    """Invalid pixels by cause, and the window of `cut` binned pixels (z, y)."""
    stuck = first.saturated > STUCK * first.read.sum()
    causes = {"invalid": ~first.valid, "stuck": stuck, "file": _mask_file(source, first.total.shape, config)}
    valid = ~np.logical_or.reduce(list(causes.values()))
    if not valid.any():
        raise FrameError(f"scan {text(source)}", "must have a valid pixel", "all masked", status="masked-out")
    if not first.total[valid].any():
        raise FrameError(f"scan {text(source)}", "must hold counts", "zero in every frame", "was the shutter open?")
    causes["hot"], causes["dead"] = defects(first.total, valid, config.hot_ratio)
    if config.gaps:
        causes["gap"] = module_gaps(first.total, valid & ~causes["hot"] & ~causes["dead"])
    valid = ~np.logical_or.reduce(list(causes.values()))
    size = cut[0] * config.binning, cut[1] * config.binning
    shape = first.total.shape
    if size[0] > shape[0] or size[1] > shape[1]:
        must = f"must fit into the frames of {shape[0]} x {shape[1]} pixels (z, y)"
        raise ConfigError(
            f"shape of scan {text(source)}", must, f"{size[0]} x {size[1]} before binning", "lower shape or binning"
        )
    peak = None
    if config.centre is None:
        peak = find_peak(first.total, valid, size)
        if peak is None:
            remedy = "set centre, or check that the detector was at the Bragg angle"
            raise FrameError(
                f"scan {text(source)}", "must show a Bragg peak", "none above the background of all frames", remedy
            )
        corner = peak.z, peak.y
    else:
        corner = _given_corner(source, config.centre, shape, size, config)
    window = slice(corner[0], corner[0] + size[0]), slice(corner[1], corner[1] + size[1])
    if not bin_mask(valid[window], config.binning).any():
        raise FrameError(
            f"scan {text(source)}", "must have valid pixels in the cut", "none", "set centre", status="masked-out"
        )
    return _Decision(window, valid, causes, peak)


def _given_corner(
    source: str, centre: tuple[int, int], shape: tuple[int, ...], size: tuple[int, int], config: ScanConfig
) -> tuple[int, int]:
    """First pixel (z, y) of the cut around a pixel of the frame as stored."""
    stored = shape if config.exit_angle in ("up", "down") else shape[::-1]
    what, remedy = f"centre of scan {text(source)}", "move it away from the edge, or lower shape or binning"
    if centre[0] < stored[0] and centre[1] < stored[1]:
        marked = np.zeros(stored, dtype=bool)
        marked[centre] = True
        z, y = (int(n) for n in np.argwhere(turned(marked, config.exit_angle))[0])
        corner = z - size[0] // 2, y - size[1] // 2
        if min(corner) >= 0 and corner[0] + size[0] <= shape[0] and corner[1] + size[1] <= shape[1]:
            return corner
    must = f"must leave room for {size[0]} x {size[1]} pixels (z, y) on frames of {stored[0]} x {stored[1]} as stored"
    raise ConfigError(what, must, list(centre), remedy)


def _mask_file(source: str, shape: tuple[int, ...], config: ScanConfig) -> Mask:
    if not config.mask_file:
        return np.zeros(shape, dtype=bool)
    what = f"mask_file of scan {text(source)}"
    with contextlib.closing(open_stack(config.mask_file)) as stack:
        if stack.frames != 1:
            raise ConfigError(what, "must hold one image", f"{stack.frames} of them", "name a mask")
        values = turned(stack.read(0)[0], config.exit_angle)
    if values.shape != shape:
        must = f"must have the frames' {shape[0]} x {shape[1]} pixels"
        raise ConfigError(what, must, " x ".join(map(str, values.shape)), "use this detector's mask")
    return np.asarray(values != 0)


def _second_pass(
    source: str, first: _Pass, decision: _Decision, config: ScanConfig, cut: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Counts (point, z, y) and status (point) of every frame."""
    valid = decision.valid[decision.window]
    counts = np.zeros((len(first.read), *cut), dtype=np.float32)
    status = np.full(len(first.read), "unreadable")
    for index, image in enumerate(images(source)):
        if isinstance(image, FrameError) or not first.read[index]:
            continue
        kept = np.where(valid, turned(image[0], config.exit_angle)[decision.window], 0)
        counts[index] = bin_sums(kept.astype(np.float64), config.binning)
        if (kept >= first.limit).any():
            status[index] = "saturated"
        else:
            status[index] = "ok" if kept.any() else "empty"
    return counts, status


def _attributes(
    source: str, config: ScanConfig, shape: tuple[int, int], first: _Pass, decision: _Decision, status: NDArray[np.str_]
) -> dict[str, Any]:
    """The decisions, as plain numbers and text."""
    pixels = first.total.shape
    stored = pixels if config.exit_angle in ("up", "down") else pixels[::-1]
    numbers = turned(np.arange(first.total.size).reshape(stored), config.exit_angle)[decision.window]
    rows, columns = np.divmod(numbers, stored[1])
    attrs: dict[str, Any] = {
        "name": config.name,
        "scan": text(os.path.basename(os.path.normpath(source))),
        "source": config.source,
        "map_shape": list(shape),
        "exit_angle": config.exit_angle,
        "binning": config.binning,
        "roi_rows": [int(rows.min()), int(rows.max())],
        "roi_columns": [int(columns.min()), int(columns.max())],
        "roi": [n for part in decision.window for n in (part.start, part.stop - 1)],
        "roi_found": "given" if decision.peak is None else "automatic",
        "saturation": first.limit,
        "reasons": "; ".join(first.reasons[:LISTED]) + ("; ..." if len(first.reasons) > LISTED else ""),
        "sha256": first.sha256,
        "sha256_of": "values",
    }
    if decision.peak is not None:
        attrs |= {"roi_sigmas": decision.peak.sigmas, "roi_fraction": decision.peak.fraction}
        attrs["background"] = decision.peak.background / int(first.read.sum())
    seen = np.zeros(pixels, dtype=bool)
    for cause, pixel in decision.invalid.items():
        attrs[f"masked_{cause}"] = int(np.count_nonzero((pixel & ~seen)[decision.window]))
        seen |= pixel
    return attrs | {
        f"frames_{word}": int(np.count_nonzero(status == word)) for word in ("ok", "saturated", "empty", "unreadable")
    }
