"""Erasures of persons: the note that makes gateways drop what still waits, and where exports lie.

A note says that all of a person up to a certain response is gone. It names the person by a
pseudonym. Writers of the request log read the notes in the transaction that inserts rows, so that
no row slips in between a deletion and its note.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, func, insert, select, text, update

from thrifty.db.audit import record_act
from thrifty.db.database import Database
from thrifty.db.subjects import Subjects
from thrifty.db.tables import erasures, exports

RECORDS = ("requests", "feedback", "rollups", "tenant-rollups", "replicas")
"""Exports that are no training rows."""


@dataclass(frozen=True)
class ErasureRow:
    """One erasure: the person's pseudonyms are in `subject`, what was erased in `report` (JSON)."""

    id: int
    at_s: float
    subject: str
    until_response: int
    report: str | None


def note_erasure(
    database: Database, subjects: Sequence[str], until_response: int, *, who: str = ""
) -> list[int]:
    """Note that responses of these persons up to a number are gone; returns the notes' ids. When it
    returns, no writer that has not seen the note is still writing. Raises `DatabaseError`.
    """
    ids = []
    with database.begin() as connection:
        for subject in subjects:
            row = {"at_s": time.time(), "subject": subject, "until_response": until_response}
            made = connection.execute(insert(erasures).values(row).returning(erasures.c.id))
            ids.append(int(made.scalar_one()))
            record_act(connection, "person.forget", who, subject=subject)
    if not database.is_sqlite:
        # Waits for transactions that began to insert before the note was there. SQLite has one
        # writer at a time, which sees everything that was committed before.
        with database.begin() as connection:
            connection.execute(text("LOCK TABLE requests IN SHARE ROW EXCLUSIVE MODE"))
    return ids


def finish_erasure(database: Database, ids: Sequence[int], report: str) -> None:
    """Record what was erased. Raises `DatabaseError`."""
    with database.begin() as connection:
        connection.execute(update(erasures).where(erasures.c.id.in_(ids)).values(report=report))


def list_erasures(database: Database) -> list[ErasureRow]:
    """All erasures, the newest first. Raises `DatabaseError`."""
    query = select(erasures).order_by(erasures.c.id.desc())
    with database.begin() as connection:
        return [ErasureRow(**row) for row in connection.execute(query).mappings()]


def find_erased(
    connection: Connection,
    rows: Iterable[tuple[int, str | None, str | None]],
    open_subjects: Callable[[], Subjects],
) -> list[int]:
    """Of rows (number, tenant, end user), the numbers of those whose person was erased since."""
    newest = connection.execute(select(func.max(erasures.c.until_response))).scalar()
    if newest is None:
        return []
    late = [row for row in rows if row[0] <= newest and row[2] is not None]
    if not late:
        return []
    subjects = open_subjects()
    named = {subjects.name(tenant, user or ""): None for _, tenant, user in late}
    query = (
        select(erasures.c.subject, func.max(erasures.c.until_response))
        .where(erasures.c.subject.in_(named))
        .group_by(erasures.c.subject)
    )
    until = {subject: int(newest) for subject, newest in connection.execute(query)}
    return [
        number
        for number, tenant, user in late
        if number <= until.get(subjects.name(tenant, user or ""), -1)
    ]


def note_export(
    database: Database, path: Path | None, form: str, *, who: str = "", of_persons: bool = True
) -> None:
    """Remember that training rows or records were written, and where (None: to stdout), and with
    `of_persons` that erasures have to look there. Raises `DatabaseError`.
    """
    with database.begin() as connection:
        if path is not None and of_persons:
            row = {"at_s": time.time(), "path": str(path.absolute()), "form": form}
            connection.execute(insert(exports).values(row))
        named = None if path is None else str(path.absolute())
        act = "records.export" if form in RECORDS else "feedback.export"
        record_act(connection, act, who, names={"path": named}, form=form)


def note_subject_export(database: Database, subjects: Sequence[str], *, who: str = "") -> None:
    """Record that a person's data were collected. Raises `DatabaseError`."""
    with database.begin() as connection:
        for subject in subjects:
            record_act(connection, "person.export", who, subject=subject)


def list_exports(database: Database) -> list[Path]:
    """Where training rows were written, each place once. Raises `DatabaseError`."""
    with database.begin() as connection:
        found = connection.execute(select(exports.c.path).distinct().order_by(exports.c.path))
        return [Path(path) for path in found.scalars()]
