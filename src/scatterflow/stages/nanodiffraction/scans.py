"""The scans of a study: simulated ones whose truth is known, and measured ones; and what is written of each."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import xlogy

from scatterflow import observe, provenance
from scatterflow.baselines import likelihood
from scatterflow.config.nanodiffraction import SimulatedScanConfig
from scatterflow.config.scan import ScanConfig
from scatterflow.forward import fields
from scatterflow.nanodiffraction import NanodiffractionStudy
from scatterflow.scan import apparent_tilt, map_coordinates, overview, read_scan
from scatterflow.scanfile import check_geometry
from scatterflow.units import UNITS

Array = NDArray[np.float64]
PREFIX = "scan-"
_LIT = 0.25  # share of the brightest frame's counts
_SEEN = 30.0  # twice the logarithm of the likelihoods' ratio: 5e-6 by chance, for the four parameters of a film
_AT_ONCE = 500  # frames
SHOWN = 4  # points of the map whose frames are stored with their reconstructions
_FILM = {"paper": "flat", "paper-thickness": "wavy", "thick-film": "thick"}
_TITLES = {
    "paper": "the published test scan",
    "paper-thickness": "the published test scan, its thickness varying",
    "thick-film": "the published test scan on a thick film",
    "random": "random smooth fields",
}


@dataclass(frozen=True)
class Scan:
    """Frames of a map of points, row after row, and what is known of them."""

    name: str
    shape: tuple[int, int]  # rows and columns of the map
    frames: NDArray[np.float32]  # (point, z, y)
    status: NDArray[np.str_]  # (point,)
    kinematics: Any
    mask: NDArray[np.bool_] | None = None  # (z, y), True = valid
    truth: Array | None = None  # (point, parameter)
    bound: Array | None = None  # Cramer-Rao standard deviation (point, parameter)
    coords: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    overview: dict[str, xr.Variable] = field(default_factory=dict)  # of the whole frames, see `scan.overview`

    @property
    def lit(self) -> NDArray[np.float32]:
        """Frames of the usable points (usable point, z, y)."""
        return self.frames[self.usable]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Points whose frame was recorded whole."""
        return np.asarray(self.status == "ok")

    def spread(self, values: Array, sd: Array) -> tuple[Array, Array]:
        """Values and sd (usable point, parameter) at their places among all points; NaN at the others."""
        both = np.full((2, len(self.frames), values.shape[1]), np.nan)
        both[:, self.usable] = values, sd
        return both[0], both[1]

    @property
    def background(self) -> bool:
        """Whether a constant background is to be fitted: measured frames have one."""
        return self.truth is None


def box(study: NanodiffractionStudy) -> Array:
    """Lower and upper bounds of the parameters, (2, parameter)."""
    return np.stack([study.prior.lower, study.prior.upper])


def all_scans(study: NanodiffractionStudy, tell: Callable[[str], None]) -> Iterator[Scan]:
    """The simulated scans, then the measured ones that are there."""
    for config in study.config.test_scans:
        yield simulated(study, config)
    yield from measured(study, tell)


def simulated(study: NanodiffractionStudy, config: SimulatedScanConfig) -> Scan:
    """A simulated scan with counting noise; the same in every stage."""
    from scatterflow.forward.nanodiffraction import kinematics

    shape = (config.points, config.points)
    names = study.prior.names
    film, at = study.config.film, study.kinematics
    if config.fields == "random":
        lower, upper = study.prior.lower, study.prior.upper
        middle, half = (lower + upper) / 2, (upper - lower) / 4
        maps = fields.smooth(shape, middle - half, middle + half, seed=study.seed)
    else:
        which = _FILM[config.fields]
        maps = fields.test_scan(shape, which)
        if config.fields == "thick-film":
            film = film.model_copy(update={"thickness_nm": fields.FILMS[which][0]})
            at = kinematics(study.config.beam, film, study.config.forward.ring_upsampling)
        maps[..., 3] += film.thickness_nm - fields.FILMS[which][0]  # it varies around the study's own
    full = maps.reshape(-1, maps.shape[-1])
    truth = full[:, : len(names)]
    expected = study.expected(full, at)
    index = np.arange(len(truth))
    counts = observe.poisson(expected, index, study.seed, PREFIX + config.name).astype(np.float32)
    most = study.config.forward.max_counts
    return Scan(
        config.name, shape, counts, np.full(len(truth), "ok"), at, truth=truth, bound=likelihood.bound(truth, at, most),
        attrs={
            "title": f"{_TITLES[config.fields]}, at most {most:g} counts per pixel", "source": fields_source(config),
            "fields": config.fields, "max_counts": most,
        },
    )  # fmt: skip


def fields_source(config: SimulatedScanConfig) -> str:
    """Where the fields of strain and tilt come from."""
    return "" if config.fields == "random" else "DONUT, figure 2 and supplement (doi:10.48550/arXiv.2507.14038)"


def data_folder() -> Path:
    """Folder of the measured files: SCATTERFLOW_DATA, default ../shared/data."""
    return Path(os.environ.get("SCATTERFLOW_DATA") or Path("..") / "shared" / "data")


def measured(study: NanodiffractionStudy, tell: Callable[[str], None]) -> Iterator[Scan]:
    """The measured scans of the configuration; one that is not there is named and left out."""
    for config in study.config.scans:
        path = data_folder() / config.file
        if not path.exists():
            tell(f"scan {config.name}: {path.name} is missing: set SCATTERFLOW_DATA to its folder")
            continue
        found = read(study, path, config)
        counts = "; ".join(f"{int((found.status == word).sum())} {word}" for word in np.unique(found.status))
        tell(f"scan {config.name}: {len(found.frames)} frames: {counts}")
        yield found


def read(study: NanodiffractionStudy, path: Path, config: ScanConfig) -> Scan:
    """A measured scan, cut as the study's frames are. Raises FrameError, and ConfigError where the geometry is another."""
    beam = study.config.beam
    origin = check_geometry(path, config, beam, study.config.film)
    found = read_scan(path, config, shape=beam.shape)
    attrs: dict[str, Any] = {"title": f"{config.name}, measured", "source": config.source}
    # Energy and lattice spacing act alike, and the cut follows the peak, not the angles of detector and sample
    attrs["relative"] = json.dumps(["strain", "omega_deg", "chi_deg"])
    attrs["geometry"] = json.dumps(origin)
    attrs |= {name: json.dumps(found.attrs[name]) for name in ("roi_rows", "roi_columns")}
    tilt = apparent_tilt(found, beam)
    if tilt is not None and math.isfinite(tilt["defocus_um"]):  # infinite: in focus
        attrs |= {"defocus_um": tilt["defocus_um"], "defocus_explained": tilt["explained"]}
    plain = {name: value for name, value in found.attrs.items() if isinstance(value, str | int | float)}
    coords = map_coordinates(found)
    rows, columns = len(coords.pop("row")), len(coords.pop("column"))
    return Scan(
        config.name, (rows, columns), found["counts"].values, found["status"].values.astype(str), study.kinematics,
        mask=found["mask"].values, coords=coords, attrs=plain | attrs, overview=overview(found),
    )  # fmt: skip


def result(study: NanodiffractionStudy, scan: Scan, answers: Mapping[str, tuple[Array, Array]]) -> xr.Dataset:
    """Maps of a scan by every estimator (`maps.py` says which): values, errors, deviance, and some frames rebuilt.

    `answers` are values and standard deviations (point, parameter) by estimator, not finite where there is no answer.
    """
    names = study.prior.names
    cube = ("estimator", "row", "column", "parameter")
    values: dict[str, Any] = {}
    for place, what in enumerate(("estimate", "sd")):
        stacked = np.stack([answer[place] for answer in answers.values()])
        values[what] = (cube, stacked.reshape(len(answers), *scan.shape, len(names)))
    deviance = np.stack([_deviance(scan, estimate) for estimate, _ in answers.values()])
    values["goodness"] = (cube[:3], deviance.reshape(len(answers), *scan.shape))
    values["intensity"] = (cube[1:3], scan.frames.sum((1, 2)).reshape(scan.shape), {"units": "counts"})
    values["status"] = (cube[1:3], scan.status.astype(object).reshape(scan.shape))
    if scan.truth is not None and scan.bound is not None:
        for what, array in (("truth", scan.truth), ("bound", scan.bound)):
            values[what] = (cube[1:], array.reshape(*scan.shape, len(names)))
    values |= _shown(scan, next(iter(answers.values()))[0])
    values |= scan.overview
    units = [UNITS[name] for name in names]
    coords = {"estimator": list(answers), "parameter": list(names), "unit": ("parameter", units), **scan.coords}
    attrs = {"experiment": int(scan.truth is None), "rebuilt_estimator": next(iter(answers)), **scan.attrs}
    attrs["versions"] = json.dumps(provenance.versions(("numpy", "torch")))
    return xr.Dataset(values, coords=coords, attrs=attrs)


def _deviance(scan: Scan, estimate: Array) -> Array:
    """Deviance of every frame over what counting noise explains (point,); not finite where there is no answer."""
    use = scan.usable & np.isfinite(estimate).all(axis=1)
    found = np.full(len(scan.frames), np.nan)
    if use.any():
        found[use] = likelihood.rebuild(scan.frames[use], scan.kinematics, estimate[use], scan.mask, scan.background)[1]
    return found


def signal(scan: Scan, estimate: Array) -> NDArray[np.bool_]:
    """Whether the film of an estimate (point, parameter) explains a frame better than an even background: (point,)."""
    use = np.flatnonzero(scan.usable & np.isfinite(estimate).all(axis=1))
    found = np.zeros(len(scan.frames), dtype=bool)
    for part in np.array_split(use, max(1, len(use) // _AT_ONCE)):
        counts = scan.frames[part] if scan.mask is None else np.where(scan.mask, scan.frames[part], 0)
        expected, _ = likelihood.rebuild(counts, scan.kinematics, estimate[part], scan.mask, scan.background)
        pixels = counts[0].size if scan.mask is None else scan.mask.sum()
        even = counts.sum((1, 2), keepdims=True) / pixels
        ratio = xlogy(counts, np.maximum(expected, 1e-30)) - xlogy(counts, np.maximum(even, 1e-30)) - expected + even
        found[part] = 2 * ratio.sum((1, 2), dtype=float, where=scan.mask is None or scan.mask) > _SEEN
    return found


def _shown(scan: Scan, estimate: Array) -> dict[str, Any]:
    """Frames of some points, from few counts to many (of what is lit at all), with what the estimate rebuilds."""
    use = np.flatnonzero(scan.usable & np.isfinite(estimate).all(axis=1))
    if not len(use):
        return {}
    counts = scan.frames[use].sum((1, 2))
    ranked = use[np.argsort(counts, kind="stable")][(np.sort(counts) >= _LIT * counts.max()).argmax() :]
    chosen = ranked[np.linspace(0, len(ranked) - 1, min(SHOWN, len(ranked))).astype(int)]
    rebuilt, _ = likelihood.rebuild(scan.frames[chosen], scan.kinematics, estimate[chosen], scan.mask, scan.background)
    row, column = np.unravel_index(chosen, scan.shape)
    frames = scan.frames[chosen] if scan.mask is None else np.where(scan.mask, scan.frames[chosen], np.nan)
    return {
        "frames": (("shown", "z", "y"), frames, {"units": "counts"}),
        "rebuilt": (("shown", "z", "y"), rebuilt, {"units": "counts"}),
        "shown_row": ("shown", row),
        "shown_column": ("shown", column),
    }
