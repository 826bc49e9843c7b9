"""Reads the request log: pages of rows, newest first, and one row with its texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    select,
    text,
    union,
    union_all,
)

from thrifty.db.database import Database
from thrifty.db.request_log import COLUMNS, RecordedText
from thrifty.db.request_tables import DISLIKED, FAILED, SLOW_MS, UNVERSIONED
from thrifty.db.rollups import DAY_S
from thrifty.db.tables import feedback, request_texts, requests, rollups, versions

_COLUMNS = [requests.c[name] for name in COLUMNS]
_EQUAL = {
    "number": requests.c.id,
    "client_request_id": requests.c.client_request_id,
    "conversation_id": requests.c.conversation_id,
    "deployment": requests.c.deployment,
    "version": requests.c.version,
    "user": requests.c.end_user,
    "origin": requests.c.origin,
    "tenant": requests.c.tenant,
}

LogRow = dict[str, Any]
"""One row by the names of `request_log.COLUMNS`."""


@dataclass(frozen=True)
class RequestFilter:
    """Which requests are meant; None means any."""

    tenant: str | None = None
    """The empty tenant has the requests without a key."""
    number: int | None = None
    client_request_id: str | None = None
    conversation_id: str | None = None
    deployment: str | None = None
    version: str | None = None
    user: str | None = None
    origin: str | None = None
    error: str | None = None
    """An error's code, or `any`."""
    slower_ms: float | None = None
    """Only requests that took at least this long."""
    disliked: bool = False
    """Only requests with a thumb down, or a rating of at most 2."""
    since_s: float | None = None
    until_s: float | None = None


def list_requests(
    database: Database,
    wanted: RequestFilter,
    *,
    before: int | None = None,
    above: int | None = None,
    limit: int = 100,
) -> tuple[list[LogRow], bool]:
    """The newest rows with an id below `before` and above `above`, and whether there are more.
    Quick in a log of any size where one of the filters has an index (`_DRIVERS`). Raises
    `DatabaseError`.
    """
    conditions = _list_conditions(wanted, steer=database.is_sqlite)
    if before is not None:
        conditions.append(requests.c.id < before)
    if above is not None:
        conditions.append(requests.c.id > above)
    query = select(*_COLUMNS).order_by(requests.c.id.desc()).limit(limit + 1)
    with database.begin() as connection:
        if wanted.deployment is not None and _find_driver(wanted) is None:
            ids = _list_by_version(connection, wanted.deployment, conditions, limit + 1)
            query = query.where(requests.c.id.in_(ids))
        else:
            query = query.where(*conditions)
        rows = [dict(row) for row in connection.execute(query).mappings()]
    return rows[:limit], len(rows) > limit


def read_texts(database: Database, number: int) -> RecordedText | None:
    """The recorded texts of a response; None if there are none. Raises `DatabaseError`."""
    table = request_texts
    query = select(table.c.prompt, table.c.answer, table.c.facts).where(table.c.id == number)
    with database.begin() as connection:
        row = connection.execute(query).first()
    return None if row is None else RecordedText(row.prompt, row.answer, row.facts)


def is_failed() -> ColumnElement[bool]:
    """Requests that failed, in the very words of the index of them: databases use it for no others."""
    return _in_words(FAILED, requests)


def _in_words(condition: str, table: Table) -> ColumnElement[bool]:
    """A condition of an index, with its columns named in full."""
    words = "|".join(column.name for column in table.columns)
    named = re.sub(rf"(?<!')\b({words})\b(?!')", rf"{table.name}.\1", condition)
    return text(f"({named})")  # type: ignore[return-value]


_DRIVERS = (
    "number", "client_request_id", "conversation_id", "user", "disliked", "error", "slower_ms",
    "tenant", "version",
)  # fmt: skip
"""The filters with an index, the one that leaves the fewest rows first."""


def _find_driver(wanted: RequestFilter) -> str | None:
    """The filter whose index is read. Requests slower than less than the least of `SLOW_MS`, and those
    without a tenant, have no index: they are common, and soon found.
    """
    for name in _DRIVERS:
        value = getattr(wanted, name)
        if value in (None, False) or (name == "tenant" and value == ""):
            continue
        if name != "slower_ms" or value >= SLOW_MS[0]:
            return name
    return None


def _list_conditions(wanted: RequestFilter, *, steer: bool) -> list[ColumnElement[bool]]:
    """The conditions of a filter. With `steer` all but the driver's are written so that no index
    serves them: SQLite keeps no figures of how rare values are, and would take the index of a tenant
    with millions of requests for that of its errors.
    """
    driver = _find_driver(wanted) if steer else None
    found: list[ColumnElement[bool]] = []
    for name, column in _EQUAL.items():
        value = getattr(wanted, name)
        if name == "tenant" and value == "":
            found.append(column.is_(None))
        elif value is not None:
            hidden = driver not in (None, name) and name in _DRIVERS and name != "number"
            found.append((column.concat("") if hidden else column) == value)
    if wanted.error is not None:
        failed = (requests.c.error.is_not(None)) | (requests.c.status >= 400)
        found.append(is_failed() if driver in (None, "error") else failed)
    if wanted.error not in (None, "any"):
        found.append(requests.c.error == wanted.error)
    if wanted.slower_ms is not None:
        found.append(requests.c.e2e_ms >= wanted.slower_ms)
        step = max((one for one in SLOW_MS if one <= wanted.slower_ms), default=None)
        if step is not None and driver in (None, "slower_ms"):
            found.append(_in_words(f"e2e_ms >= {step}", requests))
    if wanted.since_s is not None:
        found.append(requests.c.at_s >= wanted.since_s)
    if wanted.until_s is not None:
        found.append(requests.c.at_s < wanted.until_s)
    if wanted.disliked:
        disliked = select(feedback.c.response).where(
            feedback.c.response.is_not(None), _in_words(DISLIKED, feedback)
        )
        found.append(requests.c.id.in_(disliked))
    return found


def _list_by_version(
    connection: Connection, deployment: str, conditions: list[ColumnElement[bool]], limit: int
) -> Select[Any]:
    """The newest ids of a deployment's requests: the newest of each of its versions, which have an
    index, put together.
    """
    summed = (rollups.c.deployment == deployment) & (rollups.c.step_s == DAY_S)
    known = union(
        select(rollups.c.version).where(summed, rollups.c.version != ""),
        select(versions.c.label).where(versions.c.deployment == deployment),
    )
    of_versions = [requests.c.version == label for label in connection.execute(known).scalars()]
    newest = select(requests.c.id).order_by(requests.c.id.desc()).limit(limit)
    parts = [
        newest.where(*conditions, one).subquery()
        for one in (*of_versions, _in_words(UNVERSIONED, requests))
    ]
    return select(union_all(*(select(part.c.id) for part in parts)).subquery().c.id)
