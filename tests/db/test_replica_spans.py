"""Who held the machine when, through restarts, crashes of the controller and jumps of the clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.db.databases import KINDS, empty_tables, open_kind
from thrifty.db import Database
from thrifty.db.replica_spans import Holding, Span, SpanRecorder, read_spans

START_S = 1_800_000_000.0


@pytest.fixture(scope="module", params=KINDS)
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@pytest.fixture
def database(opened: Database) -> Database:
    empty_tables(opened)
    return opened


class Clocks:
    def __init__(self, wall_s: float = START_S) -> None:
        self.wall_s, self.monotonic_s = wall_s, 50.0

    def wait(self, seconds: float, jump_s: float = 0.0) -> None:
        self.monotonic_s += seconds
        self.wall_s += seconds + jump_s

    def recorder(self) -> SpanRecorder:
        return SpanRecorder(lambda: self.wall_s, lambda: self.monotonic_s)


def hold(replica: str = "chat-0", process_s: float = 1.0, **changes: Any) -> Holding:
    values = {"deployment": "chat", "version": "a", "share": 0.5, "price_per_hour": 0.4,
              "basis": "stated"}  # fmt: skip
    return Holding(replica=replica, process_s=process_s, **values | changes)


def read(database: Database) -> list[tuple[str, float, float]]:
    with database.begin() as connection:
        spans = read_spans(connection, 0.0, 1e12)
    return [(one.replica, one.from_s - START_S, one.until_s - START_S) for one in spans]


def test_a_replica_holds_from_its_start_to_its_end(database: Database) -> None:
    clocks = Clocks()
    recorder = clocks.recorder()
    recorder.record(database, [hold()])
    clocks.wait(5)
    recorder.record(database, [hold(), hold("chat-1")])
    clocks.wait(5)
    recorder.record(database, [hold("chat-1")])
    clocks.wait(7)
    recorder.end_all(database)
    assert read(database) == [("chat-0", 0, 10), ("chat-1", 5, 17)]
    with database.begin() as connection:
        (cut, _) = read_spans(connection, START_S + 2, START_S + 6)
    assert cut == Span("chat-0", "chat", "a", 0.5, 0.4, "stated", START_S + 2, START_S + 6)


@pytest.mark.parametrize(
    "changes", [{"process_s": 2.0}, {"price_per_hour": 0.8}, {"price_per_hour": None},
                {"version": "b"}, {"share": 1.0}],
)  # fmt: skip
def test_what_is_held_otherwise_is_another_span(
    database: Database, changes: dict[str, Any]
) -> None:
    clocks = Clocks()
    recorder = clocks.recorder()
    recorder.record(database, [hold()])
    clocks.wait(5)
    recorder.record(database, [hold(**changes)])
    clocks.wait(2)
    recorder.record(database, [hold(**changes)])
    assert read(database) == [("chat-0", 0, 5), ("chat-0", 5, 7)]


def test_a_new_controller_goes_on_with_what_lives_and_ends_what_does_not(
    database: Database,
) -> None:
    clocks = Clocks()
    killed = clocks.recorder()
    killed.record(database, [hold(), hold("chat-1")])
    clocks.wait(4)
    killed.record(database, [hold(), hold("chat-1")])
    later = Clocks(clocks.wall_s + 100)
    later.recorder().record(database, [hold(), hold("chat-1", process_s=9.0)])
    assert read(database) == [("chat-0", 0, 104), ("chat-1", 0, 4), ("chat-1", 104, 104)]
    # A process that lives on at another price is held all the time.
    last = Clocks(later.wall_s + 50)
    last.recorder().record(database, [hold(price_per_hour=0.8)])
    assert read(database)[0] == ("chat-0", 0, 154)


@pytest.mark.parametrize("jump_s", [86400.0 * 365, -86400.0])
def test_a_jump_of_the_clock_costs_nothing(database: Database, jump_s: float) -> None:
    clocks = Clocks()
    recorder = clocks.recorder()
    recorder.record(database, [hold()])
    clocks.wait(5)
    recorder.record(database, [hold()])
    clocks.wait(3, jump_s)
    recorder.record(database, [hold()])
    clocks.wait(2)
    recorder.record(database, [hold()])
    lengths = [until_s - from_s for _, from_s, until_s in read(database)]
    assert sorted(lengths) == [2, 8]
