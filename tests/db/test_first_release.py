"""Databases of the first release: migrated with their data, and shared with its gateway workers
while those still run. What that release wrote and asks is in `first_release/`, made by its code."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.db.databases import KINDS
from tests.db.test_database import row
from thrifty.db import Database, open_database
from thrifty.db.batches import find_batch, find_file
from thrifty.db.cache import read_cache_stats
from thrifty.db.fleet import read_fleet
from thrifty.db.keys import Role, list_keys
from thrifty.db.leases import read_owner
from thrifty.db.request_log import Entry, RequestLog
from thrifty.db.spend import exchange_spend
from thrifty.errors import DatabaseError
from thrifty.openai.response_ids import ResponseIds

FOLDER = Path(__file__).parent / "first_release"
Rows = list[dict[str, Any]]


@pytest.fixture(params=KINDS)
def url(request: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database as the first release left it."""
    if request.param == "sqlite":
        connection = sqlite3.connect(tmp_path / "t.db")
        connection.executescript((FOLDER / "sqlite.sql").read_text())
        connection.close()
        yield f"sqlite:///{tmp_path}/t.db"
        return
    pgserver = pytest.importorskip("pgserver")
    psycopg = pytest.importorskip("psycopg")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    try:
        with psycopg.connect(server.get_uri()) as connection:
            connection.execute((FOLDER / "postgres.sql").read_text())
        yield server.get_uri()
    finally:
        server.cleanup()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """The same, brought up to date."""
    database = open_database(url, migrate=True)
    yield database
    database.close()


class OldWorker:
    """Sends the very statements of a gateway worker of the first release."""

    def __init__(self, database: Database) -> None:
        self.database = database
        name = "sqlite" if database.is_sqlite else "postgres"
        self.statements = json.loads((FOLDER / f"{name}.json").read_text())

    def run(self, name: str) -> list[Rows]:
        """Do one of the recorded things, in one transaction; gives what was read."""
        with self.database.begin() as connection:
            return [self._send(connection, *each) for each in self.statements[name]]

    def write(self, rows: list[list[Any]], texts: list[dict[str, Any]]) -> None:
        """Write rows of the request log, in the order of that release's columns."""
        into_requests, into_texts = (statement for statement, _ in self.statements["write"])
        with self.database.begin() as connection:
            self._send(connection, into_requests, self._pack(batch=json.dumps(rows)))
            for values in texts:
                self._send(connection, into_texts, self._pack(**values))

    def prune(self, keep_s: float, max_rows: int) -> int:
        """As that release does: by the distance from the greatest id."""
        newest, oldest, old_texts = (statement for statement, _ in self.statements["prune"])
        with self.database.begin() as connection:
            (found,) = self._send(connection, newest, self._pack())
            values = {
                "at_s_1": 1.79e9 - keep_s,
                "id_1": next(iter(found.values())) - max_rows,
                "param_1": 5000,
            }
            if self.database.is_sqlite:
                values["offset"] = 0
            parameters = self._pack(**values)
            count = self._send(connection, oldest, parameters)[0]["count"]
            self._send(connection, old_texts, self._pack(at_s_1=1.79e9 - keep_s))
        return count

    def _pack(self, **values: Any) -> Any:
        return tuple(values.values()) if self.database.is_sqlite else values

    def _send(self, connection: Connection, statement: str, parameters: Any) -> Rows:
        if isinstance(parameters, list):
            parameters = tuple(parameters)
        if isinstance(parameters, tuple) and parameters and isinstance(parameters[0], list):
            parameters = [tuple(each) for each in parameters]
        result = connection.exec_driver_sql(statement, parameters or None)
        if result.returns_rows:
            return [dict(each) for each in result.mappings()]
        return [{"count": result.rowcount}]


def old_row(request_id: str, at_s: float) -> list[Any]:
    values = [at_s, request_id, "/v1/chat/completions", "smol", "smol@v1", "smol-0", "red", "k1"]
    return [*values, None, 200, None, True, "miss", 1, 30, 12, 8, 0.1, 21.5, 4.2, 80.1, 101.5]


def old_text(request_id: str, at_s: float) -> dict[str, Any]:
    return {"request_id": request_id, "at_s": at_s, "prompt": f"p {at_s}", "answer": f"a {at_s}"}


def read_all(database: Database, table: str) -> Rows:
    with database.begin() as connection:
        found = connection.execute(text(f"SELECT * FROM {table}")).mappings()
        return sorted((dict(each) for each in found), key=repr)


def tables_of(url: str) -> dict[str, Rows]:
    """Every row of the first release's tables, before anything has migrated them."""
    from sqlalchemy import create_engine, inspect

    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        found = {
            table: [
                dict(each) for each in connection.execute(text(f"SELECT * FROM {table}")).mappings()
            ]
            for table in inspect(connection).get_table_names()
            if table != "alembic_version"
        }
    engine.dispose()
    return found


def test_the_data_of_the_first_release_are_kept(url: str) -> None:
    before = tables_of(url)
    assert len(before) == 13
    assert all(before.values()), "each table has rows"
    database = open_database(url, migrate=True)
    for table, rows in before.items():
        after = read_all(database, table)
        cut = [{name: each[name] for name in rows[0]} for each in after]
        assert sorted(cut, key=repr) == sorted(rows, key=repr), table

    requests = {each["id"]: each for each in read_all(database, "requests")}
    assert [requests[number]["client_request_id"] for number in sorted(requests)] == [
        None, "client-17", "client-17", None
    ]  # fmt: skip
    texts = {each["request_id"]: each for each in read_all(database, "request_texts")}
    for request_id in ("req-0123456789abcdef0000000001", "client-17"):
        own = requests[texts[request_id]["id"]]
        assert (own["request_id"], own["at_s"]) == (request_id, texts[request_id]["at_s"])
    assert texts["pruned-row"]["id"] < 0
    database.close()


def test_this_release_reads_them(database: Database) -> None:
    roles = {key.name: (key.role, key.tenant, key.rpm) for key in list_keys(database)}
    assert roles == {"ann": (Role.USER, "red", 60), "eve": (Role.VIEWER, "eve", None)}
    fleet = read_fleet(database)
    assert {each.id for each in fleet.replicas} == {"smol-0"}
    versions = {
        each.name: [version.label for version in each.versions] for each in fleet.deployments
    }
    assert versions == {"smol": ["smol@v1"], "far": ["far"]}
    assert [each.tenant for each in fleet.purges] == ["red"]
    assert read_cache_stats(database) == []  # of a worker that has ended long ago
    batch = find_batch(database, "red", "batch_1")
    assert batch is not None
    assert (batch.counts.total, batch.metadata) == (3, {"a": "b"})
    assert find_file(database, "red", "file-1") is not None
    assert read_owner(database, "batches") == "host:5"
    assert exchange_spend(database, {}, "2026-11-01", 0.0) == {("k1", "2026-11-23"): 1.25}
    assert RequestLog(database).prune(1e9, 2) == 2
    left = {each["at_s"] for each in read_all(database, "requests")}
    assert left == {1.79e9 + 2, 1.79e9 + 3}
    assert {each["at_s"] for each in read_all(database, "request_texts")} == {1.79e9 + 9}


def test_an_old_worker_asks_for_what_is_still_there(url: str) -> None:
    before = tables_of(url)
    database = open_database(url, migrate=True)
    worker = OldWorker(database)
    change, *found = worker.run("read_fleet")
    assert change == [{"routing": before["changes"][0]["routing"]}]
    names = ("deployments", "replicas", "gateways", "keys", "cache_purges")
    for table, rows in zip(names, found, strict=True):
        assert sorted(rows, key=repr) == sorted(before[table], key=repr)
    for name in ("spend", "stats", "purge", "batches"):
        worker.run(name)
    database.close()


def test_old_and_new_workers_write_side_by_side_and_lose_nothing(database: Database) -> None:
    worker, log = OldWorker(database), RequestLog(database)
    ids = ResponseIds(bytes(32), 1)
    old_count = len(read_all(database, "requests"))
    new: dict[int, float] = {}
    old: list[tuple[str, float]] = []
    for turn in range(12):
        at_s = 1.8e9 + turn
        number = ids.new("red").number
        new[number] = at_s
        entry = Entry(row(f"client-{turn}", at_s, id=number), (f"p {at_s}", f"a {at_s}"))
        assert log.write([entry]) == []
        # The id of a client that always sends the same one, and some of that worker's own.
        pairs = [("client-17", at_s + 0.25), (f"req-{turn}", at_s + 0.5)]
        old += pairs
        worker.write([old_row(*pair) for pair in pairs], [old_text(*pair) for pair in pairs])
    # A text may come before its row, where more than a batch of rows wait.
    worker.write([], [old_text("early", 5.0)])
    worker.write([old_row("early", 5.0)], [])

    requests = {each["id"]: each for each in read_all(database, "requests")}
    assert len(requests) == old_count + len(new) + len(old) + 1
    assert {number for number in requests if number > 2**50} == set(new)
    texts = {each["id"]: each for each in read_all(database, "request_texts")}
    assert len(texts) == 3 + len(new) + len(old) + 1
    for number, at_s in new.items():
        assert (requests[number]["at_s"], texts[number]["prompt"]) == (at_s, f"p {at_s}")
    linked = {
        (each["request_id"], each["at_s"]): texts[each["id"]]["prompt"]
        for each in requests.values()
        if each["request_id"] is not None and each["id"] in texts
    }
    for request_id, at_s in old:
        assert linked[request_id, at_s] == f"p {at_s}"
    # No text stands at the number of a response that is not its own.
    for number, values in texts.items():
        assert number < 0 or requests[number]["at_s"] == values["at_s"]


def test_an_old_worker_cannot_prune_by_distance(database: Database) -> None:
    worker, log = OldWorker(database), RequestLog(database)
    ids = ResponseIds(bytes(32), 1)
    log.write([Entry(row("x", 1.8e9 + i, id=ids.new("t").number)) for i in range(5)])
    before = read_all(database, "requests")
    with pytest.raises(DatabaseError, match="rows of the request log are deleted by pruning"):
        worker.prune(1e9, 1_000_000)
    assert read_all(database, "requests") == before
    # It goes on writing, as it does while the database is away.
    worker.write([old_row("after", 1.8e9)], [old_text("after", 1.8e9)])
    assert len(read_all(database, "requests")) == len(before) + 1
    assert log.prune(1e9, 3) == len(before) - 2
    assert read_owner(database, "prune-requests") is None


def test_a_step_back_leaves_numbers_that_the_first_release_can_prune(database: Database) -> None:
    from tests.db.test_migrations import move

    log, ids = RequestLog(database), ResponseIds(bytes(32), 1)
    numbers = [ids.new("t").number for _ in range(5)]
    entries = [Entry(row(str(i), 1.8e9 + i, id=numbers[i]), ("p", "a")) for i in range(5)]
    log.write(entries)
    count = len(read_all(database, "requests"))
    move(database, "0004", down=True)
    found = read_all(database, "requests")
    assert sorted(each["id"] for each in found) == list(range(1, count + 1))
    worker = OldWorker(database)
    worker.write([old_row("after", 1.8e9 + 9)], [old_text("after", 1.8e9 + 9)])
    assert max(each["id"] for each in read_all(database, "requests")) == count + 1
    worker.prune(1e9, 4)
    assert len(read_all(database, "requests")) == 4
    move(database, "head")
    assert len(read_all(database, "requests")) == 4
