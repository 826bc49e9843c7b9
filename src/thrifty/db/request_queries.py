"""Reads the request log: pages of rows, newest first, and one row with its texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, select, text

from thrifty.db.database import Database
from thrifty.db.request_log import COLUMNS, RecordedText
from thrifty.db.tables import feedback, request_texts, requests

MAX_DISLIKED_RATING = 2
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
    """Only requests with a thumb down, or a rating of at most `MAX_DISLIKED_RATING`."""
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
    Raises `DatabaseError`.
    """
    query = _choose(wanted)
    if before is not None:
        query = query.where(requests.c.id < before)
    if above is not None:
        query = query.where(requests.c.id > above)
    query = query.order_by(requests.c.id.desc()).limit(limit + 1)
    with database.begin() as connection:
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
    return text("(requests.error IS NOT NULL OR requests.status >= 400)")  # type: ignore[return-value]


def _choose(wanted: RequestFilter) -> Select[Any]:
    query = select(*_COLUMNS)
    for name, column in _EQUAL.items():
        value = getattr(wanted, name)
        if name == "tenant" and value == "":
            query = query.where(column.is_(None))
        elif value is not None:
            query = query.where(column == value)
    if wanted.error is not None:
        query = query.where(is_failed())
    if wanted.error not in (None, "any"):
        query = query.where(requests.c.error == wanted.error)
    if wanted.slower_ms is not None:
        query = query.where(requests.c.e2e_ms >= wanted.slower_ms)
    if wanted.since_s is not None:
        query = query.where(requests.c.at_s >= wanted.since_s)
    if wanted.until_s is not None:
        query = query.where(requests.c.at_s < wanted.until_s)
    if wanted.disliked:
        down = (feedback.c.kind == "thumbs") & (feedback.c.value == 0)
        poor = (feedback.c.kind == "rating") & (feedback.c.value <= MAX_DISLIKED_RATING)
        disliked = select(feedback.c.response).where(feedback.c.response.is_not(None), down | poor)
        query = query.where(requests.c.id.in_(disliked))
    return query
