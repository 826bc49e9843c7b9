"""The spend of each key per day: sums that several gateway workers add to.

Money is in the currency of the deployments' prices. Days are in UTC, written `2026-11-23`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, delete, select, text
from sqlalchemy.exc import DataError, IntegrityError

from thrifty.db.database import Database
from thrifty.db.tables import key_spend
from thrifty.errors import BadDataError

log = logging.getLogger(__name__)

KeyDay = tuple[str, str]
"""A key's id and a day."""

OVERLAP_S = 30.0
"""Rows written this long before the last read are read again, because the clocks of hosts differ,
and a transaction ends later than the time in its rows."""
KEEP_DAYS_S = 400 * 86400.0

_ADD = text(
    "INSERT INTO key_spend (key_id, day, spend, updated_s) VALUES (:key_id, :day, :spend, :at_s) "
    "ON CONFLICT (key_id, day) DO UPDATE SET spend = key_spend.spend + excluded.spend, "
    "updated_s = excluded.updated_s"
)


def exchange_spend(
    database: Database, amounts: Mapping[KeyDay, float], first_day: str, since_s: float
) -> dict[KeyDay, float]:
    """Add `amounts` to the sums, and read the sums from `first_day` on that have changed since
    `since_s` (seconds since 1970), in one transaction. An amount that the database refuses is
    logged and left out. Raises `DatabaseError`; then nothing was added.
    """
    now_s = time.time()
    # Sorted, so that two workers cannot deadlock on each other's rows.
    rows = [
        {"key_id": key_id, "day": day, "spend": amount, "at_s": now_s}
        for (key_id, day), amount in sorted(amounts.items())
        if math.isfinite(amount)  # a server may report any counts
    ]
    query = select(key_spend.c.key_id, key_spend.c.day, key_spend.c.spend).where(
        key_spend.c.day >= first_day, key_spend.c.updated_s >= since_s - OVERLAP_S
    )
    try:
        found = _add_and_read(database, rows, query, one_by_one=False)
    except BadDataError:
        found = _add_and_read(database, rows, query, one_by_one=True)
    return {(row[0], row[1]): float(row[2]) for row in found}


def _add_and_read(
    database: Database, rows: Sequence[Mapping[str, Any]], query: Select[Any], *, one_by_one: bool
) -> Sequence[Any]:
    """Add all rows, or with `one_by_one` those that the database takes; and run `query`."""
    with database.begin() as connection:
        if rows and not one_by_one:
            connection.execute(_ADD, rows)
        for row in rows if one_by_one else ():
            try:
                with connection.begin_nested():
                    connection.execute(_ADD, row)
            except (DataError, IntegrityError) as error:
                log.error("the spend of the key %s cannot be added: %s", row["key_id"], error.orig)
        return connection.execute(query).all()


def prune_spend(database: Database) -> None:
    """Delete sums from more than 400 days ago."""
    with database.begin() as connection:
        oldest_s = time.time() - KEEP_DAYS_S
        connection.execute(delete(key_spend).where(key_spend.c.updated_s < oldest_s))
