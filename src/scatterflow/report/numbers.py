"""Numbers as a person reads them."""

from __future__ import annotations

import math

from scatterflow.report.metrics import Mean

NONE = "\N{EN DASH}"


def plus_minus(mean: float | None, error: float | None) -> str:
    """Mean and standard error with two significant digits of the error: `3.21 ± 0.05`."""
    if mean is None:
        return NONE
    if error is None or error <= 0 or not math.isfinite(error):
        return significant(mean)
    digits = min(max(1 - math.floor(math.log10(error)), 0), 8)
    return minus(f"{mean:,.{digits}f} ± {error:.{digits}f}")


def estimate(value: Mean | None) -> str:
    """A mean with its standard error; minus infinity where some truths have zero density."""
    if value is None:
        return NONE
    if value.mean is None and value.impossible:
        return f"\N{MINUS SIGN}∞ (zero density at {value.impossible:,} of {value.n or 0:,} truths)"
    return plus_minus(value.mean, value.se)


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, in plain notation between 0.001 and 1e6."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if -3 <= size < 6:
        return minus(f"{value:,.{max(digits - 1 - size, 0)}f}")
    return minus(f"{value:.{digits - 1}e}")


def percent(value: float | None) -> str:
    """A share in percent with one decimal."""
    return NONE if value is None else f"{100 * value:.1f} %"


def level(value: float) -> str:
    """A credibility level in percent, as it was chosen."""
    return f"{100 * value:g} %"


def seconds(value: float | None) -> str:
    """A duration in the unit that reads best."""
    if value is None:
        return NONE
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if value >= 2 * size:
            return f"{significant(value / size, 2)} {unit}"
    return f"{significant(value, 2)} s" if value >= 1 or value == 0 else f"{significant(value * 1e3, 2)} ms"


def minus(text: str) -> str:
    """A true minus sign in front of negative numbers."""
    return "\N{MINUS SIGN}" + text[1:] if text.startswith("-") else text
