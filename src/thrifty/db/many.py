"""Conditions on many numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, any_, bindparam, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY


def among(
    connection: Connection, column: ColumnElement[Any], numbers: Sequence[int]
) -> ColumnElement[bool]:
    """Whether a column has one of these numbers, however many there are.

    They are one parameter. One for each number takes several times as long as finding the rows.
    """
    if connection.dialect.name == "sqlite":
        listed = func.json_each(json.dumps(list(numbers))).table_valued("value")
        return column.in_(select(listed.c.value))
    return column == any_(cast(bindparam(None, list(numbers)), ARRAY(BigInteger)))
