"""What gateway workers tell each other about their caches: purges, and figures.

A purge is a row. Every answer in a cache carries the newest purge that its worker knew of when the
generation began, so that an answer from before a purge is told from one after it without comparing
the clocks of two machines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update

from thrifty.db.changes import note_change
from thrifty.db.database import Database
from thrifty.db.tables import cache_purges, cache_stats

PURGE_KEEP_S = 30 * 86400.0
"""Purges are known for so long; no answer is kept anywhere for longer."""
STATS_KEEP_S = 86400.0
LIVE_S = 15.0
"""A worker that wrote its figures within this time is taken to be running."""


@dataclass(frozen=True)
class Purge:
    """Forget the answers of a deployment, a version and a tenant, each where it is given."""

    id: int
    deployment: str | None = None
    version: str | None = None
    tenant: str | None = None

    def matches(self, deployment: str, version: str, tenant: str) -> bool:
        """Whether it is about these answers."""
        return (
            self.deployment in (None, deployment)
            and self.version in (None, version)
            and self.tenant in (None, tenant)
        )


def add_purge(
    database: Database,
    *,
    deployment: str | None = None,
    version: str | None = None,
    tenant: str | None = None,
) -> Purge:
    """Have every worker forget answers; without filters, all. Workers see it within a quarter of a
    second.
    """
    with database.begin() as connection:
        note_change(connection)  # first: it makes purges wait for each other
        newest = connection.execute(select(func.max(cache_purges.c.id))).scalar() or 0
        now_ms = round(time.time() * 1e3)
        purge = Purge(max(now_ms, newest + 1), deployment, version, tenant)
        # One that is repeated, or too old to matter, need not be kept.
        same = (
            cache_purges.c.deployment.is_not_distinct_from(deployment)
            & cache_purges.c.version.is_not_distinct_from(version)
            & cache_purges.c.tenant.is_not_distinct_from(tenant)
        )
        too_old = cache_purges.c.id < now_ms - PURGE_KEEP_S * 1e3
        connection.execute(delete(cache_purges).where(same | too_old))
        connection.execute(insert(cache_purges).values(vars(purge)))
    return purge


def read_purges(connection: Connection) -> list[Purge]:
    """Every purge that still matters, the oldest first."""
    rows = connection.execute(select(cache_purges).order_by(cache_purges.c.id)).mappings().all()
    return [Purge(**row) for row in rows]


def save_cache_stats(database: Database, worker: str, stats: Mapping[str, Any]) -> None:
    """Write one worker's figures."""
    values = {
        "worker": worker,
        "updated_s": time.time(),
        "stats": msgspec.json.encode(stats).decode(),
    }
    with database.begin() as connection:
        known = connection.execute(
            update(cache_stats).where(cache_stats.c.worker == worker).values(values)
        )
        if known.rowcount == 0:
            too_old = cache_stats.c.updated_s < time.time() - STATS_KEEP_S
            connection.execute(delete(cache_stats).where(too_old))
            connection.execute(insert(cache_stats).values(values))


def remove_cache_stats(database: Database, worker: str) -> None:
    """Forget the figures of a worker that ends."""
    with database.begin() as connection:
        connection.execute(delete(cache_stats).where(cache_stats.c.worker == worker))


def read_cache_stats(database: Database) -> list[dict[str, Any]]:
    """The figures of the workers that run."""
    oldest_s = time.time() - LIVE_S
    query = select(cache_stats).where(cache_stats.c.updated_s >= oldest_s)
    with database.begin() as connection:
        rows: Sequence[Any] = connection.execute(query.order_by(cache_stats.c.worker)).all()
    return [{"worker": row.worker, **msgspec.json.decode(row.stats)} for row in rows]
