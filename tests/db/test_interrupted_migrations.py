"""A migration that is killed or fails changes nothing, and the next start repeats it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from tests.db.test_first_release import FOLDER
from thrifty.db import open_database
from thrifty.db.database import HEAD
from thrifty.errors import DatabaseError

KILLED = """
import os, sys
from sqlalchemy import Engine, event
from thrifty.db import open_database

@event.listens_for(Engine, "after_cursor_execute")
def kill(connection, cursor, statement, *others):
    if sys.argv[2] in statement:
        os.kill(os.getpid(), 9)

open_database(sys.argv[1], migrate=True)
"""
STATEMENTS = (
    "CREATE TABLE requests",  # 0001
    "CREATE TABLE desired_changes",  # 0005
    "DROP TABLE requests",  # 0005, while a table is copied
    "CREATE TRIGGER number_old_texts",  # 0005
    "CREATE TABLE sign_ins",  # 0023
    "version_num='0024'",
)


def make_home(tmp_path: Path, *, empty: bool) -> Path:
    path = tmp_path / "t.db"
    connection = sqlite3.connect(path)
    if not empty:
        connection.executescript((FOLDER / "sqlite.sql").read_text())
    connection.close()
    return path


def read(path: Path) -> list[str]:
    """Everything in a database, as statements."""
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_killed_migration_is_repeated(statement: str, tmp_path: Path) -> None:
    path = make_home(tmp_path, empty="requests" in statement and "CREATE" in statement)
    before = read(path)
    url = f"sqlite:///{path}"
    code = subprocess.run([sys.executable, "-c", KILLED, url, statement], check=False).returncode
    assert code == -signal.SIGKILL
    assert read(path) == before
    database = open_database(url, migrate=True)
    with database.begin() as connection:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    database.close()
    assert found == HEAD


def test_a_migration_on_a_full_disk_is_repeated(tmp_path: Path) -> None:
    path = make_home(tmp_path, empty=False)
    before = read(path)
    url = f"sqlite:///{path}"

    def limit_pages(connection: sqlite3.Connection, _: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages + 12}")

    event.listen(Engine, "connect", limit_pages)
    try:
        with pytest.raises(DatabaseError, match="full"):
            open_database(url, migrate=True)
    finally:
        event.remove(Engine, "connect", limit_pages)
    assert read(path) == before
    open_database(url, migrate=True).close()
