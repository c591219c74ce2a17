"""A frame of one instrument in the views of another: resampled in q, counts conserved.

The map between two detectors is separable to second order in the azimuth (error below phi^2/2: 2e-4 at 1 deg), so
binning is one matrix per axis: the share of each source pixel in each target bin.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import FrameError
from scatterflow.observe import scale_to_full

Array = NDArray[np.float64]


def to_views(
    frame: xr.Dataset,
    source: InstrumentConfig,
    target: InstrumentConfig,
    views: tuple[str, ...],
    min_valid_share: float,
) -> xr.Dataset:
    """Counts and masks of a `frame` (counts, mask over z, y) in the `views` of `target`, with one simulation row.

    Bins below either horizon, outside the frame or with too few valid pixels are masked. Raises FrameError if the frame
    does not fit its instrument or shares no q range with the views.
    """
    if frame["counts"].shape != tuple(source.shape):
        raise FrameError(
            f"frame {frame.attrs.get('file', '')}",
            f"must have the shape of its instrument, {list(source.shape)}",
            list(frame["counts"].shape),
            "use the instrument file of this detector",
            status="wrong-instrument",
        )
    valid = frame["mask"].values & geometry.valid_pixels(source)
    counts = np.where(valid, frame["counts"].values, 0.0).astype(np.float64)
    result = xr.Dataset(coords={"simulation": [0]}, attrs={"parasitic": 0, **frame.attrs})
    for name in views:
        z, y = _weights(source, target, name)
        nominal = np.outer(z[1], y[1])
        summed, share = z[0] @ counts @ y[0].T, (z[0] @ valid @ y[0].T) / nominal
        if not (share >= min_valid_share).any():
            raise FrameError(
                f"frame {frame.attrs.get('file', '')}",
                f"must overlap the q range of view {name}",
                "no valid pixel there",
                "check distance, beam centre, incidence and wavelength of the instrument file",
                status="masked-out",
            )
        full, mask = scale_to_full(summed, share, min_valid_share)
        dims = ("simulation", f"z_{name}", f"y_{name}")
        result[name] = (dims, full[None], {"units": "counts", "long_name": f"recorded counts of view {name}"})
        result[f"mask_{name}"] = (dims, mask[None], {"units": "1", "long_name": f"valid bins of view {name}"})
        result = result.assign_coords(geometry.coordinates(target, name))
    return result


def _weights(
    source: InstrumentConfig, target: InstrumentConfig, name: str
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Weights (bin, source pixel) and nominal bin sizes [source pixel] along z and along y."""
    bins = geometry.axes(geometry.view(target, name))
    ratio = geometry.wavenumber(target) / geometry.wavenumber(source)
    _, foot_y = geometry.foot_px(target)
    alpha, _ = geometry.angles(target, bins.z, np.array(foot_y))
    beam = geometry.rows_px(target, np.radians(target.incidence_deg))
    _, phi = geometry.angles(target, beam, bins.y)
    incidence_source, incidence_target = np.radians(source.incidence_deg), np.radians(target.incidence_deg)
    sin_alpha = ratio * (np.sin(alpha) + np.sin(incidence_target)) - np.sin(incidence_source)
    sin_phi = ratio * np.sin(phi) * np.cos(incidence_target) / np.cos(incidence_source)
    known = (np.abs(sin_alpha) < 1).all(axis=1) & (sin_alpha[:, 0] > 0) & (alpha[:, 0] > 0)
    known_y = (np.abs(sin_phi) < 1).all(axis=1)
    rows = geometry.rows_px(source, np.arcsin(np.clip(sin_alpha, -1, 1)))
    columns = geometry.columns_px(source, np.arcsin(np.clip(sin_phi, -1, 1)))
    z = np.where(known[:, None], geometry.overlap(rows, source.shape[0]), 0.0)
    y = np.where(known_y[:, None], geometry.overlap(columns, source.shape[1]), 0.0)
    return (z, np.diff(rows, axis=1)[:, 0]), (y, np.diff(columns, axis=1)[:, 0])
