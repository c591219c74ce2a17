"""Named uniform priors whose upper bounds may depend on another parameter, in four coordinates.

A parameter is uniform on [lower, min(upper, value of its cap)]; caps come earlier in the order. So the map to the unit
cube is exact (the chain of conditional distribution functions), nothing is rejected or clipped, and the density is the
product of 1 / (conditional width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from scatterflow import seeds
from scatterflow.errors import ConfigError

Array = NDArray[np.float64]
_TINY = 2.0**-1022  # keeps the normal coordinate finite where a cube coordinate underflows to 0
_BELOW_ONE = 1.0 - 2.0**-53


@dataclass(frozen=True)
class Parameter:
    """One parameter: its range in `unit`, and the name of the parameter that caps its upper bound ("" for none)."""

    name: str
    lower: float
    upper: float
    unit: str = "1"
    cap: str = ""


@dataclass(frozen=True)
class Prior:
    """The prior of a study. Arrays are float64 (simulation, parameter) in the order of `names`."""

    parameters: tuple[Parameter, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        for index, parameter in enumerate(self.parameters):
            place = f"prior range of {parameter.name}"
            if not (np.isfinite([parameter.lower, parameter.upper]).all() and parameter.lower < parameter.upper):
                raise ConfigError(
                    place,
                    "must be finite and ascending",
                    [parameter.lower, parameter.upper],
                    "write the lower bound first",
                )
            if not parameter.cap:
                continue
            earlier = [other for other in self.parameters[:index] if other.name == parameter.cap]
            if not earlier:
                raise ConfigError(place, f"is capped by {parameter.cap}, which must be an earlier parameter")
            if parameter.lower > earlier[0].lower:
                raise ConfigError(
                    place,
                    f"must not start above the lowest {parameter.cap}, which caps it",
                    f"{parameter.lower} > {earlier[0].lower}",
                    f"lower it to {earlier[0].lower} or less",
                )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Parameter names, in order."""
        return tuple(parameter.name for parameter in self.parameters)

    @cached_property
    def units(self) -> tuple[str, ...]:
        """Units, in order."""
        return tuple(parameter.unit for parameter in self.parameters)

    @cached_property
    def lower(self) -> Array:
        """Lower bounds of the box (parameter,)."""
        return np.array([parameter.lower for parameter in self.parameters])

    @cached_property
    def upper(self) -> Array:
        """Upper bounds of the box (parameter,), before caps."""
        return np.array([parameter.upper for parameter in self.parameters])

    @cached_property
    def _caps(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Indices of the capped parameters and of their caps."""
        capped = [index for index, parameter in enumerate(self.parameters) if parameter.cap]
        by = [self.names.index(self.parameters[index].cap) for index in capped]
        return np.array(capped, dtype=np.intp), np.array(by, dtype=np.intp)

    def conditional_upper(self, theta: Array) -> Array:
        """Upper bound of each parameter given the others, shape of `theta`."""
        upper = np.broadcast_to(self.upper, theta.shape).copy()
        capped, by = self._caps
        upper[..., capped] = np.minimum(upper[..., capped], theta[..., by])
        return upper

    def sample(self, n: int, seed: int | None = None, start: int = 0) -> xr.DataArray:
        """Draw rows `start` to `start + n`; row `i` depends on (seed, i) only. Physical units, (simulation, parameter)."""
        if n < 0 or start < 0:
            raise ConfigError("number of prior samples and start", "must not be negative", (n, start))
        cube = seeds.uniforms(self.seed if seed is None else seed, "prior", start, n, len(self.parameters))
        return self.dataarray(self.from_cube(cube), start=start)

    def dataarray(self, values: ArrayLike, start: int = 0) -> xr.DataArray:
        """Label an (n, p) array with simulation index, parameter names and units. Raises ConfigError for a wrong shape."""
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] != len(self.parameters):
            raise ConfigError("parameter array", f"must have shape (n, {len(self.parameters)})", array.shape)
        return xr.DataArray(
            array,
            dims=("simulation", "parameter"),
            coords={
                "simulation": np.arange(start, start + array.shape[0]),
                "parameter": list(self.names),
                "unit": ("parameter", list(self.units)),
            },
            name="parameters",
            attrs={"long_name": "sample parameters", "units": "see coordinate unit"},
        )

    def values(self, theta: xr.DataArray | ArrayLike) -> Array:
        """Plain (..., p) array of `theta` in the prior's order; a DataArray is reordered by name."""
        if isinstance(theta, xr.DataArray):
            missing = set(self.names) - set(theta["parameter"].values.tolist())
            if missing:
                raise ConfigError(
                    "parameters", f"must contain {sorted(missing)[0]}", list(theta["parameter"].values)[:3]
                )
            theta = theta.sel(parameter=list(self.names)).transpose(..., "parameter").values
        array = np.asarray(theta, dtype=np.float64)
        if array.shape[-1:] != (len(self.parameters),):
            raise ConfigError("parameter array", f"must end in {len(self.parameters)} parameters", array.shape)
        return array

    def inside(self, theta: xr.DataArray | ArrayLike) -> NDArray[np.bool_]:
        """True where a row lies in the support, shape (...,)."""
        array = self.values(theta)
        with np.errstate(invalid="ignore"):
            ok = (array >= self.lower) & (array <= self.conditional_upper(array))
        return np.asarray(ok.all(axis=-1))

    def log_prob(self, theta: xr.DataArray | ArrayLike) -> Array:
        """Natural log of the density in physical units, (...,); -inf outside the support."""
        array = self.values(theta)
        inside = self.inside(array)
        width = np.where(inside[..., None], self.conditional_upper(array) - self.lower, 1.0)
        with np.errstate(divide="ignore"):
            return np.where(inside, -np.log(width).sum(axis=-1), -np.inf)

    def log_prob_box(self, theta: xr.DataArray | ArrayLike) -> Array:
        """Natural log of the density over parameters scaled to [0, 1] by their box, (...,)."""
        return self.log_prob(theta) + float(np.log(self.upper - self.lower).sum())

    def to_box(self, theta: xr.DataArray | ArrayLike) -> Array:
        """Scale by the box: 0 at the lower bound, 1 at the upper."""
        return (self.values(theta) - self.lower) / (self.upper - self.lower)

    def from_box(self, box: ArrayLike) -> Array:
        """Inverse of `to_box`."""
        return self.lower + np.asarray(box, dtype=np.float64) * (self.upper - self.lower)

    def to_cube(self, theta: xr.DataArray | ArrayLike) -> Array:
        """Conditional distribution functions: uniform on the unit cube under the prior. Inverse of `from_cube`."""
        array = self.values(theta)
        width = self.conditional_upper(array) - self.lower
        # a cap at its own lower bound leaves a single point: any cube value maps there, the middle stands for all
        return np.where(width > 0, (array - self.lower) / np.where(width > 0, width, 1.0), 0.5)

    def from_cube(self, cube: ArrayLike) -> Array:
        """Physical parameters of points of the unit cube, always inside the support."""
        unit = np.asarray(cube, dtype=np.float64)
        theta = np.minimum(self.from_box(unit), self.upper)
        # in order: a cap comes before what it caps, so its own value is final here
        for index, cap in zip(*self._caps, strict=True):
            upper = np.minimum(self.upper[index], theta[..., cap])
            theta[..., index] = np.minimum(self.lower[index] + unit[..., index] * (upper - self.lower[index]), upper)
        return theta

    def to_normal(self, theta: xr.DataArray | ArrayLike) -> Array:
        """Standard normal quantiles of `to_cube`: N(0, 1) in every direction under the prior, unbounded."""
        return np.asarray(ndtri(np.clip(self.to_cube(theta), _TINY, _BELOW_ONE)))

    def from_normal(self, normal: ArrayLike) -> Array:
        """Inverse of `to_normal`: whatever the real numbers given, the result lies inside the support."""
        return self.from_cube(ndtr(np.asarray(normal, dtype=np.float64)))

    def spec(self) -> list[dict[str, Any]]:
        """The prior as plain JSON."""
        return [
            {"name": p.name, "lower": p.lower, "upper": p.upper, "unit": p.unit, "cap": p.cap} for p in self.parameters
        ]


def prior_from_spec(spec: Sequence[dict[str, Any]], seed: int = 0) -> Prior:
    """The prior that `Prior.spec` described. Raises ConfigError for a malformed description."""
    try:
        parameters = tuple(
            Parameter(str(p["name"]), float(p["lower"]), float(p["upper"]), str(p["unit"]), str(p["cap"])) for p in spec
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("prior description", "must list name, lower, upper, unit and cap", repr(error)) from None
    return Prior(parameters, seed)


def log_normal_density(normal: Array) -> Array:
    """Natural log of the standard normal density summed over the last axis: the prior in the normal coordinate."""
    return np.asarray(-0.5 * (normal**2).sum(axis=-1) - 0.5 * normal.shape[-1] * np.log(2 * np.pi))
