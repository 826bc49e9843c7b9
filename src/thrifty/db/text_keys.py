"""Encrypted texts as a whole: where their keys are, how many there are by key, and sealing them anew.

`sealed_text` encrypts and decrypts single texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, Connection, Table, Text, case, func, select, type_coerce, update

from thrifty.db.audit import record_act
from thrifty.db.database import Database
from thrifty.db.sealed_text import (
    HEAD_CHARS,
    ID_CHARS,
    MARK,
    SEALED,
    KeySource,
    SealedText,
    parse_source,
)
from thrifty.db.tables import metadata, text_keys
from thrifty.errors import TextKeyError

PAGE_ROWS = 200
PLAIN = "plain"
"""In place of a key's id, for texts that are not encrypted."""


def note_source(connection: Connection, source: str) -> None:
    """Make `source` the place of the key that writes; empty: texts are written plain. Older places
    stay known for reading.
    """
    connection.execute(update(text_keys).values(writes=False))
    if not source:
        return
    chosen = text_keys.c.source == source
    if connection.execute(update(text_keys).where(chosen).values(writes=True)).rowcount == 0:
        row = {"source": source, "writes": True, "at_s": time.time()}
        connection.execute(text_keys.insert().values(row))


def list_sources(database: Database) -> list[tuple[KeySource, bool]]:
    """The places of keys, the newest first, and whether each one writes."""
    query = select(text_keys.c.source, text_keys.c.writes).order_by(text_keys.c.at_s.desc())
    with database.begin() as connection:
        return [(parse_source(row.source), row.writes) for row in connection.execute(query)]


def list_columns() -> Iterator[tuple[Table, list[Column[Any]]]]:
    """Every table with columns that may be encrypted."""
    for table in metadata.sorted_tables:
        columns = [column for column in table.columns if isinstance(column.type, SealedText)]
        if columns:
            yield table, columns


def count_texts(database: Database) -> dict[str, int]:
    """How many texts there are by the id of their key, and plain ones (`PLAIN`). Reads every text."""
    found: dict[str, int] = {}
    for table, columns in list_columns():
        for column in columns:
            raw = type_coerce(column, Text)
            head = case(
                (raw.startswith(SEALED, autoescape=True), func.substr(raw, 1, HEAD_CHARS)),
                else_=PLAIN,
            ).label("head")
            query = select(head, func.count()).select_from(table)
            query = query.where(column.is_not(None), raw != "").group_by(head)
            with database.begin() as connection:
                for name, count in connection.execute(query):
                    ident = name[-ID_CHARS:] if name.startswith(MARK) else PLAIN
                    found[ident] = found.get(ident, 0) + count
    return found


@dataclass
class Resealed:
    """What `reseal` came to."""

    sealed: int = 0
    unreadable: int = 0
    """Texts whose key is missing; they stay as they are."""
    keys: set[str] = field(default_factory=set)
    """The ids of missing keys."""


def reseal(
    database: Database, who: str, on_progress: Callable[[int], None] = lambda count: None
) -> Resealed:
    """Encrypt every text with the key that writes now: plain ones, and those of older keys.

    Goes on where it was when it is called again, because texts name their keys. Raises
    `TextKeyError` where no key writes, and `DatabaseError`.
    """
    database.text_keys.refresh(within_s=0.0)
    writer = database.text_keys.writer
    if writer is None:
        raise TextKeyError(
            "the service writes texts plain; set 'record.encrypt' in the spec and apply it first"
        )
    done = Resealed()
    for table, columns in list_columns():
        for column in columns:
            _reseal_column(database, table, column, writer, done, on_progress)
    with database.begin() as connection:
        record_act(connection, "texts.reseal", who, key=writer, texts=done.sealed)
    return done


def _reseal_column(
    database: Database,
    table: Table,
    column: Column[Any],
    writer: str,
    done: Resealed,
    on_progress: Callable[[int], None],
) -> None:
    raw = type_coerce(column, Text)
    mine = raw.startswith(f"{SEALED}{writer}:", autoescape=True)
    query = select(table.c.id, raw.label("raw")).where(column.is_not(None), raw != "", ~mine)
    query = query.order_by(table.c.id).limit(PAGE_ROWS)
    last = None
    keys = database.text_keys
    while True:
        with database.begin() as connection:
            page = query if last is None else query.where(table.c.id > last)
            rows = connection.execute(page).all()
        with database.begin() as connection:
            for row in rows:
                sealed = row.raw.startswith(SEALED)
                ident = row.raw[len(SEALED) : HEAD_CHARS] if sealed else PLAIN
                if sealed and not keys.knows(ident):
                    done.unreadable += 1
                    done.keys.add(ident)
                    continue
                plain = keys.open(row.raw, f"{column}") if row.raw.startswith(MARK) else row.raw
                if not plain:
                    done.unreadable += 1
                    continue
                # What changed since it was read is the newest already.
                same = (table.c.id == row.id) & (raw == row.raw)
                values = {column.name: plain}
                done.sealed += connection.execute(update(table).where(same).values(values)).rowcount
        if len(rows) < PAGE_ROWS:
            return
        last = rows[-1].id
        on_progress(done.sealed)
