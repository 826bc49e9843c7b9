"""Feedback in the database, on SQLite and PostgreSQL: once for each kind, with its history."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.db.databases import KINDS, empty_tables, open_kind
from thrifty.db import Database, open_database
from thrifty.db.feedback import (
    MAX_HISTORY,
    MAX_ITEMS,
    Feedback,
    FeedbackFilter,
    FeedbackLimitError,
    Item,
    list_feedback,
    prune_feedback,
    read_history,
    save_feedback,
)
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.db.tables import feedback, feedback_history
from thrifty.errors import NameTakenError

UP, DOWN = Item("thumbs", 1.0), Item("thumbs", 0.0)
GIVEN = Feedback("red", (UP,), response=5, user="ann")
ALL = FeedbackFilter()


@pytest.fixture(scope="module", params=KINDS)
def shared(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@pytest.fixture
def database(shared: Database) -> Database:
    empty_tables(shared)
    return shared


def log_response(database: Database, number: int, **values: Any) -> None:
    row = dict.fromkeys(COLUMNS) | {
        "id": number, "at_s": 1.0, "endpoint": "/v1/chat/completions", "status": 200,
        "stream": False, "attempts": 1, "e2e_ms": 1.0, "deployment": "echo", "version": "v1",
        "cache": "miss", "tenant": "red", **values,
    }  # fmt: skip
    assert RequestLog(database).write([Entry(tuple(row[name] for name in COLUMNS))]) == []


def count(database: Database, table: Any) -> int:
    with database.begin() as connection:
        return len(connection.execute(select(table.c.id)).all())


def test_the_newest_value_counts_and_the_others_are_history(database: Database) -> None:
    first = save_feedback(database, GIVEN, 10.0)
    assert (first.created, first.joined) == (1, False)
    again = save_feedback(database, GIVEN, 11.0)
    assert (again.created, again.ids) == (0, first.ids)
    save_feedback(database, replace(GIVEN, items=(DOWN,)), 12.0)
    rows, more = list_feedback(database, ALL)
    assert not more
    (row,) = rows
    assert (row.value, row.at_s, row.updated_s, row.changes) == (0.0, 10.0, 12.0, 1)
    (earlier,) = read_history(database, [row.id])[row.id]
    assert (earlier.value, earlier.at_s) == (1.0, 10.0)


def test_other_users_kinds_tenants_and_responses_are_others(database: Database) -> None:
    for given in (
        GIVEN,
        replace(GIVEN, user="bob"),
        replace(GIVEN, user=None),
        replace(GIVEN, tenant="blue"),
        replace(GIVEN, response=6),
        replace(GIVEN, items=(Item("rating", 1.0),)),
        replace(GIVEN, client_id="a"),
        replace(GIVEN, client_id="a", tenant="blue"),
    ):
        assert save_feedback(database, given).created == 1, given
    assert count(database, feedback) == 8


def test_an_id_belongs_to_one_target(database: Database) -> None:
    given = replace(GIVEN, client_id="a")
    save_feedback(database, given)
    assert save_feedback(database, replace(given, user="bob")).created == 0
    with pytest.raises(NameTakenError, match="another response"):
        save_feedback(database, replace(given, response=6))
    assert save_feedback(database, replace(given, response=6, by_token=True)).created == 1


def test_it_is_joined_to_a_response_that_is_written_later(database: Database) -> None:
    save_feedback(database, replace(GIVEN, user=None))
    conversation = "conv-" + "a" * 27
    talk = Feedback("red", (DOWN,), conversation_id=conversation)
    save_feedback(database, talk)
    assert {row.joined for row in list_feedback(database, ALL)[0]} == {None}
    log_response(database, 5, end_user="ann", conversation_id=conversation)
    log_response(database, 9, version="v2", conversation_id=conversation)
    on_talk, on_response = list_feedback(database, ALL)[0]
    assert (on_response.version, on_response.cache, on_response.user) == ("v1", "miss", "ann")
    assert (on_talk.joined, on_talk.version) == (9, "v2")
    assert save_feedback(database, talk).joined
    assert [row.id for row in list_feedback(database, FeedbackFilter(version="v2"))[0]] == [
        on_talk.id
    ]
    assert len(list_feedback(database, FeedbackFilter(conversation_id=conversation))[0]) == 2
    assert list_feedback(database, FeedbackFilter(tenant="blue"))[0] == []


def test_pages_hold_every_row_once(database: Database) -> None:
    for number in range(7):
        save_feedback(database, replace(GIVEN, response=number))
    found: list[int] = []
    before, more = None, True
    while more:
        rows, more = list_feedback(database, ALL, before=before, limit=3)
        found += [row.response or 0 for row in rows]
        before = rows[-1].id
    assert found == [6, 5, 4, 3, 2, 1, 0]


def test_one_user_fills_neither_a_response_nor_a_history(database: Database) -> None:
    for number in range(MAX_ITEMS):
        save_feedback(database, replace(GIVEN, items=(Item(f"score:s{number}", 1.0),)))
    with pytest.raises(FeedbackLimitError, match="most that are kept"):
        save_feedback(database, GIVEN)
    assert save_feedback(database, replace(GIVEN, user="bob")).created == 1, "others may"
    for value in range(MAX_HISTORY + 9):
        save_feedback(database, replace(GIVEN, user="bob", items=(Item("thumbs", value),)))
    assert count(database, feedback_history) == MAX_HISTORY


def test_one_user_is_bounded_by_the_day(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.db.feedback.MAX_USER_DAY", 3)
    for number in range(3):
        save_feedback(database, replace(GIVEN, response=number), 1000.0)
    with pytest.raises(FeedbackLimitError, match="24 hours"):
        save_feedback(database, replace(GIVEN, response=3), 1000.0)
    assert save_feedback(database, replace(GIVEN, response=2, items=(DOWN,)), 1000.0).created == 0
    assert save_feedback(database, replace(GIVEN, response=3), 1000.0 + 86401).created == 1


def test_writers_at_once_make_one_row(database: Database) -> None:
    items = tuple(Item(f"score:s{number}", 1.0) for number in range(5))

    def write(turn: int) -> int:
        order = items if turn % 2 else items[::-1]
        return save_feedback(database, replace(GIVEN, items=order)).created

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(write, range(12))) == 5
    assert count(database, feedback) == 5


def test_old_feedback_goes_with_its_history(database: Database) -> None:
    now_s = time.time()
    save_feedback(database, GIVEN, now_s - 100)
    save_feedback(database, replace(GIVEN, items=(DOWN,)), now_s - 90)
    save_feedback(database, replace(GIVEN, response=6), now_s)
    assert prune_feedback(database, 50, 100) == 1
    assert (count(database, feedback), count(database, feedback_history)) == (1, 0)
    save_feedback(database, replace(GIVEN, response=7), now_s)
    assert prune_feedback(database, 50, 1) == 1
    assert [row.response for row in list_feedback(database, ALL)[0]] == [7]


def test_any_text_can_be_stored(database: Database) -> None:
    item = Item("comment", text="a\0b\ud800" + "\U0001f600")
    save_feedback(database, replace(GIVEN, items=(item,)))
    (row,) = list_feedback(database, ALL)[0]
    assert row.text == "a\ufffdb\ufffd\U0001f600"


WRITER = """
import itertools, sys
from thrifty.db import open_database
from thrifty.db.feedback import Feedback, Item, save_feedback
database = open_database(sys.argv[1], migrate=False)
for turn in itertools.count():
    items = tuple(Item(f"score:s{n}", float(turn)) for n in range(3))
    save_feedback(database, Feedback("red", items, response=turn % 5, user="ann"))
    print(turn, flush=True)
"""


def test_a_writer_that_is_killed_leaves_no_half(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/t.db"
    database = open_database(url, migrate=True)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while int(process.stdout.readline()) < 40:
        pass
    process.kill()
    process.communicate()
    rows, _ = list_feedback(database, ALL, limit=1000)
    history = read_history(database, [row.id for row in rows])
    assert len(rows) == 15
    for row in rows:
        assert row.changes == len(history.get(row.id, ())), "a value and its history go together"
    for number in range(5):
        assert len({row.value for row in rows if row.response == number}) == 1, "all kinds or none"
    database.close()


def test_a_flood_of_one_tenant_pushes_out_nobody_else(database: Database) -> None:
    for number in range(3):
        save_feedback(database, replace(GIVEN, tenant="small", response=number), now_s=100 + number)
    for number in range(40):
        save_feedback(database, replace(GIVEN, tenant="loud", response=number), now_s=200 + number)
    for number in range(6):
        save_feedback(database, replace(GIVEN, tenant="mid", response=number), now_s=300 + number)
    assert prune_feedback(database, time.time(), 14) == 36
    with database.begin() as connection:
        rows = connection.execute(select(feedback.c.tenant, feedback.c.response)).all()
    kept = {name: sorted(r.response for r in rows if r.tenant == name) for name in ("small", "mid")}
    assert kept == {"small": [0, 1, 2], "mid": [1, 2, 3, 4, 5]}
    assert sorted(r.response for r in rows if r.tenant == "loud") == [35, 36, 37, 38, 39]
    assert prune_feedback(database, time.time(), 14) == 0
