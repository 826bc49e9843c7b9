"""Values out of a model's own settings, where anything may stand: each is checked as it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty.errors import IntegrityError

MAX_VALUE = 2**40
"""No size, count or position of a model comes near it."""


def read_integer(
    values: Mapping[str, Any], key: str, source: Path, default: int | None = None, least: int = 1
) -> int:
    """The whole number at `key`; `default` where there is none. Raises `IntegrityError`."""
    value = values.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_VALUE:
        raise _unusable(value, key, source, f"a whole number of at least {least}")
    return value


def read_number(
    values: Mapping[str, Any], key: str, source: Path, default: float | None = None
) -> float:
    """The positive number at `key`; `default` where there is none. Raises `IntegrityError`."""
    value = values.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unusable(value, key, source, "a number above 0")
    if not (math.isfinite(value) and 0 < value <= MAX_VALUE):
        raise _unusable(value, key, source, "a number above 0")
    return float(value)


def read_token_ids(values: Mapping[str, Any], key: str, source: Path) -> tuple[int, ...]:
    """The token id at `key`, or the array of them. Raises `IntegrityError`."""
    value = values.get(key)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(type(token) is int and 0 <= token <= MAX_VALUE for token in ids):
        raise _unusable(value, key, source, "a token id, or an array of them")
    return ids


def _unusable(value: Any, key: str, source: Path, rule: str) -> IntegrityError:
    seen = "is missing" if value is None else f"is {value!r:.60}"
    return IntegrityError(
        f"{source} is damaged: {key!r} {seen}, and must be {rule}; fetch the model again"
    )
