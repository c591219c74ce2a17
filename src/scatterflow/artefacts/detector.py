"""Where beam, horizon and bins of a view lie on the detector, and which bins stops, gaps and an aperture take away.

Lengths are pixels of the detector; coordinates count from the lower left corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scatterflow import instrument as geometry
from scatterflow.artefacts.drawing import Drawn
from scatterflow.config.artefacts import GapsConfig
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import ConfigError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Frame:
    """A view as artefacts see it, in its nominal geometry.

    Name of the `view`; `z_edges` (z + 1,) and `y_edges` (y + 1,) of its bins; (z, y) of the `direct` and the `specular`
    beam; row of the `horizon`; `share` (z, y) of the pixels of a bin that the instrument does not mask.
    """

    view: str
    z_edges: Array
    y_edges: Array
    direct: tuple[float, float]
    specular: tuple[float, float]
    horizon: float
    share: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Number of bins (z, y)."""
        return len(self.z_edges) - 1, len(self.y_edges) - 1

    @property
    def bin_px(self) -> tuple[float, float]:
        """Size of a bin (z, y)."""
        rows, columns = self.shape
        return (self.z_edges[-1] - self.z_edges[0]) / rows, (self.y_edges[-1] - self.y_edges[0]) / columns

    @property
    def centres(self) -> tuple[Array, Array]:
        """Centres of the bins, (z,) and (y,)."""
        return (self.z_edges[:-1] + self.z_edges[1:]) / 2, (self.y_edges[:-1] + self.y_edges[1:]) / 2


def frame(instrument: InstrumentConfig, view: str) -> Frame:
    """The frame of a view. Raises ConfigError for an unknown view and for one of several ranges of rows."""
    section = geometry.view(instrument, view)
    if len(section.rows) > 1:
        must = "must be one range of rows, since artefacts are drawn on it as a whole"
        raise ConfigError(f"rows of view {view}", must, [list(rows) for rows in section.rows], "name another view")
    bins = geometry.axes(section)
    incidence = np.radians(instrument.incidence_deg)
    direct, specular = (float(geometry.rows_px(instrument, np.array(angle))) for angle in (-incidence, incidence))
    return Frame(
        view=view,
        z_edges=np.append(bins.z[:, 0], bins.z[-1, 1]),
        y_edges=np.append(bins.y[:, 0], bins.y[-1, 1]),
        direct=(direct, instrument.beam_y_px),
        specular=(specular, instrument.beam_y_px),
        horizon=geometry.horizon_px(instrument),
        share=geometry.valid_share(instrument, view),
    )


def displaced(place: tuple[float, float], of: Frame, values: Drawn) -> tuple[Array, Array]:
    """Where (z, y) of the nominal geometry lies with the drawn errors, (simulation,) each."""
    stretch = 1 + values["distance_error"]
    return (
        of.direct[0] + values["beam_error_z_px"] + (place[0] - of.direct[0]) * stretch,
        of.direct[1] + values["beam_error_y_px"] + (place[1] - of.direct[1]) * stretch,
    )


def offsets(of: Frame, z: Array, y: Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows (simulation, z) and columns (simulation, y) of the bins' centres from the points `z`, `y` (simulation,)."""
    rows, columns = of.centres
    return (rows - z[:, None]).astype(np.float32), (columns - y[:, None]).astype(np.float32)


def squared_distance(rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Square of the distance (simulation, z, y) that belongs to `offsets`."""
    return rows[:, :, None] ** 2 + columns[:, None, :] ** 2


def turned(
    rows: NDArray[np.float32], columns: NDArray[np.float32], angle_deg: Array
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates (simulation, z, y) along a direction and across it; 0 deg is along y, 90 along z."""
    angle = np.radians(angle_deg)[:, None]
    sine, cosine = np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)
    along = (rows * sine)[:, :, None] + (columns * cosine)[:, None, :]
    across = (rows * cosine)[:, :, None] - (columns * sine)[:, None, :]
    return along, across


def stop_shadow(name: str, of: Frame, values: Drawn) -> Mask:
    """Bins (simulation, z, y) that a stop and its arm mask: those whose centre lies behind them or in the margin."""
    z, y = displaced(of.direct if name == "beam_stop" else of.specular, of, values)
    rows, columns = offsets(of, z + values[f"{name}_z_px"], y + values[f"{name}_y_px"])
    margin, width = values[f"{name}_margin_px"], values[f"{name}_arm_width_px"]
    along, across = turned(rows, columns, values[f"{name}_arm_angle_deg"])
    shadow = (along > 0) & (np.abs(across) < (width / 2 + margin * (width > 0))[:, None, None])
    radius = values[f"{name}_radius_px"] + margin
    shadow |= squared_distance(rows, columns) < (radius**2)[:, None, None]
    shadow &= values[f"{name}_on"][:, None, None]
    return np.asarray(shadow)


def gap_share(config: GapsConfig, of: Frame, values: Drawn) -> NDArray[np.float32]:
    """Share (simulation, z, y) of each bin that does not lie in a gap between modules."""
    shares = []
    for axis, edges in enumerate((of.z_edges, of.y_edges)):
        module, gap = config.module_px[axis], config.gap_px[axis]
        place = edges - values[("gaps_z_px", "gaps_y_px")[axis]][:, None]
        whole, rest = np.divmod(place, module + gap)
        behind = whole * gap + np.maximum(rest - module, 0)  # pixels in gaps below an edge
        free = 1 - np.diff(behind, axis=1) / np.diff(edges)
        shares.append(np.clip(free, 0, 1))  # rounding may lead below 0
    share = shares[0][:, :, None] * shares[1][:, None, :]
    share[~values["gaps_on"]] = 1.0
    return np.asarray(share, dtype=np.float32)


def transmission(of: Frame, values: Drawn) -> NDArray[np.float32]:
    """Share (simulation, z, y) of the scattering that an aperture lets through, falling linearly in its penumbra."""
    rows, columns = offsets(of, of.direct[0] + values["aperture_z_px"], of.direct[1] + values["aperture_y_px"])
    distance = np.sqrt(squared_distance(rows, columns))
    radius = values["aperture_radius_px"].astype(np.float32)
    edge = np.maximum(values["aperture_edge_px"], 1e-3).astype(np.float32)  # 0 would divide by 0
    distance -= radius[:, None, None]
    distance /= -edge[:, None, None]
    distance += np.float32(0.5)
    passed: NDArray[Any] = np.clip(distance, 0, 1, out=distance)
    passed[~values["aperture_on"]] = 1.0
    return passed
