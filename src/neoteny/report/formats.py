"""Numbers as a reader wants them: a few significant digits, units people say aloud, and never the word
"nan"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

MISSING = "n/a"
"""What stands wherever there is no number."""

_THIN = "\N{NARROW NO-BREAK SPACE}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def is_missing(value: float | None) -> bool:
    """True for None and NaN."""
    return value is None or math.isnan(value)


def number(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits; integers whole, in groups of three: 0.0312, −12.4, 12 000,
    3.1 × 10⁻⁷."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e15 and float(value).is_integer():
        text = f"{int(size):,}".replace(",", _THIN) if size >= 10_000 else str(int(size))
    else:
        rounded = float(f"{size:.{digits - 1}e}")
        exponent = math.floor(math.log10(rounded))
        if -4 <= exponent < 6:
            text = f"{rounded:.{max(0, digits - 1 - exponent)}f}"
            whole, _, fraction = text.partition(".")
            whole = f"{int(whole):,}".replace(",", _THIN) if len(whole) > 4 else whole
            text = f"{whole}.{fraction.rstrip('0')}".rstrip(".")
        else:
            mantissa = number(float(f"{rounded / 10.0**exponent:.{digits - 1}f}"), digits)
            text = f"{mantissa} × 10{str(exponent).translate(_SUPERSCRIPT)}"
    return f"−{text}" if value < 0 else text


def interval(bounds: Sequence[float | None] | None, digits: int = 3) -> str:
    """`[low, high]`; a bound that is missing is one without end; the missing text if both are."""
    low, high = bounds or (None, None)
    if is_missing(low) and is_missing(high):
        return MISSING
    left = "(−∞" if is_missing(low) else f"[{number(low, digits)}"
    right = "∞)" if is_missing(high) else f"{number(high, digits)}]"
    return f"{left}, {right}"


def prefixed(value: float | None, unit: str, digits: int = 3) -> str:
    """`value` with an SI prefix before `unit`: 1.2 TFLOP, 38.1 GFLOP/s."""
    if value is None or not math.isfinite(value):
        return MISSING
    # round first: 999.96 must become "1 k", not "1000"
    rounded = float(f"{value:.{digits - 1}e}")
    power = 0 if rounded == 0 else min(max(math.floor(math.log10(abs(rounded)) / 3), 0), len(_PREFIXES) - 1)
    return f"{number(rounded / 1000**power, digits)} {_PREFIXES[power]}{unit}"


def flops(value: float | None) -> str:
    """Floating-point operations: 1.2 TFLOP."""
    return prefixed(value, "FLOP")


def duration(seconds: float | None) -> str:
    """Wall-clock time: 120 ms, 4.2 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 0:
        raise ValueError(f"a duration cannot be negative; got {seconds} s")
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995:
        return f"{number(seconds * 1000, 2)} ms"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min" if minutes % 60 else f"{minutes // 60} h"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def rough_duration(seconds: float | None) -> str:
    """`duration` of an estimate: whole minutes from ten minutes on, whole seconds below."""
    if seconds is None or not math.isfinite(seconds) or seconds < 1:
        return duration(seconds)
    return duration(60 * round(seconds / 60) if seconds >= 600 else round(seconds))


def values(items: Sequence[object]) -> str:
    """The values of a field: joined, long runs of successive integers as "0 to 19", None as "none"."""
    whole = [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
    if len(items) == len(whole) > 5 and whole == list(range(whole[0], whole[0] + len(whole))):
        return f"{number(whole[0])} to {number(whole[-1])}"
    return ", ".join("none" if item is None else value(item) for item in items) or "none"


def value(item: object) -> str:
    """Anything a record, configuration or verdict holds, as text: numbers by `number`, lists joined, None
    missing."""
    if item is None:
        return MISSING
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, Real):
        return number(float(item))
    if isinstance(item, Mapping):
        return ", ".join(f"{name}: {value(entry)}" for name, entry in item.items())
    if isinstance(item, list | tuple):
        return ", ".join(value(entry) for entry in item)
    return str(item)
