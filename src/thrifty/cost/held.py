"""Hours of replicas: how long each version held the machine, and how much of that was work.

A replica works while it has a request. Of each minute, a version's replicas worked as long as their
requests were there, added up, but no longer than the replicas were held: requests at the same time
share a replica. So time is overstated where requests of one minute overlap and leave the replica
without any for the rest of it, and never beyond that minute.

Hours that are over, and whose rows are in the rollups, are settled once (`settle`); the report works
out newer ones each time (`read_held`), from the same function.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, select

from thrifty.cost.amounts import price_time
from thrifty.db import Database
from thrifty.db.replica_spans import (
    MACHINE,
    HeldHour,
    Span,
    prune_spans,
    read_first_span_s,
    read_hours,
    read_settled_until_s,
    read_spans,
    save_hours,
)
from thrifty.db.rollups import HOUR_S, MINUTE_S
from thrifty.db.tables import rollups

LATE_S = 3600.0
"""A row is written when its request has ended, so that an hour is settled this long after its end."""
SETTLE_HOURS = 24
"""Hours that are settled in one transaction."""

Version = tuple[str, str]
"""A deployment and the label of a version."""


def settle(database: Database, keep_hours_s: float, now_s: float | None = None) -> int:
    """Settle hours that are over, the oldest first, a day at most; returns how many hours that
    were. Call it while nothing waits to be added to the rollups. Raises `DatabaseError`.
    """
    now_s = time.time() if now_s is None else now_s
    with database.begin() as connection:
        since_s = read_settled_until_s(connection)
        first_s = read_first_span_s(connection, since_s or 0.0)
        if first_s is None:
            return 0
        start = max(_floor(first_s), since_s or 0)
        end = min(_floor(now_s - LATE_S), start + SETTLE_HOURS * HOUR_S)
        if end <= start:
            return 0
        hours = compute_hours(connection, start, end)
    save_hours(database, hours)
    prune_spans(database, now_s, keep_hours_s)
    return (end - start) // HOUR_S if hours else 0


def read_held(connection: Connection, from_s: int, until_s: float) -> list[HeldHour]:
    """The hours of a time that begins with a full hour: as they were settled, or as they are known
    so far. The last one ends at `until_s`.
    """
    settled = read_settled_until_s(connection) or 0
    known = read_hours(connection, from_s, until_s)
    start = max(from_s, settled)
    if start >= until_s:
        return known
    return known + compute_hours(connection, start, until_s)


def compute_hours(connection: Connection, from_s: int, until_s: float) -> list[HeldHour]:
    """What spans and rollups say of the hours from a full one on."""
    spans = read_spans(connection, from_s, until_s)
    found: list[HeldHour] = []
    # The busy times of minutes that are not kept any more are missing; then nothing worked.
    busy = _read_busy(connection, from_s, until_s)
    for hour_s in range(from_s, int(-(-until_s // 1)), HOUR_S):
        cut = [one for one in spans if one.from_s < hour_s + HOUR_S and one.until_s > hour_s]
        found += _compute_hour(hour_s, cut, busy)
    return found


def _compute_hour(
    hour_s: int, spans: Iterable[Span], busy: Mapping[tuple[str, str, int], float]
) -> list[HeldHour]:
    by_version: dict[Version, list[Span]] = defaultdict(list)
    for span in spans:
        by_version[span.deployment, span.version].append(span)
    hours = []
    for (deployment, version), own in sorted(by_version.items()):
        held = machine = unpriced = nanos = 0
        for span in own:
            time_ms = _overlap_ms(span, hour_s, hour_s + HOUR_S)
            share_ms = round(time_ms * span.share)
            held += time_ms
            machine += share_ms
            if span.price_per_hour is None:
                unpriced += share_ms
            else:
                nanos += price_time(share_ms, span.price_per_hour)
        worked = sum(
            min(
                round(busy.get((deployment, version, minute), 0.0)),
                sum(_overlap_ms(span, minute, minute + MINUTE_S) for span in own),
            )
            for minute in range(hour_s, hour_s + HOUR_S, MINUTE_S)
        )
        hours.append(
            HeldHour(hour_s, deployment, version, held, min(worked, held), machine, unpriced, nanos)
        )
    return hours


def _read_busy(
    connection: Connection, from_s: int, until_s: float
) -> dict[tuple[str, str, int], float]:
    """How long requests were at replicas, added up, by deployment, version and minute."""
    table = rollups
    query = select(
        table.c.deployment, table.c.version, table.c.at_s, table.c.busy_ms, table.c.other_busy_ms
    ).where(table.c.step_s == MINUTE_S, table.c.at_s >= from_s, table.c.at_s < until_s)
    return {
        (row.deployment, row.version, row.at_s): row.busy_ms + row.other_busy_ms
        for row in connection.execute(query)
        if row.deployment != MACHINE
    }


def _overlap_ms(span: Span, from_s: float, until_s: float) -> int:
    return max(0, round((min(span.until_s, until_s) - max(span.from_s, from_s)) * 1000))


def _floor(at_s: float) -> int:
    return int(at_s // HOUR_S) * HOUR_S
