"""Counts that do not come from the sample: the direct beam's tail and streaks of the slits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scatterflow.artefacts.detector import Frame, displaced, offsets, squared_distance, turned
from scatterflow.artefacts.drawing import STREAKS, Drawn

Array = NDArray[np.float64]
Image = NDArray[np.float32]


def add_tail(image: Image, total: Array, of: Frame, values: Drawn) -> None:
    """Add the tail around the direct beam to `image` (simulation, z, y): its share of `total` (simulation,) counts."""
    rows, columns = offsets(of, *displaced(of.direct, of, values))
    profile = squared_distance(rows, columns)
    profile *= (values["tail_core_px"] ** -2.0).astype(np.float32)[:, None, None]
    np.log1p(profile, out=profile)
    profile *= (-values["tail_power"] / 2).astype(np.float32)[:, None, None]
    np.exp(profile, out=profile)
    whole = profile.reshape(len(image), -1).sum(1, dtype=np.float64)
    # far off a steep tail may vanish in single precision, and then adds nothing
    factor = np.divide(values["tail_share"] * total, whole, out=np.zeros_like(whole), where=whole > 0)
    profile *= factor.astype(np.float32)[:, None, None]
    image += profile


def add_streaks(image: Image, total: Array, of: Frame, values: Drawn) -> None:
    """Add streaks through the direct beam below the horizon to `image` (simulation, z, y).

    exp(-across^2 / (2 width^2) - |along| / length); the share of `total` (simulation,) counts is that of the whole
    streak, as if it ended neither at the horizon nor at the border of the view.
    """
    rows, columns = offsets(of, *displaced(of.direct, of, values))
    horizon, _ = displaced((of.horizon, 0.0), of, values)
    below = of.centres[0] < horizon[:, None]
    area = np.prod(of.bin_px)
    for streak in range(STREAKS):
        along, across = turned(rows, columns, values["streak_angle_deg"][:, streak])
        # a streak narrower than a bin would fall between the centres of bins: it is as wide as what the bin blurs
        width = np.sqrt(values["streak_width_px"][:, streak] ** 2 + max(of.bin_px) ** 2 / 12)
        length = values["streak_length_px"][:, streak]
        across *= across
        across *= (-0.5 / width**2).astype(np.float32)[:, None, None]
        np.abs(along, out=along)
        along *= (1 / length).astype(np.float32)[:, None, None]
        across -= along
        np.exp(across, out=across)
        whole = np.sqrt(2 * np.pi) * width * 2 * length / area
        factor = (values["streak_share"][:, streak] * total / whole)[:, None] * below
        across *= factor.astype(np.float32)[:, :, None]
        image += across
