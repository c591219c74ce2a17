"""What estimators of nanodiffraction descend: losses of one frame over strain and tilts, around the truth.

Four losses of the same frame: the Poisson deviance with free amplitude, which maximum likelihood minimises; the mean
absolute error of frames brought to equal sums, DONUT's physics term (`models/donut.py`); minus the correlation with a
pattern of sum 1, of which the correlation fit takes centres of mass (`baselines/correlation.py`); and the absolute error
with the other ring: the published one of 2 points per pixel, whose frames change with the tilts in jerks, or the
integral where the study itself has the published one.

Planes of two parameters reach as far from the truth as DONUT's bounded output does from the middle of the prior's box,
3.4 times half of its width: the encoder starts anywhere there. Cuts through the truth reach a tenth of that half, so
finely that they show the jerks. A plane takes few factors of frames (`forward.nanodiffraction.factors`): one depends on
strain and omega only, the other on strain and chi.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import xlogy

from scatterflow import maps
from scatterflow.errors import ScatterflowError, StoreError
from scatterflow.nanodiffraction import PARAMETERS, NanodiffractionStudy
from scatterflow.units import UNITS

if TYPE_CHECKING:
    from torch import Tensor

    from scatterflow.forward.nanodiffraction import Kinematics

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
FILE = "landscape.nc"  # in the folder of the stage evaluate
STEPS = 25  # of a plane, in each direction; odd: the truth is the middle one
FINE = 121  # of a cut
REACH = 2 * 1.7159  # of a plane to each side of the truth, over half of the box: DONUT's output (`models/donut.py`)
CLOSE = 0.1  # of a cut
NAMES = PARAMETERS[:3]
LOSSES = ("Poisson deviance", "absolute error", "minus correlation", "absolute error, other ring")
LOSS_UNITS = ("1", "of the brightest pixel", "of the counts", "of the brightest pixel")
_FLOOR = 1e-5  # of the brightest pixel, as in maximum likelihood: what a stray count costs is finite
_PUBLISHED = 2  # points of the ring per pixel
_ROUNDING = 1e-6  # of a loss's range: a smaller difference is none
_FLAT = 0.05  # of a cut's mean slope: less is flat
_DIMS = {
    "plane": ("plane_of", "loss", "first", "second"),
    "axis": ("parameter", "step"),
    "cut": ("parameter", "loss", "place"),
    "cut_axis": ("parameter", "place"),
    "truth": ("parameter",),
    "box": ("side", "parameter"),
}


def possible(scan: xr.Dataset) -> bool:
    """Whether `of_scan` can be computed: the truth and some frames are known, and the film is the study's own."""
    return maps.simulated(scan) and bool(scan.sizes.get("shown", 0)) and scan.attrs.get("fields") != "thick-film"


def of_scan(study: NanodiffractionStudy, scan: xr.Dataset) -> xr.Dataset:
    """Landscape of one frame of a simulated scan on the study's own film (a dataset as `maps.py` describes it).

    Dataset of `plane (plane_of, loss, first, second)` over `axis (parameter, step)`, where plane_of names two parameters;
    `cut (parameter, loss, place)` over `cut_axis (parameter, place)`; `truth (parameter)`; `box (side, parameter)` of the
    prior; coordinate `unit (loss)`; attributes `counts` of the frame, its `row` and `column`, `scan`, `own_ring` and
    `other_ring`. Raises ScatterflowError for a scan that is not `possible`.
    """
    if not possible(scan):
        must = "needs a simulated scan of the study's film, with frames to show"
        raise ScatterflowError("landscape", must, maps.title(scan, "scan"))
    from scatterflow.forward.nanodiffraction import kinematics  # torch is only needed here

    shown = scan.sizes["shown"] // 2
    row, column = (int(scan[f"shown_{name}"][shown]) for name in ("row", "column"))
    beam, film, own = study.config.beam, study.config.film, study.config.forward.ring_upsampling
    ring = None if own == _PUBLISHED else _PUBLISHED
    truth, counts = scan["truth"].values[row, column].astype(float), scan["frames"].values[shown].astype(float)
    box = np.stack([study.prior.lower, study.prior.upper])
    found = compute(counts, truth, study.kinematics, kinematics(beam, film, ring), box)
    return found.assign_attrs(
        counts=float(counts.sum()), row=row, column=column, scan=maps.title(scan, "scan"), other_ring=_words(ring),
        own_ring=_words(own),
    )  # fmt: skip


def _words(ring: int | None) -> str:
    return "integral over the ring" if ring is None else f"ring of {ring} points per pixel"


def compute(counts: Array, truth: Array, at: Kinematics, other: Kinematics, box: Array) -> xr.Dataset:
    """Losses of a frame `counts` (z, y) around `truth` (parameter,); `box` (2, parameter) is the prior's.

    `at` is the study's forward model, `other` the one with the other ring. Holds STEPS + 1 frames and their factors.
    """
    half = (box[1] - box[0])[:3] / 2
    axes, fine = _grid(truth, REACH * half, STEPS), _grid(truth, CLOSE * half, FINE)
    planes, cuts = np.empty((3, 4, STEPS, STEPS)), np.empty((3, 4, FINE))
    for model, place, kept in ((at, slice(0, 3), slice(0, 3)), (other, slice(3, 4), slice(1, 2))):
        frame = _Frame(counts, model, box.mean(0))
        planes[:, place] = _planes(frame, truth, axes)[:, kept]
        cuts[:, place] = _cuts(frame, truth, fine)[:, kept]
    return xr.Dataset(
        {
            "plane": (_DIMS["plane"], planes),
            "cut": (_DIMS["cut"], cuts),
            "axis": (_DIMS["axis"], axes),
            "cut_axis": (_DIMS["cut_axis"], fine),
            "truth": (_DIMS["truth"], truth[:3]),
            "box": (_DIMS["box"], box[:, :3]),
        },
        coords={
            "plane_of": [" ".join(pair) for pair in combinations(NAMES, 2)],
            "parameter": list(NAMES),
            "parameter_unit": ("parameter", [UNITS[name] for name in NAMES]),
            "loss": list(LOSSES),
            "unit": ("loss", list(LOSS_UNITS)),
        },
    )


def _grid(truth: Array, reach: Array, number: int) -> Array:
    """(parameter, number) even steps around the truth."""
    return truth[:3, None] + reach[:, None] * np.linspace(-1, 1, number)


class _Frame:
    """A frame (z, y) of counts, a forward model, and the losses between them."""

    def __init__(self, counts: Array, at: Kinematics, centre: Array) -> None:
        import torch

        from scatterflow.forward.nanodiffraction import intensities

        self.at, self.total = at, float(counts.sum())
        self.observed = torch.as_tensor(counts / self.total, dtype=torch.float32)
        self.told = 2 * self.total * float(xlogy(counts / self.total, counts / self.total).sum())
        middle = intensities(at, torch.as_tensor(centre)[None])[0]
        self.brightest = float(
            middle.max() / middle.sum()
        )  # DONUT's unit: the pixel of a frame in the middle of the box

    def losses(self, images: Tensor) -> Array:
        """Deviance, absolute error and minus the correlation (3, frame) of `images` (frame, z, y), whatever their sum."""
        images = images.clamp_min(0)
        shares = images / images.sum((1, 2), keepdim=True).clamp_min(1e-20)
        raised = shares + _FLOOR * shares.amax((1, 2), keepdim=True) + 1e-30
        raised = raised / raised.sum((1, 2), keepdim=True)
        deviance = self.told - 2 * self.total * (self.observed * raised.log()).sum((1, 2)).double()
        error = (shares - self.observed).abs().mean((1, 2)).double() / self.brightest
        correlation = (shares * self.observed).sum((1, 2)).double()
        return np.stack([deviance.numpy(), error.numpy(), -correlation.numpy()])


def _planes(frame: _Frame, truth: Array, axes: Array) -> Array:
    """(plane, loss, first, second) over strain and omega, strain and chi, omega and chi."""
    import torch

    from scatterflow.forward.nanodiffraction import factors

    theta = torch.as_tensor(np.tile(truth, (STEPS + 1, 1)))  # the last row has the true tilts
    theta[:STEPS, 1:3] = torch.as_tensor(axes[1:].T)
    found = np.empty((3, 3, STEPS, STEPS))
    for number, strain in enumerate([*axes[0], truth[0]]):
        theta[:, 0] = float(strain)
        along, across = factors(frame.at, theta)
        across = across.transpose(1, 2)
        if number < STEPS:
            found[0, :, number] = frame.losses(along[:STEPS] @ across[STEPS])
            found[1, :, number] = frame.losses(along[STEPS] @ across[:STEPS])
        else:
            for each in range(STEPS):
                found[2, :, each] = frame.losses(along[each] @ across[:STEPS])
    return found


def _cuts(frame: _Frame, truth: Array, axes: Array) -> Array:
    """(parameter, loss, place) along each parameter alone."""
    import torch

    from scatterflow.forward.nanodiffraction import intensities

    found = np.empty((3, 3, FINE))
    for number, axis in enumerate(axes):
        theta = np.tile(truth, (FINE, 1))
        theta[:, number] = axis
        parts = [intensities(frame.at, torch.as_tensor(part)) for part in np.array_split(theta, FINE // STEPS)]
        found[number] = np.concatenate([frame.losses(part) for part in parts], axis=1)
    return found


def read(path: Path) -> xr.Dataset:
    """A stored landscape, in memory. Raises StoreError if it is damaged or incomplete."""
    remedy = "run `scatterflow evaluate` again"
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            found = opened.load()
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(str(path), "must be a readable NetCDF file", str(error), remedy) from None
    for name, dims in _DIMS.items():
        if name not in found or found[name].dims != dims or not np.isfinite(found[name].values).all():
            raise StoreError(f"{name} in {path}", f"must be there, finite, with dimensions {dims}", remedy=remedy)
    for name in ("plane_of", "parameter", "loss", "unit"):
        if name not in found.coords:
            raise StoreError(f"{name} in {path}", "must name its entries", remedy=remedy)
    return found


def descent(values: Array) -> tuple[int, Mask]:
    """Points at which steepest descent stops on a grid (any number of dimensions), and where it leads to the middle's.

    From each point to the lowest of its neighbours, diagonal ones included, unless none is lower by more than rounding.
    Returns the number of points without lower neighbour, and a mask of the points that end where the middle one ends.
    """
    flat = values.ravel()
    shape, number = values.shape, np.arange(values.size).reshape(values.shape)
    padded = np.pad(values, 1, constant_values=np.inf)
    index = np.pad(number, 1)
    lowest, target = values.copy(), number.copy()
    least = _ROUNDING * float(np.ptp(values))
    for shift in np.ndindex(*[3] * values.ndim):
        window = tuple(slice(s, s + n) for s, n in zip(shift, shape, strict=True))
        lower = (padded[window] < lowest) & (padded[window] < values - least)
        lowest, target = np.where(lower, padded[window], lowest), np.where(lower, index[window], target)
    ends = target.ravel()
    stops = int((ends == np.arange(flat.size)).sum())
    while not np.array_equal(ends, further := ends[ends]):
        ends = further
    middle = number[tuple(n // 2 for n in shape)]
    return stops, (ends == ends[middle]).reshape(shape)


def facts(found: xr.Dataset) -> dict[str, Any]:
    """What a landscape shows in numbers, as plain JSON: by loss, by plane and by parameter.

    Planes: `stops` of a descent, the share of the plane from which it leads to the truth's basin (`basin`), and that share
    of the points within the prior's box (`inside`). Cuts:
    `stops`, `basin`, `width` of the basin around the truth, `off`, how far its minimum is from the truth, and `flat`, the
    share of steps that change the loss by less than a twentieth of the mean.
    """
    result: dict[str, Any] = {}
    for number, loss in enumerate(found["loss"].values.tolist()):
        planes, cuts = {}, {}
        for place, name in enumerate(found["plane_of"].values.tolist()):
            stops, basin = descent(found["plane"].values[place, number])
            within = [
                (found["axis"].sel(parameter=each).values >= low) & (found["axis"].sel(parameter=each).values <= high)
                for each in name.split()
                for low, high in [found["box"].sel(parameter=each).values]
            ]
            box = np.logical_and.outer(*within)
            planes[name] = {"stops": stops, "basin": float(basin.mean()), "inside": float(basin[box].mean())}
        for place, name in enumerate(found["parameter"].values.tolist()):
            values, axis = found["cut"].values[place, number], found["cut_axis"].values[place]
            stops, basin = descent(values)
            change = np.abs(np.diff(values))
            inside = np.flatnonzero(~basin)
            low = inside[inside < len(axis) // 2].max(initial=-1) + 1
            high = inside[inside > len(axis) // 2].min(initial=len(axis)) - 1
            cuts[name] = {
                "stops": stops,
                "basin": float(basin.mean()),
                "width": float(axis[high] - axis[low]),
                "off": float(abs(axis[low + int(values[low : high + 1].argmin())] - axis[len(axis) // 2])),
                "flat": float((change < _FLAT * change.mean()).mean()),
            }
        result[loss] = {"unit": str(found["unit"].values[number]), "planes": planes, "cuts": cuts}
    return result
