"""What alerts are made from, and what is kept of them: counts of the request log, thumbs, spending,
open alerts and silences.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from sqlalchemy import Integer, case, cast, delete, false, func, insert, or_, select, update

from thrifty.db.audit import record_act
from thrifty.db.database import Database
from thrifty.db.tables import alert_silences, alerts, key_spend, keys, requests, rollups

HOUR_S = 3600
KEEP_S = 7 * 86400.0
"""Alerts that are over are kept this long."""


class Objective(NamedTuple):
    """The latencies, in milliseconds, that requests of one version should stay within."""

    deployment: str
    version: str
    ttft_ms: float | None
    tpot_ms: float | None


class MinuteCount(NamedTuple):
    """Requests of one version that began in one minute (since 1970)."""

    minute: int
    deployment: str
    version: str
    judged: int
    failed: int
    slow: int


@dataclass(frozen=True)
class AlertRow:
    """One alert. Times are seconds since 1970."""

    key: str
    kind: str
    severity: str
    deployment: str
    version: str
    summary: str
    runbook: str
    since_s: float
    seen_s: float
    """When it was found last."""
    resolved_s: float | None = None
    told: str = "{}"
    """JSON: what each target was told last, and when."""


@dataclass(frozen=True)
class Silence:
    """Alerts that nobody is told of for a while; None means any."""

    kind: str | None
    deployment: str | None
    version: str | None
    until_s: float
    why: str
    id: int = 0

    def covers(self, kind: str, deployment: str, version: str, now_s: float) -> bool:
        """Whether it silences an alert now."""
        pairs = ((self.kind, kind), (self.deployment, deployment), (self.version, version))
        return now_s < self.until_s and all(mine in (None, other) for mine, other in pairs)


def count_verdicts(
    database: Database, from_s: float, until_s: float, objectives: Sequence[Objective]
) -> list[MinuteCount]:
    """Counts of clients' requests that began in a time, by minute and version. A request is judged
    unless it was refused with a 4xx; it failed by a 5xx or an error in its answer; it is slow if it
    did not fail and missed an objective. Raises `DatabaseError`.
    """
    table = requests
    minute: Any = (
        cast(table.c.at_s / 60, Integer) if database.is_sqlite else func.floor(table.c.at_s / 60)
    )
    judged = (table.c.status < 400) | (table.c.status >= 500)
    failed = (table.c.status >= 500) | ((table.c.status < 400) & table.c.error.is_not(None))
    missed = [condition for one in objectives for condition in _list_misses(one)]
    slow = judged & ~failed & or_(false(), *missed)
    query = (
        select(
            minute, func.coalesce(table.c.deployment, ""), func.coalesce(table.c.version, ""),
            func.sum(case((judged, 1), else_=0)), func.sum(case((failed, 1), else_=0)),
            func.sum(case((slow, 1), else_=0)),
        )
        .where(table.c.at_s >= from_s, table.c.at_s < until_s)
        .where(table.c.origin.is_(None) | (table.c.origin == "client"))
        .group_by(minute, table.c.deployment, table.c.version)
    )  # fmt: skip
    with database.begin() as connection:
        return [
            MinuteCount(int(row[0]), row[1], row[2], int(row[3]), int(row[4]), int(row[5]))
            for row in connection.execute(query)
        ]


def _list_misses(objective: Objective) -> Iterable[Any]:
    own = (requests.c.deployment == objective.deployment) & (
        requests.c.version == objective.version
    )
    if objective.ttft_ms is not None:
        # Of an answer that comes whole the first token cannot be seen.
        yield own & requests.c.stream.is_(True) & (requests.c.ttft_ms > objective.ttft_ms)
    if objective.tpot_ms is not None:
        yield own & (requests.c.tpot_ms > objective.tpot_ms)


def count_thumbs(
    database: Database, from_s: float, until_s: float
) -> dict[tuple[str, str], tuple[int, int]]:
    """Thumbs up and down on answers of a time, by version, from the rollups. Raises
    `DatabaseError`.
    """
    query = (
        select(
            rollups.c.deployment,
            rollups.c.version,
            func.sum(rollups.c.up),
            func.sum(rollups.c.down),
        )
        .where(rollups.c.step_s == HOUR_S, rollups.c.at_s >= from_s, rollups.c.at_s < until_s)
        .group_by(rollups.c.deployment, rollups.c.version)
    )
    with database.begin() as connection:
        return {(row[0], row[1]): (int(row[2]), int(row[3])) for row in connection.execute(query)}


class Spending(NamedTuple):
    """What a key has spent of its budget, in a day or a month (UTC)."""

    key: str
    period: str
    spent: float
    budget: float


def read_spending(database: Database, now_s: float) -> list[Spending]:
    """Each budget of each key, and what was spent of it. Raises `DatabaseError`."""
    day = time.strftime("%Y-%m-%d", time.gmtime(now_s))
    found = []
    with database.begin() as connection:
        query = select(keys.c.id, keys.c.name, keys.c.budget_day, keys.c.budget_month)
        for key_id, name, *budgets in connection.execute(query.where(keys.c.revoked_s.is_(None))):
            for period, budget, first in zip(
                ("day", "month"), budgets, (day, f"{day[:8]}01"), strict=True
            ):
                if budget is None:
                    continue
                spent = select(func.coalesce(func.sum(key_spend.c.spend), 0.0)).where(
                    key_spend.c.key_id == key_id, key_spend.c.day >= first, key_spend.c.day <= day
                )
                found.append(
                    Spending(name, period, float(connection.execute(spent).scalar_one()), budget)
                )
    return found


def read_alerts(database: Database) -> list[AlertRow]:
    """All alerts that are known, the newest first. Raises `DatabaseError`."""
    with database.begin() as connection:
        rows = connection.execute(select(alerts).order_by(alerts.c.since_s.desc())).mappings()
        return [AlertRow(**row) for row in rows]


def save_alerts(database: Database, rows: Sequence[AlertRow]) -> None:
    """Write alerts, and delete those that have been over for long. Raises `DatabaseError`."""
    with database.begin() as connection:
        for row in rows:
            values = asdict(row)
            found = connection.execute(
                update(alerts).where(alerts.c.key == row.key).values(values)
            ).rowcount
            if not found:
                connection.execute(insert(alerts).values(values))
        connection.execute(delete(alerts).where(alerts.c.resolved_s < time.time() - KEEP_S))


def read_silences(database: Database) -> list[Silence]:
    """The silences that hold, the next to end first. Raises `DatabaseError`."""
    table = alert_silences
    query = select(table).where(table.c.until_s > time.time()).order_by(table.c.until_s)
    with database.begin() as connection:
        return [
            Silence(row.kind, row.deployment, row.version, row.until_s, row.why, row.id)
            for row in connection.execute(query)
        ]


def add_silence(database: Database, silence: Silence, who: str) -> int:
    """Keep a silence; returns its number. It is an administrative act of `who`. Raises
    `DatabaseError`.
    """
    values = asdict(silence)
    del values["id"]
    with database.begin() as connection:
        connection.execute(delete(alert_silences).where(alert_silences.c.until_s < time.time()))
        made = connection.execute(insert(alert_silences).values(values)).inserted_primary_key
        record_act(
            connection, "alert.silence", who, kind=silence.kind, deployment=silence.deployment,
            version=silence.version, until_s=int(silence.until_s),
        )  # fmt: skip
    return int(made[0]) if made is not None else 0


def remove_silence(database: Database, number: int, who: str) -> bool:
    """End a silence; returns whether there was one. Raises `DatabaseError`."""
    with database.begin() as connection:
        query = delete(alert_silences).where(alert_silences.c.id == number)
        found = connection.execute(query).rowcount > 0
        if found:
            record_act(connection, "alert.unsilence", who, silence=number)
    return found
