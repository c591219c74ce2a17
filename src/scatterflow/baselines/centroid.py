"""The trivial analysis of nanodiffraction: where the middle of the intensity lies, and the tilts that would put it there.

The ring's image moves with the tilts: by G chi along y and G omega along z, seen through the detector's geometry. Along z
the film's broad sinc^2 holds it back by a share that follows from the ring and the thickness in closed form; strain pulls
along z, too, and the centroid cannot tell: the unknown strain is in the standard deviation of omega.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import asin, cos, pi, sin

import numpy as np
from numpy.typing import NDArray

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.errors import ConfigError, FrameError

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
_POINTS = 2001  # of the integral across the ring


@dataclass(frozen=True)
class Calibration:
    """What turns a centroid into tilts.

    `omega_per_row`, `chi_per_column` [deg/pixel]; `omega_per_strain` [deg]: the omega that a strain is mistaken for;
    `box` (2, 3); `mask` (z, y) or None.
    """

    omega_per_row: float
    chi_per_column: float
    omega_per_strain: float
    box: Array
    mask: Flags | None


def calibration(beam: NanobeamConfig, film: FilmConfig, box: Array, mask: Flags | None = None) -> Calibration:
    """Calibrate from the geometry, for small tilts. `box` (2, parameter): bounds of strain, omega [deg], chi [deg].

    With the peak on the film's plane (q_x = 0) at row z, the ring's point is o = c - z, where c = -G omega / (k p sin a)
    is the shift of the ring's image, and q_z = k p cos(a) (2 z - c) + G strain: the centroid of sinc^2 times the ring's
    chords lies at c - m(c, strain), of which m is taken to first order. p: angle of a pixel, a: angle of incidence.
    """
    box = np.asarray(box, dtype=float)
    if box.ndim != 2 or box.shape[0] != 2 or box.shape[1] < 3 or not (box[0] < box[1]).all():
        raise ConfigError("box of the centroid", "must be (2, 3 or 4), lower below upper", box.tolist())
    if mask is not None and mask.shape != tuple(beam.shape):
        raise ConfigError("mask", f"must be {tuple(beam.shape)}", mask.shape)
    k, pixel = 2 * pi / beam.wavelength_nm, beam.pixel_mm / beam.distance_mm
    angle = asin(beam.wavelength_nm * film.order / (2 * film.lattice_nm))
    g = 2 * pi * film.order / film.lattice_nm
    inner, outer = beam.ring_px
    edge = min(outer, beam.shape[0] / 2)
    z = np.linspace(-edge, edge, _POINTS)
    chord = np.sqrt(np.maximum(outer**2 - z**2, 0)) - np.sqrt(np.maximum(inner**2 - z**2, 0))
    unit = film.thickness_nm * k * pixel * cos(angle) / (2 * pi)  # of sinc's argument per pixel of 2 z - c
    argument = 2 * z * unit
    sinc = np.sinc(argument)
    with np.errstate(invalid="ignore", divide="ignore"):
        tail = np.where(np.abs(argument) < 1e-6, 0, (np.cos(pi * argument) - sinc) / argument)
    weight = chord * sinc**2
    by_argument = chord * 2 * sinc * tail
    # with z = c + s the chords stand still in s and the argument is unit (2 s + c): the mean of s moves by `held` per c
    held = (z * by_argument).sum() / weight.sum() * unit
    omega_per_row = -np.degrees(k * pixel * sin(angle) / g) / (1 + held)
    by_strain = held / (k * pixel * cos(angle)) * g  # rows that the centroid moves per strain
    chi_per_column = -np.degrees(k * pixel / g)
    return Calibration(float(omega_per_row), float(chi_per_column), float(omega_per_row * by_strain), box[:, :3], mask)


def predict(at: Calibration, frames: NDArray[np.floating]) -> tuple[Array, Array]:
    """Strain, omega [deg] and chi [deg] of `frames` (frame, z, y), and their standard deviations, (frame, 3) each.

    Strain is the middle of its box with the deviation of a uniform distribution over it. Deviations of the tilts: Poisson
    counts, and for omega the unknown strain. Frames without counts get the middle of the box. Raises FrameError for
    counts that are not finite and non-negative.
    """
    counts = np.asarray(frames, dtype=np.float64)
    if counts.ndim != 3 or (at.mask is not None and counts.shape[1:] != at.mask.shape):
        raise FrameError("frames", "must be (frame, z, y) of the mask's shape", counts.shape)
    if at.mask is not None:
        counts = np.where(at.mask, counts, 0)
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise FrameError("counts", "must be finite and not negative", None, "mask the pixels that are not")
    uniform = np.ptp(at.box, axis=0) / np.sqrt(12)
    values, sd = np.tile(at.box.mean(axis=0), (len(counts), 1)), np.tile(uniform, (len(counts), 1))
    total = counts.sum(axis=(1, 2))
    lit = total > 0
    for number, summed, per_pixel in ((1, 2, at.omega_per_row), (2, 1, at.chi_per_column)):
        profile = counts[lit].sum(axis=summed)
        place = np.arange(profile.shape[1]) - (profile.shape[1] - 1) / 2
        mean = profile @ place / total[lit]
        spread = (profile @ place**2 / total[lit] - mean**2).clip(min=1 / 12)  # a pixel's own width at least
        values[lit, number] = mean * per_pixel
        sd[lit, number] = np.sqrt(spread / total[lit]) * abs(per_pixel)
    middle = at.omega_per_strain * at.box[:, 0].mean()
    values[lit, 1] -= middle
    sd[lit, 1] = np.hypot(sd[lit, 1], at.omega_per_strain * uniform[0])
    return values, np.minimum(sd, uniform)
