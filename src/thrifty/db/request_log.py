"""The request log's rows: put in by batches, and taken out when they are old."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import delete, func, insert, select, text

from thrifty.db.database import Database
from thrifty.db.tables import request_texts, requests

COLUMNS = (
    "id", "at_s", "client_request_id", "conversation_id", "origin", "shadow_of", "rerouted", "endpoint", "deployment", "version", "replica", "tenant", "key_id",
    "end_user", "status", "error", "stream", "cache", "attempts", "prompt_tokens",
    "completion_tokens", "cached_tokens", "queue_ms", "ttft_ms", "tpot_ms", "e2e_ms",
    "overhead_us",
)  # fmt: skip
"""The order of values in a row that is to be written."""
DELETE_ROWS = 5_000
"""Old rows go in pieces of this many, so that no transaction holds the database for long."""


class RequestLog:
    """Writes and prunes. Used by one thread.

    A batch goes in as one statement with one parameter, its rows as JSON, which the database
    takes apart itself. Binding values row by row would hold Python's interpreter lock for most of
    the time, and slow the gateway's event loop by a third (`benchmarks/gateway_overhead.py`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statement = text(_make_insert(database))

    def write(self, rows: Sequence[tuple[Any, ...]], texts: Sequence[dict[str, Any]] = ()) -> None:
        """Put rows in, in one transaction. Raises `DatabaseError`; then none of them is in."""
        with self._database.begin() as connection:
            if rows:
                batch = msgspec.json.encode(rows).decode()
                connection.execute(self._statement, {"batch": batch})
            if texts:
                connection.execute(insert(request_texts), list(texts))

    def prune(self, keep_s: float, max_rows: int) -> int:
        """Delete rows that are too old or too many; returns how many went."""
        removed = 0
        oldest_s = time.time() - keep_s
        with self._database.begin() as connection:
            newest_id = connection.execute(select(func.max(requests.c.id))).scalar() or 0
        while True:
            with self._database.begin() as connection:
                doomed = (
                    select(requests.c.id)
                    .where((requests.c.at_s < oldest_s) | (requests.c.id <= newest_id - max_rows))
                    .order_by(requests.c.id)
                    .limit(DELETE_ROWS)
                )
                count = connection.execute(
                    delete(requests).where(requests.c.id.in_(doomed))
                ).rowcount
                connection.execute(delete(request_texts).where(request_texts.c.at_s < oldest_s))
            removed += count
            if count < DELETE_ROWS:
                return removed


def _make_insert(database: Database) -> str:
    columns = ", ".join(f'"{name}"' for name in COLUMNS)
    if database.is_sqlite:
        values = ", ".join(f"json_extract(value, '$[{i}]')" for i in range(len(COLUMNS)))
        source = "json_each(:batch)"
    else:
        dialect = database.engine.dialect
        types = [requests.c[name].type.compile(dialect=dialect) for name in COLUMNS]
        values = ", ".join(f"CAST(value->>{i} AS {kind})" for i, kind in enumerate(types))
        source = "json_array_elements(CAST(:batch AS json))"
    return f"INSERT INTO requests ({columns}) SELECT {values} FROM {source}"  # noqa: S608
