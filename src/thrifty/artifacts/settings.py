"""Checked access to values in a model's configuration files, which may contain anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty.errors import IntegrityError

MAX_VALUE = 2**40
"""Sizes, counts and positions of real models are far smaller."""


def read_integer(
    values: Mapping[str, Any], key: str, source: Path, default: int | None = None, least: int = 1
) -> int:
    """The integer at `key`, or `default` if it is missing. Raises `IntegrityError`."""
    value = values.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_VALUE:
        raise _unusable(value, key, source, f"an integer of at least {least}")
    return value


def read_number(
    values: Mapping[str, Any], key: str, source: Path, default: float | None = None
) -> float:
    """The positive number at `key`, or `default` if it is missing. Raises `IntegrityError`."""
    value = values.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unusable(value, key, source, "a number above 0")
    if not (math.isfinite(value) and 0 < value <= MAX_VALUE):
        raise _unusable(value, key, source, "a number above 0")
    return float(value)


def read_token_ids(values: Mapping[str, Any], key: str, source: Path) -> tuple[int, ...]:
    """The token id, or array of token ids, at `key`. Raises `IntegrityError`."""
    value = values.get(key)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(type(token) is int and 0 <= token <= MAX_VALUE for token in ids):
        raise _unusable(value, key, source, "a token id or an array of token ids")
    return ids


def _unusable(value: Any, key: str, source: Path, rule: str) -> IntegrityError:
    seen = "is missing" if value is None else f"is {value!r:.60}"
    return IntegrityError(
        f"{source} is damaged: {key!r} {seen}, but must be {rule}; fetch the model again"
    )
