"""Files of records: all rows, in pages, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.db.databases import KINDS, empty_tables, open_kind
from tests.db.test_database import row
from thrifty.db import Database
from thrifty.db.feedback import Feedback, Item, save_feedback
from thrifty.db.request_log import Entry, RequestLog
from thrifty.errors import ThriftyError
from thrifty.observe import record_files
from thrifty.observe.record_files import (
    KINDS as RECORDS,
)
from thrifty.observe.record_files import (
    check_export,
    filter_records,
    read_records,
    write_records,
)
from thrifty.observe.rollups.roll import Roller
from thrifty.openai.response_ids import ResponseIds

IDS = ResponseIds(b"s" * 32, 0)
SUFFIXES = (".jsonl", ".parquet")


@pytest.fixture(scope="module", params=KINDS)
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@pytest.fixture
def database(opened: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    empty_tables(opened)
    monkeypatch.setattr(record_files, "PAGE", 3)
    return opened


def fill(database: Database) -> list[tuple]:
    rows = [
        row(tenant=tenant, end_user=user, at_s=1.8e9 + number, ttft_ms=7.0, deployment="chat")
        for number, (tenant, user) in enumerate(
            [("ann", "u"), ("ann", None), ("bob", "v"), (None, None), ("ann", "ü"), ("bob", "u"),
             ("ann", "u")]
        )
    ]  # fmt: skip
    assert RequestLog(database).write([Entry(one) for one in rows]) == []
    said = Feedback("ann", (Item("thumbs", 1.0), Item("comment", text="nice")), rows[0][0])
    save_feedback(database, said)
    Roller(database).catch_up()
    return rows


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_record_is_written_once(database: Database, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    rows = fill(database)
    path = tmp_path / f"requests{suffix}"
    counts: list[int] = []
    count = write_records(database, RECORDS["requests"], path, IDS, on_count=counts.append)
    found = list(read_records(path))
    assert count == len(found) == len(rows) == counts[-1]
    assert [one["id"] for one in found] == sorted(values[0] for values in rows)
    assert all(IDS.parse(one["response_id"], one["tenant"] or "") == one["id"] for one in found)
    assert {one["end_user"] for one in found} == {"u", "v", "ü", None}
    assert path.stat().st_mode & 0o077 == 0
    few = write_records(database, RECORDS["requests"], path, IDS, since_s=1.8e9 + 2, tenant="ann")
    assert few == len(list(read_records(path))) == 2
    for kind, records in (("feedback", 2), ("rollups", 3), ("tenant-rollups", 9), ("replicas", 0)):
        assert write_records(database, RECORDS[kind], path, IDS) == records
        assert len(list(read_records(path))) == records
    write_records(database, RECORDS["rollups"], path, IDS)
    sums = next(iter(read_records(path)))
    assert sums["ttft_p95"] == pytest.approx(7.0, rel=0.01)
    assert "ttft" not in sums


def test_records_can_be_taken_out_of_parquet(database: Database, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    fill(database)
    path = tmp_path / "requests.parquet"
    write_records(database, RECORDS["requests"], path, IDS)
    assert filter_records(path, lambda one: True) == 0
    assert filter_records(path, lambda one: one["end_user"] != "u") == 3
    assert [one["end_user"] for one in read_records(path)] == [None, "v", None, "ü"]
    assert b"u" * 2 not in path.read_bytes()
    assert filter_records(tmp_path / "gone.parquet", lambda one: False) == 0


@pytest.mark.parametrize(
    ("what", "name", "tenant", "match"),
    [
        ("texts", "a.jsonl", None, "is no kind of records"),
        ("requests", "a.csv", None, "must end in .parquet or .jsonl"),
        ("rollups", "a.jsonl", "ann", "leave --tenant out"),
    ],
)
def test_what_cannot_be_written_is_named(
    tmp_path: Path, what: str, name: str, tenant: str | None, match: str
) -> None:
    with pytest.raises(ThriftyError, match=match):
        check_export(what, tmp_path / name, tenant)
