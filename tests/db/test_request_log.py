"""Rows of the request log: every valid row is written, whatever is wrong with the others."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select

from tests.db.databases import KINDS, empty_tables, open_kind
from tests.db.test_database import row
from thrifty.db import Database
from thrifty.db.fleet import ReplicaRow, read_fleet, save_replicas
from thrifty.db.request_log import COLUMNS, DELETE_ROWS, Entry, RequestLog
from thrifty.db.sanitize import RowShape, sanitize_values
from thrifty.db.spend import exchange_spend
from thrifty.db.tables import metadata, request_texts, requests
from thrifty.errors import BadDataError, DatabaseError
from thrifty.untrusted_text import MAX_TEXT_CHARS

NUL = "a\0b"
LONG = "x" * 1_000_000
HALF = "a\ud800"


@pytest.fixture(scope="module", params=KINDS)
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@pytest.fixture
def database(opened: Database) -> Database:
    empty_tables(opened)
    return opened


def read(database: Database) -> dict[int, dict[str, Any]]:
    with database.begin() as connection:
        found = connection.execute(requests.select()).mappings().all()
    return {each["id"]: dict(each) for each in found}


def read_texts(database: Database) -> dict[int, tuple[str, str]]:
    with database.begin() as connection:
        found = connection.execute(
            select(request_texts.c.id, request_texts.c.prompt, request_texts.c.answer)
        )
        return {each[0]: (each[1], each[2]) for each in found}


def test_rows_round_trip_through_json(database: Database) -> None:
    first = row("a", id=2**62 + 1, rerouted=True, ttft_ms=None, shadow_of=2**62, at_s=1.8e9 + 1 / 3)
    second = row("b", origin="probe", conversation_id="conv-1")
    assert RequestLog(database).write([Entry(first, ("p", "ä")), Entry(second)]) == []
    found = read(database)
    for values in (first, second):
        assert tuple(found[values[0]][name] for name in COLUMNS) == values
    assert read_texts(database) == {first[0]: ("p", "ä")}


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({"client_request_id": NUL}, "a\ufffdb"),
        ({"client_request_id": HALF}, "a\ufffd"),
        ({"client_request_id": LONG}, "x" * 64),
        ({"client_request_id": "\ud83d\ude00"}, "😀"),
        ({"tags": LONG * 3}, "x" * MAX_TEXT_CHARS),
        ({"end_user": f"{NUL}\\u0000\\"}, "a\ufffdb\\u0000\\"),
        ({"tenant": 5}, None),
        ({"prompt_tokens": 2**31}, None),
        ({"prompt_tokens": -(10**400)}, None),
        ({"prompt_tokens": "5"}, None),
        ({"shadow_of": 2**63}, None),
        ({"ttft_ms": float("nan")}, None),
        ({"ttft_ms": float("-inf")}, None),
        ({"ttft_ms": 10**400}, None),
        ({"ttft_ms": 3}, 3.0),
        ({"rerouted": "yes"}, None),
        ({"prompt_tokens": True}, 1),
    ],
)
def test_values_are_made_to_fit(database: Database, changes: dict[str, Any], stored: Any) -> None:
    entry = Entry(row(**changes), ("p", "a"))
    assert RequestLog(database).write([entry]) == []
    assert read(database)[entry.row[0]][next(iter(changes))] == stored
    assert read_texts(database) == {entry.row[0]: ("p", "a")}


@pytest.mark.parametrize(
    "changes",
    [{"id": None}, {"id": 2**63}, {"id": "1"}, {"status": None}, {"status": 2**31},
     {"status": "200"}, {"at_s": float("nan")}, {"e2e_ms": None}, {"stream": None},
     {"endpoint": 3}, {"endpoint": None}],
)  # fmt: skip
def test_a_row_without_required_values_is_set_aside(
    database: Database, changes: dict[str, Any]
) -> None:
    bad_entry = Entry(row("bad", **changes), ("p", "a"))
    good = [Entry(row(str(number))) for number in range(20)]
    (bad,) = RequestLog(database).write([*good[:13], bad_entry, *good[13:]])
    assert bad.row is bad_entry.row
    assert next(iter(changes)) in bad.reason
    assert set(read(database)) == {entry.row[0] for entry in good}
    assert read_texts(database) == {}


def test_texts_are_sanitized(database: Database) -> None:
    entry = Entry(row(), (f"{NUL}{HALF}", LONG * 3))
    assert RequestLog(database).write([entry]) == []
    assert read_texts(database) == {entry.row[0]: ("a\ufffdba\ufffd", LONG * 2)}


def test_a_row_with_a_repeated_id_is_set_aside(database: Database) -> None:
    log = RequestLog(database)
    first = Entry(row("first"), ("p1", "a1"))
    log.write([first])
    again = Entry(row("again", id=first.row[0], e2e_ms=7.0), ("p2", "a2"))
    fresh = [Entry(row(str(number)), ("p", "a")) for number in range(5)]
    twice = Entry(row("twice", id=fresh[0].row[0], e2e_ms=8.0), ("p3", "a3"))
    bad = log.write([*fresh, again, twice])
    assert {each.row for each in bad} == {again.row, twice.row}
    assert {each.kind for each in bad} == {"repeated id"}
    found = read(database)
    assert {each["client_request_id"] for each in found.values()} == {"first", *"01234"}
    texts = read_texts(database)
    assert texts[first.row[0]] == ("p1", "a1")
    assert texts[fresh[0].row[0]] == ("p", "a")
    assert len(texts) == 6


def test_texts_may_be_kept_shorter_than_rows(database: Database) -> None:
    log, now_s = RequestLog(database), time.time()
    log.write([Entry(row(at_s=now_s - age_s), ("p", "a")) for age_s in (0, 100, 1000)])
    assert log.prune(500, 100, keep_texts_s=50) == 1
    assert len(read(database)) == 2
    assert len(read_texts(database)) == 1


def test_a_busy_tenant_pushes_out_no_rows_of_others(database: Database) -> None:
    log, now_s = RequestLog(database), time.time()
    for age_s, count, tenant in ((9, 3, "quiet"), (8, 2, None), (5, 40, "busy"), (4, 30, "other")):
        rows = [
            row(f"{tenant}{i}", at_s=now_s - age_s + i / 50, tenant=tenant) for i in range(count)
        ]
        log.write([Entry(one, ("p", "a")) for one in rows])
    assert log.prune(500, 25) == 50
    kept = Counter(each["tenant"] for each in read(database).values())
    assert kept == {"quiet": 3, None: 2, "busy": 10, "other": 10}
    names = {each["client_request_id"] for each in read(database).values()}
    assert {f"busy{i}" for i in range(30, 40)} < names
    assert set(read_texts(database)) == set(read(database))


def test_a_repeated_client_id_is_allowed(database: Database) -> None:
    entries = [Entry(row("same"), ("p", "a")) for _ in range(3)]
    assert RequestLog(database).write(entries) == []
    assert len(read(database)) == len(read_texts(database)) == 3


def test_writing_existing_rows_again_changes_nothing(database: Database) -> None:
    """The connection may break after a commit and before its reply."""
    log = RequestLog(database)
    entries = [Entry(row(str(i), e2e_ms=1 / 3, at_s=1.8e9 + i / 7), ("p", "a")) for i in range(9)]
    log.write(entries[:5])
    assert log.write(entries) == []
    assert len(read(database)) == len(read_texts(database)) == 9


def test_rows_refused_by_the_database_are_found_by_halving(database: Database) -> None:
    class Careless(RowShape):
        """Accepts everything, as if a rule were missing."""

        def encode(self, rows: Any) -> str | None:
            import json

            return json.dumps(rows)

    log = RequestLog(database)
    log._shape = Careless(requests, COLUMNS)
    good = [Entry(row(str(number)), ("p", "a")) for number in range(50)]
    bad = [Entry(row("bad", status=None), ("p", "a")) for _ in range(3)]
    mixed = [*good[:10], bad[0], *good[10:11], bad[1], *good[11:], bad[2]]
    assert [each.row for each in log.write(mixed)] == [each.row for each in bad]
    assert set(read(database)) == set(read_texts(database)) == {each.row[0] for each in good}


ANY_TEXT = st.text(st.characters(categories=None), max_size=6) | st.sampled_from([NUL, LONG, HALF])
VALUES = st.one_of(
    ANY_TEXT,
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([2**31, 2**63, 10**400]),
    st.binary(max_size=3), st.lists(st.integers(), max_size=2), st.just({"a": object()}),
)  # fmt: skip


@st.composite
def entries(draw: st.DrawFn) -> list[tuple[Entry, bool]]:
    """Entries, each with whether it is valid."""
    made = []
    for number in range(draw(st.integers(0, 12))):
        if draw(st.booleans()):
            made.append((Entry(row(str(number)), draw(st.none() | st.just(("p", "a")))), True))
            continue
        changes = draw(st.dictionaries(st.sampled_from(COLUMNS), VALUES, min_size=1, max_size=3))
        changes.pop("id", None)
        text = draw(st.none() | st.tuples(ANY_TEXT, ANY_TEXT))
        values = row(str(number), **changes)
        if draw(st.integers(0, 5)) == 0:
            values = draw(st.sampled_from([(), values[:-1], (*values, 1)]))
        made.append((Entry(values, text), False))
    return made


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries())
def test_all_valid_rows_are_written(opened: Database, made: list[tuple[Entry, bool]]) -> None:
    empty_tables(opened)
    log = RequestLog(opened)
    bad = log.write([entry for entry, _ in made])
    found, texts = read(opened), read_texts(opened)
    bad_rows = {id(each.row) for each in bad}
    for entry, good in made:
        assert not (good and id(entry.row) in bad_rows)
        written = bool(entry.row) and entry.row[0] in found
        assert written != (id(entry.row) in bad_rows)
        assert (entry.text is not None and written) == (bool(entry.row) and entry.row[0] in texts)
        if good:
            assert tuple(found[entry.row[0]][name] for name in COLUMNS) == entry.row
    assert len(found) + len(bad) == len(made)


@given(st.data())
def test_fitting_values_is_idempotent_for_any_table(data: st.DataObject) -> None:
    """Also covers future tables and columns: the rules come from their declarations."""
    table = data.draw(st.sampled_from(metadata.sorted_tables))
    names = [column.name for column in table.columns]
    values = {name: data.draw(VALUES) for name in names}
    shape = RowShape(table, names)
    try:
        fitting = sanitize_values(table, values)
    except BadDataError:
        assert shape.encode([tuple(values.values())]) is None
        return
    assert sanitize_values(table, fitting) == fitting
    assert shape.encode([tuple(fitting.values())]) is not None
    if shape.encode([tuple(values.values())]) is not None:
        assert fitting == values


# Other writers


def test_bad_data_differs_from_an_unavailable_database(database: Database) -> None:
    good = {"id": 1, "at_s": 1.0, "prompt": "p", "answer": "a"}
    cases: list[dict[str, Any]] = [{"prompt": None}, {"prompt": HALF}, {"id": 2**63}]
    if not database.is_sqlite:
        cases += [{"prompt": NUL}, {"request_id": "x" * 65}, {"at_s": "x"}]
    else:
        cases += [{"prompt": {"a": 1}}]
    for changes in cases:
        with pytest.raises(BadDataError, match="refuses a value"), database.begin() as connection:
            connection.execute(insert(request_texts).values({**good, **changes}))
    for _ in range(2):
        with database.begin() as connection:
            connection.execute(insert(request_texts).values(good))
            good = {**good, "id": 2}
    with pytest.raises(BadDataError, match="refuses a value"), database.begin() as connection:
        connection.execute(insert(request_texts).values(good))
    with pytest.raises(DatabaseError) as caught, database.begin() as connection:
        connection.exec_driver_sql("SELECT * FROM no_such_table")
    assert not isinstance(caught.value, BadDataError)


# Pruning


def test_pruning_deletes_rows_with_their_texts(database: Database) -> None:
    log = RequestLog(database)
    now_s = time.time()
    old = [Entry(row(f"old{i}", now_s - 1000), ("p", "a")) for i in range(DELETE_ROWS + 10)]
    # Sparse ids in a different order than the times; some rows have the same time.
    new = [
        Entry(row(f"new{i}", now_s + i // 2, id=2**60 - 10_000 * i), ("p", "a")) for i in range(50)
    ]
    log.write(old)
    log.write(new)
    assert log.prune(500, 1_000_000) == len(old)
    assert log.prune(500, 20) == 30
    kept = {f"new{i}" for i in range(30, 50)}
    found = read(database)
    assert {each["client_request_id"] for each in found.values()} == kept
    assert set(read_texts(database)) == set(found)
    assert log.prune(500, 20) == 0
    assert log.prune(500, 0) == 20
    assert read_texts(database) == {}


def test_invalid_sums_do_not_hold_back_others(database: Database) -> None:
    amounts = {("k1", "2026-11-23"): float("nan"), ("k2", "2026-11-23"): 1.5}
    assert exchange_spend(database, amounts, "2026-11-01", 0.0) == {("k2", "2026-11-23"): 1.5}


def test_a_bad_replica_message_does_not_hold_back_others(database: Database) -> None:
    shared = {
        "deployment": "d", "engine": "echo", "url": "http://x", "state": "ready", "restarts": 0,
        "revision": "r", "version": "v",
    }  # fmt: skip
    messages = {"d-0": NUL + HALF, "d-1": "fine"}
    rows = [
        ReplicaRow(**{
            field.name: None for field in dataclasses.fields(ReplicaRow)
        } | shared | {"id": name, "message": message})
        for name, message in messages.items()
    ]  # fmt: skip
    save_replicas(database, rows, routing_changed=False)
    found = {each.id: each.message for each in read_fleet(database).replicas}
    assert found == {"d-0": "a\ufffdba\ufffd", "d-1": "fine"}
