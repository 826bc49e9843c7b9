"""Pages of the request log: the rows that a filter means, and by an index where they are rare."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, text

from tests.db.databases import KINDS, open_kind
from thrifty.db import Database
from thrifty.db.feedback import Feedback, Item, save_feedback
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.db.request_queries import RequestFilter, list_requests
from thrifty.observe.rollups.roll import Roller
from thrifty.openai.response_ids import EPOCH_S

COUNT, NEWEST_S = 3_000, EPOCH_S + 300_000_000
RARE = {
    "tenant": RequestFilter(tenant="rare"),
    "version": RequestFilter(version="rare"),
    "deployment": RequestFilter(deployment="rare"),
    "unversioned": RequestFilter(deployment="old"),
    "user": RequestFilter(user="rare"),
    "error": RequestFilter(error="any"),
    "one error": RequestFilter(error="no_replica"),
    "slow": RequestFilter(slower_ms=2_000),
    "slower": RequestFilter(slower_ms=70_000.5),
    "disliked": RequestFilter(disliked=True),
    "client id": RequestFilter(client_request_id="mine"),
    "conversation": RequestFilter(conversation_id="c7"),
    "errors of a tenant": RequestFilter(tenant="often", error="any"),
    "slow ones of a version": RequestFilter(version="often", slower_ms=2_000),
    "a user's of a tenant": RequestFilter(tenant="often", user="rare"),
    "a tenant's of a version": RequestFilter(tenant="rare", version="often", deployment="chat"),
}
COMMON = {
    "all": RequestFilter(),
    "tenant": RequestFilter(tenant="often"),
    "version": RequestFilter(version="often"),
    "deployment": RequestFilter(deployment="chat"),
    "fast": RequestFilter(slower_ms=5),
    "no tenant": RequestFilter(tenant=""),
}


def make_rows() -> list[dict[str, Any]]:
    chance, rows = random.Random(3), []
    for number in range(COUNT):
        rare = {name: number % 500 == place for place, name in enumerate(
            ("tenant", "version", "user", "error", "slow", "deployment", "old", "client"))}  # fmt: skip
        at_s = NEWEST_S - COUNT + number
        rows.append(dict.fromkeys(COLUMNS) | {
            "id": (at_s - EPOCH_S) * 1000 << 22 | number % 4096, "at_s": float(at_s),
            "origin": "client", "endpoint": "/v1/chat/completions", "stream": False, "attempts": 1,
            "deployment": "rare" if rare["deployment"] else "old" if rare["old"] else "chat",
            "version": None if rare["old"] else "rare" if rare["version"] else
            "only" if rare["deployment"] else "often",
            "tenant": "rare" if rare["tenant"] else None if number % 7 == 0 else "often",
            "end_user": "rare" if rare["user"] else f"u{number % 9}" if number % 2 else None,
            "status": 503 if rare["error"] else 200,
            "error": chance.choice(["no_replica", "queue_full"]) if rare["error"] else None,
            "e2e_ms": chance.uniform(2e3, 2e5) if rare["slow"] else chance.uniform(1, 1999),
            "conversation_id": f"c{number % 1000}", "client_request_id": "mine" if rare["client"] else None,
        })  # fmt: skip
    return rows


@pytest.fixture(scope="module", params=KINDS)
def filled(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for database in open_kind(request.param, tmp_path_factory):
        rows = make_rows()
        entries = [Entry(tuple(row[name] for name in COLUMNS)) for row in rows]
        assert RequestLog(database).write(entries) == []
        Roller(database).catch_up()
        disliked = set()
        for number, row in enumerate(rows[::200]):
            items = (Item("thumbs", float(number % 2)), Item("rating", 1.0 + number % 5))
            given = Feedback(row["tenant"] or "", items[: 1 + number % 2], response=row["id"])
            save_feedback(database, given)
            if number % 2 == 0 or number % 5 < 2:
                disliked.add(row["id"])
        if not database.is_sqlite:
            with database.begin() as connection:
                connection.execute(text("ANALYZE"))
        yield database, rows, disliked


def is_wanted(row: dict[str, Any], wanted: RequestFilter, disliked: set[int]) -> bool:
    failed = row["error"] is not None or row["status"] >= 400
    return (
        (wanted.tenant is None or (row["tenant"] or "") == wanted.tenant)
        and wanted.version in (None, row["version"])
        and wanted.deployment in (None, row["deployment"])
        and wanted.user in (None, row["end_user"])
        and wanted.client_request_id in (None, row["client_request_id"])
        and wanted.conversation_id in (None, row["conversation_id"])
        and (wanted.error is None or (failed and wanted.error in ("any", row["error"])))
        and (wanted.slower_ms is None or row["e2e_ms"] >= wanted.slower_ms)
        and (not wanted.disliked or row["id"] in disliked)
    )


@pytest.mark.parametrize("wanted", [*RARE.values(), *COMMON.values()])
def test_pages_hold_what_the_filter_means(filled: Any, wanted: RequestFilter) -> None:
    database, rows, disliked = filled
    expected = [row["id"] for row in reversed(rows) if is_wanted(row, wanted, disliked)]
    found: list[int] = []
    before, more = None, True
    while more and len(found) < 100:
        page, more = list_requests(database, wanted, before=before, limit=7)
        found += [row["id"] for row in page]
        before = found[-1] if found else None
    assert found == expected[: len(found)]
    assert len(found) == len(expected) or len(found) >= 100
    above = expected[len(expected) // 2] if expected else None
    newer, _ = list_requests(database, wanted, above=above, limit=COUNT)
    assert [row["id"] for row in newer] == expected[: len(expected) // 2]


@pytest.mark.parametrize("name", [*RARE, *(f"often: {name}" for name in COMMON)])
def test_no_page_reads_much_of_the_log(filled: Any, name: str) -> None:
    """SQLite says how many steps a query took: reading all rows takes fifteen thousand."""
    database, _, _ = filled
    if not database.is_sqlite:
        pytest.skip("PostgreSQL chooses by what it knows of the values")
    wanted = RARE.get(name) or COMMON[name.removeprefix("often: ")]
    steps = count_steps(database, wanted)
    assert steps < 6_000, plan(database, wanted)


def count_steps(database: Database, wanted: RequestFilter) -> int:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 100
        return 0

    with database.begin() as connection:
        raw = connection.connection.driver_connection
    assert raw is not None
    raw.set_progress_handler(count, 100)
    try:
        list_requests(database, wanted, limit=50)
    finally:
        raw.set_progress_handler(None, 100)
    return steps


def plan(database: Database, wanted: RequestFilter) -> list[str]:
    """What SQLite does for each statement, for the message of a failure."""
    said: list[str] = []

    def explain(_: Any, cursor: Any, statement: str, values: Any, *__: Any) -> None:
        if statement.startswith("SELECT"):
            found = cursor.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            said.extend(row[3] for row in found)

    event.listen(database.engine, "before_cursor_execute", explain)
    try:
        list_requests(database, wanted, limit=50)
    finally:
        event.remove(database.engine, "before_cursor_execute", explain)
    return said
