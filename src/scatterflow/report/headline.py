"""Whether a study can be trusted, in a few computed sentences."""

from __future__ import annotations

from scatterflow.report.metrics import Estimator, StudyMetrics, Verdict
from scatterflow.report.numbers import estimate, level, percent, plus_minus

SIGMAS = 5.0  # an information gain counts as real when it is positive by so many standard errors


def works(estimator: Estimator) -> bool:
    """True if it tells more than the prior: as evaluated, or information gain positive by 5 standard errors."""
    if estimator.works is not None:
        return estimator.works
    gain = estimator.information_gain
    return bool(gain and gain.mean is not None and gain.se is not None and gain.mean > SIGMAS * gain.se)


def best_model(metrics: StudyMetrics) -> str | None:
    """The working estimator with the largest information gain; trained models (flows) come before baselines."""
    gains = {
        name: estimator.information_gain.mean
        for name, estimator in metrics.estimators.items()
        if works(estimator) and estimator.information_gain and estimator.information_gain.mean is not None
    }
    models = {name: gain for name, gain in gains.items() if not name.startswith("abc")}
    pool = models or gains
    return max(pool, key=lambda name: pool[name]) if pool else None


def study_verdict(metrics: StudyMetrics) -> Verdict | None:
    """The study's headline: the one of the evaluation, else computed from its figures; None where there are none."""
    if metrics.verdict is not None:
        return metrics.verdict
    if not metrics.estimators:
        return None
    best = best_model(metrics)
    if best is None:
        return Verdict(ok=False, sentences=[f"No estimator tells more than the prior. {_failing(metrics)}"])
    estimator = metrics.estimators[best]
    covered = estimator.coverage.within() if estimator.coverage else None
    first = _gain_sentence(metrics, best)
    second = _coverage_sentence(estimator, covered)
    sentences = (first, second, _alarm_sentence(metrics), _failing(metrics))
    return Verdict(ok=covered is True, sentences=[sentence for sentence in sentences if sentence])


def label(metrics: StudyMetrics, name: str) -> str:
    """Readable name of an estimator."""
    estimator = metrics.estimators.get(name)
    return (estimator.label if estimator else "") or name


def _gain_sentence(metrics: StudyMetrics, best: str) -> str:
    gain = metrics.estimators[best].information_gain
    if gain is None or gain.mean is None:
        return ""
    sigmas = gain.sigmas if gain.sigmas is not None else (gain.mean / gain.se if gain.se else None)
    strength = f", {sigmas:.0f} standard errors above the exact prior" if sigmas is not None else ""
    count = f" on {gain.n:,} simulations it never saw" if gain.n else ""
    return f"{label(metrics, best)} gains {plus_minus(gain.mean, gain.se)} nats{count}{strength}."


def _coverage_sentence(estimator: Estimator, covered: bool | None) -> str:
    coverage = estimator.coverage
    if coverage is None or covered is None:
        return "Its calibration was not tested."
    rows = [(at, level(value)) for value in coverage.levels if (at := coverage.at(value)) is not None]
    if covered:
        at, name = next((row for row in rows if row[1] == "90 %"), rows[-1])
        tested = ", ".join(row[1] for row in rows)
        return (
            f"Its uncertainties can be trusted: its {name} regions hold the truth in {percent(at[0])} of cases (expected "
            f"{percent(at[1])} to {percent(at[2])}; tested at {tested})."
        )
    at, name = max(rows, key=lambda row: max(row[0][1] - row[0][0], row[0][0] - row[0][2]))
    wrong = "too wide" if at[0] > at[2] else "too narrow"
    return (
        f"Its uncertainties cannot be trusted, they are {wrong}: its {name} regions hold the truth in {percent(at[0])} of "
        f"cases (expected {percent(at[1])} to {percent(at[2])})."
    )


def _alarm_sentence(metrics: StudyMetrics) -> str:
    parts = []
    alarm = metrics.out_of_range.false_alarm if metrics.out_of_range else None
    if alarm and alarm.rate is not None:
        interval = f" ({percent(alarm.low)} to {percent(alarm.high)})" if None not in (alarm.low, alarm.high) else ""
        parts.append(f"In-range simulations are called outside in {percent(alarm.rate)} of cases{interval}.")
    judged = [frame.status for frame in metrics.frames if frame.status != "missing"]
    if outside := judged.count("outside"):
        parts.append(
            f"{outside} of {len(judged)} real frames lie outside what the model knows: parameters inferred there "
            "mean nothing."
        )
    refused = [status for status in dict.fromkeys(judged) if status not in ("ok", "outside")]
    for status in refused:
        parts.append(f"{judged.count(status)} of {len(judged)} real frames cannot be used: {status}.")
    return " ".join(parts)


def _failing(metrics: StudyMetrics) -> str:
    failing = []
    for name, estimator in metrics.estimators.items():
        gain = estimator.information_gain
        if works(estimator):
            continue
        number = f" ({estimate(gain)} nats)" if gain else ""
        failing.append(f"{label(metrics, name)}{number}")
    return f"Does not work: {'; '.join(failing)}." if failing else ""
