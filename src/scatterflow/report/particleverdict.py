"""Whether a study of particles can be trusted, in a few computed sentences and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scatterflow.report.figures.particles import SYMBOLS
from scatterflow.report.mapwords import upper
from scatterflow.report.metrics import Verdict
from scatterflow.report.numbers import level, percent, seconds
from scatterflow.report.particlemeasured import sentence as frames_sentence
from scatterflow.report.particlesections import CUT_FIT, beyond_sentence, labels, models, on_images
from scatterflow.report.particletables import error, holds, nanometres
from scatterflow.stages.particles.evaluate import CONFIDENCE

Found = Mapping[str, Any]
_TRUSTED = ("distance_nm", "disorder", "mean_radius_nm")  # quantities whose intervals must be right


def verdict(found: Found, frames: Sequence[Found]) -> Verdict | None:
    """The headline of a study; None where there are no figures of merit.

    It can be trusted if the first model's intervals of spacing, disorder and mean radius hold the truth as often as they
    say, and its p(R) is nearer to the truth than that of the fit (or of any baseline, where none was fitted).
    """
    first = next(iter(models(found)), None) if found else None
    if first is None:
        return None
    wrong = wrong_widths(found, first)
    ok = not wrong and _beaten(found, first)
    sentences = [_best(found, first), _errors(found, first), _coverage(found, first, wrong), beyond_sentence(found),
                 frames_sentence(frames)]  # fmt: skip
    return Verdict(ok=ok, sentences=[each for each in sentences if each])


def wrong_widths(found: Found, model: str) -> list[str]:
    """Quantities whose intervals do not hold the truth as often as they say, or that have none."""
    test = found["estimators"][model]["test"]
    return [name for name in _TRUSTED if name in test and not holds(test[name], found["interval"])]


def _apart(entry: Found) -> float | None:
    value = (entry["test"].get("wasserstein_nm") or {}).get("median")
    return None if value is None else float(value)


def _rivals(found: Found) -> dict[str, float]:
    """Distances of p(R) of the fit, or of every baseline where there is none."""
    baselines = {
        name: apart
        for name, entry in found["estimators"].items()
        if entry["kind"] == "baseline" and (apart := _apart(entry)) is not None
    }
    return {CUT_FIT: baselines[CUT_FIT]} if CUT_FIT in baselines else baselines


def _beaten(found: Found, model: str) -> bool:
    mine, rivals = _apart(found["estimators"][model]), _rivals(found)
    return mine is not None and bool(rivals) and mine < min(rivals.values())


def _best(found: Found, model: str) -> str:
    names, test = labels(found), found["estimators"][model]["test"]
    if _apart(found["estimators"][model]) is None:
        return f"{upper(names[model])} gives no p(R)."
    over = test.get("wasserstein_over_uniform")
    knowing = f", {percent(over)} of what knowing nothing gives" if over is not None else ""
    rivals = _rivals(found)
    told = ", ".join(f"{nanometres(found['estimators'][name]['test'])} by {names[name]}" for name in rivals)
    return (
        f"{upper(names[model])} comes within {nanometres(test)} of p(R){knowing}{f'; {told}' if told else ''} (medians, "
        f"{on_images(found, 'test')}, which trained nothing)."
    )


def _errors(found: Found, model: str) -> str:
    test = found["estimators"][model]["test"]
    words = [f"{SYMBOLS[name]} {error(name, test[name])}" for name in SYMBOLS if name in test]
    return f"Median errors: {', '.join(words)}." if words else ""


def _coverage(found: Found, model: str, wrong: Sequence[str]) -> str:
    test, nominal = found["estimators"][model]["test"], found["interval"]
    shares = [f"{SYMBOLS[name]} in {percent(test[name]['coverage'])}" for name in _TRUSTED
              if (test.get(name) or {}).get("coverage") is not None]  # fmt: skip
    if not shares:
        return "It states no uncertainties."
    believed = f"cannot be trusted for {', '.join(SYMBOLS[name] for name in wrong)}" if wrong else "can be trusted"
    return f"Its uncertainties {believed}: {level(nominal)} intervals hold {', '.join(shares)} of cases."


def tiles(found: Found) -> list[tuple[str, str]]:
    """Numbers of the headline with what they mean."""
    first = next(iter(models(found)), None) if found else None
    if first is None:
        return []
    entry, shown = found["estimators"][first], []
    test = entry["test"]
    if _apart(entry) is not None:
        over = test.get("wasserstein_over_uniform")
        knowing = f" ({over:.2f} of knowing nothing)" if over is not None else ""
        shown.append((nanometres(test), f"distance of p(R) from the truth{knowing}"))
    for name in _TRUSTED[:2]:
        if test.get(name):
            shown.append((error(name, test[name]), f"median error of {SYMBOLS[name]}"))
    held = test.get("distance_nm") or {}
    if held.get("coverage") is not None:
        low, high = (percent(held[f"coverage_{end}"]) for end in ("low", "high"))
        sure = level(CONFIDENCE)
        shown.append(
            (percent(held["coverage"]), f"of true D in {level(found['interval'])} intervals ({sure}: {low} to {high})")
        )
    if entry.get("seconds_per_image") is not None:
        shown.append((seconds(entry["seconds_per_image"]), "per image in the evaluation, verdict included"))
    return shown
