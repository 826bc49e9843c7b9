"""Feedback: saved once for each kind, joined to the request log when it is read.

A response's row may be written after the feedback on it, and is found all the same. Feedback on a
conversation is joined to the conversation's newest response.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from thrifty.db.database import Database
from thrifty.db.rollups import note_thumb
from thrifty.db.sanitize import sanitize_values
from thrifty.db.tables import feedback, feedback_history, requests
from thrifty.errors import NameTakenError, ThriftyError

MAX_ITEMS = 100
"""The most kinds of feedback by one user on one response or conversation."""
MAX_USER_DAY = 1000
"""The most new pieces of feedback by one user of a tenant in 24 hours."""
MAX_HISTORY = 50
"""The most replaced values that are kept of one piece of feedback."""
DELETE_ROWS = 5_000
DAY_S = 86400.0
THUMBS = "thumbs"


class FeedbackLimitError(ThriftyError):
    """One user gives more feedback than is kept."""


@dataclass(frozen=True)
class Item:
    """One kind of feedback with its value: a number, a text, or both."""

    kind: str
    value: float | None = None
    text: str | None = None


@dataclass(frozen=True)
class Feedback:
    """Feedback on one response (its number) or one conversation."""

    tenant: str
    items: tuple[Item, ...]
    response: int | None = None
    conversation_id: str | None = None
    user: str | None = None
    client_id: str | None = None
    """What the client calls it: the same id replaces what was given under it before."""
    tags: str | None = None
    """JSON."""
    by_token: bool = False
    """Whether a token for this response was the permission to give it, not an API key."""

    def identify(self, kind: str) -> str:
        """What is the same for two pieces of feedback of which the second replaces the first.

        Ids of token holders belong to their response, so that nobody can occupy those of others.
        """
        target = self.response if self.response is not None else self.conversation_id
        parts: tuple[Any, ...] = (self.tenant, target, self.user or "", kind)
        if self.client_id is not None:
            own = target if self.by_token else None
            parts = ("id", self.tenant, own, self.client_id, kind)
        return blake2b(msgspec.json.encode(parts), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Saved:
    """What became of feedback: the ids of its rows, how many are new, and whether the response or
    conversation is in the request log already.
    """

    ids: tuple[int, ...]
    created: int
    joined: bool


def save_feedback(database: Database, given: Feedback, now_s: float | None = None) -> Saved:
    """Save feedback in one transaction; a value that is known and differs goes to the history.

    Raises `NameTakenError` if its id was used for another response or conversation,
    `FeedbackLimitError` if the user gives more than is kept, and `DatabaseError`.
    """
    at_s = time.time() if now_s is None else now_s
    # In one order, so that two transactions do not wait for each other.
    items = {given.identify(item.kind): item for item in given.items}
    ids, created = [], 0
    with database.begin() as connection:
        known = set(
            connection.execute(
                select(feedback.c.identity).where(feedback.c.identity.in_(items))
            ).scalars()
        )
        if len(known) < len(items):
            _check_room(connection, given, len(items) - len(known), at_s)
        for identity in sorted(items):
            if _insert(connection, given, identity, items[identity], at_s):
                created += 1
            else:
                _replace(connection, given, identity, items[identity], at_s)
            wanted = select(feedback.c.id).where(feedback.c.identity == identity)
            ids.append(int(connection.execute(wanted).scalar_one()))
        joined = connection.execute(select(requests.c.id).where(_is_target(given)).limit(1)).first()
    return Saved(tuple(ids), created, joined is not None)


def _is_target(given: Feedback) -> ColumnElement[bool]:
    if given.response is not None:
        return requests.c.id == given.response
    return requests.c.conversation_id == given.conversation_id


def _check_room(connection: Connection, given: Feedback, count: int, now_s: float) -> None:
    user = given.user
    same_user = feedback.c.end_user.is_(None) if user is None else feedback.c.end_user == user
    if given.response is not None:
        target = feedback.c.response == given.response
    else:
        target = feedback.c.conversation_id == given.conversation_id
    if _count(connection, target & same_user, MAX_ITEMS) + count > MAX_ITEMS:
        raise FeedbackLimitError(
            f"one user gave {MAX_ITEMS} kinds of feedback on this already, the most that are kept"
        )
    if user is None:
        return
    today = (feedback.c.tenant == given.tenant) & same_user & (feedback.c.at_s > now_s - DAY_S)
    if _count(connection, today, MAX_USER_DAY) + count > MAX_USER_DAY:
        raise FeedbackLimitError(
            f"this user gave {MAX_USER_DAY} pieces of feedback within 24 hours, the most that are kept"
        )


def _count(connection: Connection, condition: ColumnElement[bool], most: int) -> int:
    found = select(feedback.c.id).where(condition).limit(most).subquery()
    return int(connection.execute(select(func.count()).select_from(found)).scalar_one())


def _insert(
    connection: Connection, given: Feedback, identity: str, item: Item, at_s: float
) -> bool:
    """Insert one row; returns whether it is new."""
    values = sanitize_values(
        feedback,
        {
            "identity": identity, "kind": item.kind, "tenant": given.tenant,
            "response": given.response, "conversation_id": given.conversation_id,
            "end_user": given.user, "client_id": given.client_id,
            "source": "token" if given.by_token else "key", "value": item.value,
            "text": item.text, "tags": given.tags, "at_s": at_s, "updated_s": at_s, "changes": 0,
        },
    )  # fmt: skip
    kind = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = kind.insert(feedback).values(values)
    statement = statement.on_conflict_do_nothing(index_elements=["identity"])
    if connection.execute(statement.returning(feedback.c.id)).first() is None:
        return False
    if item.kind == THUMBS:
        note_thumb(connection, given.response, given.conversation_id, None, item.value, at_s)
    return True


def _replace(
    connection: Connection, given: Feedback, identity: str, item: Item, at_s: float
) -> None:
    """Replace the value of a known row, if the new one differs."""
    row = connection.execute(
        select(feedback).where(feedback.c.identity == identity).with_for_update()
    ).one()
    if (row.response, row.conversation_id) != (given.response, given.conversation_id):
        raise NameTakenError(
            f"the id {given.client_id!r} was used for feedback on another response or conversation"
        )
    fresh = sanitize_values(feedback, {"value": item.value, "text": item.text, "tags": given.tags})
    old = {"value": row.value, "text": row.text, "tags": row.tags}
    if fresh == old:
        return
    connection.execute(
        insert(feedback_history).values(feedback_id=row.id, at_s=row.updated_s, **old)
    )
    connection.execute(
        update(feedback)
        .where(feedback.c.id == row.id)
        .values(**fresh, updated_s=at_s, changes=row.changes + 1)
    )
    if item.kind == THUMBS:
        note_thumb(connection, given.response, given.conversation_id, row.value, item.value, at_s)
    newest = (
        select(feedback_history.c.id)
        .where(feedback_history.c.feedback_id == row.id)
        .order_by(feedback_history.c.id.desc())
        .limit(MAX_HISTORY)
    )
    connection.execute(
        delete(feedback_history).where(
            feedback_history.c.feedback_id == row.id, feedback_history.c.id.not_in(newest)
        )
    )


@dataclass(frozen=True)
class FeedbackRow:
    """One piece of feedback with what the request log tells of its response."""

    id: int
    kind: str
    tenant: str
    response: int | None
    conversation_id: str | None
    user: str | None
    client_id: str | None
    source: str
    value: float | None
    text: str | None
    tags: str | None
    at_s: float
    updated_s: float
    changes: int
    joined: int | None
    """The number of the response that it was joined to; None if that is not in the log."""
    deployment: str | None
    version: str | None
    replica: str | None
    cache: str | None


@dataclass(frozen=True)
class FeedbackFilter:
    """Which feedback is meant; None means any."""

    tenant: str | None = None
    response: int | None = None
    conversation_id: str | None = None
    kind: str | None = None
    deployment: str | None = None
    version: str | None = None
    user: str | None = None
    since_s: float | None = None
    until_s: float | None = None
    untriaged: bool = False
    """Only what people said (no events, no scores) of answers that nobody has triaged."""


TRIAGE = "score:triage"
"""The kind of the feedback by which a person says that feedback was looked at."""
_newer = requests.alias("newer")
_newest_of_conversation = (
    select(func.max(_newer.c.id))
    .where(_newer.c.conversation_id == feedback.c.conversation_id)
    .scalar_subquery()
)
_joined = feedback.outerjoin(
    requests, requests.c.id == func.coalesce(feedback.c.response, _newest_of_conversation)
)
_user = func.coalesce(feedback.c.end_user, requests.c.end_user)


def find_feedback(
    database: Database, feedback_id: int, tenant: str | None
) -> tuple[str, int | None, str | None] | None:
    """The tenant, the response and the conversation of one piece of feedback, of one tenant or (None)
    of any; None where there is none. Raises `DatabaseError`.
    """
    query = select(feedback.c.tenant, feedback.c.response, feedback.c.conversation_id).where(
        feedback.c.id == feedback_id
    )
    if tenant is not None:
        query = query.where(feedback.c.tenant == tenant)
    with database.begin() as connection:
        row = connection.execute(query).first()
    return None if row is None else (row[0], row[1], row[2])


def list_feedback(
    database: Database, wanted: FeedbackFilter, *, before: int | None = None, limit: int = 100
) -> tuple[list[FeedbackRow], bool]:
    """The newest rows with an id below `before`, and whether there are more. Raises
    `DatabaseError`.
    """
    columns = [feedback.c[name] for name in FeedbackRow.__annotations__ if name in _OWN]
    query = select(
        *columns, _user.label("user"), requests.c.id.label("joined"), requests.c.deployment,
        requests.c.version, requests.c.replica, requests.c.cache,
    ).select_from(_joined)  # fmt: skip
    conditions = {
        "tenant": feedback.c.tenant, "response": feedback.c.response, "kind": feedback.c.kind,
        "deployment": requests.c.deployment, "version": requests.c.version, "user": _user,
        "conversation_id": func.coalesce(feedback.c.conversation_id, requests.c.conversation_id),
    }  # fmt: skip
    for name, column in conditions.items():
        value = getattr(wanted, name)
        if value is not None:
            query = query.where(column == value)
    if wanted.since_s is not None:
        query = query.where(feedback.c.updated_s >= wanted.since_s)
    if wanted.until_s is not None:
        query = query.where(feedback.c.updated_s < wanted.until_s)
    if wanted.untriaged:
        query = query.where(_is_untriaged())
    if before is not None:
        query = query.where(feedback.c.id < before)
    query = query.order_by(feedback.c.id.desc()).limit(limit + 1)
    with database.begin() as connection:
        rows = [FeedbackRow(**row) for row in connection.execute(query).mappings()]
    return rows[:limit], len(rows) > limit


def _is_untriaged() -> ColumnElement[bool]:
    mark = feedback.alias("mark")
    same = mark.c.response == feedback.c.response
    same |= mark.c.conversation_id == feedback.c.conversation_id
    looked = exists().where(mark.c.kind == TRIAGE, mark.c.tenant == feedback.c.tenant, same)
    said = feedback.c.kind.not_like("event:%") & feedback.c.kind.not_like("score:%")
    return said & ~looked


_OWN = {column.name for column in feedback.columns}


@dataclass(frozen=True)
class EarlierValue:
    """A value that was replaced, and when it was given."""

    at_s: float
    value: float | None
    text: str | None
    tags: str | None


def read_history(database: Database, feedback_ids: Sequence[int]) -> dict[int, list[EarlierValue]]:
    """The replaced values of each piece of feedback, oldest first. Raises `DatabaseError`."""
    table = feedback_history
    query = select(table).where(table.c.feedback_id.in_(feedback_ids)).order_by(table.c.id)
    found: dict[int, list[EarlierValue]] = {}
    with database.begin() as connection:
        for row in connection.execute(query):
            earlier = EarlierValue(row.at_s, row.value, row.text, row.tags)
            found.setdefault(row.feedback_id, []).append(earlier)
    return found


def prune_feedback(database: Database, keep_s: float, max_rows: int) -> int:
    """Delete feedback whose value is older than `keep_s`, and what is more than `max_rows`, with its
    history; returns the number of deleted rows. Of too many, the oldest ones of the tenants with the
    most go, so that nobody pushes out what others said. Raises `DatabaseError`.
    """
    removed = _delete_where(database, feedback.c.updated_s < time.time() - keep_s)
    with database.begin() as connection:
        ids = select(feedback.c.id).order_by(feedback.c.id.desc())
        if connection.execute(ids.offset(max_rows).limit(1)).first() is None:
            return removed
        counted = select(feedback.c.tenant, func.count()).group_by(feedback.c.tenant)
        counts = {str(row[0]): int(row[1]) for row in connection.execute(counted)}
        most = divide_rows(counts.values(), max_rows)
    for tenant in [name for name, count in counts.items() if count > most]:
        own = feedback.c.tenant == tenant
        with database.begin() as connection:
            last = connection.execute(ids.where(own).offset(most).limit(1)).scalar()
        if last is not None:
            removed += _delete_where(database, own & (feedback.c.id <= last))
    return removed


def divide_rows(counts: Iterable[int], most: int) -> int:
    """How many rows each may keep, so that they are `most` at most together."""
    smaller = sorted(counts)
    for place, count in enumerate(smaller):
        share = most // (len(smaller) - place)
        if count > share:
            return share
        most -= count
    return most


def _delete_where(database: Database, old: ColumnElement[bool]) -> int:
    removed = 0
    while True:
        with database.begin() as connection:
            doomed = list(
                connection.execute(select(feedback.c.id).where(old).limit(DELETE_ROWS)).scalars()
            )
            delete_feedback(connection, doomed)
        removed += len(doomed)
        if len(doomed) < DELETE_ROWS:
            return removed


def delete_feedback(connection: Connection, ids: Sequence[int]) -> None:
    """Delete pieces of feedback with their history."""
    for start in range(0, len(ids), 500):
        chosen = ids[start : start + 500]
        _delete_in(connection, feedback_history, feedback_history.c.feedback_id, chosen)
        _delete_in(connection, feedback, feedback.c.id, chosen)


def _delete_in(
    connection: Connection, table: Table, column: ColumnElement[int], ids: Sequence[int]
) -> None:
    connection.execute(delete(table).where(column.in_(ids)))


@dataclass(frozen=True)
class Judgement:
    """What one piece of feedback says of an answer."""

    id: int
    kind: str
    user: str | None
    value: float | None
    text: str | None
    updated_s: float


@dataclass(frozen=True)
class Judged:
    """A response with the feedback on it; without an endpoint it is not in the request log."""

    response: int
    tenant: str
    judgements: list[Judgement]
    endpoint: str | None
    deployment: str | None
    version: str | None
    status: int | None
    error: str | None
    user: str | None
    at_s: float | None


def read_judged(
    database: Database,
    *,
    tenant: str | None = None,
    deployment: str | None = None,
    version: str | None = None,
    since_s: float | None = None,
) -> list[Judged]:
    """The responses with a thumb, a rating, a correction or an event, without texts of requests.
    Raises `DatabaseError`.
    """
    query = (
        select(
            feedback, requests.c.endpoint, requests.c.deployment, requests.c.version,
            requests.c.status, requests.c.error, requests.c.end_user.label("asked_by"),
            requests.c.at_s.label("answered_s"),
        )
        .select_from(feedback.outerjoin(requests, requests.c.id == feedback.c.response))
        .where(feedback.c.response.is_not(None))
        .where(
            feedback.c.kind.in_(("thumbs", "rating", "correction"))
            | feedback.c.kind.like("event:%")
        )
        .order_by(feedback.c.response, feedback.c.id)
    )  # fmt: skip
    if tenant is not None:
        query = query.where(feedback.c.tenant == tenant)
    if deployment is not None:
        query = query.where(requests.c.deployment == deployment)
    if version is not None:
        query = query.where(requests.c.version == version)
    if since_s is not None:
        query = query.where(feedback.c.updated_s >= since_s)
    found: dict[int, Judged] = {}
    streamed = query.execution_options(yield_per=1000)
    with database.begin() as connection, connection.execute(streamed) as rows:
        for row in rows:
            judged = found.get(row.response)
            if judged is None:
                judged = found[row.response] = Judged(
                    row.response, row.tenant, [], row.endpoint, row.deployment, row.version,
                    row.status, row.error, row.asked_by, row.answered_s,
                )  # fmt: skip
            said_by = row.end_user if row.end_user is not None else row.asked_by
            judged.judgements.append(
                Judgement(row.id, row.kind, said_by, row.value, row.text, row.updated_s)
            )
    return list(found.values())
