"""Databases for tests that run on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from thrifty.db import Database, open_database
from thrifty.db.request_log import permit_deletion
from thrifty.db.tables import leases, metadata

KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.peer)]
"""The `params` of a fixture."""


def open_kind(
    kind: str, tmp_path_factory: pytest.TempPathFactory, *, migrate: bool = True
) -> Iterator[Database]:
    """An empty database of that kind; its server, if it has one, is stopped with it."""
    folder = tmp_path_factory.mktemp(kind)
    if kind == "sqlite":
        database = open_database(f"sqlite:///{folder}/t.db", migrate=migrate)
        yield database
        database.close()
        return
    pgserver: Any = pytest.importorskip("pgserver")
    server = pgserver.get_server(folder, cleanup_mode="stop")
    try:
        database = open_database(server.get_uri(), migrate=migrate)
        yield database
        database.close()
    finally:
        server.cleanup()


def empty_tables(database: Database) -> None:
    """Delete all rows except leases, so that the tests of a module can share a database."""
    with database.begin() as connection, permit_deletion(connection):
        for table in metadata.sorted_tables:
            if table is not leases:
                connection.execute(text(f"DELETE FROM {table.name}"))
