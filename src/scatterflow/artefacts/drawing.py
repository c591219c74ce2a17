"""What is drawn for each simulation: values of the artefacts, before anything is computed from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow import seeds
from scatterflow.config.artefacts import ArtefactsConfig, Pair, StopConfig

Array = NDArray[np.float64]
Drawn = dict[str, NDArray[Any]]

_WIDTH = 48  # uniform numbers of a simulation: room for values to come, which would not change the others
STREAKS = 2  # one vertical, one horizontal
_PER_STREAK = 5
_PER_HOT_PIXEL = 3


class _Columns:
    """Columns of uniform numbers, one by one. Each value takes its own, drawn or not: one does not move the others."""

    def __init__(self, seed: int, name: str, simulation: NDArray[np.integer[Any]], width: int) -> None:
        # rows one by one, since the simulations of a shuffled batch do not follow each other
        rows = [seeds.uniforms(seed, name, int(index), 1, width) for index in simulation]
        self.numbers = np.concatenate(rows) if rows else np.empty((0, width))
        self.used = 0

    def take(self, columns: int = 0) -> Array:
        """The next column (simulation,), or the next `columns` of them (simulation, column)."""
        start, self.used = self.used, self.used + max(columns, 1)
        return self.numbers[:, start : self.used] if columns else self.numbers[:, start]


def drawn(config: ArtefactsConfig, seed: int, simulation: NDArray[np.integer[Any]], draw: int = 0) -> Drawn:
    """Values of the artefacts, all (simulation,) but `streak_*` (simulation, 2) and `hot_*` (simulation, hot pixel).

    They depend on (seed, draw, simulation) only. Lengths are detector pixels. `total_counts` is NaN where the simulated
    ones are kept; a share is 0, and `*_on` False, where a frame does not have the artefact.
    """
    scalars = _Columns(seed, f"artefacts:{draw}", simulation, _WIDTH)
    total = _log(config.total_counts or (1.0, 1.0), scalars.take())
    values: Drawn = {"total_counts": total if config.total_counts else np.full(len(simulation), np.nan)}
    background = _log(config.background or (1.0, 1.0), scalars.take())
    values["background_share"] = background if config.background else np.zeros(len(simulation))
    values |= _geometry(config, scalars)
    values |= _stop("beam_stop", config.beam_stop, scalars) | _stop("specular_stop", config.specular_stop, scalars)
    values |= _surroundings(config, scalars)
    streaks = _Columns(seed, f"artefacts streaks:{draw}", simulation, STREAKS * _PER_STREAK)
    return values | _streaks(config, streaks) | _hot_pixels(config, seed, simulation, draw)


def _uniform(limits: Pair, numbers: Array) -> Array:
    return limits[0] + (limits[1] - limits[0]) * numbers


def _log(limits: Pair, numbers: Array) -> Array:
    return np.asarray(limits[0] * (limits[1] / limits[0]) ** numbers)


def _either_way(largest: float, numbers: Array) -> Array:
    return largest * (2 * numbers - 1)


def _geometry(config: ArtefactsConfig, columns: _Columns) -> Drawn:
    error = config.geometry
    return {
        "beam_error_z_px": _either_way(error.beam_px, columns.take()),
        "beam_error_y_px": _either_way(error.beam_px, columns.take()),
        "distance_error": _either_way(error.distance, columns.take()),
        "divergence_z_px": _uniform(error.divergence_px, columns.take()),
        "divergence_y_px": _uniform(error.divergence_px, columns.take()),
        "bandwidth": _uniform(error.bandwidth, columns.take()),
    }


def _stop(name: str, stop: StopConfig, columns: _Columns) -> Drawn:
    return {
        f"{name}_on": columns.take() < stop.probability,
        f"{name}_z_px": _either_way(stop.offset_px, columns.take()),
        f"{name}_y_px": _either_way(stop.offset_px, columns.take()),
        f"{name}_radius_px": _uniform(stop.radius_px, columns.take()),
        f"{name}_arm_width_px": _uniform(stop.arm_width_px, columns.take()),
        f"{name}_arm_angle_deg": _uniform(stop.arm_angle_deg, columns.take()),
        f"{name}_margin_px": _uniform(stop.margin_px, columns.take()),
    }


def _surroundings(config: ArtefactsConfig, columns: _Columns) -> Drawn:
    """Gaps, aperture and the direct beam's tail."""
    gaps, aperture, tail = config.gaps, config.aperture, config.tail
    period = np.add(gaps.module_px, gaps.gap_px) * (gaps.place == "random")
    values: Drawn = {
        "gaps_on": columns.take() < gaps.probability,
        "gaps_z_px": period[0] * columns.take(),
        "gaps_y_px": period[1] * columns.take(),
        "aperture_on": (through := columns.take() < aperture.probability),
        "aperture_z_px": _uniform(aperture.centre_z_px, columns.take()),
        "aperture_y_px": _uniform(aperture.centre_y_px, columns.take()),
        "aperture_radius_px": _uniform(aperture.radius_px, columns.take()),
        "aperture_edge_px": _uniform(aperture.edge_px, columns.take()),
        "aperture_outside": np.where(through, _uniform(aperture.outside, columns.take()), 1.0),
        "aperture_masked": columns.take() < aperture.masked,
    }
    present = columns.take() < tail.probability
    return values | {
        "tail_share": np.where(present, _log(tail.share, columns.take()), 0.0),
        "tail_core_px": _uniform(tail.core_px, columns.take()),
        "tail_power": _uniform(tail.power, columns.take()),
    }


def _streaks(config: ArtefactsConfig, columns: _Columns) -> Drawn:
    streaks = config.streaks
    present = columns.take(STREAKS) < streaks.probability
    return {
        "streak_share": np.where(present, _log(streaks.share, columns.take(STREAKS)), 0.0),
        "streak_angle_deg": np.array([90.0, 0.0]) + _either_way(streaks.angle_deg, columns.take(STREAKS)),
        "streak_width_px": _uniform(streaks.width_px, columns.take(STREAKS)),
        "streak_length_px": _uniform(streaks.length_px, columns.take(STREAKS)),
    }


def _hot_pixels(config: ArtefactsConfig, seed: int, simulation: NDArray[np.integer[Any]], draw: int) -> Drawn:
    hot = config.hot_pixels
    most = hot.number[1]
    columns = _Columns(seed, f"artefacts hot:{draw}", simulation, 1 + _PER_HOT_PIXEL * most)
    number = hot.number[0] + np.floor((most - hot.number[0] + 1) * columns.take()).astype(int)
    per_pixel = columns.numbers[:, 1:].reshape(len(simulation), most, _PER_HOT_PIXEL)
    return {
        "hot_on": np.arange(most) < number[:, None],
        "hot_place": per_pixel[..., 0],
        "hot_detected": per_pixel[..., 1] < hot.detected,
        "hot_counts": np.round(_log(hot.counts, per_pixel[..., 2])),
    }
