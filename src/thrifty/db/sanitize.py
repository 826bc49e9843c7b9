"""Makes external data fit for its column, in one place for all tables.

NUL cannot be stored in PostgreSQL and ends strings in SQLite's functions; half of a surrogate pair
cannot be encoded. Both become U+FFFD. Text longer than its column is truncated. Other values that a
column cannot hold become NULL if the column is nullable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Integer,
    LargeBinary,
    String,
    Table,
    TypeDecorator,
)

from thrifty.errors import BadDataError
from thrifty.untrusted_text import MAX_TEXT_CHARS, sanitize_text

_MAX_DOUBLE = 1.7976931348623157e308


def sanitize_values(table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `values` (by column) to what the columns of `table` can hold.

    Raises `BadDataError` if a column that must not be NULL would have no value.
    """
    return {name: _fit(table.c[name], value) for name, value in values.items()}


class RowShape:
    """The values that rows of some columns may hold, derived from the table's declarations."""

    def __init__(self, table: Table, columns: Sequence[str]) -> None:
        self._columns = [table.c[name] for name in columns]
        types = tuple(_describe(column) for column in self._columns)
        self._type = list[tuple[types]]  # type: ignore[valid-type]

    def encode(self, rows: Sequence[tuple[Any, ...]]) -> str | None:
        """Encode rows as JSON; None if a row does not fit its columns unchanged.

        Runs in C for all rows at once, because every row passes through it.
        """
        try:
            # Without `builtin_types` a text would count as bytes in base64.
            msgspec.convert(rows, self._type, builtin_types=(bytes,))
            text = msgspec.json.encode(rows).decode()
        except (msgspec.ValidationError, UnicodeEncodeError, TypeError, OverflowError):
            return None
        if "\\u0000" in text and any("\0" in v for row in rows for v in row if isinstance(v, str)):
            return None
        return text

    def sanitize(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """Convert one row to what its columns can hold. Raises `BadDataError`, naming the
        column.
        """
        if len(row) != len(self._columns):
            raise BadDataError(f"a row has {len(row)} values for {len(self._columns)} columns")
        return tuple(_fit(column, value) for column, value in zip(self._columns, row, strict=True))


def _fit(column: Column[Any], value: Any) -> Any:
    kind = _find_kind(column)
    fitting: Any = None
    if isinstance(kind, Boolean):
        fitting = value if isinstance(value, bool) else None
    elif isinstance(kind, Integer):
        low, high = _bounds(kind)
        if isinstance(value, int) and low <= value <= high:
            fitting = int(value)
    elif isinstance(kind, Float):
        if isinstance(value, int | float) and abs(value) <= _MAX_DOUBLE and math.isfinite(value):
            fitting = float(value)
    elif isinstance(kind, String):
        if isinstance(value, str):
            fitting = sanitize_text(value, kind.length or MAX_TEXT_CHARS)
    elif isinstance(kind, LargeBinary):
        fitting = value if isinstance(value, bytes) else None
    else:
        raise TypeError(f"no rule for the type of {column}")
    if fitting is None and not column.nullable:
        shown = repr(value)[:60] if not isinstance(value, int) else "a number"
        raise BadDataError(f"the column {column} cannot hold {shown}")
    return fitting


def _describe(column: Column[Any]) -> Any:
    """The same rules as a msgspec type."""
    kind = _find_kind(column)
    found: Any
    if isinstance(kind, Boolean):
        found = bool
    elif isinstance(kind, Integer):
        low, high = _bounds(kind)
        found = Annotated[int, msgspec.Meta(ge=low, le=high)]
    elif isinstance(kind, Float):
        found = Annotated[float, msgspec.Meta(ge=-_MAX_DOUBLE, le=_MAX_DOUBLE)]
    elif isinstance(kind, String):
        found = Annotated[str, msgspec.Meta(max_length=kind.length or MAX_TEXT_CHARS)]
    elif isinstance(kind, LargeBinary):
        found = bytes
    else:
        raise TypeError(f"no rule for the type of {column}")
    return found | None if column.nullable else found


def _find_kind(column: Column[Any]) -> Any:
    """The type of what the database stores."""
    return column.type.impl if isinstance(column.type, TypeDecorator) else column.type


def _bounds(kind: Integer) -> tuple[int, int]:
    bits = 63 if isinstance(kind, BigInteger) else 31
    return -(2**bits), 2**bits - 1
