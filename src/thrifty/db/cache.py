"""Cache state shared between gateway workers: purges and statistics.

A purge is a row. Every cached answer carries the newest purge that its worker knew when the
generation began. Answers from before and after a purge are thus told apart without comparing the
clocks of two machines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update

from thrifty.db.audit import record_act
from thrifty.db.changes import note_change
from thrifty.db.database import Database
from thrifty.db.tables import cache_purges, cache_stats

PURGE_KEEP_S = 30 * 86400.0
"""Purges are kept for this long; no answer is cached for longer."""
STATS_KEEP_S = 86400.0
LIVE_S = 15.0
"""A worker that wrote its statistics within this time is considered running."""


@dataclass(frozen=True)
class Purge:
    """Invalidates the answers of a deployment, a version and a tenant; None matches all."""

    id: int
    deployment: str | None = None
    version: str | None = None
    tenant: str | None = None

    def matches(self, deployment: str, version: str, tenant: str) -> bool:
        """Whether it covers these answers."""
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
    who: str = "",
) -> Purge:
    """Purge the caches of every worker; without filters, purge everything. Workers see it within a
    quarter of a second. `who` does it, for the audit log.
    """
    with database.begin() as connection:
        note_change(connection)  # first, so that purges wait for each other
        newest = connection.execute(select(func.max(cache_purges.c.id))).scalar() or 0
        now_ms = round(time.time() * 1e3)
        purge = Purge(max(now_ms, newest + 1), deployment, version, tenant)
        # Remove repeated purges, and those that are too old to matter.
        same = (
            cache_purges.c.deployment.is_not_distinct_from(deployment)
            & cache_purges.c.version.is_not_distinct_from(version)
            & cache_purges.c.tenant.is_not_distinct_from(tenant)
        )
        too_old = cache_purges.c.id < now_ms - PURGE_KEEP_S * 1e3
        connection.execute(delete(cache_purges).where(same | too_old))
        connection.execute(insert(cache_purges).values(vars(purge)))
        record_act(
            connection, "cache.purge", who, names={"tenant": tenant}, deployment=deployment,
            version=version,
        )  # fmt: skip
    return purge


def read_purges(connection: Connection) -> list[Purge]:
    """All purges that are still in effect, oldest first."""
    rows = connection.execute(select(cache_purges).order_by(cache_purges.c.id)).mappings().all()
    return [Purge(**row) for row in rows]


def save_cache_stats(database: Database, worker: str, stats: Mapping[str, Any]) -> None:
    """Write the statistics of one worker."""
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
    """Remove the statistics of a worker that ends."""
    with database.begin() as connection:
        connection.execute(delete(cache_stats).where(cache_stats.c.worker == worker))


def read_cache_stats(database: Database) -> list[dict[str, Any]]:
    """The statistics of running workers."""
    oldest_s = time.time() - LIVE_S
    query = select(cache_stats).where(cache_stats.c.updated_s >= oldest_s)
    with database.begin() as connection:
        rows: Sequence[Any] = connection.execute(query.order_by(cache_stats.c.worker)).all()
    return [{"worker": row.worker, **msgspec.json.decode(row.stats)} for row in rows]
