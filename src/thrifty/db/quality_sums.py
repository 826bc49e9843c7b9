"""What checks of answers found: notes of rows that are still to be checked, and sums by version.

As with the rollups (`db.rollups`), one process takes notes away and adds what they stand for in one
transaction, so that a process that is killed anywhere has done a whole step or none of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, Table, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from thrifty.db.database import Database
from thrifty.db.many import among
from thrifty.db.rollups import DAY_S, HOUR_S, RolledMeanwhileError, read_buckets
from thrifty.db.tables import (
    answer_checks,
    answer_scores,
    answer_vectors,
    quality_state,
    quality_sums,
    request_texts,
    requests,
    unchecked_rows,
)

STEPS_S = (HOUR_S, DAY_S)
MAX_NOTES = 2000
"""More notes than that, of up to 512 rows each, are not kept: the oldest rows stay unchecked."""
Key = tuple[int, str, str]
"""Start of the hour, deployment and version."""
Counts = dict[str, list[float]]


@dataclass
class QualitySum:
    """What is added to one sum: numbers by name, element by element, and values of distributions."""

    counts: Counts = field(default_factory=dict)
    sketches: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, *numbers: float) -> None:
        """Add numbers to those of a name."""
        known = self.counts.setdefault(name, [0.0] * len(numbers))
        for place, number in enumerate(numbers):
            known[place] += number


@dataclass(frozen=True)
class Checked:
    """A row of `answer_checks`."""

    id: int
    faults: int
    turn: int
    flags: int


def read_turn(connection: Connection) -> int:
    """How often something was added to the sums."""
    return int(connection.execute(select(func.max(quality_state.c.turn))).scalar() or 0)


def read_unchecked(connection: Connection, limit: int) -> tuple[list[int], list[int]]:
    """The oldest notes, and the numbers of the rows that they name."""
    query = select(unchecked_rows).order_by(unchecked_rows.c.id).limit(limit)
    notes, numbers = [], []
    for row in connection.execute(query):
        notes.append(row.id)
        numbers += msgspec.msgpack.decode(row.numbers, type=list[int])
    return notes, numbers


def read_by_number(
    connection: Connection, table: Table, columns: Sequence[str], numbers: Sequence[int]
) -> list[Any]:
    """Rows of a table by their `id`; those that were erased meanwhile are left out."""
    if not numbers:
        return []
    some = among(connection, table.c.id, numbers)
    query = select(*(table.c[name] for name in columns)).where(some)
    return list(connection.execute(query).fetchall())


def read_checks(connection: Connection, numbers: Sequence[int]) -> dict[int, Checked]:
    """Checks by the numbers of their answers."""
    rows = read_by_number(connection, answer_checks, ("id", "faults", "turn", "flags"), numbers)
    return {row.id: Checked(*row) for row in rows}


def write_checks(
    database: Database,
    turn: int,
    notes: Sequence[int],
    checks: Iterable[Checked],
    scores: Sequence[Mapping[str, Any]],
    vectors: Sequence[Mapping[str, Any]],
    sums: Mapping[Key, QualitySum],
    merge_sketch: Any,
) -> None:
    """Add a step to the sums and take its notes away, whole or not at all. `merge_sketch` makes one
    sketch of two. Raises `RolledMeanwhileError` if another process was faster, and `DatabaseError`.
    """
    with database.begin() as connection:
        if turn == 0:
            insert_new(connection, quality_state, [{"id": 1, "turn": 0}])
        moved = connection.execute(
            update(quality_state)
            .where(quality_state.c.id == 1, quality_state.c.turn == turn)
            .values(turn=turn + 1)
        )
        if not moved.rowcount:
            raise RolledMeanwhileError("another process has checked answers meanwhile")
        if notes:
            connection.execute(
                delete(unchecked_rows).where(among(connection, unchecked_rows.c.id, notes))
            )
        rows = {one.id: vars(one) for one in checks}
        kept = {row.id for row in read_by_number(connection, requests, ("id",), list(rows))}
        # A person may have been erased since the rows were read.
        _upsert(connection, answer_checks, [row for number, row in rows.items() if number in kept])
        insert_new(connection, answer_scores, [row for row in scores if row["id"] in kept])
        insert_new(connection, answer_vectors, [row for row in vectors if row["id"] in kept])
        _upsert(connection, quality_sums, _merge(connection, sums, merge_sketch))


def drop_old_checks(database: Database, before: int) -> None:
    """Delete checks of answers with a number below `before`, scores of answers whose rows are gone
    from the request log, and notes beyond `MAX_NOTES`. Raises `DatabaseError`.
    """
    with database.begin() as connection:
        connection.execute(delete(answer_checks).where(answer_checks.c.id < before))
        kept = select(requests.c.id).where(requests.c.id == answer_scores.c.id)
        connection.execute(delete(answer_scores).where(~kept.exists()))
        newest = select(unchecked_rows.c.id).order_by(unchecked_rows.c.id.desc()).offset(MAX_NOTES)
        first = connection.execute(newest.limit(1)).scalar()
        if first is not None:
            connection.execute(delete(unchecked_rows).where(unchecked_rows.c.id <= first))


def prune_sums(database: Database, step_s: int, keep_s: float, now_s: float) -> None:
    """Delete the sums of one step that are older than `keep_s`, counted from the newest one if
    `now_s` is later. Raises `DatabaseError`.
    """
    table = quality_sums
    with database.begin() as connection:
        newest = connection.execute(
            select(func.max(table.c.at_s)).where(table.c.step_s == step_s)
        ).scalar()
        if newest is not None:
            old = (table.c.step_s == step_s) & (table.c.at_s < int(min(now_s, newest) - keep_s))
            connection.execute(delete(table).where(old))


@dataclass(frozen=True)
class SumRow:
    """One sum as it is stored."""

    at_s: int
    deployment: str
    version: str
    counts: Counts
    sketches: dict[str, bytes]


def read_sums(
    database: Database, step_s: int, since_s: float = 0.0, deployment: str | None = None
) -> list[SumRow]:
    """The sums of one step from a time on, the oldest first. Raises `DatabaseError`."""
    table = quality_sums
    query = select(table).where(table.c.step_s == step_s, table.c.at_s >= since_s)
    if deployment is not None:
        query = query.where(table.c.deployment == deployment)
    with database.begin() as connection:
        return [_read(row) for row in connection.execute(query.order_by(table.c.at_s))]


def read_texts_of(connection: Connection, numbers: Sequence[int]) -> dict[int, Any]:
    """The recorded texts of responses, by number: `prompt`, `answer` and `facts`."""
    names = ("id", "prompt", "answer", "facts")
    return {row.id: row for row in read_by_number(connection, request_texts, names, numbers)}


def _read(row: Any) -> SumRow:
    return SumRow(
        row.at_s, row.deployment, row.version,
        msgspec.json.decode(row.counts, type=dict[str, list[float]]),
        msgspec.msgpack.decode(row.sketches, type=dict[str, bytes]),
    )  # fmt: skip


def _merge(
    connection: Connection, sums: Mapping[Key, QualitySum], merge_sketch: Any
) -> list[dict[str, Any]]:
    """Whole rows by hour and day: what the table has, with the sums added."""
    wanted: dict[tuple[int, int, str, str], list[QualitySum]] = {}
    for (at_s, deployment, version), found in sums.items():
        for step_s in STEPS_S:
            key = (step_s, at_s // step_s * step_s, deployment, version)
            wanted.setdefault(key, []).append(found)
    times: dict[int, set[int]] = {}
    for step_s, at_s, _, _ in wanted:
        times.setdefault(step_s, set()).add(at_s)
    known = {}
    for step_s, starts in times.items():
        for row in read_buckets(connection, quality_sums, step_s, sorted(starts)):
            known[step_s, row.at_s, row.deployment, row.version] = _read(row)
    made = []
    for key, parts in wanted.items():
        old = known.get(key)
        total = QualitySum(old.counts, old.sketches) if old is not None else QualitySum()
        for part in parts:
            for name, numbers in part.counts.items():
                total.add(name, *numbers)
            for name, data in part.sketches.items():
                total.sketches[name] = merge_sketch(total.sketches.get(name), data)
        made.append(
            {
                "step_s": key[0], "at_s": key[1], "deployment": key[2], "version": key[3],
                "counts": msgspec.json.encode(total.counts).decode(),
                "sketches": msgspec.msgpack.encode(total.sketches),
            }
        )  # fmt: skip
    return made


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose key is new."""
    if rows:
        kind = sqlite if connection.dialect.name == "sqlite" else postgresql
        connection.execute(kind.insert(table).on_conflict_do_nothing(), list(rows))


def _upsert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    kind = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = kind.insert(table)
    key = [column.name for column in table.primary_key.columns]
    values = {name: statement.excluded[name] for name in table.c.keys() if name not in key}  # noqa: SIM118
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=values), list(rows))
