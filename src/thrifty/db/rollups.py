"""Rows of the rollups: what is still to be added to them, and how it is added exactly once.

Whoever writes rows of the request log, or a thumb, notes it here in the same transaction. One
process takes notes away and adds what they stand for to the rollups, in one transaction as well
(`observe.rollups.roll`). So a process that is killed anywhere has done a whole step or none of it,
however late a row is and whatever the clocks say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Table, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from thrifty.db.database import Database
from thrifty.db.many import among
from thrifty.db.tables import (
    ROLLUP_AMOUNTS,
    ROLLUP_NUMBERS,
    ROLLUP_SKETCHES,
    requests,
    rollup_state,
    rollups,
    tenant_rollups,
    unchecked_rows,
    unrolled_rows,
    unrolled_thumbs,
)
from thrifty.errors import DatabaseError

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
STEPS_S = (MINUTE_S, HOUR_S, DAY_S)
PIECE = 500
"""Values in a statement: SQLite took 999 for long."""
SUMS = (*ROLLUP_NUMBERS, *ROLLUP_AMOUNTS)
ROW_COLUMNS = (
    "id", "at_s", "origin", "deployment", "version", "tenant", "status", "error", "cache",
    "prompt_tokens", "completion_tokens", "cached_tokens", "queue_ms", "ttft_ms", "tpot_ms",
    "e2e_ms", "cost",
)  # fmt: skip
"""What rollups read of a row of the request log."""


class RolledMeanwhileError(DatabaseError):
    """Another process has added to the rollups since the notes were read."""


def note_rows(connection: Connection, numbers: Iterable[int]) -> None:
    """Note rows that this transaction inserts into the request log."""
    packed = msgspec.msgpack.encode(list(numbers))
    if len(packed) > 1:
        connection.execute(insert(unrolled_rows), {"numbers": packed})


def note_thumb(
    connection: Connection,
    response: int | None,
    conversation_id: str | None,
    old: float | None,
    new: float | None,
    at_s: float,
) -> None:
    """Note that a thumb is `new` (1: up, 0: down) in this transaction, and was `old` (None: none)
    before.
    """
    up, down = (int(new == kind) - int(old == kind) for kind in (1, 0))
    if not (up or down):
        return
    connection.execute(
        insert(unrolled_thumbs).values(
            response=response, conversation_id=conversation_id, up=up, down=down, at_s=at_s
        )
    )


@dataclass(frozen=True)
class State:
    """How far the rollups are; see `tables.rollup_state`."""

    turn: int
    old_after: int
    old_until: int

    @property
    def has_old(self) -> bool:
        """Whether rows from before there were rollups are still to be added."""
        return self.old_after < self.old_until


@dataclass(frozen=True)
class Thumb:
    """A thumb, with what the log says of its response."""

    note: int
    up: int
    down: int
    at_s: float
    deployment: str
    version: str
    tenant: str


@dataclass(frozen=True)
class Step:
    """What one step adds to the rollups: rows by table, whole, and the notes that it takes away."""

    state: State
    """As it was read before the notes were."""
    old_after: int
    rows: Sequence[int]
    """Notes about rows."""
    thumbs: Sequence[int]
    totals: Sequence[dict[str, Any]]
    tenants: Sequence[dict[str, Any]]


def read_state(connection: Connection) -> State:
    """How far the rollups are."""
    row = connection.execute(select(rollup_state).where(rollup_state.c.id == 1)).first()
    if row is None:
        return State(0, -1, -1)
    return State(row.turn, row.old_after, row.old_until)


def read_old_rows(connection: Connection, state: State, limit: int) -> tuple[list[Any], int]:
    """The next rows from before there were rollups, and the number up to which they go."""
    columns = [requests.c[name] for name in ROW_COLUMNS]
    query = select(*columns).where(
        requests.c.id > state.old_after, requests.c.id <= state.old_until
    )
    rows = list(connection.execute(query.order_by(requests.c.id).limit(limit)))
    return rows, state.old_until if len(rows) < limit else rows[-1].id


def read_notes(connection: Connection, limit: int) -> tuple[list[int], list[int]]:
    """The oldest notes about rows, and the numbers of these rows."""
    query = select(unrolled_rows).order_by(unrolled_rows.c.id).limit(limit)
    notes, numbers = [], []
    for row in connection.execute(query):
        notes.append(row.id)
        numbers += msgspec.msgpack.decode(row.numbers, type=list[int])
    return notes, numbers


def read_rows(connection: Connection, numbers: Sequence[int]) -> list[Any]:
    """Rows of the log by their numbers; rows that were erased meanwhile are left out."""
    if not numbers:
        return []
    columns = [requests.c[name] for name in ROW_COLUMNS]
    query = select(*columns).where(among(connection, requests.c.id, numbers))
    return list(connection.execute(query).fetchall())


def read_thumbs(connection: Connection, limit: int) -> list[Thumb]:
    """The oldest thumbs whose response is in the log. One on a conversation belongs to the
    conversation's newest response.
    """
    newer = requests.alias("newer")
    newest = (
        select(func.max(newer.c.id))
        .where(newer.c.conversation_id == unrolled_thumbs.c.conversation_id)
        .scalar_subquery()
    )
    target = func.coalesce(unrolled_thumbs.c.response, newest)
    query = (
        select(
            unrolled_thumbs.c.id, unrolled_thumbs.c.up, unrolled_thumbs.c.down, requests.c.at_s,
            requests.c.deployment, requests.c.version, requests.c.tenant,
        )
        .select_from(unrolled_thumbs.join(requests, requests.c.id == target))
        .order_by(unrolled_thumbs.c.id)
        .limit(limit)
    )  # fmt: skip
    return [
        Thumb(row[0], row[1], row[2], row[3], row[4] or "", row[5] or "", row[6] or "")
        for row in connection.execute(query)
    ]


def read_named_tenants(connection: Connection, at_s: int) -> set[str]:
    """The tenants that have rows of their own on a day."""
    table = tenant_rollups
    query = select(table.c.tenant).where(table.c.step_s == DAY_S, table.c.at_s == at_s)
    return set(connection.execute(query.distinct()).scalars())


def read_buckets(
    connection: Connection, table: Table, step_s: int, times: Sequence[int]
) -> Iterator[Any]:
    """All rows of a table for some times of one step."""
    for start in range(0, len(times), PIECE):
        some = times[start : start + PIECE]
        yield from connection.execute(
            select(table).where(table.c.step_s == step_s, table.c.at_s.in_(some))
        )


def write_step(database: Database, step: Step) -> None:
    """Write a step, whole or not at all. Raises `RolledMeanwhileError` if another process was
    faster, and `DatabaseError`.
    """
    state = step.state
    with database.begin() as connection:
        moved = connection.execute(
            update(rollup_state)
            .where(rollup_state.c.id == 1, rollup_state.c.turn == state.turn)
            .values(turn=state.turn + 1, old_after=step.old_after)
        )
        if not moved.rowcount:
            raise RolledMeanwhileError("another process has added to the rollups meanwhile")
        _pass_on(connection, step.rows)
        _delete_notes(connection, unrolled_rows, step.rows)
        _delete_notes(connection, unrolled_thumbs, step.thumbs)
        _upsert(connection, rollups, step.totals)
        _upsert(connection, tenant_rollups, step.tenants)


def ensure_state(database: Database) -> None:
    """Make the row of the state where there is none. Raises `DatabaseError`."""
    with database.begin() as connection:
        row = {"id": 1, "turn": 0, "old_after": -1, "old_until": -1}
        kind = sqlite if database.is_sqlite else postgresql
        connection.execute(kind.insert(rollup_state).values(row).on_conflict_do_nothing())


def drop_lost_thumbs(database: Database, before_s: float) -> int:
    """Delete thumbs from before `before_s` whose response never came; returns their number.
    Raises `DatabaseError`.
    """
    doomed = unrolled_thumbs.c.at_s < before_s
    known = select(requests.c.id).where(
        (requests.c.id == unrolled_thumbs.c.response)
        | (requests.c.conversation_id == unrolled_thumbs.c.conversation_id)
    )
    with database.begin() as connection:
        statement = delete(unrolled_thumbs).where(doomed, ~known.exists())
        return connection.execute(statement).rowcount


def prune_rollups(database: Database, step_s: int, keep_s: float, now_s: float) -> int:
    """Delete the rows of one step that are older than `keep_s`; returns their number. Raises
    `DatabaseError`.

    The age is counted from the newest row if `now_s` is later: a clock that jumps ahead deletes
    nothing.
    """
    removed = 0
    with database.begin() as connection:
        newest = connection.execute(
            select(func.max(rollups.c.at_s)).where(rollups.c.step_s == step_s)
        ).scalar()
        if newest is None:
            return 0
        oldest_s = int(min(now_s, newest) - keep_s)
        for table in (rollups, tenant_rollups):
            old = (table.c.step_s == step_s) & (table.c.at_s < oldest_s)
            removed += connection.execute(delete(table).where(old)).rowcount
    return removed


def _pass_on(connection: Connection, notes: Sequence[int]) -> None:
    """Note the same rows for the checks of answers (`db.quality_sums`)."""
    if notes:
        some = among(connection, unrolled_rows.c.id, notes)
        source = select(unrolled_rows.c.numbers).where(some).order_by(unrolled_rows.c.id)
        connection.execute(insert(unchecked_rows).from_select(["numbers"], source))


def _delete_notes(connection: Connection, table: Table, notes: Sequence[int]) -> None:
    if notes:
        connection.execute(delete(table).where(among(connection, table.c.id, notes)))


def _upsert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    kind = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = kind.insert(table)
    key = [column.name for column in table.primary_key.columns]
    values = {name: statement.excluded[name] for name in (*SUMS, "kinds", *ROLLUP_SKETCHES)}
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=values), list(rows))
