"""Opening, migrating and losing an SQLite database; test_postgres.py covers PostgreSQL."""

from __future__ import annotations

import itertools
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, text

from thrifty.db import open_database
from thrifty.db.database import HEAD, MIGRATIONS, rescue_file
from thrifty.db.fleet import (
    DeploymentRow,
    DeploymentSettings,
    ReplicaRow,
    VersionRow,
    VersionSettings,
    read_fleet,
    save_deployment,
    save_replicas,
)
from thrifty.db.keys import create_key, list_keys
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.db.tables import metadata, requests
from thrifty.errors import DatabaseError


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/t.db"


NUMBERS = itertools.count(1)


def row(name: str = "r", at_s: float = 1.0, **changes: Any) -> tuple:
    """A row of the request log with its own id; `name` is the client's request id."""
    values = dict.fromkeys(COLUMNS)
    values |= {"id": next(NUMBERS) * 1000, "at_s": at_s, "client_request_id": name,
               "endpoint": "e", "status": 200, "stream": True, "attempts": 1, "e2e_ms": 1.5,
               "replica": "é\"'\\🎉"}  # fmt: skip
    values |= changes
    return tuple(values[name] for name in COLUMNS)


def test_migrations_make_exactly_the_tables_of_the_code(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    database = open_database(url(tmp_path), migrate=True)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert {*metadata.tables} <= {*inspect(connection).get_table_names()}
    database.close()


def test_head_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_keys_of_an_older_database_are_kept_and_have_no_limits(tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    old = create_engine(url(tmp_path))
    with old.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO keys (id, name, role, tenant, hash, hint, created_s) "
                "VALUES ('1', 'ann', 'user', 'team', 'h', 'sk', 1.0)"
            )
        )
    old.dispose()
    database = open_database(url(tmp_path), migrate=True)
    (key,) = list_keys(database)
    assert (key.name, key.tenant, key.limited) == ("ann", "team", False)
    database.close()


def test_opening_twice_migrates_once_and_keeps_rows(tmp_path: Path) -> None:
    first = open_database(url(tmp_path), migrate=True)
    create_key(first, "ann")
    first.close()
    second = open_database(url(tmp_path), migrate=True)
    assert [key.name for key in list_keys(second)] == ["ann"]
    second.close()


@pytest.mark.slow
def test_several_processes_may_migrate_at_once(tmp_path: Path) -> None:
    code = f"from thrifty.db import open_database; open_database({url(tmp_path)!r}, migrate=True)"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4


def test_errors_for_missing_and_old_databases_name_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="does not exist; 'thrifty up' creates it"):
        open_database(url(tmp_path), migrate=False)
    sqlite3.connect(tmp_path / "t.db").close()
    with pytest.raises(DatabaseError, match="run 'thrifty up' once"):
        open_database(url(tmp_path), migrate=False)


def test_an_error_names_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_bytes(b"not a database, and long enough to be sure of it" * 100)
    with pytest.raises(DatabaseError, match="file is not a database"):
        open_database(url(tmp_path), migrate=True)
    assert (tmp_path / "t.db").read_bytes().startswith(b"not a database")


def test_a_database_of_a_newer_thrifty_is_not_changed(tmp_path: Path) -> None:
    database = open_database(url(tmp_path), migrate=True)
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(DatabaseError, match="newer Thrifty"):
        open_database(url(tmp_path), migrate=True)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ("nonsense", "not valid"),
        ("mysql://x/y", "'mysql' is not supported"),
        ("sqlite://", "needs a file"),
        ("postgresql://user:secret@127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_bad_urls_are_refused_without_showing_passwords(bad: str, match: str) -> None:
    with pytest.raises(DatabaseError, match=match) as caught:
        open_database(bad, migrate=True)
    assert "secret" not in str(caught.value)


def test_writers_and_readers_do_not_lock_each_other_out(tmp_path: Path) -> None:
    """'database is locked' under concurrent writes is the known weakness of SQLite as a default."""
    database = open_database(url(tmp_path), migrate=True)
    faults: list[BaseException] = []

    def write(worker: int) -> None:
        try:
            mine = open_database(url(tmp_path), migrate=False)
            log = RequestLog(mine)
            for batch in range(20):
                log.write([Entry(row(f"{worker}-{batch}-{i}")) for i in range(20)])
                read_fleet(mine)
            mine.close()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    with database.begin() as connection:
        assert len(connection.execute(requests.select()).all()) == 6 * 20 * 20
    database.close()


def test_a_deleted_file_is_noticed_before_rows_are_lost_in_it(tmp_path: Path) -> None:
    database = open_database(url(tmp_path), migrate=True)
    log = RequestLog(database)
    assert not database.file_is_gone()
    os.unlink(tmp_path / "t.db")
    assert database.file_is_gone()
    with pytest.raises(DatabaseError, match="was deleted or replaced"):
        log.write([Entry(row())])
    database.close()


@pytest.mark.parametrize("with_log", [True, False])
def test_a_deleted_file_is_restored_with_all_rows(tmp_path: Path, with_log: bool) -> None:
    """Whether only the file was deleted or also its write-ahead log."""
    database = open_database(url(tmp_path), migrate=True)
    create_key(database, "ann")
    keeper = sqlite3.connect(tmp_path / "t.db")
    keeper.execute("SELECT count(*) FROM sqlite_master").fetchone()
    create_key(database, "bob")
    os.unlink(tmp_path / "t.db")
    if with_log:
        (tmp_path / "t.db-wal").unlink()
        (tmp_path / "t.db-shm").unlink()
    rescue_file(database, keeper)
    keeper.close()
    fresh = open_database(url(tmp_path), migrate=True)
    assert [key.name for key in list_keys(fresh)] == ["ann", "bob"]
    assert fresh.engine.connect().exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    fresh.close()
    database.close()


def test_fleet_rows_round_trip(tmp_path: Path) -> None:
    database = open_database(url(tmp_path), migrate=True)
    versions = (
        VersionRow("v", "m@v1", "echo", "r", "art", 9.0, 0.0, VersionSettings(honours=("n",))),
        VersionRow("w", "m@v2", "remote", "s", None, 1.0, 0.5, VersionSettings(key_env="K")),
    )
    deployment = DeploymentRow("a", "decoder", DeploymentSettings(max_tokens=7), versions)
    replica = ReplicaRow(
        "a-0", "a", "echo", "v", "r", "art", "http://x", "ready", 7, 8.5, 9, 1, "m", {"k": 1}
    )
    before = read_fleet(database).change
    save_deployment(database, deployment)
    save_replicas(database, [replica], routing_changed=True)
    state = read_fleet(database)
    assert (state.deployments, state.replicas) == ([deployment], [replica])
    assert state.change == before + 2
    save_replicas(database, [replica], routing_changed=False)
    assert read_fleet(database).change == state.change
    database.close()
