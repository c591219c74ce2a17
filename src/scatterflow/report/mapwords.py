"""Numbers and words of the sections on maps, as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scatterflow.report.numbers import minus, significant

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(number: int, what: str) -> str:
    """`1 scan`, `2 scans`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def joined(words: Sequence[str]) -> str:
    """Words one after another."""
    return "; ".join(words)


def upper(text: str) -> str:
    """The beginning of a sentence."""
    return text[:1].upper() + text[1:]


def exponent(value: float) -> int:
    """Power of ten of a number; 0 where plain digits read better."""
    size = math.floor(math.log10(abs(value))) if value else 0
    return size if size < -1 or size > 3 else 0


def times(power: int, unit: str) -> str:
    """`·10⁻⁴ deg`."""
    factor = f"·10{str(power).translate(_SUPERSCRIPT)}" if power else ""
    return f"{factor} {unit}".rstrip() if unit != "1" else factor


def scaled(value: float, sd: float, unit: str, truth: float | None = None) -> str:
    """Value, its standard deviation and maybe the truth, in one power of ten: `(1.2 ± 0.8)·10⁻⁴, truth 1.1·10⁻⁴`."""
    known = math.isfinite(sd) and sd > 0
    power = exponent(sd * 10 if known else value)
    size = 10.0**power
    digits = min(max(1 - math.floor(math.log10(sd / size)), 0), 6) if known else 2
    spread = f" ± {sd / size:.{digits}f}" if known else ""
    value = round(value / size, digits) * size + 0.0  # no minus before a zero
    shown = minus(f"{value / size:.{digits}f}{spread}")
    said = f"({shown}){times(power, unit)}" if power or known else f"{shown}{times(power, unit)}"
    return (
        said
        if truth is None
        else f"{said}, truth {minus(f'{round(truth / size, digits) + 0.0:.{digits}f}')}{times(power, unit)}"
    )


def sized(value: float, unit: str) -> str:
    """A size with two digits and its unit: `7.9·10⁻⁵`."""
    power = exponent(value)
    return f"{significant(value / 10.0**power, 2)}{times(power, unit)}"
