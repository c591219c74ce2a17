"""Beam, detector and views."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from scatterflow.config.base import Section, option

SOURCE = "arXiv 2210.01543, table 2"


class Rectangle(Section):
    """A rectangle of pixels, half-open: rows z0 <= z < z1 and columns y0 <= y < y1, z counted upwards."""

    z: tuple[int, int] = option(help="first row and row after the last, counted upwards from the lowest", unit="pixel")
    y: tuple[int, int] = option(help="first column and column after the last", unit="pixel")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for axis, (start, stop) in (("z", self.z), ("y", self.y)):
            if not 0 <= start < stop:
                raise ValueError(
                    f"{axis} must be ascending from 0 up, got [{start}, {stop}]; write the lower pixel first"
                )
        return self


class View(Section):
    """A region of the detector with its own binning and sampling: what is simulated, stored and analysed."""

    rows: tuple[tuple[int, int], ...] = option(
        min_length=1,
        help="ranges [first, after last] of detector rows, counted upwards; several ranges are joined",
        unit="pixel",
    )
    columns: tuple[int, int] = option(help="[first, after last] detector column", unit="pixel")
    bins: tuple[int, int] = option(help="number of bins (z, y) of the view; counts of the pixels in a bin are summed")
    sampling: tuple[int, int | Literal["gauss3"]] = option(
        (1, 1),
        help="samples (z, y) per bin at which the forward model is evaluated: midpoints, or 3-point Gauss-Legendre "
        "quadrature over a single bin in y",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for start, stop in (*self.rows, self.columns):
            if not 0 <= start < stop:
                raise ValueError(f"ranges must ascend from 0 up, got [{start}, {stop}]; write the lower pixel first")
        if any(later[0] < earlier[1] for earlier, later in zip(self.rows, self.rows[1:], strict=False)):
            raise ValueError(f"rows must ascend without overlap, got {list(self.rows)}")
        total = sum(stop - start for start, stop in self.rows)
        if min(self.bins) < 1 or total % self.bins[0]:
            raise ValueError(f"bins[0]={self.bins[0]} must divide the {total} rows of the view")
        size = total // self.bins[0]
        if any((stop - start) % size for start, stop in self.rows):
            raise ValueError(f"each range of rows must hold whole bins of {size} rows, got {list(self.rows)}")
        if self.bins[1] > self.columns[1] - self.columns[0]:
            raise ValueError(f"bins[1]={self.bins[1]} must not exceed the {self.columns[1] - self.columns[0]} columns")
        if self.sampling[0] < 1 or (isinstance(self.sampling[1], int) and self.sampling[1] < 1):
            raise ValueError(f"sampling must be at least 1, got {list(self.sampling)}")
        if self.sampling[1] == "gauss3" and self.bins[1] != 1:
            raise ValueError(f"sampling gauss3 needs a single bin in y, got bins[1]={self.bins[1]}; use an integer")
        return self


class InstrumentConfig(Section):
    """A monochromatic beam on a flat sample, seen by a flat detector."""

    wavelength_nm: float = option(0.14073, gt=0, le=10, help="wavelength of the beam", unit="nm", source=SOURCE)
    incidence_deg: float = option(0.64, gt=0, lt=90, help="angle between beam and surface", unit="deg", source=SOURCE)
    azimuth_deg: float = option(
        0.0,
        ge=0,
        le=0,
        help="azimuth of the beam; 0, since samples are isotropic in the plane",
        unit="deg",
        source=SOURCE,
    )
    beam_intensity: float = option(
        1.576e10,
        gt=0,
        help="photons of the incident beam during the exposure (see BornAgain's normalisation)",
        source="gives the paper's ratio of signal to background (table 2: 1e13 in BornAgain <= 20, whose roughness "
        "scattering was 634.5 times lower) under BornAgain 25",
    )
    background: float = option(60.0, ge=0, help="constant background per pixel", unit="counts", source=SOURCE)
    resolution_mm: float = option(
        0.02, ge=0, help="standard deviation of the Gaussian point spread on the detector", unit="mm",
        source="the authors' simulation script",
    )  # fmt: skip
    distance_mm: float = option(1277.0, gt=0, help="distance from sample to detector plane", unit="mm", source=SOURCE)
    pixel_mm: float = option(0.05, gt=0, help="edge of a square pixel", unit="mm", source=SOURCE)
    shape: tuple[int, int] = option((1024, 512), help="detector rows (z) and columns (y)", unit="pixel", source=SOURCE)
    beam: Literal["specular", "direct"] = option(
        "specular", help="which beam `beam_z_px` and `beam_y_px` locate: the specular reflection or the direct beam"
    )
    beam_z_px: float = option(
        413.0, help="row coordinate of that beam, from the lower edge of row 0 upwards", unit="pixel",
        source=SOURCE + " (20.65 mm)",
    )  # fmt: skip
    beam_y_px: float = option(
        215.0, help="column coordinate of that beam, from the left edge of column 0", unit="pixel",
        source=SOURCE + " (10.75 mm)",
    )  # fmt: skip
    normal: Literal["surface", "direct", "reflected"] = option(
        "surface",
        help="the detector plane stands perpendicular to: the sample's surface, the direct or the reflected beam",
    )
    geometry: Literal["bornagain", "flat"] = option(
        "bornagain",
        help="pixel to angle map: BornAgain 25's own (uniform in tangents) or the true flat detector; real frames are flat",
    )
    masked: tuple[Rectangle, ...] = option((), help="rectangles without valid pixels: beam stop, gaps", unit="pixel")
    saturation: float | None = option(
        None, gt=0, help="counts from which a pixel is invalid; none: the file's own limit", unit="counts"
    )
    views: dict[str, View] = option({}, help="named views; `full` (every pixel) always exists")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if min(self.shape) < 1:
            raise ValueError(f"shape must be positive, got {list(self.shape)}")
        if self.geometry == "bornagain" and self.normal != "surface":
            raise ValueError("geometry bornagain knows only normal: surface; use geometry: flat")
        for name, view in self.views.items():
            if name == "full":
                raise ValueError("the view `full` is given by shape; choose another name")
            if not name.isidentifier():
                raise ValueError(f"view name {name!r} must be a plain word")
            if view.rows[-1][1] > self.shape[0] or view.columns[1] > self.shape[1]:
                raise ValueError(
                    f"view {name} must lie on the detector of {self.shape[0]} rows and {self.shape[1]} columns, "
                    f"got rows up to {view.rows[-1][1]} and columns up to {view.columns[1]}"
                )
        for rectangle in self.masked:
            if rectangle.z[1] > self.shape[0] or rectangle.y[1] > self.shape[1]:
                raise ValueError(f"masked rectangle must lie on the detector of shape {list(self.shape)}")
        return self
