"""Which replica held the machine from when to when, as the controller sees it.

A controller calls `SpanRecorder.record` whenever replicas come and go, and every few seconds. A span
goes on while the same process holds the same share at the same price. Where a controller was killed,
its spans end when they were last seen, unless the next controller finds the processes alive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select, update

from thrifty.db.database import Database
from thrifty.db.sanitize import sanitize_values
from thrifty.db.tables import replica_hours, replica_spans

MACHINE = ""
"""The replica and deployment that stand for the whole machine."""
JUMP_S = 10.0
"""If the wall clock and the monotonic one differ by more since the last record, the wall clock was
set, or the machine slept."""
KEEP_S = 400 * 86400.0
_SAME = ("deployment", "version", "process_s", "share", "price_per_hour", "basis")


@dataclass(frozen=True)
class Holding:
    """A replica that holds a share of the machine (0 to 1), and what the machine costs an hour."""

    replica: str
    deployment: str
    version: str
    process_s: float
    """When its process was created, in seconds since 1970; 0 where there is none of ours."""
    share: float
    price_per_hour: float | None
    basis: str
    """Where the price is from."""


@dataclass(frozen=True)
class Span:
    """A time during which a replica held the machine; `until_s` is when it was last seen."""

    replica: str
    deployment: str
    version: str
    share: float
    price_per_hour: float | None
    basis: str
    from_s: float
    until_s: float


class SpanRecorder:
    """Records the spans of one controller. Used by one thread at a time."""

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._last: tuple[float, float] | None = None
        """When it recorded last, by both clocks."""

    def record(self, database: Database, holdings: Iterable[Holding]) -> None:
        """Record what is held now; what is not named any more has ended. Raises `DatabaseError`."""
        wall_s, monotonic_s = self._clock(), self._monotonic()
        ended_s, jumped = wall_s, False
        if self._last is not None:
            expected_s = self._last[0] + monotonic_s - self._last[1]
            jumped = abs(wall_s - expected_s) > JUMP_S
            ended_s = expected_s if jumped else wall_s
        fresh = {one.replica: one for one in holdings}
        with database.begin() as connection:
            for row in connection.execute(
                select(replica_spans).where(replica_spans.c.ended_s.is_(None))
            ).all():
                found = fresh.get(row.replica)
                if found is not None and not jumped and _is_same(row, found):
                    del fresh[row.replica]
                    continue
                # What an earlier controller left, and is not there, ended when nobody looked.
                lives = found is not None and found.process_s == row.process_s
                end_s = row.seen_s if self._last is None and not lives else ended_s
                _end(connection, replica_spans.c.id == row.id, end_s)
            connection.execute(
                update(replica_spans).where(replica_spans.c.ended_s.is_(None)).values(seen_s=wall_s)
            )
            for one in fresh.values():
                values = vars(one) | {"started_s": wall_s, "seen_s": wall_s}
                connection.execute(
                    insert(replica_spans).values(sanitize_values(replica_spans, values))
                )
        self._last = (wall_s, monotonic_s)

    def end_all(self, database: Database) -> None:
        """Record that nothing is held any more. Raises `DatabaseError`."""
        self.record(database, ())


def _is_same(row: Any, holding: Holding) -> bool:
    return all(row._mapping[name] == getattr(holding, name) for name in _SAME)


def _end(connection: Connection, which: Any, end_s: float) -> None:
    started_s = replica_spans.c.started_s
    connection.execute(update(replica_spans).where(which).values(ended_s=end_s, seen_s=end_s))
    # A clock that was set back must not make a time below zero.
    connection.execute(
        update(replica_spans)
        .where(which, started_s > end_s)
        .values(ended_s=started_s, seen_s=started_s)
    )


def read_spans(connection: Connection, from_s: float, until_s: float) -> list[Span]:
    """The spans that overlap a time, cut to it, the oldest first."""
    table = replica_spans
    query = (
        select(table)
        .where(table.c.started_s < until_s, table.c.seen_s > from_s)
        .where(or_(table.c.ended_s.is_(None), table.c.ended_s > from_s))
        .order_by(table.c.started_s, table.c.id)
    )
    return [
        Span(
            row.replica, row.deployment, row.version, row.share, row.price_per_hour, row.basis,
            max(row.started_s, from_s), min(row.seen_s, until_s),
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def read_first_span_s(connection: Connection, after_s: float) -> float | None:
    """When the first span that was still going on after `after_s` began; None: there is none."""
    table = replica_spans
    query = select(table.c.started_s).where(table.c.seen_s > after_s)
    return connection.execute(query.order_by(table.c.started_s).limit(1)).scalar()


@dataclass(frozen=True)
class HeldHour:
    """One version's hour; see `tables.replica_hours`."""

    hour_s: int
    deployment: str
    version: str
    held_ms: int
    worked_ms: int
    machine_ms: int
    unpriced_ms: int
    cost_nanos: int


def read_hours(connection: Connection, from_s: float, until_s: float) -> list[HeldHour]:
    """The hours that are settled and begin in a time."""
    table = replica_hours
    query = select(table).where(table.c.hour_s >= from_s, table.c.hour_s < until_s)
    return [HeldHour(**row) for row in connection.execute(query).mappings()]


def read_settled_until_s(connection: Connection) -> int | None:
    """The end of the newest hour that is settled; None: none is."""
    query = select(replica_hours.c.hour_s).order_by(replica_hours.c.hour_s.desc()).limit(1)
    newest = connection.execute(query).scalar()
    return None if newest is None else int(newest) + 3600


def save_hours(database: Database, hours: Sequence[HeldHour]) -> None:
    """Settle hours; those that are settled already stay as they are. Raises `DatabaseError`."""
    with database.begin() as connection:
        for hour in hours:
            known = (
                (replica_hours.c.hour_s == hour.hour_s)
                & (replica_hours.c.deployment == hour.deployment)
                & (replica_hours.c.version == hour.version)
            )
            if connection.execute(select(replica_hours.c.hour_s).where(known)).first() is None:
                connection.execute(insert(replica_hours).values(**vars(hour)))


def prune_spans(database: Database, now_s: float, keep_hours_s: float) -> None:
    """Delete spans that ended more than 400 days ago, and hours older than `keep_hours_s`. Raises
    `DatabaseError`.
    """
    with database.begin() as connection:
        newest = read_settled_until_s(connection)
        # A clock that jumps ahead deletes nothing.
        now_s = min(now_s, newest or now_s)
        connection.execute(delete(replica_spans).where(replica_spans.c.ended_s < now_s - KEEP_S))
        connection.execute(
            delete(replica_hours).where(replica_hours.c.hour_s < now_s - keep_hours_s)
        )
