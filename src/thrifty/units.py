"""Parse and format quantities: `10m`, `500ms`, `200k`, `256MB`.

Durations are in seconds, sizes in bytes, counts are integers. A bare number is in the base unit.
Sizes use powers of 1,000 for `KB`, `MB`, ... and of 1,024 for `KiB`, `MiB`, ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

_NUMBER = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})\s*([A-Za-zµ]*)\s*")
_MAX = 10**30
"""Larger numbers are typing errors, and would not fit into a float."""

# Exact fractions, so that 0.1 and large counts keep their value.
_DURATIONS_S = {
    "us": Fraction(1, 1_000_000),
    "µs": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1_000),
    "s": Fraction(1),
    "m": Fraction(60),
    "min": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
    "w": Fraction(7 * 86400),
}
_SIZES = {"B": 1, "kB": 1000}
for _power, _letter in enumerate("KMGT", start=1):
    _SIZES[f"{_letter}B"] = _SIZES[_letter] = 1000**_power
    _SIZES[f"{_letter}iB"] = 1024**_power
_COUNTS = {"": 1, "k": 1_000, "K": 1_000, "m": 1_000_000, "M": 1_000_000, "B": 1_000_000_000}


def parse_duration_s(text: str | int | float) -> float:
    """The seconds in `text`, such as `500ms`, `10m` or `7d`. Raises `ValueError` if invalid."""
    return float(_parse(text, _DURATIONS_S, "a duration such as 500ms, 10s, 15m, 2h or 7d"))


def parse_bytes(text: str | int | float) -> int:
    """The bytes in `text`, such as `256MB` or `2GiB`. Raises `ValueError` if invalid."""
    return round(_parse(text, _SIZES, "a size such as 512KB, 256MB or 2GiB"))


def parse_count(text: str | int | float) -> int:
    """The integer in `text`, such as `600` or `200k`. Raises `ValueError` if invalid."""
    value = _parse(text, _COUNTS, "a whole number such as 600, 200k or 1M")
    if value != round(value):
        raise ValueError(f"{text!r} is not a whole number")
    return round(value)


def _parse(
    text: str | int | float, units: Mapping[str, Fraction] | Mapping[str, int], rule: str
) -> int | float | Fraction:
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError(f"{text!r} is not {rule}")
    if isinstance(text, int | float):
        if not 0 <= text <= _MAX:
            raise ValueError(f"{text!r} is not {rule}")
        return text
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not {rule}")
    number, unit = match.groups()
    if unit and unit not in units:
        raise ValueError(f"{text!r} has the unknown unit {unit!r}; write {rule}")
    return Fraction(number) * (units[unit] if unit else 1)


def format_bytes(count: int | float) -> str:
    """Format a number of bytes for people: `93 MB`, `1.3 GB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 9.95 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def format_duration(seconds: float) -> str:
    """Format a duration for people: `310 us`, `45 ms`, `3.2 s`, `4 min 10 s`."""
    if seconds < 999.5e-6:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
