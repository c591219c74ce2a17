"""From pixels to angles to the scattering vector, and the views of a detector.

z ascends with the exit angle (row 0 is the lowest), y ascends with the azimuth. Pixel coordinates count from the lower
left edge of pixel (0, 0), so the centre of pixel `i` is `i + 0.5`. Angles are radians here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.config.instrument import InstrumentConfig, View
from scatterflow.errors import ConfigError

Array = NDArray[np.float64]

# 3-point Gauss-Legendre quadrature on [-1, 1]; its nodes are equidistant, so a detector of 3 equal bins samples them
GAUSS3_STEP = float(np.sqrt(3 / 5))
GAUSS3_WEIGHTS = np.array([5.0, 8.0, 5.0]) / 9.0


def wavenumber(config: InstrumentConfig) -> float:
    """k = 2 pi / wavelength [nm^-1]."""
    return 2 * np.pi / config.wavelength_nm


def _tilt(config: InstrumentConfig) -> float:
    """Angle [rad] of the detector's normal above the sample's surface."""
    incidence = np.radians(config.incidence_deg)
    return float({"surface": 0.0, "direct": -incidence, "reflected": incidence}[config.normal])


def foot_px(config: InstrumentConfig) -> tuple[float, float]:
    """Pixel coordinates (z, y) of the foot of the sample's perpendicular on the detector plane."""
    incidence = np.radians(config.incidence_deg)
    beam = incidence if config.beam == "specular" else -incidence
    offset = config.distance_mm * np.tan(beam - _tilt(config)) / config.pixel_mm
    return config.beam_z_px - offset, config.beam_y_px


def tangents(config: InstrumentConfig, z_px: Array, y_px: Array) -> tuple[Array, Array]:
    """Offsets (v, u) from the foot in units of the distance, of pixel coordinates `z_px` and `y_px`."""
    foot_z, foot_y = foot_px(config)
    scale = config.pixel_mm / config.distance_mm
    return (np.asarray(z_px) - foot_z) * scale, (np.asarray(y_px) - foot_y) * scale


def angles(config: InstrumentConfig, z_px: Array, y_px: Array) -> tuple[Array, Array]:
    """Exit angle alpha_f and azimuth phi_f [rad] at pixel coordinates (broadcast against each other).

    geometry `flat`: the plane detector. geometry `bornagain`: the bins of BornAgain 25's SphericalDetector, uniform in
    tangents, with its exponent 4 where the plane has 2.
    """
    v, u = np.broadcast_arrays(*tangents(config, z_px, y_px))
    if config.geometry == "bornagain":
        return np.arctan(v / np.sqrt(1 + u**4)), np.arctan(u)
    tilt = _tilt(config)
    forward = np.cos(tilt) - v * np.sin(tilt)
    up = np.sin(tilt) + v * np.cos(tilt)
    return np.arctan2(up, np.hypot(forward, u)), np.arctan2(u, forward)


def scattering_vector(config: InstrumentConfig, alpha_f: Array, phi_f: Array) -> tuple[Array, Array, Array]:
    """(qx, qy, qz) [nm^-1] of exit directions: q = k_f - k_i with the beam along +x; qz ascends with z, qy with y."""
    k, alpha_i = wavenumber(config), np.radians(config.incidence_deg)
    qx = k * (np.cos(alpha_f) * np.cos(phi_f) - np.cos(alpha_i))
    qy = k * np.cos(alpha_f) * np.sin(phi_f)
    qz = k * (np.sin(alpha_f) + np.sin(alpha_i))
    return qx, qy, qz


def rows_px(config: InstrumentConfig, alpha_f: Array) -> Array:
    """Row coordinates of exit angles `alpha_f` [rad] in the column of the beam (phi = 0)."""
    offset = config.distance_mm * np.tan(np.asarray(alpha_f) - _tilt(config)) / config.pixel_mm
    return np.asarray(foot_px(config)[0] + offset)


def columns_px(config: InstrumentConfig, phi_f: Array) -> Array:
    """Column coordinates of azimuths `phi_f` [rad] in the row of the specular beam."""
    tilt, incidence = _tilt(config), np.radians(config.incidence_deg)
    forward = np.cos(tilt) - np.tan(incidence - tilt) * np.sin(tilt) if config.geometry == "flat" else 1.0
    return np.asarray(foot_px(config)[1] + np.tan(phi_f) * forward * config.distance_mm / config.pixel_mm)


def horizon_px(config: InstrumentConfig) -> float:
    """Row coordinate at which the exit angle is zero, in the column of the beam."""
    return float(rows_px(config, np.array(0.0)))


def view(config: InstrumentConfig, name: str) -> View:
    """The named view; `full` is every pixel. Raises ConfigError for an unknown name."""
    if name == "full":
        rows, columns = config.shape
        return View(rows=((0, rows),), columns=(0, columns), bins=(rows, columns))
    if name not in config.views:
        raise ConfigError("view", f"must be one of {['full', *config.views]}", name)
    return config.views[name]


@dataclass(frozen=True)
class Axes:
    """Bin edges of a view in pixel coordinates: `z` (bin, 2), rows may jump between ranges; `y` (bin, 2)."""

    z: Array
    y: Array

    @property
    def pixels(self) -> Array:
        """Number of detector pixels per bin, (z, y)."""
        return np.asarray(np.outer(np.diff(self.z, axis=1), np.diff(self.y, axis=1)))

    @property
    def centres(self) -> tuple[Array, Array]:
        """Pixel coordinates (z, y) of the bin centres."""
        return self.z.mean(axis=1), self.y.mean(axis=1)


def row_ranges(config: View) -> Iterator[tuple[int, int, int]]:
    """First row, row after the last and number of bins of each range of rows."""
    size = sum(stop - start for start, stop in config.rows) // config.bins[0]
    for start, stop in config.rows:
        yield start, stop, (stop - start) // size


def axes(config: View) -> Axes:
    """Bin edges of a view."""
    edges = [np.linspace(start, stop, bins + 1) for start, stop, bins in row_ranges(config)]
    z = np.concatenate([np.column_stack([e[:-1], e[1:]]) for e in edges])
    e = np.linspace(*config.columns, config.bins[1] + 1)
    return Axes(z, np.column_stack([e[:-1], e[1:]]))


def coordinates(config: InstrumentConfig, name: str) -> dict[str, Any]:
    """xarray coordinates of a view: pixel coordinate of the bin centres, qz along z and qy along y (through the beam)."""
    z_px, y_px = axes(view(config, name)).centres
    _, foot_y = foot_px(config)
    alpha, _ = angles(config, z_px, np.array(foot_y))
    _, _, qz = scattering_vector(config, alpha, np.zeros_like(alpha))
    alpha_beam, phi = angles(config, rows_px(config, np.radians(config.incidence_deg)), y_px)
    _, qy, _ = scattering_vector(config, alpha_beam, phi)
    z, y = f"z_{name}", f"y_{name}"
    return {
        z: (z, z_px, {"units": "pixel", "long_name": "detector row, upwards"}),
        y: (y, y_px, {"units": "pixel", "long_name": "detector column"}),
        f"qz_{name}": (z, qz, {"units": "nm^-1", "long_name": "scattering vector q_z"}),
        f"qy_{name}": (y, qy, {"units": "nm^-1", "long_name": "scattering vector q_y"}),
        f"alpha_{name}": (z, np.degrees(alpha), {"units": "deg", "long_name": "exit angle"}),
    }


def q_map(config: InstrumentConfig, name: str = "full") -> xr.Dataset:
    """qx, qy, qz [nm^-1], alpha_f and phi_f [deg] at the bin centres of a view, each (z_<view>, y_<view>)."""
    z_px, y_px = axes(view(config, name)).centres
    alpha, phi = angles(config, z_px[:, None], y_px[None, :])
    q = scattering_vector(config, alpha, phi)
    dims = (f"z_{name}", f"y_{name}")
    values = {"qx": (q[0], "nm^-1"), "qy": (q[1], "nm^-1"), "qz": (q[2], "nm^-1")}
    values |= {"alpha_f": (np.degrees(alpha), "deg"), "phi_f": (np.degrees(phi), "deg")}
    return xr.Dataset(
        {key: (dims, array, {"units": unit}) for key, (array, unit) in values.items()}, coords=coordinates(config, name)
    )


def valid_pixels(config: InstrumentConfig) -> NDArray[np.bool_]:
    """Mask of the whole detector (z, y): False inside the `masked` rectangles."""
    mask = np.ones(config.shape, dtype=bool)
    for rectangle in config.masked:
        mask[slice(*rectangle.z), slice(*rectangle.y)] = False
    return mask


def overlap(bins: Array, pixels: int) -> Array:
    """Share of each detector pixel that lies in each bin, (bin, pixel): the weights of summing counts into bins."""
    index = np.arange(pixels)
    covered = np.minimum(bins[:, 1:], index + 1) - np.maximum(bins[:, :1], index)
    return np.asarray(np.clip(covered, 0.0, 1.0))


def valid_share(config: InstrumentConfig, name: str, mask: NDArray[np.bool_] | None = None) -> Array:
    """Share of valid pixels in each bin of a view, (z, y); `mask` of the whole detector defaults to the instrument's."""
    bins = axes(view(config, name))
    valid = (valid_pixels(config) if mask is None else mask).astype(float)
    covered = overlap(bins.z, config.shape[0]) @ valid @ overlap(bins.y, config.shape[1]).T
    return np.asarray(covered / bins.pixels)


def bin_counts(frame: Array, config: InstrumentConfig, name: str) -> Array:
    """Counts (..., z, y) of whole frames summed into the bins of a view; pixels on a border are shared by area."""
    bins = axes(view(config, name))
    return np.asarray(overlap(bins.z, config.shape[0]) @ frame @ overlap(bins.y, config.shape[1]).T)
