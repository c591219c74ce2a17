"""What analysts do today: a least-squares fit of two cuts of each GISAXS image, with a mixture of size modes.

The parameters are those of the study's prior, in the unit cube: bounded, and its constraints hold by construction. Each
cut has a scale and a constant background of its own besides; the residuals are linear in them, so they are solved for at
every step (variable projection) and never searched. One call of the forward model makes a point and all its derivatives.

Sources: Golub & Pereyra, SIAM J. Numer. Anal. 10, 413 (1973), doi:10.1137/0710036 (variable projection); Kaufman, BIT 15,
49 (1975), doi:10.1007/BF01932995 (its Jacobian).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import least_squares

from scatterflow import sizes
from scatterflow.baselines.cuts import Cuts, checked, peak_distance
from scatterflow.prior import Prior
from scatterflow.sizescores import mean_and_width

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

VALUES = {"distance_nm": "nm", "disorder": "1", "mean_radius_nm": "nm", "width_nm": "nm"}
STARTS = 512
KEPT = 3
STEP = 1e-3  # of finite differences in the unit cube: images are float32
FIRST_STEPS, STEPS = 5, 40  # of each start that is kept, and of the best of them
TOLERANCE = 1e-4, 1e-5  # of chi2 and of the parameters
SLOPE = 1e-2  # of chi2 / 2 across the unit cube: it could not fall by more than 1e-4 where anything is known
BORDER = 1e-6  # of the unit cube, at which the search does not start
_BATCH = 64  # starts whose images are made at once


@dataclass(frozen=True)
class _Frame:
    """What is fitted of one frame, in-plane cut first.

    `band`: number of the out-of-plane cut. For each cut `valid` (row, column) bins, and `seen`: points that have any.
    `data`, `flat` (point,): counts and numbers of bins over their standard deviation, of which `weight` is the inverse.
    """

    band: int
    valid: tuple[Flags, Flags]
    seen: tuple[Flags, Flags]
    data: Array
    flat: Array
    weight: Array

    @property
    def segments(self) -> tuple[slice, slice]:
        """Points of either cut."""
        first = int(self.seen[0].sum())
        return slice(0, first), slice(first, len(self.data))


def cut_fit(
    counts: NDArray[np.floating],
    valid: Flags,
    of: Cuts,
    seed: int = 0,
    starts: int = STARTS,
    kept: int = KEPT,
) -> xr.Dataset:
    """Fit the in-plane cut and the out-of-plane cut through the peak of recorded `counts` (simulation, z, y).

    `valid` (simulation, z, y) are the bins that count; variances are the counts of a cut's point, at least 1. `starts`
    points of the prior are compared with every frame, `kept` of them are followed, the best to its end.

    Returns `parameters` (simulation, parameter), `size_distribution` (simulation, radius), and (simulation,)
    `distance_nm`, `disorder` (w / D of a paracrystal), `mean_radius_nm`, `width_nm` (standard deviation of the radii), each
    with its standard error `_sd`, `chi2_reduced` and `success`. Errors are those of least squares within bounds, with
    variances multiplied by chi2_reduced where that exceeds 1; at most about the prior's own width. Frames without counts
    in a cut get the middle of the prior, errors inf and no success.

    What a frame gets does not depend on the others. Holds 4 bytes per start and bin of two cuts, and the tables of all
    cuts. Raises FrameError.
    """
    seen, valid = checked(counts, valid, of)
    prior = sizes.particle_prior(of.sample, seed)
    cube = np.clip(prior.to_cube(prior.sample(starts)), BORDER, 1 - BORDER)
    trivial = peak_distance(seen, valid, of)
    bands = of.bands_of(2 * np.pi / trivial["distance_nm"].values)
    unit = np.full((len(seen), cube.shape[1]), 0.5)
    deviation = np.full((len(seen), len(VALUES)), np.inf)
    chi2, success = np.full(len(seen), np.inf), np.zeros(len(seen), dtype=bool)
    theta = prior.from_cube(cube)
    plane = _images(of, None, theta)
    for band in np.unique(bands).tolist():
        upwards = _images(of, band, theta)
        for number in np.flatnonzero(bands == band).tolist():
            frame = _frame(seen[number], valid[number], of, band)
            if frame is None:
                continue
            misfit = (_residuals(frame, _model(frame, plane, upwards))[0] ** 2).sum(axis=1)
            best = cube[np.argsort(misfit, kind="stable")[:kept]]
            unit[number], deviation[number], chi2[number], success[number] = _fitted(frame, of, prior, best)
    return _dataset(of, prior, unit, deviation, chi2, success)


def _images(of: Cuts, cut: int | None, theta: Array) -> NDArray[np.float32]:
    parts = [of.images((cut,), theta[start : start + _BATCH])[0] for start in range(0, len(theta), _BATCH)]
    return np.concatenate(parts)


def _frame(counts: Array, valid: Flags, of: Cuts, band: int) -> _Frame | None:
    """What is fitted of one frame; None where its cuts are empty."""
    summed, bins, masks, lit = [], [], [], []
    for axis, cut in enumerate((None, band)):
        some = np.ix_(*of.where(cut))
        mask = valid[some]
        number = mask.sum(axis=axis)
        lit.append(number > 0)
        masks.append(mask)
        summed.append(counts[some].sum(axis=axis, dtype=float)[lit[axis]])
        bins.append(number[lit[axis]])
    if any(not each.any() for each in summed):
        return None
    data = np.concatenate(summed)
    weight = 1 / np.sqrt(np.maximum(data, 1))
    flat = np.concatenate(bins) * weight
    return _Frame(band, (masks[0], masks[1]), (lit[0], lit[1]), data * weight, flat, weight)


def _model(frame: _Frame, plane: NDArray[np.float32], upwards: NDArray[np.float32]) -> Array:
    """Both cuts (simulation, point) of images (simulation, row, column) of their bins, over the standard deviation."""
    first = np.einsum("nzy,zy->ny", plane, frame.valid[0].astype(np.float32))[:, frame.seen[0]]
    second = np.einsum("nzy,zy->nz", upwards, frame.valid[1].astype(np.float32))[:, frame.seen[1]]
    return np.concatenate([first, second], axis=1) * frame.weight


def _residuals(frame: _Frame, model: Array) -> tuple[Array, Array, Array]:
    """Data less the best multiple of `model` (simulation, point) and background, neither negative.

    The residuals (simulation, point), and both factors (simulation, cut).
    """
    residual = np.empty_like(model)
    factors = np.empty((2, len(model), 2))
    for cut, part in enumerate(frame.segments):
        m, flat, data = model[:, part], frame.flat[part], frame.data[part]
        mm, mf, ff = (m * m).sum(axis=1), m @ flat, flat @ flat
        md, fd = m @ data, flat @ data
        size = mm * ff - mf * mf
        alike = size < 1e-12 * mm * ff  # a flat model is a background, too
        size = np.where(alike, 1.0, size)
        scale, level = (md * ff - mf * fd) / size, (fd * mm - mf * md) / size
        alone = alike | (level < 0)
        scale, level = np.where(alone, md / mm, scale), np.where(alone, 0.0, level)
        level, scale = np.where(scale < 0, fd / ff, level), np.where(scale < 0, 0.0, scale)
        residual[:, part] = data - scale[:, None] * m - level[:, None] * flat
        factors[0][:, cut], factors[1][:, cut] = scale, level
    return residual, factors[0], factors[1]


class _Problem:
    """Residuals and Jacobian of one frame at points of the unit cube, both from one call of the forward model."""

    def __init__(self, frame: _Frame, of: Cuts, prior: Prior) -> None:
        self.frame, self.of, self.prior = frame, of, prior
        self.at = np.full(len(prior.names), np.nan)
        self.residual, self.slopes = np.empty(0), np.empty((0, 0))

    def residuals(self, unit: Array) -> Array:
        """Data less model (point,) over the standard deviation."""
        self._go(unit)
        return self.residual

    def jacobian(self, unit: Array) -> Array:
        """Kaufman's (point, parameter): what scale and background cannot make up for."""
        self._go(unit)
        return self.slopes

    def _go(self, unit: Array) -> None:
        if (unit == self.at).all():
            return
        points, steps = _neighbours(unit)
        theta = self.prior.from_cube(points)
        model = _model(self.frame, *self.of.images((None, self.frame.band), theta))
        residual, scale, level = _residuals(self.frame, model[:1])
        slopes = (model[1:] - model[0]) / steps[:, None]  # (parameter, point)
        for cut, part in enumerate(self.frame.segments):
            free = [model[0, part], *([self.frame.flat[part]] if level[0, cut] > 0 else [])]
            basis, _ = np.linalg.qr(np.stack(free, axis=1))
            here = slopes[:, part]
            slopes[:, part] = -scale[0, cut] * (here - (here @ basis) @ basis.T)
        self.at, self.residual, self.slopes = unit.copy(), residual[0], slopes.T


def _neighbours(unit: Array) -> tuple[Array, Array]:
    """A point of the cube and its neighbours (1 + parameter, parameter), and how far they are (parameter,)."""
    steps = np.where(unit + STEP > 1, -STEP, STEP)
    return np.concatenate([unit[None], unit + np.diag(steps)]), steps


def _fitted(frame: _Frame, of: Cuts, prior: Prior, starts: Array) -> tuple[Array, Array, float, bool]:
    """Best point of the cube (parameter,), errors of VALUES (value,), reduced chi2 and whether the search ended."""
    problem = _Problem(frame, of, prior)

    def search(start: Array, steps: int) -> tuple[Array, float, bool]:
        inside = np.clip(start, BORDER, 1 - BORDER)
        tolerances = {"ftol": TOLERANCE[0], "xtol": TOLERANCE[1], "gtol": SLOPE}
        found = least_squares(problem.residuals, inside, problem.jacobian, bounds=(0, 1), max_nfev=steps, **tolerances)
        return found.x, float(found.cost), bool(found.status > 0)

    tried = [search(start, FIRST_STEPS) for start in starts]
    unit, cost, ended = search(min(tried, key=lambda each: each[1])[0], STEPS)
    slopes = problem.jacobian(unit)
    chi2 = 2 * cost / max(len(frame.data) - len(unit) - 4, 1)
    points, steps = _neighbours(unit)
    values = _derived(of, prior.from_cube(points))
    gradient = (values[1:] - values[0]) / steps[:, None]
    return unit, _errors(slopes / np.sqrt(max(chi2, 1.0)), gradient), chi2, ended


def _errors(slopes: Array, gradient: Array) -> Array:
    """Standard errors (value,) by J^T J of `slopes` (point, parameter) and `gradient` (parameter, value).

    The unit cube adds the information of its own width, a variance of 1/12 per parameter: without it, what the data
    hardly tell (a roughness) would make errors of all else too large, as its bounds hold it in the fit.
    """
    information = slopes.T @ slopes + 12 * np.eye(slopes.shape[1])
    return np.asarray(np.sqrt((gradient * np.linalg.solve(information, gradient)).sum(axis=0)))


def _derived(of: Cuts, theta: Array) -> Array:
    """VALUES (simulation, value) of parameters `theta`."""
    arranged = sizes.arrangement(of.sample, theta)
    shares = sizes.size_distribution(of.sample, theta)
    moments = mean_and_width(shares.values, shares["radius"].values)
    return np.stack([arranged.distance_nm, arranged.disorder, *moments], axis=1)


def _dataset(of: Cuts, prior: Prior, unit: Array, deviation: Array, chi2: Array, success: Flags) -> xr.Dataset:
    theta = prior.from_cube(unit)
    result = xr.Dataset({"parameters": prior.dataarray(theta)})
    result["size_distribution"] = sizes.size_distribution(of.sample, theta).drop_vars("beyond")
    values = _derived(of, theta)
    for number, (name, units) in enumerate(VALUES.items()):
        if name == "disorder" and name not in prior.names:
            continue
        result[name] = ("simulation", values[:, number], {"units": units})
        result[f"{name}_sd"] = ("simulation", deviation[:, number], {"units": units})
    result["chi2_reduced"] = ("simulation", chi2)
    result["success"] = ("simulation", success)
    return result
