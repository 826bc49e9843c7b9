"""What requests cost: parts that add up to the time of replicas times its price, and what was saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from tests.db.databases import KINDS, empty_tables, open_kind
from tests.db.test_database import row
from thrifty.cost.amounts import HOUR_MS, NANOS
from thrifty.cost.held import LATE_S, settle
from thrifty.cost.report import BY, CostReport, make_report
from thrifty.cost.savings import Speed
from thrifty.db import Database
from thrifty.db.replica_spans import MACHINE
from thrifty.db.request_log import Entry, RequestLog
from thrifty.db.rollups import DAY_S, HOUR_S, MINUTE_S
from thrifty.db.tables import replica_spans, rollups, versions
from thrifty.errors import ThriftyError
from thrifty.observe.rollups.roll import Keep, Roller

NOON_S = 1_800_000_000 // DAY_S * DAY_S + 12 * HOUR_S
KEEP = Keep(minutes_s=1e12, hours_s=1e12, days_s=1e12)


@pytest.fixture(scope="module", params=KINDS)
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@pytest.fixture
def database(opened: Database) -> Database:
    empty_tables(opened)
    return opened


def hold(database: Database, from_s: float, until_s: float, **changes: Any) -> None:
    """A span that is over, in seconds after noon."""
    values = {
        "replica": "chat-0", "deployment": "chat", "version": "a", "process_s": 1.0, "share": 0.5,
        "price_per_hour": 3.6, "basis": "stated", "started_s": NOON_S + from_s,
        "seen_s": NOON_S + until_s, "ended_s": NOON_S + until_s,
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(insert(replica_spans).values(**values | changes))


def ask(database: Database, at_s: float, busy_ms: float, count: int = 1, **changes: Any) -> None:
    """Requests at a time after noon, each at its replica for so long."""
    values = {
        "at_s": NOON_S + at_s, "origin": "client", "deployment": "chat", "version": "a",
        "tenant": "ann", "prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 0,
        "queue_ms": 0.0, "ttft_ms": 20.0, "tpot_ms": 10.0, "e2e_ms": busy_ms, "cache": "miss",
    }  # fmt: skip
    entries = [Entry(row(**values | changes)) for _ in range(count)]
    assert RequestLog(database).write(entries) == []
    Roller(database, KEEP).catch_up()


def report(database: Database, by: str = "version", until_s: float = HOUR_S, **more: Any) -> Any:
    made = make_report(database, by=by, from_s=NOON_S, until_s=NOON_S + until_s, **more)
    check_sums(made)
    return made


def check_sums(made: CostReport) -> None:
    """The parts of each line, and the lines of the report, add up exactly."""
    for line in made.lines:
        parts = line.parts
        assert parts.total == parts.requests + parts.others + parts.idle + parts.tokens
        assert min(parts.requests, parts.others, parts.idle, parts.tokens) >= 0
        assert line.cell.worked_ms <= line.cell.held_ms
    assert made.total.parts.total == sum(line.parts.total for line in made.lines)
    json.dumps(made.describe())


def test_held_time_is_work_and_idle_time_and_the_rest_of_the_machine(database: Database) -> None:
    hold(database, 0, HOUR_S, replica=MACHINE, deployment=MACHINE, version="", share=1.0)
    hold(database, 0, 1000)
    ask(database, 10, 40_000, tenant="ann")
    ask(database, 130, 10_000, tenant="bob")
    ask(database, 200, 50_000, origin="shadow")
    made = report(database)
    (line,) = made.lines
    # Half a machine at 3.60 an hour for 1,000 s is 0.50; 100 s of them were work.
    found = line.describe()
    assert (found["cost"], found["held_s"], found["worked_s"]) == (0.5, 1000.0, 100.0)
    assert (found["requests_cost"], found["others_cost"], found["idle_cost"]) == (
        0.025,
        0.025,
        0.45,
    )
    assert (found["requests"], found["per_request"]) == (2, 0.25)
    assert found["per_million_tokens"] == 50_000.0
    assert made.describe()["unheld_cost"] == 3.1
    assert made.describe()["machine_cost"] == 3.6
    assert made.bases == ["stated"]
    by_tenant = report(database, "tenant")
    assert [
        (one.labels["of"], one.labels["tenant"], one.parts.total / NANOS) for one in by_tenant.lines
    ] == [("tenant", "ann", 0.02), ("tenant", "bob", 0.005), ("no tenant", "", 0.475)]


def test_requests_at_once_share_the_time_of_a_replica(database: Database) -> None:
    hold(database, 0, 600)
    ask(database, 1, 30_000, count=8)
    (line,) = report(database).lines
    assert line.cell.worked_ms == 60_000
    assert line.cell.busy_ms == pytest.approx(240_000)


def test_a_request_of_several_minutes_works_in_all_of_them(database: Database) -> None:
    hold(database, 0, 600)
    ask(database, 30, 200_000, queue_ms=10_000.0)
    (line,) = report(database).lines
    assert line.cell.worked_ms == 190_000


def test_hours_that_are_settled_stay_as_they_are(database: Database) -> None:
    hold(database, 0, 3 * HOUR_S)
    for hour in range(3):
        ask(database, hour * HOUR_S + 5, 36_000)
    before = report(database, until_s=3 * HOUR_S)
    now_s = NOON_S + 2 * HOUR_S + LATE_S + 1
    assert settle(database, 1e12, now_s) == 2
    assert settle(database, 1e12, now_s) == 0
    assert report(database, until_s=3 * HOUR_S).total.parts == before.total.parts
    with database.begin() as connection:
        connection.execute(rollups.delete().where(rollups.c.step_s == MINUTE_S))
    after = report(database, until_s=3 * HOUR_S)
    assert after.total.cell.worked_ms == 2 * 36_000
    assert after.total.parts.total == before.total.parts.total
    by_day = report(database, "day", until_s=3 * HOUR_S)
    assert [line.labels for line in by_day.lines] == [{"day": "2027-01-15"}]


def test_without_a_price_there_are_seconds_and_a_way_to_say_one(database: Database) -> None:
    hold(database, 0, 1000, price_per_hour=None, basis="")
    ask(database, 10, 100_000)
    made = report(database)
    found = made.describe()
    assert not found["priced"]
    assert "price_per_hour" in found["how_to_price"]
    assert (found["total"]["cost"], found["total"]["unpriced_s"]) == (0.0, 500.0)
    filled = report(database, fill_per_hour=3.6).describe()
    assert filled["total"]["cost"] == 0.5
    assert "--price-per-hour 3.6" in filled["bases"][0]


def test_servers_of_others_cost_what_their_tokens_cost(database: Database) -> None:
    hold(database, 0, 1000, share=0.0)
    ask(database, 5, 100, cost=0.3)
    ask(database, 6, 100, cost=0.1, tenant="bob")
    ask(database, 7, 1, cost=0.2, cache="hit")
    made = report(database)
    assert made.total.describe()["tokens_cost"] == pytest.approx(0.4)
    assert made.total.describe()["idle_cost"] == 0.0
    (saving,) = made.savings
    assert (saving.what, saving.nanos) == ("cache", 200_000_000)
    lines = report(database, "tenant").lines
    assert [(one.labels["tenant"], one.parts.tokens) for one in lines] == [
        ("ann", 300_000_000), ("bob", 100_000_000), ("", 0),
    ]  # fmt: skip


def test_accepted_answers_are_priced_with_an_interval(database: Database) -> None:
    hold(database, 0, 1000)
    ask(database, 5, 1000, count=10)
    with database.begin() as connection:
        connection.execute(rollups.update().where(rollups.c.step_s == HOUR_S).values(up=3, down=1))
    found = report(database).total.describe()
    assert found["accepted_share"] == 0.75
    assert found["per_accepted"] == pytest.approx(0.5 / 7.5)
    assert found["per_accepted_low"] < found["per_accepted"] < found["per_accepted_high"]


def test_savings_are_told_with_their_baselines(database: Database) -> None:
    hold(database, 0, 600)
    hold(database, 1200, 1800)
    # All at once, each of which alone would have taken 20 ms + 4 * 10 ms.
    ask(database, 5, 60_000, count=4000, completion_tokens=5)
    ask(database, 8, 1, count=1000, cache="hit", tpot_ms=None, ttft_ms=1.0)
    waking = {
        "deployment": "chat", "label": "a", "position": 0, "model": "m@v2", "engine": "echo",
        "revision": "r", "weight": 1.0, "shadow": 0.0, "settings": '{"wakes": true}',
        "updated_s": 0.0,
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(insert(versions).values(waking))
    speed = Speed("m@v2", "m@v1", 300.0, 100.0, "8")
    made = report(database, speeds={("chat", "a"): speed}, until_s=2400)
    found = {one.what: one for one in made.savings}
    assert set(found) == {"cache", "batching", "compression", "scaling to zero"}
    requests = made.total.parts.requests
    assert found["cache"].nanos == requests // 4
    assert found["compression"].nanos == 2 * requests
    assert found["scaling to zero"].seconds == 1200.0
    assert found["scaling to zero"].nanos == made.total.parts.total
    alone_s = 4000 * (0.020 + 4 * 0.010)
    worked_s = made.total.cell.worked_ms / 1000
    assert found["batching"].seconds == pytest.approx(max(0.0, alone_s - worked_s), rel=0.02)
    assert "quickest tenth" in found["batching"].baseline


def test_days_stand_in_where_hours_are_not_kept_any_more(database: Database) -> None:
    ask(database, -40 * HOUR_S, 100)
    ask(database, 5, 100)
    long = {"from_s": NOON_S - 3 * DAY_S, "until_s": NOON_S + HOUR_S, "by": "version"}
    assert make_report(database, **long).total.describe()["requests"] == 2
    with database.begin() as connection:
        gone = (rollups.c.step_s == HOUR_S) & (rollups.c.at_s < NOON_S)
        connection.execute(rollups.delete().where(gone))
    assert make_report(database, **long).total.describe()["requests"] == 2
    assert report(database).total.describe()["requests"] == 1


@pytest.mark.parametrize(("by", "span_s"), [("user", HOUR_S), ("day", 0)])
def test_what_cannot_be_asked_is_named(database: Database, by: str, span_s: float) -> None:
    with pytest.raises(ThriftyError):
        make_report(database, by=by, from_s=NOON_S, until_s=NOON_S + span_s)


SPANS = st.lists(
    st.tuples(
        st.integers(0, 3 * HOUR_S), st.floats(0.001, 2 * HOUR_S), st.sampled_from(["a", "b"]),
        st.sampled_from([0.5, 1.0, 0.3]), st.sampled_from([0.123456789, 7.0, None]),
    ),
    min_size=1, max_size=6,
)  # fmt: skip
ASKED = st.lists(
    st.tuples(
        st.floats(0, 4 * HOUR_S), st.floats(0.1, 300_000), st.sampled_from(["a", "b"]),
        st.sampled_from(["ann", "bob", None]), st.sampled_from(["client", "shadow"]),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SPANS, ASKED)
def test_parts_add_up_to_the_time_of_replicas_times_its_price(
    opened: Database, spans: list[Any], asked: list[Any]
) -> None:
    empty_tables(opened)
    for number, (from_s, length_s, version, share, price) in enumerate(spans):
        hold(
            opened, from_s, from_s + length_s, replica=f"chat-{number}", version=version,
            share=share, price_per_hour=price,
        )  # fmt: skip
    for at_s, busy_ms, version, tenant, origin in asked:
        ask(opened, at_s, busy_ms, version=version, tenant=tenant, origin=origin)
    reports = [report(opened, by, until_s=6 * HOUR_S, fill_per_hour=2.0) for by in BY]
    assert len({made.total.parts.total for made in reports}) == 1
    exact = sum(
        Fraction(length_s) * 1000 * Fraction(share) * Fraction(2.0 if price is None else price)
        for _, length_s, _, share, price in spans
    )
    # Each hour of each span is rounded to milliseconds of the machine, and to nanos.
    slack = sum(Fraction(7.0) * NANOS * 5 / HOUR_MS + 5 for _ in spans)
    assert abs(reports[0].total.parts.total - exact * NANOS / HOUR_MS) <= slack
