"""What an estimator says about frames, and which frames cannot be asked about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from scatterflow.errors import FrameError
from scatterflow.watching.arrivals import Arrival
from scatterflow.watching.checking import Check, Checks, verdict
from scatterflow.watching.cutting import Cut, Region


class Estimator(Protocol):
    """Anything that gives parameters and their standard deviations for frames of one shape."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the parameters, with their units."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (z, y) of its frames."""

    @property
    def check(self) -> Check | None:
        """Tells whether it describes a frame; None where it cannot tell."""

    def predict(self, frames: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Counts (frame, z, y) -> values (frame, parameter), standard deviations (frame, parameter)."""


class Named(NamedTuple):
    """An estimator made of its parts."""

    names: Sequence[str]
    shape: tuple[int, int]
    predict: Callable[[NDArray[np.float32]], tuple[NDArray[np.float64], NDArray[np.float64]]]
    check: Check | None = None


class Answer(NamedTuple):
    """What became of a frame: `values (parameter,)` and `sd (parameter,)` unless it is broken or missing.

    Then `verdict` says whether the model describes the frame: ok, outside or unchecked; the deviance is not None where
    it was checked.
    """

    arrival: Arrival
    status: str
    why: str
    values: NDArray[np.float64] | None = None
    sd: NDArray[np.float64] | None = None
    verdict: str = ""
    deviance: float | None = None


def answer(
    arrivals: Sequence[Arrival], estimator: Estimator, cut: Cut, checks: Checks, waiting: int = 0
) -> list[Answer]:
    """Answers in the order of `arrivals`; a frame that cannot be asked about is broken and says why.

    Excluded pixels are set to 0. `waiting` is how many frames wait behind these.
    """
    excluded = cut.excluded
    if cut.region is not None:
        arrivals = [_region(each, cut.region, excluded) for each in arrivals]
        excluded = None if excluded is None else excluded[cut.region]
    why = {i: each.why for i, each in enumerate(arrivals) if each.values is None}
    shapes: dict[tuple[tuple[int, ...], str], list[int]] = defaultdict(list)
    for i, each in enumerate(arrivals):
        if each.values is not None:
            shapes[each.values.shape, each.values.dtype.str].append(i)
    for members in shapes.values():
        frames = np.stack([arrivals[i].values for i in members])  # type: ignore[misc]  # those without are not members
        limits = np.array([arrivals[i].limit for i in members])
        why |= {i: reason for i, reason in zip(members, _reasons(frames, limits, excluded), strict=True) if reason}
    asked = [i for i in range(len(arrivals)) if i not in why]
    counts: dict[int, NDArray[np.float32]] = {}
    for i in asked:
        try:
            counts[i] = _counts(arrivals[i], estimator, cut, excluded)
        except FrameError as error:
            why[i] = str(error)
    found = dict(zip(counts, _predicted(np.stack(list(counts.values())), estimator), strict=True)) if counts else {}
    good = [i for i in found if not isinstance(found[i], str)]
    deviance: dict[int, float] = {}
    if good:
        values = np.stack([found[i][0] for i in good])
        told = checks.deviances(estimator.check, np.stack([counts[i] for i in good]), values, cut.valid, waiting)
        deviance = {good[place]: value for place, value in told.items()}
    answers = []
    for i, each in enumerate(arrivals):
        if i in why:
            answers.append(Answer(each, "missing" if each.status == "missing" else "broken", why[i]))
        elif isinstance(found[i], str):
            answers.append(Answer(each, "broken", str(found[i])))
        else:
            checked = deviance.get(i)
            given = Answer(each, each.status, each.why, *found[i])
            answers.append(given._replace(verdict=verdict(checked, estimator.check), deviance=checked))
    return answers


def _region(arrival: Arrival, region: Region, excluded: NDArray[np.bool_] | None) -> Arrival:
    """A frame cut; one of another shape than the cut was found for is broken."""
    if arrival.values is None:
        return arrival
    if excluded is not None and arrival.values.shape != excluded.shape:
        shape, usual = (" x ".join(map(str, each.shape)) for each in (arrival.values, excluded))
        return arrival._replace(values=None, status="broken", why=f"{shape} pixels, the cut is for {usual}")
    return arrival._replace(values=arrival.values[region])


def _reasons(frames: NDArray[Any], limits: NDArray[Any], excluded: NDArray[np.bool_] | None) -> list[str]:
    """Why frames (frame, row, column) cannot be used, "" where they can."""
    rows, columns = frames.shape[1:]
    if excluded is not None and excluded.shape != (rows, columns):
        shape = " x ".join(map(str, excluded.shape))
        return [f"{rows} rows x {columns} columns, its mask file has {shape}: use this detector's mask"] * len(frames)
    seen = frames if excluded is None else np.where(excluded, 0, frames)
    least, most = seen.min(axis=(1, 2)), seen.max(axis=(1, 2))  # both NaN where a pixel is
    if (np.isfinite(most) & (least >= 0) & (most > 0) & (most < limits)).all():
        return [""] * len(frames)  # as nearly always; what follows takes several times as long
    valid = ~excluded if excluded is not None else np.ones((rows, columns), dtype=bool)
    with np.errstate(invalid="ignore"):  # comparing NaN is what it is for
        found = {
            "not finite": ~np.isfinite(frames) & valid,
            "negative": (frames < 0) & valid,
            "saturated": (frames >= limits[:, None, None]) & valid,
        }
    numbers = {cause: np.count_nonzero(pixels, axis=(1, 2)) for cause, pixels in found.items()}
    zero = ~((frames != 0) & valid).any(axis=(1, 2))
    reasons = []
    for i in range(len(frames)):
        cause = next((cause for cause in numbers if numbers[cause][i]), "")
        if zero[i]:
            reasons.append("zero in every pixel: was the shutter open?")
        elif cause:
            reasons.append(f"{numbers[cause][i]} {cause} pixels; if they are always so, exclude them by a mask file")
        else:
            reasons.append("")
    return reasons


def _counts(
    arrival: Arrival, estimator: Estimator, cut: Cut, excluded: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """What the estimator is asked about: counts (z, y). Raises FrameError where it has another shape."""
    raw = arrival.values if excluded is None else np.where(excluded, 0, arrival.values)  # type: ignore[arg-type]  # never without values
    counts = np.asarray(cut.prepare(raw) if cut.prepare is not None else raw, dtype=np.float32)  # type: ignore[arg-type]  # as above
    if counts.shape != tuple(estimator.shape):
        must = f"must have the {' x '.join(map(str, estimator.shape))} pixels of the model"
        got = " x ".join(map(str, counts.shape))
        raise FrameError(f"frame {arrival.name}", must, got, "use the model of this detector")
    if not np.isfinite(counts).all():
        raise FrameError(f"frame {arrival.name}", "must be finite after its preparation", "NaN or infinity")
    return counts


def _predicted(
    frames: NDArray[np.float32], estimator: Estimator
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]] | str]:
    """Values and standard deviations of frames (frame, z, y), or why there are none."""
    try:
        values, sd = estimator.predict(frames)
    except FrameError as error:
        if len(frames) == 1:
            return [str(error)]
        return [_predicted(frames[i : i + 1], estimator)[0] for i in range(len(frames))]  # one of them spoils it
    good = np.isfinite(np.concatenate([values, sd], axis=1)).all(axis=1)
    return [(values[i], sd[i]) if good[i] else "the model's answer is not finite" for i in range(len(frames))]
