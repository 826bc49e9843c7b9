"""Rows of the request log: inserted in batches, deleted when they are too old or too many.

A bad row never holds back others. Values are first converted to fit their columns; rows that the
database still refuses are found by halving the batch, and set aside.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, text

from thrifty.db.database import Database
from thrifty.db.erasures import find_erased
from thrifty.db.feedback import divide_rows
from thrifty.db.rollups import note_rows
from thrifty.db.sanitize import RowShape, sanitize_values
from thrifty.db.subjects import Subjects, open_subjects
from thrifty.db.tables import leases, request_texts, requests
from thrifty.errors import BadDataError, DatabaseError, TextKeyError

COLUMNS = (
    "id", "at_s", "client_request_id", "conversation_id", "origin", "shadow_of", "rerouted",
    "endpoint", "deployment", "version", "replica", "tenant", "key_id", "end_user", "status",
    "error", "stream", "cache", "attempts", "prompt_tokens", "completion_tokens", "cached_tokens",
    "queue_ms", "ttft_ms", "tpot_ms", "e2e_ms", "overhead_us", "tags", "cost", "max_tokens",
)  # fmt: skip
"""The order of values in a row."""
SQLITE_ROWS = (32, 4, 1)
"""Rows in a statement for SQLite: as many as fit 999 parameters, then fewer for the rest."""
_TENANT, _END_USER = COLUMNS.index("tenant"), COLUMNS.index("end_user")
DELETE_ROWS = 5_000
"""Old rows are deleted in pieces of this size, so that no transaction is long."""

Row = tuple[Any, ...]
"""Values in the order of `COLUMNS`."""


class Entry(NamedTuple):
    """One response: its row, and its prompt and answer if they are recorded, perhaps with facts."""

    row: Row
    text: tuple[str, str] | tuple[str, str, str | None] | None = None
    source: Any = None
    """Whatever the caller knows it by."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be written, and why. Rows with the same kind of error share `kind`."""

    row: Row
    kind: str
    reason: str
    source: Any = None
    """That of its entry."""


class _KnownRowsError(Exception):
    """Some of the rows to insert exist already."""


class RequestLog:
    """Writes and prunes rows. Used by one thread.

    Executing a statement for each row would hold Python's interpreter lock most of the time, and
    slow down the gateway's event loop by a third (`benchmarks/gateway_overhead.py`). SQLite gets
    `SQLITE_ROWS` rows in a statement. PostgreSQL gets one parameter, the rows as JSON, and unpacks
    it, which takes twice the time in SQLite.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shape = RowShape(requests, COLUMNS)
        self._subjects: Subjects | None = None
        self.texts_lost = 0
        """Texts that were left out because the key that encrypts them is missing."""
        self.text_fault = ""
        """Why, for the newest of them."""
        self._copy_json = text(_make_json_insert(database)) if not database.is_sqlite else None

    def write(self, entries: Sequence[Entry]) -> list[BadRow]:
        """Insert all valid rows, each with its text in the same transaction; returns the others.

        Raises `DatabaseError` if the database is unavailable; some rows may have been inserted by
        then. Writing the same entries again is safe: a row that already exists counts as written.
        A row whose id belongs to another row is bad.
        """
        bad: list[BadRow] = []
        if entries:
            self._write(list(entries), bad)
        return bad

    def _write(self, entries: list[Entry], bad: list[BadRow]) -> None:
        try:
            batch = self._shape.encode([entry.row for entry in entries])
            if batch is None:
                entries = self._sanitize(entries, bad)
                batch = self._shape.encode([entry.row for entry in entries])
                if batch is None:
                    raise BadDataError("a row cannot be made to fit its columns")
            try:
                taken = self._insert(entries, batch)
            except _KnownRowsError:
                taken = self._insert(entries, batch, self._find_known(entries))
            bad += [
                BadRow(entry.row, "repeated id", "another row has its id", entry.source)
                for entry in taken
            ]
        except Exception as error:
            if isinstance(error, DatabaseError) and not isinstance(error, BadDataError):
                raise
            if len(entries) == 1:
                bad.append(
                    BadRow(entries[0].row, type(error).__name__, str(error), entries[0].source)
                )
                return
            half = len(entries) // 2
            self._write(entries[:half], bad)
            self._write(entries[half:], bad)

    def _sanitize(self, entries: list[Entry], bad: list[BadRow]) -> list[Entry]:
        """The entries that can be made to fit; the others are added to `bad`."""
        fitting = []
        for entry in entries:
            try:
                fitting.append(entry._replace(row=self._shape.sanitize(entry.row)))
            except BadDataError as error:
                bad.append(BadRow(entry.row, "does not fit", str(error), entry.source))
        return fitting

    def _find_known(self, entries: list[Entry]) -> set[int]:
        """The numbers of rows that exist: from an attempt whose end was not seen, or of others."""
        ids = [entry.row[0] for entry in entries]
        with self._database.begin() as connection:
            found = connection.execute(select(requests.c.id).where(requests.c.id.in_(ids)))
            return set(found.scalars())

    def _insert(
        self, entries: list[Entry], batch: str, known: set[int] | None = None
    ) -> list[Entry]:
        """Insert in one transaction, and note the new rows for the rollups; returns the entries
        whose ids belong to other rows. Raises `_KnownRowsError`, and inserts nothing, if there are
        `known` rows (by number) that were not named.
        """
        if not entries:
            return []
        with self._database.begin() as connection:
            if self._copy_json is None:
                count = _insert_values(connection, [entry.row for entry in entries])
            else:
                count = connection.execute(self._copy_json, {"batch": batch}).rowcount
            if count != len(entries) and known is None:
                raise _KnownRowsError
            note_rows(connection, {entry.row[0] for entry in entries} - (known or set()))
            taken = [] if count == len(entries) else _find_taken(connection, entries)
            refused = {id(entry) for entry in taken}
            texts = [
                sanitize_values(
                    request_texts,
                    {"id": entry.row[0], "at_s": entry.row[1], "prompt": entry.text[0],
                     "answer": entry.text[1],
                     "facts": entry.text[2] if len(entry.text) == 3 else None},
                )
                for entry in entries
                if entry.text is not None and id(entry) not in refused
            ]  # fmt: skip
            if texts and count != len(entries):
                texts = _drop_known(connection, texts)
            erased = self._drop_erased(connection, entries)
            texts = [values for values in texts if values["id"] not in erased]
            if texts and self._can_write_texts(len(texts)):
                connection.execute(insert(request_texts), texts)
        return taken

    def _can_write_texts(self, count: int) -> bool:
        """Whether texts may be written: never plain where they should be encrypted."""
        try:
            _ = self._database.text_keys.writer
        except TextKeyError as error:
            self.texts_lost += count
            self.text_fault = str(error)
            return False
        return True

    def _drop_erased(self, connection: Connection, entries: list[Entry]) -> set[int]:
        """Delete the rows just inserted whose person was erased meanwhile; returns their ids."""
        rows = ((entry.row[0], entry.row[_TENANT], entry.row[_END_USER]) for entry in entries)
        found = find_erased(connection, rows, self._open_subjects)
        if found:
            with permit_deletion(connection):
                connection.execute(delete(requests).where(requests.c.id.in_(found)))
        return set(found)

    def _open_subjects(self) -> Subjects:
        if self._subjects is None:
            self._subjects = open_subjects(self._database)
        return self._subjects

    def prune(self, keep_s: float, max_rows: int, keep_texts_s: float | None = None) -> int:
        """Delete rows older than `keep_s`, and what is more than `max_rows`, with their texts, and
        texts older than `keep_texts_s` (None: as `keep_s`). Of too many, the oldest ones of the
        tenants with the most go, so that nobody pushes out what others asked.

        Returns the number of deleted rows. Ids need not be dense: the order is by age, and by id
        only among rows with the same time.
        """
        oldest_s = time.time() - keep_s
        removed = self._delete_where(requests.c.at_s < oldest_s)
        if keep_texts_s is not None:
            oldest_s = max(oldest_s, time.time() - keep_texts_s)
        self._delete_texts(oldest_s)
        with self._database.begin() as connection:
            if connection.execute(select(requests.c.id).offset(max_rows).limit(1)).first() is None:
                return removed
            counted = select(requests.c.tenant, func.count()).group_by(requests.c.tenant)
            counts: dict[str | None, int] = {row[0]: row[1] for row in connection.execute(counted)}
        most = divide_rows(counts.values(), max_rows)
        for tenant in [name for name, count in counts.items() if count > most]:
            removed += self._delete_oldest(requests.c.tenant.is_not_distinct_from(tenant), most)
        return removed

    def _delete_oldest(self, own: ColumnElement[bool], most: int) -> int:
        """Delete all but the newest `most` of some rows."""
        at_s, row_id = requests.c.at_s, requests.c.id
        newest = select(at_s, row_id).where(own).order_by(at_s.desc(), row_id.desc())
        with self._database.begin() as connection:
            last = connection.execute(newest.offset(most).limit(1)).first()
        if last is None:
            return 0
        return self._delete_where(
            own & ((at_s < last[0]) | ((at_s == last[0]) & (row_id <= last[1])))
        )

    def _delete_where(self, doomed: ColumnElement[bool]) -> int:
        """Delete rows with their texts."""
        chosen = select(requests.c.id).where(doomed).order_by(requests.c.at_s).limit(DELETE_ROWS)
        removed = 0
        while True:
            with self._database.begin() as connection, permit_deletion(connection):
                ids = list(connection.execute(chosen).scalars())
                connection.execute(delete(request_texts).where(request_texts.c.id.in_(ids)))
                connection.execute(delete(requests).where(requests.c.id.in_(ids)))
            removed += len(ids)
            if len(ids) < DELETE_ROWS:
                return removed

    def _delete_texts(self, oldest_s: float) -> None:
        old = select(request_texts.c.id).where(request_texts.c.at_s < oldest_s)
        doomed = old.order_by(request_texts.c.at_s).limit(DELETE_ROWS)
        count = DELETE_ROWS
        while count == DELETE_ROWS:
            with self._database.begin() as connection:
                done = connection.execute(
                    delete(request_texts).where(request_texts.c.id.in_(doomed))
                )
            count = done.rowcount


@contextlib.contextmanager
def permit_deletion(connection: Connection) -> Iterator[None]:
    """Permit this transaction to delete rows from `requests` within the block.

    A trigger refuses other deletions, because gateway workers of the first release delete by the
    distance from the largest id, which would be nearly all rows.
    """
    values = {"name": "prune-requests", "owner": "prune", "until_s": 0.0}
    connection.execute(insert(leases).values(values))
    yield
    connection.execute(delete(leases).where(leases.c.name == values["name"]))


def _find_taken(connection: Connection, entries: list[Entry]) -> list[Entry]:
    """The entries whose ids belong to other rows, or to earlier entries of this batch."""
    by_id: dict[int, list[Entry]] = {}
    for entry in entries:
        by_id.setdefault(entry.row[0], []).append(entry)
    columns = [requests.c[name] for name in COLUMNS]
    own = set()
    for found in connection.execute(select(*columns).where(requests.c.id.in_(by_id))):
        for entry in by_id[found.id]:
            if all(map(_is_same, found, entry.row)):
                own.add(id(entry))
                break
    return [entry for entry in entries if id(entry) not in own]


def _is_same(stored: Any, value: Any) -> bool:
    if isinstance(stored, float) and isinstance(value, int | float):
        # SQLite may parse a decimal number with an error in the last digit.
        return abs(stored - value) <= 1e-12 * abs(stored)
    return bool(stored == value)


def _drop_known(connection: Connection, texts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The texts that do not exist yet; the rows of the others were written before."""
    ids = [values["id"] for values in texts]
    known = connection.execute(select(request_texts.c.id).where(request_texts.c.id.in_(ids)))
    found = set(known.scalars())
    return [values for values in texts if values["id"] not in found]


_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)


def _insert_values(connection: Connection, rows: Sequence[Row]) -> int:
    """Insert the rows that do not exist yet into SQLite; returns their number."""
    count = start = 0
    for size in SQLITE_ROWS:
        while len(rows) - start >= size:
            chosen = rows[start : start + size]
            values = tuple(itertools.chain.from_iterable(chosen))
            count += connection.exec_driver_sql(_make_sqlite_insert(size), values).rowcount
            start += size
    return count


@functools.cache
def _make_sqlite_insert(size: int) -> str:
    row = f"({', '.join('?' * len(COLUMNS))})"
    return (
        f"INSERT INTO requests ({_NAMES}) VALUES {', '.join([row] * size)} "  # noqa: S608
        "ON CONFLICT (id) DO NOTHING"
    )


def _make_json_insert(database: Database) -> str:
    dialect = database.engine.dialect
    types = [requests.c[name].type.compile(dialect=dialect) for name in COLUMNS]
    values = ", ".join(f"CAST(value->>{i} AS {kind})" for i, kind in enumerate(types))
    return (
        f"INSERT INTO requests ({_NAMES}) SELECT {values} "  # noqa: S608
        "FROM json_array_elements(CAST(:batch AS json)) ON CONFLICT (id) DO NOTHING"
    )


class RecordedText(NamedTuple):
    """The recorded prompt and answer of one response."""

    prompt: str
    answer: str
    facts: str | None = None
    """As `observe.texts` writes them."""

    @property
    def readable(self) -> bool:
        """Whether they could be decrypted: a prompt is never empty otherwise."""
        return bool(self.prompt)


def read_conversations(database: Database, deployment: str, most: int) -> list[RecordedText]:
    """The newest recorded response of each of a deployment's conversations, newest first: whole
    answers that clients or batches asked for, no shadows and no measurements.
    """
    asked = requests.c.origin.is_(None) | requests.c.origin.in_(("client", "batch"))
    chosen = (
        select(requests.c.id, requests.c.conversation_id, request_texts.c.prompt,
               request_texts.c.answer)
        .join(request_texts, request_texts.c.id == requests.c.id)
        .where(requests.c.deployment == deployment, requests.c.endpoint == "/v1/chat/completions")
        .where(requests.c.status == 200, requests.c.error.is_(None), asked)
        .where(requests.c.shadow_of.is_(None), request_texts.c.answer != "")
        .order_by(requests.c.at_s.desc(), requests.c.id.desc())
    )  # fmt: skip
    found: dict[Any, RecordedText] = {}
    streamed = chosen.execution_options(yield_per=100)
    with database.begin() as connection, connection.execute(streamed) as rows:
        for row in rows:
            key = row.conversation_id or row.id
            recorded = RecordedText(row.prompt, row.answer)
            if recorded.readable:
                found.setdefault(key, recorded)
            if len(found) >= most:
                break
    return list(found.values())
