"""Particles' sizes, places and layers: the prior of a study, and what its parameters mean to the engines.

Sizes lie on a grid of radii, and of aspect ratios where those are not known; a mode of the size distribution is the mass
of its law in each bin. Every constraint is a conditional range of the prior: modes are sorted and fit on the grid, no
mode's mean diameter exceeds the distance of neighbours, no roughness its layer's thickness.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from scatterflow.config.particles import (
    WITHIN_SD,
    FilmLayerConfig,
    MaterialConfig,
    ParticleSampleConfig,
    SubstrateConfig,
    ends,
)
from scatterflow.config.sample import layer_name
from scatterflow.errors import ConfigError
from scatterflow.prior import Limit, Parameter, Prior

if TYPE_CHECKING:  # the engines' modules import torch
    from scatterflow.forward.particles import Arrangement, Particles, Stack

Array = NDArray[np.float64]
_NM = {"units": "nm"}
_GIVE = "or give delta and beta in place of formula and density_g_cm3"


def particle_prior(config: ParticleSampleConfig, seed: int) -> Prior:
    """The prior of distance, disorder, modes of the size distribution, aspect ratio and layers, in this order.

    Mode 1 has the smallest mean radius. Without separation the mean radii are sorted uniform numbers and the modes'
    shares are uniform on the simplex. Raises ConfigError.
    """
    parameters = [Parameter("distance_nm", *config.distance_nm, "nm")]
    if config.interference == "paracrystal":
        parameters.append(Parameter("disorder", *config.disorder))
    return Prior((*parameters, *_modes(config), *_aspect(config), *_layers(config)), seed)


def size_edges(config: ParticleSampleConfig) -> Array:
    """Edges [nm] (bin + 1,) of the bins of radii."""
    return np.linspace(*config.radius_nm, config.sizes + 1)


def aspect_edges(config: ParticleSampleConfig) -> Array:
    """Edges (bin + 1,) of the bins of aspect ratios; one bin without width where the ratio is known."""
    low, high = ends(config.aspect_ratio)
    return np.linspace(low, high, config.aspect_ratios + 1 if low < high else 2)


def particles(config: ParticleSampleConfig, energy_kev: float) -> Particles:
    """What the engines are told of the particles at `energy_kev` [keV]: sizes are all radii, each with all its heights.

    Raises ConfigError for a material of which nothing is known.
    """
    from scatterflow.forward.dwba.formfactors import heights
    from scatterflow.forward.particles import Particles

    radius, ratio = _middles(size_edges(config))[:, None], _middles(aspect_edges(config))
    height = heights(config.shape, radius, ratio)
    delta, beta = optical_constants(config.material, energy_kev)
    return Particles(
        config.shape,
        np.broadcast_to(radius, height.shape).ravel(),
        height.ravel(),
        delta,
        beta,
        config.layer,
        config.interference,
        config.damping_nm,
    )


def size_distribution(config: ParticleSampleConfig, theta: xr.DataArray | ArrayLike) -> xr.DataArray:
    """Shares of the particles' number by radius, (simulation, radius) [nm], sum 1.

    Each mode is cut at the ends of the grid and has the share that its parameter says; coordinate `beyond` (simulation,)
    is what was cut, less than 5 % under the prior. Holds six numbers per simulation and radius. Raises ConfigError for
    parameters of another study, and for modes that lie beyond the grid.
    """
    shares, beyond = _radii(config, _values(config, theta))
    coords = {**_simulation(theta), "beyond": ("simulation", beyond), "radius": ("radius", _radius(config), _NM)}
    attrs = {"units": "1", "long_name": "share of the particles"}
    return xr.DataArray(shares, dims=("simulation", "radius"), coords=coords, name="size_distribution", attrs=attrs)


def size_height_distribution(config: ParticleSampleConfig, theta: xr.DataArray | ArrayLike) -> xr.DataArray:
    """Shares by radius and aspect ratio, (simulation, radius, aspect_ratio), sum 1, with coordinate `height` [nm].

    `height` is (radius, aspect_ratio); the aspect ratio does not depend on the radius. Raises ConfigError.
    """
    from scatterflow.forward.dwba.formfactors import heights

    values = _values(config, theta)
    shares = _radii(config, values)[0][:, :, None] * _ratios(config, values)[:, None, :]
    ratio = _middles(aspect_edges(config))
    height = heights(config.shape, _radius(config)[:, None], ratio)
    coords = {
        **_simulation(theta),
        "radius": ("radius", _radius(config), _NM),
        "aspect_ratio": ("aspect_ratio", ratio, {"units": "1"}),
        "height": (("radius", "aspect_ratio"), height, _NM),
    }
    attrs = {"units": "1", "long_name": "share of the particles"}
    dims = ("simulation", "radius", "aspect_ratio")
    return xr.DataArray(shares, dims=dims, coords=coords, name="size_height_distribution", attrs=attrs)


def arrangement(config: ParticleSampleConfig, theta: xr.DataArray | ArrayLike) -> Arrangement:
    """Shares of the sizes of `particles`, distances and disorder of each simulation. Raises ConfigError."""
    from scatterflow.forward.particles import Arrangement

    values = _values(config, theta)
    shares = _radii(config, values)[0][:, :, None] * _ratios(config, values)[:, None, :]
    distance = values["distance_nm"]
    disorder = values.get("disorder", np.ones_like(distance))  # which only a paracrystal has
    return Arrangement(shares.reshape(len(distance), -1), distance, disorder)


def stack(config: ParticleSampleConfig, theta: xr.DataArray | ArrayLike, energy_kev: float) -> Stack:
    """The layers below the vacuum of each simulation at `energy_kev` [keV], the last one the substrate.

    Raises ConfigError for a material of which nothing is known.
    """
    from scatterflow.forward.particles import Stack

    values = _values(config, theta)
    number = len(values["distance_nm"])
    found = []
    for place, layer in _places(config):
        known = layer.thickness_nm if isinstance(layer, FilmLayerConfig) else 0.0
        thickness = values.get(f"{place}.thickness_nm", known)
        roughness = values.get(f"{place}.roughness_nm", layer.roughness_nm)
        delta, beta = optical_constants(layer.material, energy_kev)
        row = (delta, beta, thickness, roughness, layer.hurst, layer.correlation_length_nm)
        found.append(np.stack([np.broadcast_to(value, number) for value in row], axis=1))
    return Stack(
        np.stack(found, axis=1),
        config.transient,
        config.max_spatial_frequency_per_nm,
        config.cross_correlation_length_nm,
    )


def optical_constants(material: MaterialConfig, energy_kev: float) -> tuple[float, float]:
    """delta and beta of n = 1 - delta + i beta at `energy_kev` [keV]: given, or by formula and density.

    Source of the latter: Chantler's tables in xraydb, doi:10.1063/1.1321055. Raises ConfigError for a formula or an
    energy of which they do not tell.
    """
    if material.delta is not None and material.beta is not None:
        return material.delta, material.beta
    return _from_tables(material, energy_kev)


@lru_cache(maxsize=64)
def _from_tables(material: MaterialConfig, energy_kev: float) -> tuple[float, float]:
    import xraydb  # takes seconds

    what = f"optical constants of {material.name} at {energy_kev:g} keV"
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of energies that the tables cannot be trusted at
            delta, beta, _ = xraydb.xray_delta_beta(material.formula, material.density_g_cm3, energy_kev * 1e3)
    except (ValueError, IndexError, ZeroDivisionError):  # no formula, no such element in the tables, no atoms
        raise ConfigError(what, "must follow from a chemical formula", repr(material.formula), _GIVE) from None
    except UserWarning as warning:
        raise ConfigError(what, "must be in the tables", str(warning), _GIVE) from None
    if not (0 < delta < 0.1 and 0 <= beta < 0.1):
        raise ConfigError(what, "must be in the tables", f"delta {delta:g} and beta {beta:g}", _GIVE)
    return float(delta), float(beta)


def _modes(config: ParticleSampleConfig) -> list[Parameter]:
    """Mean radii from the largest to the smallest, then relative widths and shares from the smallest to the largest."""
    (low, high), room, clearance = config.mean_radii_nm, config.room, config.clearance_sd
    (first, last), least, (narrow, wide) = config.radius_nm, config.least_width_nm, config.modes.relative_width
    number, separation = config.modes.number, config.modes.separation
    apart = [Limit(terms=(("distance_nm", room / (1 + clearance * narrow)),))]
    if clearance:
        apart.append(Limit(-clearance * least, (("distance_nm", room),)))
    high = min(high, room * config.distance_nm[1] / (1 + clearance * narrow))
    found = []
    for mode in range(number, 0, -1):
        limits = [Limit(terms=((f"mode{mode + 1}.radius_nm", 1 / separation),))] if mode < number else apart
        ends_nm = low * separation ** (mode - 1), high / separation ** (number - mode)
        found.append(Parameter(f"mode{mode}.radius_nm", *ends_nm, "nm", power=mode, at_most=tuple(limits)))
    for mode in range(1, number + 1):
        radius = f"mode{mode}.radius_nm"
        limits = [
            Limit(-first / WITHIN_SD, ((radius, 1 / WITHIN_SD),), radius),
            Limit(last / WITHIN_SD, ((radius, -1 / WITHIN_SD),), radius),
        ]
        if clearance:
            limits.append(Limit(0.0, (("distance_nm", room / clearance), (radius, -1 / clearance)), radius))
        resolved = (Limit(least, (), radius),)
        name = f"mode{mode}.relative_width"
        found.append(Parameter(name, narrow, wide, at_least=resolved, at_most=tuple(limits)))
    for mode in range(1, number):
        earlier = tuple((f"mode{other}.share", -1.0) for other in range(1, mode))
        power = -float(number - mode) if mode < number - 1 else 1.0
        rest = (Limit(1.0, earlier),) if earlier else ()
        found.append(Parameter(f"mode{mode}.share", 0.0, 1.0, power=power, at_most=rest))
    return found


def _aspect(config: ParticleSampleConfig) -> list[Parameter]:
    """Mean and standard deviation of the aspect ratio, where that is not known."""
    low, high = ends(config.aspect_ratio)
    if low == high:
        return []
    least, most = config.least_aspect_width, config.aspect_width[1]
    name = "aspect_ratio"
    limits = (
        Limit(-low / WITHIN_SD, ((name, 1 / WITHIN_SD),)),
        Limit(high / WITHIN_SD, ((name, -1 / WITHIN_SD),)),
    )
    mean = Parameter(name, low + WITHIN_SD * least, high - WITHIN_SD * least)
    return [mean, Parameter("aspect_width", least, most, at_most=limits)]


def _layers(config: ParticleSampleConfig) -> list[Parameter]:
    """Thickness and roughness of each layer, where they are not known."""
    found = []
    for place, layer in _places(config):
        cap = ""
        if isinstance(layer, FilmLayerConfig) and isinstance(layer.thickness_nm, tuple):
            cap = f"{place}.thickness_nm"
            found.append(Parameter(cap, *layer.thickness_nm, "nm"))
        if isinstance(layer.roughness_nm, tuple):
            found.append(Parameter(f"{place}.roughness_nm", *layer.roughness_nm, "nm", cap))
    return found


def _places(config: ParticleSampleConfig) -> list[tuple[str, SubstrateConfig]]:
    """Layers from the top with their names in parameters, the substrate last."""
    layers = [(layer_name(index, layer.material.name), layer) for index, layer in enumerate(config.layers, start=1)]
    return [*layers, (f"substrate_{config.substrate.material.name}", config.substrate)]


@lru_cache(maxsize=16)
def _prior(config: ParticleSampleConfig) -> Prior:
    return particle_prior(config, 0)


def _values(config: ParticleSampleConfig, theta: xr.DataArray | ArrayLike) -> dict[str, Array]:
    """Parameters (simulation,) by name."""
    prior = _prior(config)
    values = prior.values(theta)
    if values.ndim != 2:
        raise ConfigError("parameters of particles", "must be (simulation, parameter)", values.shape)
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, column = (int(place) for place in np.argwhere(wrong)[0])
        raise ConfigError(f"{prior.names[column]} of row {row}", "must be finite", float(values[row, column]))
    return dict(zip(prior.names, values.T, strict=True))


def _radii(config: ParticleSampleConfig, values: dict[str, Array]) -> tuple[Array, Array]:
    """Shares (simulation, bin) of the bins of radii, and the share of what lay beyond them (simulation,)."""
    number, edges = config.modes.number, size_edges(config)
    shares = [values[f"mode{mode}.share"] for mode in range(1, number)]
    shares.append(
        np.maximum(1 - sum(shares, np.zeros_like(values["distance_nm"])), 0)
    )  # rounding may leave less than 0
    total: Array = np.zeros((len(shares[0]), config.sizes))
    beyond: Array = np.zeros(len(shares[0]))
    for mode, share in enumerate(shares, start=1):
        mean, width = values[f"mode{mode}.radius_nm"], values[f"mode{mode}.relative_width"]
        mass, missing = _cut(f"mode{mode}", edges, mean, width * mean, config.modes.law)
        total += share[:, None] * mass
        beyond += share * missing
    return total / total.sum(axis=1, keepdims=True), beyond


def _ratios(config: ParticleSampleConfig, values: dict[str, Array]) -> Array:
    """Shares (simulation, bin) of the bins of aspect ratios."""
    if "aspect_ratio" not in values:
        return np.ones((len(values["distance_nm"]), 1))
    edges = aspect_edges(config)
    return _cut("aspect_ratio", edges, values["aspect_ratio"], values["aspect_width"], "gaussian")[0]


def _cut(what: str, edges: Array, mean: Array, sd: Array, law: str) -> tuple[Array, Array]:
    """Mass (simulation, bin) of a law of `mean` and `sd` (simulation,) between `edges`, scaled to 1, and what lay beyond.

    Raises ConfigError where half of it or more lies beyond.
    """
    bad = ~((mean > 0) & (sd > 0))
    if bad.any():
        raise ConfigError(f"{what} of row {int(np.argmax(bad))}", "must have a positive mean and width")
    if law == "log-normal":
        sigma = np.sqrt(np.log1p((sd / mean) ** 2))[:, None]
        z = (np.log(edges) - np.log(mean)[:, None]) / sigma + sigma / 2
    else:
        z = (edges - mean[:, None]) / sd[:, None]
    below, above = ndtr(z), ndtr(-z)
    # the difference of what is small: the other one cancels
    mass = np.where(z[:, :-1] > 0, above[:, :-1] - above[:, 1:], below[:, 1:] - below[:, :-1])
    mass = np.maximum(mass, 0)  # rounding may leave less
    inside = mass.sum(axis=1)
    bad = ~(inside > 0.5)
    if bad.any():
        raise ConfigError(f"{what} of row {int(np.argmax(bad))}", "must lie on its grid", [edges[0], edges[-1]])
    return mass / inside[:, None], below[:, 0] + above[:, -1]


def _middles(edges: Array) -> Array:
    return np.asarray((edges[1:] + edges[:-1]) / 2)


def _radius(config: ParticleSampleConfig) -> Array:
    """Radii [nm] in the middle of the bins."""
    return _middles(size_edges(config))


def _simulation(theta: xr.DataArray | ArrayLike) -> dict[str, Array]:
    """The numbers of the simulations, where they are known."""
    if not isinstance(theta, xr.DataArray) or "simulation" not in theta.coords:
        return {}
    return {"simulation": theta["simulation"].values}
