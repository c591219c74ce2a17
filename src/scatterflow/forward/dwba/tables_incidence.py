"""Errors of the incidence angle: what depends on it, at a few angles ("tilts") and interpolated from there.

Detector and beam stay where they are, the sample is tilted: a larger incidence moves horizon and specular beam upwards on
the detector, by once and twice the error. The beam that stays is the one whose place the instrument knows (`beam`): where
that is the specular one, a larger incidence moves horizon and direct beam downwards instead. All that is tabled is an
entire function of the error, so polynomials converge at once; what is not, the reflection of the layers, is computed at
each simulation's own angles.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scatterflow import instrument as geometry
from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import SimulationError
from scatterflow.forward.dwba import detector

Array = NDArray[np.float64]
Floats = TypeVar("Floats", np.float32, np.float64)
_MOST = 40  # tilts; so many are needed for an error of a degree and particles of 100 nm


def tilted(instrument: InstrumentConfig, error_deg: float) -> InstrumentConfig:
    """The instrument with another incidence angle; detector and beam stay."""
    return instrument.model_copy(update={"incidence_deg": instrument.incidence_deg + error_deg})


def tilts(instrument: InstrumentConfig, tallest_nm: float, largest_deg: float, tolerance: float) -> Array:
    """Errors [deg] at which to table what interferes over heights up to `tallest_nm`, for errors up to `largest_deg`.

    Chebyshev points: interpolation of exp(i c s) over |s| < 1 by n of them is off by 2 (c / 2)^n / n!. One, 0, without
    errors.
    """
    if not largest_deg:
        return np.zeros(1)
    # <|A|^2> has the phases of two wave numbers' difference, each of which changes by twice the error
    phase = 2 * geometry.wavenumber(instrument) * tallest_nm * math.radians(largest_deg)
    # 1 / sin(incidence) has a pole
    pole = largest_deg / (2 * instrument.incidence_deg)
    number = 2
    while number < _MOST and max(2 * (phase / 2) ** number / math.factorial(number), 2 * pole**number) > tolerance:
        number += 1
    return np.asarray(-largest_deg * np.cos(np.pi * (np.arange(number) + 0.5) / number))


def weights(places_deg: Array, error_deg: ArrayLike | None, number: int) -> Array | None:
    """Interpolation (simulation, tilt) from tilts to the errors [deg] of `number` simulations; None where all are 0.

    Raises SimulationError for errors beyond the tilts.
    """
    if len(places_deg) == 1 and (error_deg is None or not np.any(error_deg)):
        return None
    errors = np.broadcast_to(np.asarray(0.0 if error_deg is None else error_deg, dtype=np.float64), (number,))
    largest = reach_deg(places_deg)
    wrong = ~(np.abs(errors) <= largest * (1 + 1e-9))  # NaN, too
    if wrong.any():
        row = int(np.argmax(wrong))
        must = f"must be at most {largest:g} to either side, as the table was made for"
        raise SimulationError(f"error of the incidence [deg] of row {row}", must, float(errors[row]))
    return np.ascontiguousarray(detector.lagrange(places_deg, errors).T)


def reach_deg(places_deg: Array) -> float:
    """The largest error [deg] for which tilts are."""
    number = len(places_deg)
    return 0.0 if number == 1 else float(places_deg[-1] / math.cos(math.pi / (2 * number)))


def between(share: Array | None, at_tilts: NDArray[Floats]) -> NDArray[Floats]:
    """Values (simulation, ...) from those `at_tilts` (tilt, ...) by `weights`; (...) where those are None."""
    if share is None:
        return np.asarray(at_tilts[0])
    return np.asarray(np.tensordot(share.astype(at_tilts.dtype), at_tilts, 1))


def spread(shares: NDArray[np.float32], share: Array | None) -> NDArray[np.float32]:
    """Shares (simulation, size) of sizes as shares (simulation, size x tilt) of sizes at tilts."""
    if share is None:
        return shares
    each = shares[:, :, None] * share[:, None].astype(np.float32)
    return np.asarray(each.reshape(len(shares), -1))
