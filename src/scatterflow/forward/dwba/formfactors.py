"""Form factors of particles: F(q) = integral of exp(i q r) over the volume [nm^3], with the particle's bottom at z = 0.

Every shape has a `radius` in the plane and a `height` [nm]. The round ones are spheroids, whole or cut off at the bottom:
the sum over discs of radius R sin(t) at the height z = H - c + c cos(t) has an entire integrand, so Gauss-Legendre
quadrature converges exponentially. A whole one has a closed form. numpy, double precision, complex q_z.

Source of the definitions: BornAgain 25 (bornagainproject.org), whose results they reproduce.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

from scatterflow.errors import SimulationError

Shape = Literal["sphere", "truncated-sphere", "hemi-ellipsoid", "spheroid", "cylinder", "box"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
_SERIES = 0.1  # |x| below which (sin x - x cos x) / x^3 is a series of four terms: good to 1e-13
_NODES, _PER_PHASE = 20, 0.6  # of the quadrature: at least, and per radian of q R; good to 1e-13


def heights(shape: Shape, radius: Array, ratio: Array | float) -> Array:
    """Heights [nm] of particles of `radius` [nm] and `ratio`, the height over the diameter (over the radius for a dome).

    Raises SimulationError where the shape has no such height.
    """
    radius = np.asarray(radius, dtype=float)
    height = np.asarray(ratio, dtype=float) * radius * (1 if shape == "hemi-ellipsoid" else 2)
    check(shape, radius, height)
    return height


def check(shape: Shape, radius: Array, height: Array) -> None:
    """Raise SimulationError for a shape that is not known or sizes that it cannot have."""
    if shape not in SHAPES:
        raise SimulationError("shape of a particle", f"must be one of {', '.join(SHAPES)}", repr(shape))
    radius, height = np.broadcast_arrays(radius, height)
    for name, values in (("radius", radius), ("height", height)):
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            raise SimulationError(f"{name} of a particle [nm]", "must be positive", float(values[bad][0]))
    if shape == "sphere" and not np.allclose(height, 2 * radius, rtol=1e-12):
        raise SimulationError("height of a sphere", "must be twice its radius", remedy="use spheroid")
    if shape == "truncated-sphere" and (height > 2 * radius * (1 + 1e-12)).any():
        bad = height > 2 * radius * (1 + 1e-12)
        raise SimulationError(
            "height of a truncated sphere [nm]", f"must be at most {2 * radius[bad][0]:g}", float(height[bad][0])
        )


def formfactor(shape: Shape, radius: Array, height: Array, qx: Array, qy: Array, qz: ComplexArray) -> ComplexArray:
    """F [nm^3], (size, ...), of particles of `radius` and `height` [nm] (size,) at scattering vectors (...) [1/nm].

    Round shapes depend on qx^2 + qy^2 only; the edges of a box, of length 2 `radius`, lie along x and y. `qz` may be
    complex, where waves are damped. Raises SimulationError as `check` does.
    """
    radius, height = np.broadcast_arrays(np.atleast_1d(radius).astype(float), np.atleast_1d(height).astype(float))
    check(shape, radius, height)
    qx, qy, qz = np.broadcast_arrays(qx, qy, np.asarray(qz, dtype=complex))
    result = np.empty((len(radius), *qz.shape), dtype=complex)
    in_plane = np.hypot(qx, qy)
    for number, (r, h) in enumerate(zip(radius.tolist(), height.tolist(), strict=True)):
        if shape == "box":
            area: Array = 4 * r**2 * np.sinc(qx * r / np.pi) * np.sinc(qy * r / np.pi)
            result[number] = area * _column(h, qz)
        elif shape == "cylinder":
            result[number] = 2 * np.pi * r**2 * _airy(in_plane * r) * _column(h, qz)
        elif shape == "hemi-ellipsoid":
            result[number] = _cut_spheroid(r, h, h, in_plane, qz)
        elif shape == "truncated-sphere" and h < 2 * r:
            result[number] = _cut_spheroid(r, r, h, in_plane, qz)
        else:
            result[number] = _spheroid(r, h / 2, in_plane, qz)
    return result


def volume(shape: Shape, radius: Array, height: Array) -> Array:
    """Volumes [nm^3] of particles of `radius` and `height` [nm], F(0)."""
    check(shape, radius, height)
    if shape == "box":
        return np.asarray(4 * radius**2 * height)
    if shape == "cylinder":
        return np.asarray(np.pi * radius**2 * height)
    if shape == "truncated-sphere":
        return np.asarray(np.pi * height**2 * (radius - height / 3))
    return np.asarray(2 / 3 * np.pi * radius**2 * height)


def _airy(x: Array) -> Array:
    """J1(x) / x."""
    safe = np.where(np.abs(x) < 1e-8, 1.0, x)
    return np.where(np.abs(x) < 1e-8, 0.5, j1(safe) / safe)


def _column(height: float, qz: ComplexArray) -> ComplexArray:
    """Integral of exp(i qz z) from 0 to `height`."""
    half = qz * height / 2
    small = np.abs(half) < 1e-4
    safe = np.where(small, 1, half)
    sinc = np.where(small, 1 - half**2 / 6, np.sin(safe) / safe)
    return np.asarray(height * sinc * np.exp(1j * half))


def _spheroid(radius: float, half: float, in_plane: Array, qz: ComplexArray) -> ComplexArray:
    """A whole spheroid of half axes `radius` and `half` that stands on z = 0."""
    square = (in_plane * radius) ** 2 + (qz * half) ** 2
    x = np.sqrt(square)
    small = np.abs(x) < _SERIES
    safe = np.where(small, 1, x)
    series = 1 / 3 - square / 30 + square**2 / 840 - square**3 / 45360
    shape = np.where(small, series, (np.sin(safe) - safe * np.cos(safe)) / safe**3)
    return np.asarray(4 * np.pi * radius**2 * half * shape * np.exp(1j * qz * half))


def _cut_spheroid(radius: float, half: float, height: float, in_plane: Array, qz: ComplexArray) -> ComplexArray:
    """A spheroid of half axes `radius` and `half` of which the upper `height` stands on z = 0."""
    end = math.acos(1 - height / half)
    phase = float(np.max(in_plane, initial=0)) * radius + float(np.max(np.abs(qz), initial=0)) * half
    points, weights = np.polynomial.legendre.leggauss(_NODES + math.ceil(_PER_PHASE * phase))
    turns, weights = end * (points + 1) / 2, weights * end / 2
    total = np.zeros(qz.shape, dtype=complex)
    for turn, weight in zip(turns.tolist(), weights.tolist(), strict=True):
        sine = math.sin(turn)
        total += weight * sine**3 * _airy(in_plane * radius * sine) * np.exp(1j * qz * half * math.cos(turn))
    return np.asarray(2 * np.pi * radius**2 * half * total * np.exp(1j * qz * (height - half)))
