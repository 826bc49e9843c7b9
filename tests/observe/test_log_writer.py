"""The request log's writer keeps rows while the database is away, within its bound."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest

from tests.db.test_database import row, url
from tests.parts import wait_until
from thrifty.db import Database, open_database
from thrifty.db.database import rescue_file
from thrifty.db.tables import requests
from thrifty.observe.log_writer import QUEUE_ROWS, LogWriter


class Counts:
    def __init__(self) -> None:
        self.written = self.dropped = 0
        self.states: list[bool] = []

    def writer(self, database: Database) -> LogWriter:
        def written(count: int) -> None:
            self.written += count

        def dropped(count: int) -> None:
            self.dropped += count

        return LogWriter(
            database, keep_s=1e9, max_rows=10**9, on_written=written, on_dropped=dropped,
            on_state=self.states.append,
        )  # fmt: skip


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
    assert counts.dropped == 0
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


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    writer = counts.writer(database)
    for index in range(QUEUE_ROWS + 7):
        writer.put(row(str(index)))
    assert counts.dropped == 7
    writer.start()
    writer.stop(30)
    assert count_rows(database) == QUEUE_ROWS
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


def test_a_database_that_is_away_at_the_end_costs_seconds_not_a_hang(tmp_path: Path) -> None:
    database, counts = open_database(url(tmp_path), migrate=True), Counts()
    writer = counts.writer(database)
    os.unlink(tmp_path / "t.db")
    writer.put(row())
    writer.start()
    began = time.monotonic()
    writer.stop(5)
    assert time.monotonic() - began < 5
    assert counts.dropped == 1
    database.close()
