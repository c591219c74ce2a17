"""What estimators of particles say of an image, in one form for networks and baselines, and how far it is from the truth.

A dataset over `simulation`: `size_distribution` (simulation, radius) with a band `_low`, `_high`; for each of
`particles.QUANTITIES` its value, `_sd`, `_low` and `_high` (a central interval); `sizescores.MODES` (simulation, mode), the
smallest mode first. A method leaves out what it does not say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scatterflow.particles import QUANTITIES, ParticlesStudy
from scatterflow.sizescores import MODES, modes, wasserstein

Array = NDArray[np.float64]
P = "size_distribution"
_UNITS = {"distance_nm": "nm", "disorder": "1", "mean_radius_nm": "nm", "width_nm": "nm"}
_LONG = {
    "distance_nm": "distance of neighbours",
    "disorder": "disorder w/D",
    "mean_radius_nm": "mean radius",
    "width_nm": "standard deviation of the radii",
}
_BLOCK = 256  # images whose samples become size distributions at once


def of_samples(study: ParticlesStudy, samples: xr.DataArray, interval: float) -> xr.Dataset:
    """Estimates from posterior `samples` (observation, sample, parameter): medians, deviations, central intervals.

    `size_distribution` is the posterior mean. Holds the size distributions of 256 images' samples at once.
    """
    values = samples.values
    tails = [(1 - interval) / 2, 0.5, (1 + interval) / 2]
    found: dict[str, list[Array]] = {}
    for start in range(0, len(values), _BLOCK):
        part = values[start : start + _BLOCK]
        for name, each in study.quantities(part).items():
            low, middle, high = np.quantile(each, tails, axis=1)
            for suffix, column in (("", middle), ("_sd", each.std(axis=1, ddof=1)), ("_low", low), ("_high", high)):
                found.setdefault(name + suffix, []).append(column)
        p = study.size_distribution(part.reshape(-1, part.shape[-1])).values.reshape(*part.shape[:2], -1)
        low, _, high = np.quantile(p, tails, axis=1)
        for suffix, column in (("", p.mean(axis=1)), ("_low", low), ("_high", high)):
            found.setdefault(P + suffix, []).append(column)
    named = labelled(study, {name: np.concatenate(parts) for name, parts in found.items()})
    return with_modes(named, study.prior.names, values)


def with_modes(found: xr.Dataset, names: Sequence[str], theta: Array) -> xr.Dataset:
    """`found` with its MODES: those of parameters (simulation, parameter), or medians of samples (simulation, sample,
    parameter).

    Modes are sorted by their radius in every sample, so the medians are, too: in this order they are compared with a truth.
    """
    result = found.copy()
    for name, values in modes(names, theta).items():
        middle = np.median(values, axis=1) if values.ndim > 2 else values
        result[name] = (("simulation", "mode"), middle, {"units": MODES[name]})
    return result


def labelled(study: ParticlesStudy, found: Mapping[str, Array]) -> xr.Dataset:
    """A dataset over `simulation` with units, of arrays (simulation,) and (simulation, radius) by name."""
    radius = study.size_distribution(study.prior.sample(1))["radius"]
    result = xr.Dataset(coords={"radius": radius})
    for name, values in found.items():
        base = next((each for each in QUANTITIES if name.startswith(each)), None)
        attrs = {"units": _UNITS[base], "long_name": _LONG[base]} if base else {"units": "1"}
        result[name] = (("simulation", "radius")[: values.ndim], np.asarray(values, dtype=np.float64), attrs)
    return result


def beside_truth(study: ParticlesStudy, found: xr.Dataset, theta: Array) -> xr.Dataset:
    """The estimates with the truth `theta` (simulation, parameter): `<name>_true`, and `wasserstein_nm` of p(R)."""
    result = found.copy()
    for name, values in study.quantities(theta).items():
        result[f"{name}_true"] = ("simulation", values, {"units": _UNITS[name], "long_name": f"true {_LONG[name]}"})
    true = study.size_distribution(theta).values
    result[f"{P}_true"] = (("simulation", "radius"), true, {"units": "1"})
    if set(MODES) <= set(found):
        for name, values in modes(study.prior.names, theta).items():
            result[f"{name}_true"] = (("simulation", "mode"), values, {"units": MODES[name]})
    if P in found:
        apart = wasserstein(found[P].values, true, found["radius"].values)
        result["wasserstein_nm"] = ("simulation", apart, {"units": "nm", "long_name": "Wasserstein distance of p(R)"})
    return result
