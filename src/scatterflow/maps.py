"""Are maps of strain and tilt as good as the counts allow, do their errors hold, and is the sample a film at all?

A scan is what the stage infer writes: a dataset with dimensions (estimator, row, column, parameter) that holds `estimate`,
`sd` (not finite where an estimator states none) and `goodness` (deviance over the one that counting noise explains),
`intensity` and `status` (row, column), for simulations also `truth` and `bound` (the Cramer-Rao standard deviation).
Everything returned is plain JSON: numbers, text, none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from scatterflow.errors import ScatterflowError, StoreError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
LEVELS = (0.68, 0.95)
CONFIDENCE = 0.99  # of the binomial intervals of shares
MEASURED = ("ok", "outside")  # frames of any other status measured nothing
SIGNAL = 0.25  # points with so much of the brightest points' counts show the sample: beside a particle all models fit
LOST = 10.0  # an estimate so many Cramer-Rao bounds from the truth is a failure, whatever its stated error
FALSE_ALARM = 0.01  # share of simulated frames above the threshold of the deviance
TOLERATED = 0.1  # share of a scan's points above it at which the film model still counts as right
_QUANTILES = (0.05, 0.5, 0.95)

# mean and standard deviation of the error on the test scan: 64 x 64 points, at most 7 counts per pixel
PUBLISHED: dict[str, Any] = {
    "source": "DONUT, supplement, table 1 (doi:10.48550/arXiv.2507.14038)",
    "max_counts": 7.0,
    "estimators": {
        "correlation fit": {"strain": (9.2e-5, 2.61e-4), "omega_deg": (-1.0e-5, 8.2e-4), "chi_deg": (-3.4e-4, 1.48e-3)},
        "DONUT": {"strain": (-7.2e-5, 1.00e-4), "omega_deg": (-5.2e-5, 2.1e-4), "chi_deg": (-9.9e-4, 1.26e-3)},
    },
}
# time per frame [ms]
PUBLISHED_MS = (
    ("correlation fit", "NVIDIA RTX 3090", 5.6),
    ("DONUT, encoder", "NVIDIA RTX 3090", 0.024),
    ("DONUT, encoder", "CPU", 0.27),
)

_CUBE = ("estimator", "row", "column", "parameter")
_DIMS = {
    "estimate": _CUBE,
    "sd": _CUBE,
    "goodness": _CUBE[:3],
    "intensity": _CUBE[1:3],
    "status": _CUBE[1:3],
}
_SIMULATED = {"truth": _CUBE[1:], "bound": _CUBE[1:]}
_FRAMES = {
    "frames": ("shown", "z", "y"),
    "rebuilt": ("shown", "z", "y"),
    "shown_row": ("shown",),
    "shown_column": ("shown",),
}


def checked(scan: xr.Dataset, source: str) -> xr.Dataset:
    """The scan with its dimensions in order. Raises StoreError naming what is missing or misshaped in `source`."""
    remedy = "run `scatterflow infer` again"
    wanted = dict(_DIMS)
    if "truth" in scan or "bound" in scan:
        wanted |= _SIMULATED
    if "frames" in scan or "rebuilt" in scan:
        wanted |= _FRAMES
    for name, dims in wanted.items():
        if name not in scan:
            raise StoreError(f"{name} in {source}", "must be there", "no such variable", remedy)
        if set(scan[name].dims) != set(dims):
            raise StoreError(f"{name} in {source}", f"must have dimensions {dims}", scan[name].dims, remedy)
    for name in ("estimator", "parameter"):
        if name not in scan.coords or len(set(scan[name].values.tolist())) != scan.sizes[name]:
            raise StoreError(f"{name} in {source}", "must name each entry once", scan.coords.get(name), remedy)
    if min(scan.sizes[name] for name in _CUBE) < 1:
        raise StoreError(source, "must hold at least one point, estimator and parameter", dict(scan.sizes), remedy)
    for name, kind in (("relative", list), ("thresholds", dict)):
        try:
            valid = isinstance(json.loads(str(scan.attrs.get(name, "null"))), kind | None)
        except ValueError:
            valid = False
        if not valid:
            raise StoreError(f"{name} in {source}", f"must be a JSON {kind.__name__}", scan.attrs[name], remedy)
    return scan.assign({name: scan[name].transpose(*dims) for name, dims in wanted.items()})


def simulated(scan: xr.Dataset) -> bool:
    """Whether the truth is known."""
    return "truth" in scan


def relative_parameters(scan: xr.Dataset) -> list[str]:
    """Parameters that are known only up to a constant of the whole scan."""
    return [str(name) for name in json.loads(str(scan.attrs.get("relative", "[]")))]


def title(scan: xr.Dataset, name: str) -> str:
    """What the scan calls itself, else its name."""
    return str(scan.attrs.get("title") or name)


def names(scan: xr.Dataset, dim: str) -> list[str]:
    """Names along `estimator` or `parameter`."""
    return [str(name) for name in scan[dim].values]


def measured(scan: xr.Dataset) -> Mask:
    """Points (row, column) whose frame could be used."""
    return np.isin(scan["status"].values.astype(str), MEASURED)


def signal(scan: xr.Dataset) -> Mask:
    """Measured points (row, column) with at least SIGNAL times the counts of the brightest (their 99 % quantile)."""
    use = measured(scan)
    counts = scan["intensity"].values.astype(np.float64)
    finite = counts[use & np.isfinite(counts)]
    return use & (counts >= SIGNAL * np.quantile(finite, 0.99)) if finite.size else use


def share(count: int, n: int) -> dict[str, Any]:
    """A share with its exact binomial interval (Clopper-Pearson)."""
    if not n:
        return {"count": 0, "n": 0, "share": None, "low": None, "high": None}
    interval = binomtest(int(count), int(n)).proportion_ci(CONFIDENCE)
    return {
        "count": int(count), "n": int(n), "share": count / n, "low": float(interval.low), "high": float(interval.high),
    }  # fmt: skip


def merit(scan: xr.Dataset) -> dict[str, Any]:
    """Figures of merit of every estimator on a simulated scan.

    Per estimator `failures` (no finite answer, or more than LOST bounds off in any parameter) and, for each parameter that
    it estimates, the error's mean and standard deviation over all finite answers (lost ones included), both in units of the
    other and of the Cramer-Rao bound, and the coverage of central intervals of its stated errors.
    """
    if not simulated(scan):
        raise ScatterflowError("figures of merit", "need a simulated scan", "one without truth")
    use = measured(scan)
    truth, bound = (scan[name].values[use].astype(np.float64) for name in ("truth", "bound"))
    found: dict[str, Any] = {}
    for number, name in enumerate(names(scan, "estimator")):
        estimate, sd = (scan[key].values[number][use].astype(np.float64) for key in ("estimate", "sd"))
        able, states = (np.isfinite(values).any(axis=0) for values in (estimate, sd))
        error = estimate - truth
        answered = (np.isfinite(estimate) | ~able).all(axis=1) & ((np.isfinite(sd) & (sd > 0)) | ~states).all(axis=1)
        far = (np.abs(error) > LOST * bound) & np.isfinite(error) & np.isfinite(bound)
        found[name] = {
            "failures": share(int((~answered | far.any(axis=1)).sum()), len(error)),
            "parameters": {
                parameter: _errors(error[:, place], sd[:, place], bound[:, place], bool(states[place]))
                for place, parameter in enumerate(names(scan, "parameter"))
                if able[place]
            },
        }
    return {"points": int(use.sum()), "estimators": found}


def _errors(error: Array, sd: Array, bound: Array, states: bool) -> dict[str, Any]:
    finite = np.isfinite(error)
    known = finite & np.isfinite(bound)
    values = error[finite]
    spread = _sd(values)
    limit = float(np.sqrt(np.mean(bound[known] ** 2))) if known.any() else None
    spread_known = _sd(error[known])
    ratio = spread_known / limit if spread_known is not None and limit else None
    with_sd = finite & np.isfinite(sd) & (sd > 0)
    coverage = {
        f"{level:g}": share(int((np.abs(error) <= norm.ppf(0.5 + level / 2) * sd)[with_sd].sum()), int(with_sd.sum()))
        for level in LEVELS
    }
    return {
        "n": int(finite.sum()),
        "mean": float(values.mean()) if len(values) else None,
        "mean_se": spread / len(values) ** 0.5 if spread is not None else None,
        "sd": spread,
        "bias_in_sd": float(values.mean()) / spread if spread else None,
        "bound": limit,
        "ratio": ratio,
        "ratio_se": ratio * _relative_error_of_sd(error[known]) if ratio is not None else None,
        "stated_sd": float(np.sqrt(np.mean(sd[with_sd] ** 2))) if with_sd.any() else None,
        "coverage": coverage if states else None,
    }


def _sd(values: Array) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _relative_error_of_sd(values: Array) -> float:
    """Standard error of a sample's standard deviation, relative to it, from the fourth moment."""
    centred = values - values.mean()
    variance = float(np.mean(centred**2))
    kurtosis = float(np.mean(centred**4)) / variance**2 if variance else 1.0
    return float(np.sqrt(max(kurtosis - 1, 0.0) / (4 * len(values))))


def agreement(scan: xr.Dataset) -> dict[str, Any]:
    """How far the estimators of a scan agree where it has signal, per parameter, as matrices (estimator, estimator).

    `pearson`: correlation over the points that both answered; `rms_in_sd`: rms difference over the errors that both state,
    added in squares; `mean_difference` in the parameter's unit, taken out first where the parameter is only relative. None
    where there is nothing to compare. Errors of estimators that see the same counts are not independent: two good ones
    agree better than 1.
    """
    use, relative = signal(scan), relative_parameters(scan)
    estimators = names(scan, "estimator")
    count = len(estimators)
    found: dict[str, Any] = {}
    for place, parameter in enumerate(names(scan, "parameter")):
        estimate, sd = (scan[key].values[:, use, place].astype(np.float64) for key in ("estimate", "sd"))
        matrices: dict[str, list[list[float | None]]] = {
            key: [[diagonal if i == j else None for j in range(count)] for i in range(count)]
            for key, diagonal in (("pearson", 1.0), ("rms_in_sd", 0.0), ("mean_difference", 0.0))
        }
        for i, j in combinations(range(count), 2):
            pair = _pair(estimate[[i, j]], sd[[i, j]], parameter in relative)
            for key, value in pair.items():
                matrices[key][i][j] = value
                matrices[key][j][i] = -value if key == "mean_difference" and value is not None else value
        found[parameter] = matrices
    return {"points": int(use.sum()), "estimators": estimators, "parameters": found}


def _pair(estimate: Array, sd: Array, relative: bool) -> dict[str, float | None]:
    both = np.isfinite(estimate).all(axis=0)
    a, b = estimate[:, both]
    if len(a) < 3:
        return {"pearson": None, "rms_in_sd": None, "mean_difference": None}
    difference = b - a
    offset = float(difference.mean())
    varies = all(values.std() > 1e-9 * np.abs(values).max() for values in (a, b))  # more than rounding
    variance = (sd[:, both] ** 2).sum(axis=0)
    known = np.isfinite(variance) & (variance > 0)
    left = difference - offset if relative else difference
    rms = float(np.sqrt(np.mean(left[known] ** 2 / variance[known]))) if known.any() else None
    return {
        "pearson": float(np.corrcoef(a, b)[0, 1]) if varies else None,
        "rms_in_sd": rms,
        "mean_difference": offset,
    }


def thresholds(scan: xr.Dataset) -> dict[str, Any]:
    """Per estimator the deviance that all but FALSE_ALARM of the simulated frames of `scan` stay below."""
    use = measured(scan)
    found = {}
    for number, name in enumerate(names(scan, "estimator")):
        values = scan["goodness"].values[number][use].astype(np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            limit = float(np.quantile(values, 1 - FALSE_ALARM, method="higher"))
            found[name] = {"threshold": limit, "n": len(values), "false_alarm_rate": FALSE_ALARM}
    return found


def goodness(scan: xr.Dataset, limits: Mapping[str, Any]) -> dict[str, Any]:
    """`goodness` of every estimator against `thresholds`, and a verdict on the film model.

    Points without signal are left out. The verdict rests on the estimator that reproduces simulated frames best: where even
    its reconstructions do not fit, the model is wrong and not the estimate. `status` is ok, outside or untested.
    """
    use = signal(scan)
    found: dict[str, Any] = {}
    for number, name in enumerate(names(scan, "estimator")):
        values = scan["goodness"].values[number][use].astype(np.float64)
        values = values[np.isfinite(values)]
        limit = limits.get(name, {}).get("threshold")
        found[name] = {
            "n": len(values),
            "quantiles": {f"{100 * q:g}": float(np.quantile(values, q)) for q in _QUANTILES} if len(values) else None,
            "threshold": limit,
            "above": share(int((values > limit).sum()), len(values)) if limit is not None and len(values) else None,
        }
    tested = {name: entry for name, entry in found.items() if entry["above"] is not None}
    best = min(tested, key=lambda name: float(limits[name]["threshold"]), default=None)
    return {"estimators": found, "verdict": _verdict(best, tested, limits)}


def _verdict(best: str | None, tested: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    if best is None:
        return {"status": "untested", "estimator": None, "above": None, "why": "no simulations to compare with"}
    above, limit = tested[best]["above"], limits[best]
    fits = above["share"] <= TOLERATED
    why = (
        f"the deviance of {above['count']:,} of {above['n']:,} points with signal ({100 * above['share']:.1f} %) lies above "
        f"{limit['threshold']:.3g}, where {100 * limit['false_alarm_rate']:g} % of {limit['n']:,} simulated frames lie "
        f"({best}, which reproduces those best)"
    )
    return {"status": "ok" if fits else "outside", "estimator": best, "above": above, "why": why}


def evaluation(scans: Mapping[str, xr.Dataset], headline: str | None = None) -> dict[str, Any]:
    """All figures of merit of a study's scans by name, as evaluate/metrics.json holds them.

    `headline` names the simulated scan that the study is judged by and that sets the thresholds of the deviance (default:
    the first simulated one). A scan measured at other counts brings its own thresholds as JSON in attrs["thresholds"].
    Raises ScatterflowError if there is no simulated scan of that name.
    """
    known = [name for name, scan in scans.items() if simulated(scan)]
    if headline is None and known:
        headline = known[0]
    if headline is not None and headline not in known:
        raise ScatterflowError("headline scan", f"must be one of the simulated scans {known}", repr(headline))
    limits = thresholds(scans[headline]) if headline is not None else {}
    found = {}
    for name, scan in scans.items():
        own = json.loads(str(scan.attrs["thresholds"])) if "thresholds" in scan.attrs else limits
        found[name] = {
            "title": title(scan, name),
            "simulated": simulated(scan),
            "as_published": _as_published(scan),
            "merit": merit(scan) if simulated(scan) else None,
            "agreement": agreement(scan),
            "goodness": goodness(scan, own),
            "status": _counts(scan),
        }
    return {"headline": headline, "thresholds": limits, "scans": found, "published": PUBLISHED}


def _as_published(scan: xr.Dataset) -> bool:
    """Whether the scan has the fields and the counts of the published figures."""
    return scan.attrs.get("fields") == "paper" and float(scan.attrs.get("max_counts", 0)) == PUBLISHED["max_counts"]


def _counts(scan: xr.Dataset) -> dict[str, int]:
    values, counts = np.unique(scan["status"].values.astype(str), return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}
