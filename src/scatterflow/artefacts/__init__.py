"""From the expected counts of a view to a frame as detectors record it: noise, shadows, parasitic counts, wrong geometry.

What simulation `i` gets depends on (seed, draw, i) only; another `draw` (an epoch) brings fresh artefacts. Divergence
and bandwidth are convolutions; roughness scattering and the incidence angle belong to the forward model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.artefacts import detector, parasitic, resampling
from scatterflow.artefacts.detector import Frame, frame
from scatterflow.artefacts.drawing import Drawn, drawn
from scatterflow.config.artefacts import ArtefactsConfig
from scatterflow.errors import SimulationError
from scatterflow.observe import poisson, scale_to_full

__all__ = ["Frame", "drawn", "expected", "frame", "observe", "record"]

Counts = NDArray[np.float32]
Mask = NDArray[np.bool_]
Indices = NDArray[np.integer[Any]]

# Pixels that are worked on at once. About ten arrays of them exist at a time: they stay in the processor's cache.
_BLOCK = 2**17


def observe(counts: xr.Dataset, of: Frame, config: ArtefactsConfig, seed: int, draw: int = 0) -> xr.Dataset:
    """Recorded counts of a view and `mask_<view>` (True = valid), both (simulation, z_<view>, y_<view>); lazy on Dask.

    `of` is the view's `frame`. Invalid bins hold 0. Row `i` depends on (seed, draw, `i`) only, `i` the coordinate
    `simulation`. Raises SimulationError for counts that are negative, not finite, or all 0.
    """
    view = of.view
    core = [f"z_{view}", f"y_{view}"]
    recorded, valid = xr.apply_ufunc(
        record,
        counts[view],
        counts["simulation"],
        input_core_dims=[core, []],
        output_core_dims=[core, core],
        kwargs={"of": of, "config": config, "seed": seed, "draw": draw},
        dask="parallelized",
        output_dtypes=[np.float32, np.bool_],
    )
    result = xr.Dataset(coords=counts.coords, attrs=counts.attrs)
    result[view] = recorded.assign_attrs(units="counts", long_name=f"recorded counts of view {view}")
    result[f"mask_{view}"] = valid.assign_attrs(units="1", long_name=f"valid bins of view {view}")
    return result


def record(
    counts: NDArray[Any], simulation: Indices, of: Frame, config: ArtefactsConfig, seed: int, draw: int = 0
) -> tuple[Counts, Mask]:
    """Recorded counts and valid bins, both (simulation, z, y), of expected `counts` (simulation, z, y).

    `simulation` (simulation,) are the indices of the rows, in any order. Invalid bins hold 0. `drawn` tells the values
    behind a row. Raises SimulationError as `observe` does.
    """
    _check(counts, of)
    recorded = np.empty(counts.shape, dtype=np.float32)
    valid = np.empty(counts.shape, dtype=bool)
    size = max(1, _BLOCK // max(1, counts[0].size)) if len(counts) else 1
    for start in range(0, len(counts), size):
        rows = slice(start, start + size)
        values = drawn(config, seed, simulation[rows], draw)
        mean, share = expected(counts[rows], of, config, values)
        if config.noise == "poisson":
            noisy = poisson(mean, simulation[rows], seed, f"artefacts:{draw}")
            recorded[rows], valid[rows] = scale_to_full(noisy, share, config.min_valid_share)
        else:
            recorded[rows], valid[rows] = scale_to_full(mean, share, config.min_valid_share)
        _shadows(recorded[rows], valid[rows], of, config, values)
    return recorded, valid


def expected(
    counts: NDArray[Any], of: Frame, config: ArtefactsConfig, values: Drawn
) -> tuple[Counts, NDArray[np.float32]]:
    """Means of what is recorded, and the share of its pixels that a bin has, both (simulation, z, y).

    Before stops, a masked outside of the aperture and hot pixels. Raises SimulationError for a row without counts.
    """
    image = np.array(counts, dtype=np.float32)
    error = config.geometry
    if error.beam_px or error.distance or error.divergence_px[1] or error.bandwidth[1]:
        image = _misplaced(image, of, values)
    bins = image[0].size
    total = image.reshape(len(image), bins).sum(1, dtype=np.float64)
    if config.total_counts is not None:
        if not total.all():
            must = "must hold counts to be scaled to total_counts"
            raise SimulationError(f"expected counts of row {np.argmin(total)}", must, 0)
        image *= (values["total_counts"] / total)[:, None, None].astype(np.float32)
        total = values["total_counts"]
    if config.tail.probability:
        parasitic.add_tail(image, total, of, values)
    if config.streaks.probability:
        parasitic.add_streaks(image, total, of, values)
    background = (values["background_share"] * total / bins)[:, None, None].astype(np.float32)
    if config.aperture.probability:
        outside = values["aperture_outside"].astype(np.float32)[:, None, None]
        image += background * (1 - outside)
        image *= detector.transmission(of, values)
        background *= outside
    image += background
    share = np.ones_like(image)
    if config.instrument_mask:
        share *= of.share.astype(np.float32)
    if config.gaps.probability:
        share *= detector.gap_share(config.gaps, of, values)
    image *= share
    return image, share


def _misplaced(image: Counts, of: Frame, values: Drawn) -> Counts:
    """Expected counts with the drawn errors of the geometry and the beam's blur."""
    stretch, still = values["distance_error"], np.zeros(len(image))
    rows = resampling.redistribution(
        of.z_edges, of.direct[0], values["beam_error_z_px"], stretch, values["divergence_z_px"], still
    )
    columns = resampling.redistribution(
        of.y_edges, of.direct[1], values["beam_error_y_px"], stretch, values["divergence_y_px"], values["bandwidth"]
    )
    return resampling.apply(rows, columns, image)


def _shadows(recorded: Counts, valid: Mask, of: Frame, config: ArtefactsConfig, values: Drawn) -> None:
    """Hot pixels and masks, in place; `valid` may only lose bins."""
    for name in ("beam_stop", "specular_stop"):
        if getattr(config, name).probability:
            valid &= ~detector.stop_shadow(name, of, values)
    if config.aperture.probability and config.aperture.masked:
        valid &= (detector.transmission(of, values) == 1) | ~values["aperture_masked"][:, None, None]
    row, which = np.nonzero(values["hot_on"])
    place = np.floor(values["hot_place"][row, which] * recorded[0].size).astype(int)
    z, y = np.unravel_index(place, recorded.shape[1:])
    np.add.at(recorded, (row, z, y), values["hot_counts"][row, which].astype(np.float32))
    found = values["hot_detected"][row, which]
    valid[row[found], z[found], y[found]] = False
    recorded *= valid


def _check(counts: NDArray[Any], of: Frame) -> None:
    if counts.ndim != 3 or counts.shape[1:] != of.shape:
        raise SimulationError("expected counts", f"must be (simulation, z, y) of {of.shape} bins", counts.shape)
    wrong = ~(np.isfinite(counts) & (counts >= 0)).reshape(len(counts), -1).all(1)
    if wrong.any():
        raise SimulationError(f"expected counts of row {np.argmax(wrong)}", "must be finite and not negative")
