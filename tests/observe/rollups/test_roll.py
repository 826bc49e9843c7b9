"""Sums of the request log: each row counts once, whoever is killed or comes late."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select, text

from tests.db.databases import KINDS, empty_tables, open_kind
from tests.db.test_database import row
from tests.parts import until
from thrifty.control.rollups import keep_rollups
from thrifty.db import Database
from thrifty.db.feedback import Feedback, Item, save_feedback
from thrifty.db.replica_spans import read_settled_until_s
from thrifty.db.request_log import Entry, RequestLog
from thrifty.db.rollups import (
    DAY_S,
    HOUR_S,
    MINUTE_S,
    STEPS_S,
    RolledMeanwhileError,
    write_step,
)
from thrifty.db.tables import (
    replica_spans,
    rollups,
    tenant_rollups,
    unrolled_rows,
    unrolled_thumbs,
)
from thrifty.errors import DatabaseError, ThriftyError
from thrifty.observe.clock_watch import PAUSE_S, ClockWatch
from thrifty.observe.rollups.roll import OTHER_TENANTS, STEP_NOTES, Keep, Roller
from thrifty.observe.rollups.series import Asked, Found, read_series

NOW_S = int(time.time()) // DAY_S * DAY_S + 12 * HOUR_S
"""Noon, so that an hour around it is on one day."""


@pytest.fixture(scope="module", params=KINDS)
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@pytest.fixture
def database(opened: Database) -> Database:
    empty_tables(opened)
    return opened


def asked(**changes: Any) -> tuple:
    """A row of the log as a gateway writes it."""
    values = {
        "at_s": NOW_S + 1.0, "origin": "client", "deployment": "chat", "version": "a",
        "tenant": "ann", "prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 4,
        "queue_ms": 1.0, "ttft_ms": 20.0, "tpot_ms": 2.0, "e2e_ms": 31.0, "cache": "miss",
        "cost": 0.25,
    }  # fmt: skip
    return row(**values | changes)


def write(database: Database, *rows: tuple) -> None:
    assert RequestLog(database).write([Entry(one) for one in rows]) == []


def read(database: Database, metrics: str, **changes: Any) -> Found:
    wanted = {"step": "hour", "from_s": NOW_S, "until_s": NOW_S + HOUR_S} | changes
    return read_series(database, Asked(tuple(metrics.split(",")), **wanted))


def total(database: Database, metric: str = "requests") -> float:
    """The sum of a metric over all days, which is the same by minute, hour and tenant."""
    sums = []
    for table, step_s in itertools.product((rollups, tenant_rollups), STEPS_S):
        with database.begin() as connection:
            query = select(table.c[metric]).where(table.c.step_s == step_s)
            sums.append(sum(connection.execute(query).scalars()))
    assert len(set(sums)) == 1
    return sums[0]


def test_rows_become_sums_and_percentiles(database: Database) -> None:
    write(
        database,
        asked(),
        asked(version="b", at_s=NOW_S + 61.0, ttft_ms=200.0, tenant=None),
        asked(cache="hit", ttft_ms=0.5, e2e_ms=0.6, queue_ms=0.0, tpot_ms=None),
        asked(status=429, error="queue_full", cache=None, cost=None, prompt_tokens=None,
              completion_tokens=None, cached_tokens=None, ttft_ms=None, tpot_ms=None),
        asked(origin="batch", ttft_ms=9e6, e2e_ms=9e6),
        asked(origin="shadow", e2e_ms=11.0),
    )  # fmt: skip
    roller = Roller(database)
    assert roller.has_new()
    assert roller.catch_up() == 6
    assert not roller.has_new()

    found = read(
        database,
        "requests,errors,hits,tokens_in,tokens_out,tokens_cached,tokens_out_hits,cost,cost_hits,"
        "errors:queue_full,cache:hit,cache:miss,ttft_p50,ttft_p99,e2e_p50,queue_p99",
    )
    assert (found.step_s, found.times) == (HOUR_S, [NOW_S])
    values = {metric: value for metric, (value,) in found.series[0].values.items()}
    assert {name: value for name, value in values.items() if "_p" not in name} == {
        "requests": 5, "errors": 1, "hits": 1, "tokens_in": 30, "tokens_out": 15,
        "tokens_cached": 12, "tokens_out_hits": 5, "cost": 0.75, "cost_hits": 0.25,
        "errors:queue_full": 1, "cache:hit": 1, "cache:miss": 3,
    }  # fmt: skip
    assert values["ttft_p50"] == pytest.approx(20.0, rel=0.01)
    assert values["ttft_p99"] == pytest.approx(200.0, rel=0.01)
    assert values["e2e_p50"] == pytest.approx(31.0, rel=0.01)
    assert values["queue_p99"] == pytest.approx(1.0, rel=0.01)

    by_version = read(
        database, "requests,tpot_p50", by="version", step="minute", until_s=NOW_S + 120
    )
    assert by_version.times == [NOW_S, NOW_S + 60]
    assert [(one.labels, one.values["requests"]) for one in by_version.series] == [
        ({"deployment": "chat", "version": "a"}, [4, 0]),
        ({"deployment": "chat", "version": "b"}, [0, 1]),
    ]
    assert by_version.series[1].values["tpot_p50"][0] is None
    by_tenant = read(database, "requests", by="tenant")
    assert {one.labels["tenant"]: one.values["requests"] for one in by_tenant.series} == {
        "ann": [4], "": [1],
    }  # fmt: skip
    one = read(database, "requests", tenant="", version="b")
    assert one.series[0].values["requests"] == [1]
    with database.begin() as connection:
        assert connection.execute(select(rollups.c.other_busy_ms)).scalars().first() == 10.0


def test_late_rows_count_where_their_own_time_says(database: Database) -> None:
    write(database, asked())
    roller = Roller(database)
    roller.catch_up()
    write(database, asked(at_s=NOW_S - 5 * HOUR_S), asked(at_s=NOW_S - 20 * DAY_S), asked())
    roller.catch_up()
    assert read(database, "requests").series[0].values["requests"] == [2]
    early = read(database, "requests", from_s=NOW_S - 5 * HOUR_S, until_s=NOW_S - 4 * HOUR_S)
    assert early.series[0].values["requests"] == [1]
    # Minutes are not kept for so long, so that none is made.
    old = {"from_s": NOW_S - 20 * DAY_S, "until_s": NOW_S - 20 * DAY_S + 60}
    assert read(database, "requests", step="minute", **old).series[0].values["requests"] == [0]
    assert read(database, "requests", **old).series[0].values["requests"] == [1]


def test_rows_that_are_written_again_count_once(database: Database) -> None:
    """The connection may break after a commit and before its reply."""
    log = RequestLog(database)
    entries = [Entry(asked(e2e_ms=float(number + 2))) for number in range(40)]
    assert log.write(entries[:15]) == []
    Roller(database).catch_up()
    assert log.write(entries[:30]) == []
    assert log.write(entries) == []
    twice = Entry(asked(id=entries[3].row[0], e2e_ms=7.5))
    assert [bad.row for bad in log.write([twice, entries[5]])] == [twice.row]
    Roller(database).catch_up()
    assert total(database) == 40


def test_a_step_that_fails_anywhere_counts_nothing(database: Database) -> None:
    write(database, *(asked(tenant=f"t{number}") for number in range(5)))
    fail_at, statements = 0, 0

    def fail(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal statements
        if statement.lstrip()[:6] in ("UPDATE", "DELETE", "INSERT"):
            statements += 1
            if statements == fail_at:
                raise DatabaseError("it went away")

    event.listen(database.engine, "before_cursor_execute", fail)
    try:
        rolled = False
        while not rolled:
            fail_at, statements = fail_at + 1, 0
            try:
                Roller(database).roll()
                rolled = True
            except ThriftyError:
                assert total(database) == 0
    finally:
        event.remove(database.engine, "before_cursor_execute", fail)
    assert fail_at > 3
    assert total(database) == 5


def test_two_processes_that_read_the_same_notes_count_them_once(database: Database) -> None:
    write(database, *(asked() for _ in range(3)))
    first, second = Roller(database), Roller(database)
    with database.begin() as connection:
        read_early = first._read(connection)
    assert read_early is not None
    assert second.roll() == 3
    with pytest.raises(RolledMeanwhileError):
        write_step(database, read_early[0])
    assert first.catch_up() == 0
    assert total(database) == 3


def test_a_step_says_whether_it_left_something(database: Database) -> None:
    for number in range(STEP_NOTES + 1):
        write(database, asked(at_s=NOW_S + number))
    roller = Roller(database)
    assert (roller.roll(), roller.is_behind) == (STEP_NOTES, True)
    assert (roller.roll(), roller.is_behind) == (1, False)


def test_rows_from_before_there_were_rollups_count_once(database: Database) -> None:
    rows = [asked() for _ in range(7)]
    write(database, *rows[:5])
    numbers = sorted(one[0] for one in rows)
    with database.begin() as connection:
        # As the migration leaves it. The last two are written by gateways that note them, with
        # numbers below and above the largest of before.
        connection.execute(text("DELETE FROM unrolled_rows"))
        connection.execute(text("DELETE FROM rollup_state"))
        state = {"after": numbers[0] - 1, "until": numbers[5]}
        connection.execute(text("INSERT INTO rollup_state VALUES (1, 0, :after, :until)"), state)
    write(database, *rows[5:])
    assert Roller(database).catch_up() == 7
    assert total(database) == 7
    late = asked(id=numbers[0] + 1)
    write(database, late)
    Roller(database).catch_up()
    assert total(database) == 8


def give(database: Database, thumbs: float, **about: Any) -> None:
    save_feedback(database, Feedback("ann", (Item("thumbs", thumbs),), **about))


def test_thumbs_count_with_the_answer_they_are_about(database: Database) -> None:
    answer = asked(conversation_id="c1", at_s=NOW_S - 2 * HOUR_S)
    early = asked(version="b")
    roller = Roller(database)
    give(database, 1.0, response=answer[0])
    give(database, 0.0, response=early[0], user="u")
    assert not roller.has_new()
    write(database, answer, early)
    roller.catch_up()
    then = {"from_s": NOW_S - 2 * HOUR_S, "until_s": NOW_S + HOUR_S, "by": "version"}
    found = {one.labels["version"]: one.values for one in read(database, "up,down", **then).series}
    assert found == {
        "a": {"up": [1, 0, 0], "down": [0, 0, 0]}, "b": {"up": [0, 0, 0], "down": [0, 0, 1]},
    }  # fmt: skip
    # A new value takes the place of the one before; the same value again changes nothing.
    give(database, 0.0, response=answer[0])
    give(database, 0.0, response=answer[0])
    give(database, 1.0, conversation_id="c1")
    roller.catch_up()
    assert (total(database, "up"), total(database, "down")) == (1, 2)
    with database.begin() as connection:
        assert connection.execute(select(unrolled_thumbs)).all() == []
        assert connection.execute(select(unrolled_rows)).all() == []


def test_thumbs_on_answers_that_never_come_are_given_up(database: Database) -> None:
    give(database, 1.0, response=5)
    Roller(database).prune()
    with database.begin() as connection:
        assert len(connection.execute(select(unrolled_thumbs)).all()) == 1
        connection.execute(text("UPDATE unrolled_thumbs SET at_s = at_s - 100000"))
    Roller(database).prune()
    with database.begin() as connection:
        assert connection.execute(select(unrolled_thumbs)).all() == []


def test_tenants_beyond_the_cap_count_as_one(database: Database) -> None:
    roller = Roller(database, Keep(tenants=2))
    write(database, asked(), *(asked(tenant="bob") for _ in range(3)), asked(tenant="zoe"))
    roller.catch_up()
    write(database, asked(tenant="new"), asked(tenant="bob"))
    roller.catch_up()
    found = read(database, "requests", by="tenant")
    assert {one.labels["tenant"]: one.values["requests"] for one in found.series} == {
        "bob": [4], "ann": [1], OTHER_TENANTS: [2],
    }  # fmt: skip
    assert total(database) == 7


def test_kinds_of_errors_are_bounded(database: Database) -> None:
    write(database, *(asked(error=f"e{number}", status=500) for number in range(80)))
    Roller(database).catch_up()
    found = read(database, "errors,errors:e0,errors:other").series[0].values
    assert found == {"errors": [80], "errors:e0": [1], "errors:other": [30]}


def test_old_sums_are_deleted_by_step(database: Database) -> None:
    keep = Keep(minutes_s=2 * HOUR_S, hours_s=3 * DAY_S, days_s=30 * DAY_S)
    for days in (0, 2, 10, 29):
        write(database, asked(at_s=NOW_S - days * DAY_S))
    Roller(database).catch_up()
    with database.begin() as connection:
        before = Counter(connection.execute(select(rollups.c.step_s)).scalars())
    assert before == {MINUTE_S: 1, HOUR_S: 4, DAY_S: 4} or before[MINUTE_S] == 2
    Roller(database, keep).prune()
    with database.begin() as connection:
        left = Counter(connection.execute(select(rollups.c.step_s)).scalars())
    assert left == {MINUTE_S: 1, HOUR_S: 2, DAY_S: 4}


def test_a_clock_that_jumps_ahead_deletes_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(database, asked())
    Roller(database).catch_up()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 400 * DAY_S)
    Roller(database).prune()
    assert total(database) == 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"step": "week"}, "'step' must be minute, hour, day"),
        ({"by": "user"}, "'by' must be one of deployment, version, tenant"),
        ({"until_s": NOW_S}, "must be later than 'from'"),
        ({"step": "minute", "until_s": NOW_S + 5 * DAY_S}, "ask for a longer step"),
        ({"step": "minute", "from_s": 0, "until_s": 1 << 40}, "ask for a longer step"),
        ({"metrics": ()}, "1 to 50"),
        ({"metrics": ("ttft_p200",)}, "'ttft_p200', which is none"),
        ({"metrics": ("ttft",)}, "ttft_p95"),
    ],
)
def test_what_cannot_be_asked_is_named(
    database: Database, changes: dict[str, Any], match: str
) -> None:
    wanted = {"metrics": ("requests",), "from_s": NOW_S, "until_s": NOW_S + HOUR_S} | changes
    with pytest.raises(ThriftyError, match=match):
        read_series(database, Asked(**wanted))


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 6), st.integers(0, 40)),
        st.tuples(st.just("again"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("roll"), st.just(0), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTS)
def test_any_order_of_writing_and_rolling_counts_each_row_once(
    opened: Database, acts: list[tuple[str, int, int]]
) -> None:
    empty_tables(opened)
    log, batches = RequestLog(opened), []
    for act, number, hours in acts:
        if act == "write":
            entries = [Entry(asked(at_s=NOW_S - hours * HOUR_S)) for _ in range(number)]
            batches.append(entries)
            log.write(entries)
        elif act == "again" and batches:
            log.write(batches[number % len(batches)])
        else:
            Roller(opened).roll()
    Roller(opened).catch_up()
    with opened.begin() as connection:
        query = select(rollups.c.requests).where(rollups.c.step_s == DAY_S)
        assert sum(connection.execute(query).scalars()) == sum(map(len, batches))


KILLED = """
import sys
from thrifty.db import open_database
from thrifty.observe.rollups.roll import Roller
database = open_database(sys.argv[1], migrate=False)
print("ready", flush=True)
while True:
    Roller(database).roll()
"""


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_half_done(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    (database,) = itertools.islice(open_kind("sqlite", tmp_path_factory), 1)
    url = database.url.render_as_string(hide_password=False)
    written = 0
    for delay_s in (0.0, 0.01, 0.03, 0.06):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, url], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        end_s = time.monotonic() + delay_s
        while True:
            write(database, *(asked(tenant=f"t{number}") for number in range(100)))
            written += 100
            if time.monotonic() > end_s:
                break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    Roller(database).catch_up()
    assert total(database) == written
    database.close()


async def test_a_clock_that_jumps_ahead_deletes_no_sums_and_settles_no_hours(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not after a request was written with the wrong time, which is then the newest one."""
    write(database, asked(), asked(version="b"))
    Roller(database).catch_up()
    with database.begin() as connection:
        connection.execute(
            replica_spans.insert().values(
                replica="r",
                deployment="chat",
                version="a",
                process_s=1.0,
                share=1.0,
                basis="",
                started_s=NOW_S - DAY_S,
                seen_s=NOW_S,
                ended_s=NOW_S,
            )
        )
    kept = count_steps(database)
    real, jump_s, passed_s = time.time, 60 * DAY_S, 0.0
    now = {"ahead": 0}
    clock = ClockWatch(lambda: real() + now["ahead"], lambda: time.monotonic() + passed_s)
    now["ahead"] = jump_s
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    monkeypatch.setattr("thrifty.control.rollups.POLL_S", 0.01)
    monkeypatch.setattr("thrifty.control.rollups.CLEAN_S", 0.0)
    write(database, asked(at_s=real() + jump_s))
    task = asyncio.ensure_future(keep_rollups(lambda: database, dict, clock))
    try:
        await until(lambda: len(count_steps(database)) > len(kept))
        await asyncio.sleep(0.1)  # several times what it takes to delete them
        assert kept <= count_steps(database)
        with database.begin() as connection:
            assert read_settled_until_s(connection) is None
        passed_s = PAUSE_S  # nobody set the clock right, and so it is right
        minutes = {one for one in kept if one[0] == MINUTE_S}
        await until(lambda: not minutes & count_steps(database))
    finally:
        task.cancel()


def count_steps(database: Database) -> set[tuple[int, int]]:
    with database.begin() as connection:
        return {tuple(one) for one in connection.execute(select(rollups.c.step_s, rollups.c.at_s))}
