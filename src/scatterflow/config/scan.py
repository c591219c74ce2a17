"""A real scan of X-ray nanodiffraction: where its frames are and how they are cut."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from scatterflow.config.base import Section, option
from scatterflow.config.nanodiffraction import DONUT

ExitAngle = Literal["up", "down", "left", "right"]


class ScanConfig(Section):
    """Frames of a scan over a map of points, stored row after row. What is left out is taken from the file.

    The geometry and the size of the cut are those of the study (`beam` and `film`), which its frames must match.
    """

    name: str = option("scan", pattern=r"^[A-Za-z0-9_-]+$", help="short name of the scan")
    file: str = option(min_length=1, help="file of the scan (HDF5, TIFF, EDF), or folder with one frame in each file")
    dataset: str = option("", help="dataset of the frames in an HDF5 file; empty: the only one that can hold frames")
    map_shape: tuple[int, int] | None = option(
        None, help="rows and columns of the map; none: the file's attribute scan_shape"
    )
    step_um: tuple[float, float] | None = option(
        None, help="distance of rows and of columns of the map; none: the file's positions", unit="um"
    )
    exit_angle: ExitAngle = option(
        "up",
        help="where the exit angle grows on the frame as stored, its first row at the top; frames are turned, not mirrored",
    )
    binning: int = option(2, ge=1, le=16, help="pixels summed into one, in both directions", source=DONUT)
    centre: tuple[int, int] | None = option(
        None,
        help="centre of the cut on the frame as stored (row, column), from 0 at its top left; none: where most of the "
        "intensity is",
        unit="pixel",
    )
    hot_ratio: float = option(
        5.0, gt=1, help="a pixel is hot whose sum over the scan exceeds this many times the median of its 25 neighbours"
    )
    gaps: bool = option(True, help="look for gaps between modules and mask them")
    mask_file: str = option("", help="file of the frames' shape whose non-zero pixels are invalid")
    saturation: float | None = option(
        None, gt=0, help="counts of a pixel from which a frame is saturated; none: the file's, or its type's"
    )
    source: str = option("", help="where the scan comes from, for the report")

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.map_shape is not None and min(self.map_shape) < 1:
            raise ValueError(f"map_shape must be at least 1 row and 1 column, got {list(self.map_shape)}")
        if self.step_um is not None and min(self.step_um) <= 0:
            raise ValueError(f"step_um must be above 0, got {list(self.step_um)}")
        if self.centre is not None and min(self.centre) < 0:
            raise ValueError(f"centre must not be negative, got {list(self.centre)}")
        return self
