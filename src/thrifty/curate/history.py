"""What a row keeps of where its record came from: responses, feedback and persons.

Rows of the request log, files of `thrifty feedback export` and rows of built sets say so in their
own `provenance`: one object, or for a pair of answers one for each. Of several, a row keeps what
all of them name, so that no person is forgotten without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

NAMED = {
    "responses": ("response", "responses"),
    "feedback": ("feedback",),
    "subjects": ("subjects",),
}
"""What a history names, by where an entry of a provenance has it."""


def describe_history(given: Any) -> dict[str, Any]:
    """What a record's provenance says of responses, feedback and persons; nothing, if it is not of
    feedback. `feedback` also tells a training that nobody judged the turns before the last one.
    """
    entries = list_entries(given)
    told: dict[str, Any] = join_named(entries)
    if "responses" not in told and "subjects" not in told:
        return {}
    first = entries[0]
    said: dict[str, Any] = {
        key: first[key] for key in ("response", "deployment", "version", "at") if key in first
    }
    if "feedback" in told:
        said["judged"] = first.get("judged", first.get("source"))
    return {**said, **told}


def join_named(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[str | int]]:
    """The responses, feedback and persons that any of these entries names, each once."""
    named = {name: _join(entries, keys) for name, keys in NAMED.items()}
    return {name: values for name, values in named.items() if values}


def list_entries(given: Any) -> list[dict[str, Any]]:
    """The objects of a provenance, of which a pair has two."""
    return [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, dict)]


def _join(entries: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str | int]:
    """All values under these keys, each once; one that is no list is a value."""
    found: list[Any] = []
    for value in (one.get(key) for one in entries for key in keys):
        found += value if isinstance(value, list) else [value]
    return list(dict.fromkeys(one for one in found if isinstance(one, str | int)))


def read_time(value: Any) -> float:
    """Seconds since 1970 of a number, a date or ISO 8601, also where a number is written as text,
    as CSV has it; NaN where it is none of them.
    """
    if isinstance(value, datetime):
        try:
            return value.timestamp()
        except (ValueError, OverflowError):
            return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        seconds = math.nan
    if math.isfinite(seconds) or not isinstance(value, str):
        return seconds if math.isfinite(seconds) else math.nan
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def read_name(value: Any) -> str | None:
    """The name of a user or a conversation: text, or a whole number, which Parquet gives as a float
    where a column has gaps. None where it is neither.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value) or None
