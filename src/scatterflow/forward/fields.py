"""Fields of strain and tilt over a scanned film: the published test scan, and random smooth ones.

Every function returns maps (row, column, parameter) of strain, omega [deg], chi [deg] and film thickness [nm].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scatterflow import seeds
from scatterflow.errors import ConfigError

Array = NDArray[np.float64]
# thickness [nm] of the published films: its mean, and the height of its waves (DONUT, figures 2 and 4, supplement)
FILMS = {"flat": (11.7, 0.0), "wavy": (11.7, 0.8), "thick": (55.0, 1.0)}
STRAIN, STRAIN_PERIOD = 5e-4, 0.4  # of the test scan, over the square [-1, 1]^2
THICKNESS_PERIOD = 0.2
OMEGA_DEG, CHI_DEG, EDGE_WIDTH = 0.01, 0.02, 0.07  # heights and width of the logistic edges of the tilts


def test_scan(shape: tuple[int, int], film: str) -> Array:
    """Return the test scan of DONUT, (row, column, 4): waves of strain, three tilted edges of omega and chi.

    `film` is one of `FILMS`: constant thickness, waves of thickness along the rows, or the thick film. The tilts range
    over +-0.005 deg and +-0.01 deg. Raises ConfigError for an unknown film. Source: DONUT, figure 2 and supplement.
    """
    if film not in FILMS:
        raise ConfigError("film", f"must be one of {', '.join(FILMS)}", film)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    strain = STRAIN * np.sin(2 * np.pi * (x + y) / STRAIN_PERIOD)
    # the square is looked at from three places: (shift of x, sign of y, angle, sign of the edge)
    places = ((-2.0, 1, np.pi / 3, 1), (-0.5, 1, np.pi / 3, -1), (2.0, -1, 2 * np.pi / 3, -1))
    edges = sum(
        sign / (1 + np.exp(-((x + shift) * np.cos(angle) - side * y * np.sin(angle)) / EDGE_WIDTH))
        for shift, side, angle, sign in places
    )
    tilt = edges + 0.5
    mean, wave = FILMS[film]
    thickness = mean + wave * np.sin(2 * np.pi * y / THICKNESS_PERIOD)
    return np.stack([strain, OMEGA_DEG * tilt, CHI_DEG * tilt, thickness], axis=-1)


def smooth(
    shape: tuple[int, int], lower: Array, upper: Array, length: float = 0.1, seed: int = 1, index: int = 0
) -> Array:
    """Return independent random fields (row, column, parameter) that each fill [`lower`, `upper`] (parameter,).

    White noise, smoothed by a Gaussian of standard deviation `length` (of the longer side) and periodic at the borders,
    then stretched to its bounds. Field `index` of `seed` is always the same. Raises ConfigError where the bounds are not
    finite and ordered, or `length` does not lie in (0, 1).
    """
    lower, upper = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
    if lower.shape != upper.shape or not np.all(np.isfinite([lower, upper])) or np.any(lower > upper):
        raise ConfigError("bounds of a field", "must be finite, lower <= upper", (lower.tolist(), upper.tolist()))
    if not 0 < length < 1:
        raise ConfigError("length of a field", "must lie between 0 and 1 of its longer side", length)
    if min(shape) < 2:
        raise ConfigError("shape of a field", "must be at least 2 x 2", shape)
    noise = seeds.generator(seed, "smooth field", index).standard_normal((*shape, len(lower)))
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij"))
    kernel = np.exp(-2 * (np.pi * frequency * length * max(shape)) ** 2)[..., None]
    kernel[0, 0] = 0  # the stretch below sets the mean
    field = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) * kernel, axes=(0, 1)).real
    low, high = field.min(axis=(0, 1)), field.max(axis=(0, 1))
    field = np.clip(lower + (upper - lower) * (field - low) / (high - low), lower, upper)
    return np.asarray(field)
