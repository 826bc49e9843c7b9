"""Every migration, reverted and applied again step by step, with rows in all tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    String,
    TypeDecorator,
    inspect,
    text,
)

from tests.postgres_server import running_postgres
from thrifty.db import Database, open_database
from thrifty.db.database import HEAD, MIGRATIONS, begin_migration
from thrifty.db.tables import metadata

CONFIG = Config()
CONFIG.set_main_option("script_location", str(MIGRATIONS))
REVISIONS = [step.revision for step in ScriptDirectory.from_config(CONFIG).walk_revisions()][::-1]

Rows = dict[str, list[dict[str, Any]]]
ONCE_REQUIRED = {("requests", "request_id"), ("request_texts", "request_id")}
"""Columns that may be NULL now but not in older tables."""
FILLED = {("requests", "client_request_id"), ("request_texts", "id")}
"""Columns that a migration fills from data of the older tables."""
MADE = {"rollup_state"}
"""Tables in which a migration notes what the older tables hold."""


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.peer)])
def url(request: Any, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/t.db"
        return
    with running_postgres() as url:
        yield url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = open_database(url, migrate=True)
    yield database
    database.close()


def move(database: Database, revision: str, *, down: bool = False) -> None:
    with begin_migration(database) as connection:
        CONFIG.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(CONFIG, revision)
    # Prepared statements of a connection refer to the tables before the change.
    database.engine.dispose()


def describe(database: Database) -> dict[str, Any]:
    """The tables as described by the database itself."""
    with database.begin() as connection:
        look = inspect(connection)
        return {
            table: {
                "columns": {
                    column["name"]: (str(column["type"]), column["nullable"], column["default"])
                    for column in look.get_columns(table)
                },
                "key": look.get_pk_constraint(table)["constrained_columns"],
                "indexes": sorted(
                    (str(index["name"]), tuple(index["column_names"]), bool(index["unique"]))
                    for index in look.get_indexes(table)
                ),
                "unique": sorted(
                    (str(rule["name"]), tuple(rule["column_names"]))
                    for rule in look.get_unique_constraints(table)
                ),
            }
            for table in look.get_table_names()
            if table != "alembic_version"
        }


def fill(connection: Connection) -> None:
    """Two rows per table: one with a value in every column, one with as few values as possible."""
    for table in metadata.sorted_tables:
        for number in (1, 2):
            values = {
                column.name: None
                if number == 2
                and column.nullable
                and (table.name, column.name) not in ONCE_REQUIRED
                else make(column, number)
                for column in table.columns
            }
            connection.execute(table.insert().values(values))


def make(column: Column[Any], number: int) -> Any:
    if isinstance(column.type, Boolean):
        return column.name != "writes"  # there are no keys of texts here
    kind = column.type.impl if isinstance(column.type, TypeDecorator) else column.type
    if isinstance(column.type, Integer):
        return number
    if isinstance(column.type, (Float, Numeric)):
        return number + 0.5
    if isinstance(column.type, LargeBinary):
        return bytes([number])
    assert isinstance(kind, String), f"no value is known for {column}"
    return f"{number}{column.name}"[: kind.length]


def read(database: Database) -> Rows:
    """All rows of all tables."""
    with database.begin() as connection:
        return {
            table: sorted(
                (
                    dict(row)
                    for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()
                ),
                key=repr,
            )
            for table in inspect(connection).get_table_names()
            if table != "alembic_version"
        }


def cut(rows: Rows, tables: dict[str, Any]) -> Rows:
    """The part of `rows` that these tables and columns can hold."""
    return {
        table: [{name: row[name] for name in tables[table]["columns"]} for row in rows[table]]
        for table in tables
    }


def test_each_migration_can_be_reverted_and_keeps_data(url: str, database: Database) -> None:
    assert REVISIONS[0] == "0001"
    assert REVISIONS[-1] == HEAD
    move(database, "base", down=True)
    assert describe(database) == {}
    tables = {}
    for revision in REVISIONS:
        move(database, revision)
        tables[revision] = describe(database)
    with database.begin() as connection:
        for table in MADE:
            connection.execute(text(f"DELETE FROM {table}"))
        fill(connection)
    rows = read(database)
    assert set(rows) == set(metadata.tables)
    assert {len(found) for found in rows.values()} == {2}

    for revision in REVISIONS[-2::-1]:
        move(database, revision, down=True)
        assert describe(database) == tables[revision]
        assert read(database) == cut(rows, tables[revision])
    for revision in REVISIONS[1:]:
        move(database, revision)
        assert describe(database) == tables[revision]

    oldest = tables[REVISIONS[0]]
    for table, found in read(database).items():
        if table not in oldest:
            assert found == [] or table in MADE
            continue
        names = oldest[table]["columns"]
        assert cut({table: found}, {table: oldest[table]}) == cut(rows, {table: oldest[table]})
        added = {name for row in found for name in row if name not in names}
        empty = {name for name in added if (table, name) not in FILLED}
        assert {row[name] for row in found for name in empty} <= {None}
    open_database(url, migrate=False).close()
