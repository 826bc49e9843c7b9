"""The tables of sums: requests by minute, hour and day, and the time of replicas. `tables` has them,
too, with all others.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Double, Integer, LargeBinary, String, Table, Text

from thrifty.db.metadata import metadata

ROLLUP_NUMBERS = (
    "requests", "errors", "hits", "prompt_tokens", "completion_tokens", "cached_tokens",
    "hit_prompt_tokens", "hit_completion_tokens", "other_requests", "up", "down",
)  # fmt: skip
ROLLUP_AMOUNTS = ("cost", "hit_cost", "busy_ms", "other_busy_ms")
ROLLUP_SKETCHES = ("ttft", "tpot", "e2e", "queue")


def _rollup_columns() -> list[Column[Any]]:
    return [
        *(Column(name, BigInteger, nullable=False) for name in ROLLUP_NUMBERS),
        *(Column(name, Double, nullable=False) for name in ROLLUP_AMOUNTS),
        Column("kinds", Text),
        *(Column(name, LargeBinary) for name in ROLLUP_SKETCHES),
    ]


rollups = Table(
    "rollups",
    metadata,
    Column("step_s", Integer, primary_key=True, autoincrement=False),
    Column("at_s", BigInteger, primary_key=True, autoincrement=False),
    Column("deployment", String(64), primary_key=True),
    Column("version", String(128), primary_key=True),
    *_rollup_columns(),
)
"""Sums of the request log by minute, hour and day (`step_s`), from `at_s` on. Requests of clients
and batches count; of others (shadows, measurements) only `other_requests` and `other_busy_ms` do.
Tokens and `cost` are of answers that were generated, those with `hit_` of cache hits. `busy_ms` adds
up how long requests were at replicas. `kinds` is JSON: errors by code, and results of the cache.
Times in milliseconds are sketches (`observe.rollups.sketch`). The empty deployment has the requests
that named none."""

tenant_rollups = Table(
    "tenant_rollups",
    metadata,
    Column("step_s", Integer, primary_key=True, autoincrement=False),
    Column("at_s", BigInteger, primary_key=True, autoincrement=False),
    Column("deployment", String(64), primary_key=True),
    Column("version", String(128), primary_key=True),
    Column("tenant", String(64), primary_key=True),
    *_rollup_columns(),
)
"""As `rollups`, by tenant. The empty tenant has the requests without a key."""

rollup_state = Table(
    "rollup_state",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("turn", BigInteger, nullable=False),
    Column("old_after", BigInteger, nullable=False),
    Column("old_until", BigInteger, nullable=False),
)
"""One row. `turn` counts what was added to the rollups, so that two processes cannot add at once.
Rows of the log with a number above `old_after`, up to `old_until`, are from before there were
rollups, and still to be added."""

unrolled_rows = Table(
    "unrolled_rows",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("numbers", LargeBinary, nullable=False),
)
"""Numbers (MessagePack) of rows that were written to the log and are still to be added to the
rollups; written in the transaction that wrote the rows."""

unrolled_thumbs = Table(
    "unrolled_thumbs",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("response", BigInteger),
    Column("conversation_id", String(32)),
    Column("up", Integer, nullable=False),
    Column("down", Integer, nullable=False),
    Column("at_s", Double, nullable=False),
)
"""Thumbs that were given, and taken back (below 0), still to be added to the rollups."""

replica_spans = Table(
    "replica_spans",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("replica", String(64), nullable=False),
    Column("deployment", String(64), nullable=False),
    Column("version", String(128), nullable=False),
    Column("process_s", Double, nullable=False),
    Column("share", Double, nullable=False),
    Column("price_per_hour", Double),
    Column("basis", Text, nullable=False),
    Column("started_s", Double, nullable=False),
    Column("seen_s", Double, nullable=False),
    Column("ended_s", Double, index=True),
)
"""Which replica held which `share` of a machine from when to when, and what the whole machine cost an
hour then (NULL: nobody said). `process_s` tells a process from the next one of the same name.
`ended_s` is NULL while it goes on; then it was last seen at `seen_s`. The replica with the empty name
is the machine itself, while a controller runs. Servers that others run have a share of 0."""

replica_hours = Table(
    "replica_hours",
    metadata,
    Column("hour_s", BigInteger, primary_key=True, autoincrement=False),
    Column("deployment", String(64), primary_key=True),
    Column("version", String(128), primary_key=True),
    Column("held_ms", BigInteger, nullable=False),
    Column("worked_ms", BigInteger, nullable=False),
    Column("machine_ms", BigInteger, nullable=False),
    Column("unpriced_ms", BigInteger, nullable=False),
    Column("cost_nanos", BigInteger, nullable=False),
)
"""Hours that are over: how long replicas were held and worked, how much time of a whole machine that
was (`machine_ms`), how much of it had no price, and what the rest cost, in billionths of the currency's
unit. The empty deployment is the machine itself."""
