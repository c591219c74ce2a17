"""Named priors whose bounds may depend on other parameters, in four coordinates.

A parameter is uniform on [lower, min(upper, value of its cap)]; caps come earlier in the order. So the map to the unit
cube is exact (the chain of conditional distribution functions), nothing is rejected or clipped, and the density is the
product of 1 / (conditional width). A parameter may have further limits of both ends, and a power law instead of the
uniform one, by which chains of parameters become sorted or add up to 1.
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
_CHECKED = 4096  # points at which a prior with limits is tried when it is made


@dataclass(frozen=True)
class Limit:
    """A bound that follows from earlier parameters: (constant + sum of factor * parameter) / parameter `over` ("": 1)."""

    constant: float = 0.0
    terms: tuple[tuple[str, float], ...] = ()
    over: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that it depends on."""
        return (*(name for name, _ in self.terms), *([self.over] if self.over else []))

    def spec(self) -> dict[str, Any]:
        """The limit as plain JSON."""
        return {"constant": self.constant, "terms": [list(term) for term in self.terms], "over": self.over}


@dataclass(frozen=True)
class Parameter:
    """One parameter: its range in `unit`, and the name of the parameter that caps its upper bound ("" for none).

    The range is narrowed to what lies above every limit of `at_least` and below every one of `at_most`. Where t is the
    place in the range from 0 to 1, t^`power` is uniform; for a negative power (1 - t)^-`power` is. Powers n, n - 1 ... 1
    down a chain of caps: n sorted uniform numbers. Powers -n ... -1 up to what the earlier ones leave of 1: n + 1 shares,
    uniform on the simplex (Dirichlet).
    """

    name: str
    lower: float
    upper: float
    unit: str = "1"
    cap: str = ""
    power: float = 1.0
    at_least: tuple[Limit, ...] = ()
    at_most: tuple[Limit, ...] = ()

    def spec(self) -> dict[str, Any]:
        """The parameter as plain JSON; what only few parameters have is left out where it is not used."""
        found: dict[str, Any] = {"name": self.name, "lower": self.lower, "upper": self.upper}
        found |= {"unit": self.unit, "cap": self.cap}
        if self.power != 1:
            found["power"] = self.power
        for side, limits in (("at_least", self.at_least), ("at_most", self.at_most)):
            if limits:
                found[side] = [limit.spec() for limit in limits]
        return found


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
            if not (np.isfinite(parameter.power) and parameter.power != 0):
                raise ConfigError(place, "must have a finite power other than 0", parameter.power)
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
        if self._limited:
            self._check_limits()

    def _check_limits(self) -> None:
        """Refuse limits by what does not come earlier, and ranges that are empty at a corner or a random point."""
        lowest: dict[str, float] = {}
        for parameter in self.parameters:
            place, limits = f"prior range of {parameter.name}", parameter.at_least + parameter.at_most
            later = [name for limit in limits for name in limit.names if name not in lowest]
            if later:
                raise ConfigError(place, f"is limited by {later[0]}, which must be an earlier parameter")
            below = [limit.over for limit in limits if limit.over and lowest[limit.over] <= 0]
            if below:
                raise ConfigError(place, f"is limited by a ratio over {below[0]}, which must be positive")
            lowest[parameter.name] = parameter.lower
        generator = np.random.default_rng(0)
        inner = generator.random((_CHECKED, len(self.parameters)))
        theta = self.from_cube(np.where(generator.random(inner.shape) < 0.75, np.rint(inner), inner))
        for index in self._limited:
            low, high = self._ends(index, theta)
            empty = ~(high - low >= -1e-9 * (self.upper[index] - self.lower[index]))
            if empty.any():
                row = int(np.argmax(empty))
                place, got = f"prior range of {self.names[index]}", [float(low[row]), float(high[row])]
                raise ConfigError(place, "must not be empty, whatever the parameters that limit it", got)

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

    @cached_property
    def _limited(self) -> tuple[int, ...]:
        """Indices of the parameters with limits other than a cap."""
        return tuple(index for index, p in enumerate(self.parameters) if p.at_least or p.at_most)

    @cached_property
    def _powers(self) -> tuple[tuple[int, float], ...]:
        """Indices and powers of the parameters that are not conditionally uniform."""
        return tuple((index, p.power) for index, p in enumerate(self.parameters) if p.power != 1)

    def _ends(self, index: int, theta: Array) -> tuple[Array, Array]:
        """Conditional range (...,) of one parameter, from the earlier ones in `theta`."""
        parameter = self.parameters[index]
        low, high = np.asarray(parameter.lower), np.asarray(parameter.upper)
        if parameter.cap:
            high = np.minimum(high, theta[..., self.names.index(parameter.cap)])
        for limit in parameter.at_least:
            low = np.maximum(low, self._value(limit, theta))
        for limit in parameter.at_most:
            high = np.minimum(high, self._value(limit, theta))
        return np.broadcast_to(low, theta.shape[:-1]), np.broadcast_to(high, theta.shape[:-1])

    def _value(self, limit: Limit, theta: Array) -> Array:
        value = np.asarray(limit.constant)
        for name, factor in limit.terms:
            value = value + factor * theta[..., self.names.index(name)]
        if not limit.over:
            return value
        with np.errstate(divide="ignore", invalid="ignore"):  # outside the support, where `inside` says so
            return np.asarray(value / theta[..., self.names.index(limit.over)])

    def conditional_lower(self, theta: Array) -> Array:
        """Lower bound of each parameter given the others, shape of `theta`."""
        lower = np.broadcast_to(self.lower, theta.shape).copy()
        for index in self._limited:
            lower[..., index] = self._ends(index, theta)[0]
        return lower

    def conditional_upper(self, theta: Array) -> Array:
        """Upper bound of each parameter given the others, shape of `theta`."""
        upper = np.broadcast_to(self.upper, theta.shape).copy()
        capped, by = self._caps
        upper[..., capped] = np.minimum(upper[..., capped], theta[..., by])
        for index in self._limited:  # where a range is a single point, rounding may let its ends cross
            upper[..., index] = np.maximum(*self._ends(index, theta))
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
            ok = (array >= self.conditional_lower(array)) & (array <= self.conditional_upper(array))
        return np.asarray(ok.all(axis=-1))

    def log_prob(self, theta: xr.DataArray | ArrayLike) -> Array:
        """Natural log of the density in physical units, (...,); -inf outside the support."""
        array = self.values(theta)
        inside = self.inside(array)
        low = self.conditional_lower(array)
        width = np.where(inside[..., None], self.conditional_upper(array) - low, 1.0)
        with np.errstate(divide="ignore"):
            density = -np.log(width).sum(axis=-1)
            for index, power in self._powers:
                place = np.where(inside, _place(array[..., index], low[..., index], width[..., index]), 0.5)
                gap = np.log(place) if power > 0 else np.log1p(-place)
                density = density + np.log(abs(power)) + (abs(power) - 1) * gap
        return np.where(inside, density, -np.inf)

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
        low = self.conditional_lower(array)
        cube = _place(array, low, self.conditional_upper(array) - low)
        for index, power in self._powers:
            cube[..., index] = _raised(cube[..., index], power)
        return cube

    def from_cube(self, cube: ArrayLike) -> Array:
        """Physical parameters of points of the unit cube, always inside the support."""
        unit = np.asarray(cube, dtype=np.float64)
        if self._powers:
            unit = unit.copy()
        for index, power in self._powers:
            unit[..., index] = _raised(unit[..., index], 1 / power)
        theta = np.minimum(self.from_box(unit), self.upper)
        # in order: what bounds a parameter comes before it, so its own value is final here
        for index in sorted({*self._caps[0].tolist(), *self._limited}):
            low, high = self._ends(index, theta)
            high = np.maximum(low, high)
            theta[..., index] = np.minimum(low + unit[..., index] * (high - low), high)
        return theta

    def to_normal(self, theta: xr.DataArray | ArrayLike) -> Array:
        """Standard normal quantiles of `to_cube`: N(0, 1) in every direction under the prior, unbounded."""
        return np.asarray(ndtri(np.clip(self.to_cube(theta), _TINY, _BELOW_ONE)))

    def from_normal(self, normal: ArrayLike) -> Array:
        """Inverse of `to_normal`: whatever the real numbers given, the result lies inside the support."""
        return self.from_cube(ndtr(np.asarray(normal, dtype=np.float64)))

    def spec(self) -> list[dict[str, Any]]:
        """The prior as plain JSON."""
        return [parameter.spec() for parameter in self.parameters]


def prior_from_spec(spec: Sequence[dict[str, Any]], seed: int = 0) -> Prior:
    """The prior that `Prior.spec` described. Raises ConfigError for a malformed description."""
    try:
        parameters = tuple(
            Parameter(
                str(p["name"]), float(p["lower"]), float(p["upper"]), str(p["unit"]), str(p["cap"]),
                float(p.get("power", 1)), _limits(p.get("at_least", ())), _limits(p.get("at_most", ())),
            )
            for p in spec
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError("prior description", "must list name, lower, upper, unit and cap", repr(error)) from None
    return Prior(parameters, seed)


def log_normal_density(normal: Array) -> Array:
    """Natural log of the standard normal density summed over the last axis: the prior in the normal coordinate."""
    return np.asarray(-0.5 * (normal**2).sum(axis=-1) - 0.5 * normal.shape[-1] * np.log(2 * np.pi))


def _limits(spec: Sequence[dict[str, Any]]) -> tuple[Limit, ...]:
    """The limits that `Limit.spec` described."""
    return tuple(
        Limit(
            float(limit["constant"]),
            tuple((str(name), float(factor)) for name, factor in limit["terms"]),
            str(limit["over"]),
        )
        for limit in spec
    )


def _place(value: Array, low: Array, width: Array) -> Array:
    """Where a value lies in its range, from 0 to 1; a range of one point has one place, the middle."""
    return np.where(width > 0, (value - low) / np.where(width > 0, width, 1.0), 0.5)


def _raised(place: Array, power: float) -> Array:
    """place^power; for a negative power 1 - (1 - place)^-power. The inverse has the power 1 / `power`."""
    place = np.clip(place, 0.0, 1.0)  # what lies outside the support has no place
    if power > 0:
        return np.asarray(place**power)
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(-power * np.log1p(-place)))
