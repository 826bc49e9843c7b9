"""Leases: one owner at a time; taken over on expiry, or if the owner is known to have ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.postgres_server import running_postgres
from thrifty.db import Database, open_database
from thrifty.db.batches import (
    ACTIVE,
    LEASE,
    BatchCounts,
    BatchRow,
    BatchStatus,
    FileRow,
    LeaseLost,
    cancel_batch,
    delete_file,
    end_batch,
    find_batch,
    find_file,
    insert_batch,
    insert_file,
    list_batches,
    move_batch,
    read_active_batches,
    save_counts,
    take_expired_files,
)
from thrifty.db.leases import read_owner, release_lease, take_lease


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.peer)])
def database(request: Any, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        opened = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
        yield opened
        opened.close()
        return
    with running_postgres() as url:
        opened = open_database(url, migrate=True)
        yield opened
        opened.close()


def batch(number: int = 1, **changes: Any) -> BatchRow:
    values = {
        "id": f"batch_{number}", "tenant": "red", "key_id": None, "endpoint": "/v1/completions",
        "input_file_id": f"file-{number}", "completion_window": "24h",
        "status": BatchStatus.VALIDATING, "created_s": float(number), "expires_s": 9e9, **changes,
    }  # fmt: skip
    return BatchRow(**values)


def test_one_owner_at_a_time(database: Database) -> None:
    assert take_lease(database, "x", "a", 0.3, force=False)
    assert not take_lease(database, "x", "b", 10, force=False)
    assert take_lease(database, "x", "a", 0.3, force=False)
    assert take_lease(database, "y", "b", 10, force=False)
    time.sleep(0.4)
    assert take_lease(database, "x", "b", 10, force=False)
    assert not take_lease(database, "x", "a", 10, force=False)
    assert read_owner(database, "x") == "b"
    release_lease(database, "x", "a")
    assert not take_lease(database, "x", "a", 10, force=False)
    release_lease(database, "x", "b")
    assert take_lease(database, "x", "a", 10, force=False)
    assert take_lease(database, "x", "b", 10, force=True)
    assert read_owner(database, "none") is None


def test_one_of_many_callers_gets_the_lease(database: Database) -> None:
    won: list[str] = []

    def ask(owner: str) -> None:
        if take_lease(database, "x", owner, 10, force=False):
            won.append(owner)

    threads = [threading.Thread(target=ask, args=(f"o{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert read_owner(database, "x") == won[0]


def test_only_the_owner_writes_a_batch(database: Database) -> None:
    assert insert_batch(database, batch(metadata={"ä": "ö"}), 5)
    take_lease(database, LEASE, "a", 10, force=False)
    counts = BatchCounts(10, 4, 1, 7, 8, 2)
    save_counts(database, "a", {"batch_1": counts})
    found = find_batch(database, "red", "batch_1")
    assert found is not None
    assert (found.counts, found.metadata, found.errors) == (counts, {"ä": "ö"}, None)
    with pytest.raises(LeaseLost):
        save_counts(database, "b", {"batch_1": counts})
    with pytest.raises(LeaseLost):
        move_batch(database, "b", "batch_1", ACTIVE, BatchStatus.FINALIZING, 1.0, counts)
    output = FileRow("file-out", "red", "o.jsonl", "batch_output", 5, 1.0, 2.0)
    with pytest.raises(LeaseLost):
        end_batch(database, "b", found, BatchStatus.COMPLETED, 1.0, output, None)
    # Nothing of the refused writes is stored.
    assert find_file(database, "red", "file-out") is None
    assert find_batch(database, "red", "batch_1") == found


def test_a_batch_changes_its_status(database: Database) -> None:
    insert_batch(database, batch(), 5)
    take_lease(database, LEASE, "a", 10, force=False)
    none = BatchCounts()
    validating = (BatchStatus.VALIDATING,)
    assert move_batch(database, "a", "batch_1", validating, BatchStatus.IN_PROGRESS, 5.0, none)
    assert not move_batch(database, "a", "batch_1", validating, BatchStatus.IN_PROGRESS, 6.0, none)
    assert not cancel_batch(database, "blue", "batch_1", 7.0)
    assert cancel_batch(database, "red", "batch_1", 7.0)
    assert not cancel_batch(database, "red", "batch_1", 8.0)
    (row,) = read_active_batches(database, 10)
    assert (row.status, row.in_progress_s, row.cancelling_s) == (BatchStatus.CANCELLING, 5.0, 7.0)
    output = FileRow("file-out", "red", "o.jsonl", "batch_output", 5, 1.0, 2.0)
    end_batch(database, "a", row, BatchStatus.CANCELLED, 9.0, output, None)
    ended = find_batch(database, "red", "batch_1")
    assert ended is not None
    assert (ended.cancelled_s, ended.output_file_id) == (9.0, "file-out")
    assert find_file(database, "red", "file-out") == output
    assert read_active_batches(database, 10) == []


def test_pages_continue_after_the_last_entry(database: Database) -> None:
    for number in range(1, 8):
        # Some rows have the same time, so the id decides.
        insert_batch(database, batch(number, created_s=float(number // 3)), 10)
    insert_batch(database, batch(9, tenant="blue"), 10)
    seen: list[str] = []
    after = None
    while True:
        rows, more = list_batches(database, "red", after=after, limit=2)
        seen += [row.id for row in rows]
        if not more:
            break
        after = rows[-1].id
    assert seen == [f"batch_{i}" for i in range(7, 0, -1)]
    with pytest.raises(KeyError):
        list_batches(database, "red", after="batch_9", limit=2)


def test_needed_files_are_kept(database: Database) -> None:
    for number in (1, 2):
        insert_file(database, FileRow(f"file-{number}", "red", "f", "batch", 1, 1.0, 2.0))
    insert_batch(database, batch(1), 10)
    assert delete_file(database, "red", "file-1") == "batch_1"
    assert take_expired_files(database, 3.0) == ["file-2"]
    assert find_file(database, "red", "file-1") is not None
    assert delete_file(database, "blue", "file-1") is None
    assert find_file(database, "red", "file-1") is not None
