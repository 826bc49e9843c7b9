"""Databases for tests that run on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from tests.postgres_server import running_postgres
from thrifty.db import Database, open_database
from thrifty.db.request_log import permit_deletion
from thrifty.db.tables import leases, metadata

KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.peer)]
"""The `params` of a fixture."""


def open_kind(
    kind: str, tmp_path_factory: pytest.TempPathFactory, *, migrate: bool = True
) -> Iterator[Database]:
    """An empty database of that kind; its server, if it has one, is stopped with it."""
    if kind == "sqlite":
        folder = tmp_path_factory.mktemp(kind)
        database = open_database(f"sqlite:///{folder}/t.db", migrate=migrate)
        yield database
        database.close()
        return
    with running_postgres() as url:
        database = open_database(url, migrate=migrate)
        yield database
        database.close()


def empty_tables(database: Database) -> None:
    """Delete all rows except leases, so that the tests of a module can share a database."""
    with database.begin() as connection, permit_deletion(connection):
        for table in metadata.sorted_tables:
            if table is not leases:
                connection.execute(text(f"DELETE FROM {table.name}"))
