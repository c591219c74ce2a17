"""Stage evaluate of kind particles: errors, coverage and widths of every method, beside the Cramer-Rao bound."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import binomtest

from scatterflow.errors import StoreError
from scatterflow.particlebound import bounds
from scatterflow.particles import QUANTITIES, VIEW, ParticlesStudy
from scatterflow.products import read_json, write_json
from scatterflow.progress import say
from scatterflow.sizescores import MODES
from scatterflow.stages.particles import sets

Array = NDArray[np.float64]
CONFIDENCE = 0.99  # of the interval around a share
DISORDER_BINS = 4  # of the prior's range, in which errors are told
_ROUND_ROBIN = 0.4  # half of 46 analysts agreed on population widths within this, arXiv 2303.03772


def run(study: ParticlesStudy, folder: Path, tell: Callable[[str], None] = say) -> Path:
    """Write `evaluate/metrics.json` from the products of infer and baseline; returns its path. Raises StoreError."""
    inferred = read_json(folder / "infer" / "manifest.json", "scatterflow infer")
    compared = read_json(folder / "baseline" / "manifest.json", "scatterflow baseline")
    estimators: dict[str, Any] = {}
    for place, listed, kind in (("infer", inferred["models"], "model"), ("baseline", compared["methods"], "baseline")):
        for name, facts in listed.items():
            groups = read_estimates(folder / place / f"{name}.nc")  # of a slow method only the test set
            estimators[name] = {**facts, "kind": kind, **_judged(study, groups)}
    uniform = estimators.get("uniform", {}).get(sets.TEST, {}).get("wasserstein_nm", {}).get("median")
    for name, entry in estimators.items():
        apart = entry[sets.TEST].get("wasserstein_nm")
        if apart and uniform:
            entry[sets.TEST]["wasserstein_over_uniform"] = apart["median"] / uniform
        tell(f"{name}: {_told(entry[sets.TEST])}")
    return write_json(
        folder / "evaluate" / "metrics.json",
        {
            "format": 1,
            "kind": study.kind,
            "interval": study.config.inference.interval,
            "sets": inferred["sets"],
            "estimators": estimators,
            "bound": _bound(study, folder),
            "frames": inferred["frames"],
            "round_robin_width_error": _ROUND_ROBIN,
            "identity": {"features": study.features_identity()},
        },
    )


def read_estimates(path: Path) -> dict[str, xr.Dataset]:
    """The sets of an estimator's file, in memory. Raises StoreError where it is missing or damaged."""
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return {str(name): tree[name].to_dataset().load() for name in tree.children}
    except (OSError, ValueError, KeyError) as error:
        remedy = "run `scatterflow infer` and `scatterflow baseline` again"
        raise StoreError(str(path), "must be a readable NetCDF file", error, remedy) from None


def _judged(study: ParticlesStudy, groups: dict[str, xr.Dataset]) -> dict[str, Any]:
    """Figures of merit on every set."""
    test = groups[sets.TEST]
    found: dict[str, Any] = {sets.TEST: merit(test)}
    found["counts"] = [
        {"total_counts": float(name.removeprefix(sets.SERIES)), **merit(rows)}
        for name, rows in sorted(groups.items())
        if name.startswith(sets.SERIES)
    ]
    found["counts"].sort(key=lambda entry: entry["total_counts"])
    if "disorder_true" in test:
        found["disorder_bins"] = _by_disorder(study, test)
    if sets.BEYOND in groups:
        beyond = groups[sets.BEYOND]
        found[sets.BEYOND] = merit(beyond) | {
            "width_over_test": {
                name: float(np.median(_width(beyond, name)) / np.median(_width(test, name)))
                for name in QUANTITIES
                if f"{name}_low" in test
            }
        }
    return found


def merit(rows: xr.Dataset) -> dict[str, Any]:
    """Errors, coverage and widths of the estimates of one set, as plain JSON."""
    found: dict[str, Any] = {"n": rows.sizes["simulation"]}
    if "wasserstein_nm" in rows:
        apart = rows["wasserstein_nm"].values
        found["wasserstein_nm"] = {"median": float(np.median(apart)), "mean": float(apart.mean())}
    for name in QUANTITIES:
        if name not in rows:
            continue
        true, error = rows[f"{name}_true"].values, np.abs(rows[name].values - rows[f"{name}_true"].values)
        entry: dict[str, Any] = {
            "median_error": float(np.median(error)),
            "mean_error": float(error.mean()),
            "median_relative_error": float(np.median(error / true)),
        }
        if f"{name}_low" in rows:
            held = (true >= rows[f"{name}_low"].values) & (true <= rows[f"{name}_high"].values)
            entry |= share("coverage", held) | {"median_width": float(np.median(_width(rows, name)))}
        found[name] = entry
    if all(f"{name}_true" in rows for name in MODES):
        found["modes"] = _modes(rows)
    if "information_gain" in rows:
        gain = rows["information_gain"].values
        found["information_gain"] = {"mean": float(gain.mean()), "se": float(gain.std(ddof=1) / np.sqrt(len(gain)))}
    if "outside" in rows:
        found |= share("outside", rows["outside"].values.astype(bool))
    return found


def _modes(rows: xr.Dataset) -> dict[str, Any]:
    """Errors of the modes' mean radii, standard deviations and shares.

    Modes of estimate and truth are both sorted by radius and matched in this order: the assignment with the least sum of
    squared distances. An image's error is the mean over its true modes, weighted by their shares: nobody can tell the radius
    of a mode without particles. Figures are over the images.
    """
    weight = rows["mode_share_true"].values
    found: dict[str, Any] = {"number": weight.shape[1]}
    for name in MODES:
        true = rows[f"{name}_true"].values
        apart = np.abs(rows[name].values - true)
        error = (weight * apart).sum(axis=1)
        found[name] = {"median_error": float(np.median(error)), "mean_error": float(error.mean())}
        if name != "mode_share":  # shares may be 0
            found[name]["median_relative_error"] = float(np.median((weight * apart / true).sum(axis=1)))
    return found


def share(name: str, flags: NDArray[np.bool_]) -> dict[str, float]:
    """A share with its interval at `CONFIDENCE`."""
    interval = binomtest(int(flags.sum()), len(flags)).proportion_ci(CONFIDENCE)
    return {name: float(flags.mean()), f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}


def _width(rows: xr.Dataset, name: str) -> Array:
    return np.asarray(rows[f"{name}_high"].values - rows[f"{name}_low"].values)


def _by_disorder(study: ParticlesStudy, test: xr.Dataset) -> list[dict[str, Any]]:
    """The same by bins of the true disorder."""
    edges = np.linspace(*study.config.sample.disorder, DISORDER_BINS + 1)
    true = test["disorder_true"].values
    found = []
    for low, high in itertools.pairwise(edges):
        inside = (true >= low) & (true <= high)
        if inside.any():
            found.append(
                {"low": float(low), "high": float(high), **merit(test.isel(simulation=np.flatnonzero(inside)))}
            )
    return found


def _bound(study: ParticlesStudy, folder: Path) -> dict[str, Any]:
    """Median Cramer-Rao bound of every quantity, by total counts and, of the test set, by disorder."""
    number = study.config.evaluation.bound_rows
    found: dict[str, Any] = {"n": number, "counts": []}
    for name, rows in sets.simulated(study, folder).items():
        if name == sets.BEYOND:
            continue
        few = rows.isel(simulation=slice(0, number))
        least = bounds(study, few["parameters"].values, few[VIEW].values, few[f"mask_{VIEW}"].values)
        median = _medians(least, slice(None))
        if name == sets.TEST:
            found["test"] = median
            if "disorder" in study.prior.names:
                found["disorder_bins"] = _bound_by_disorder(study, few["parameters"].values, least)
        else:
            found["counts"].append({"total_counts": rows.attrs["total_counts"], **median})
    return found


def _bound_by_disorder(study: ParticlesStudy, theta: Array, least: dict[str, Array]) -> list[dict[str, Any]]:
    """The same by bins of the true disorder, as the estimators' errors."""
    edges = np.linspace(*study.config.sample.disorder, DISORDER_BINS + 1)
    true = theta[:, study.prior.names.index("disorder")]
    found = []
    for low, high in itertools.pairwise(edges):
        inside = np.flatnonzero((true >= low) & (true <= high))
        if len(inside):
            found.append({"low": float(low), "high": float(high), "n": len(inside), **_medians(least, inside)})
    return found


def _medians(values: dict[str, Array], rows: Any) -> dict[str, float]:
    return {name: float(np.median(each[rows])) for name, each in values.items()}


def _told(entry: dict[str, Any]) -> str:
    """The main figures, for people."""
    told = [f"p(R) {entry['wasserstein_nm']['median']:.3g} nm away"] if "wasserstein_nm" in entry else []
    if "wasserstein_over_uniform" in entry:
        told[-1] += f" ({entry['wasserstein_over_uniform']:.2f} of uniform)"
    if "distance_nm" in entry:
        told.append(f"D within {entry['distance_nm']['median_relative_error']:.2%}")
    if "disorder" in entry:
        told.append(f"disorder within {entry['disorder']['median_error']:.3g}")
    if "modes" in entry:
        told.append(f"modes' radii within {entry['modes']['mode_radius_nm']['median_relative_error']:.2%}")
    if "coverage" in entry.get("distance_nm", {}):
        covered = [f"{entry[name]['coverage']:.1%}" for name in QUANTITIES if "coverage" in entry.get(name, {})]
        told.append(f"intervals hold {' / '.join(covered)}")
    return ", ".join(told)
