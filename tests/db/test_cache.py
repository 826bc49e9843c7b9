"""Rows of cache purges and cache statistics."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from thrifty.db import Database, open_database
from thrifty.db.cache import (
    LIVE_S,
    Purge,
    add_purge,
    read_cache_stats,
    remove_cache_stats,
    save_cache_stats,
)
from thrifty.db.fleet import read_change_count, read_fleet
from thrifty.db.tables import cache_stats
from thrifty.gateway.cache import Owner
from thrifty.gateway.cache.purges import Purges


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    yield database
    database.close()


def test_a_purge_makes_gateways_reload(database: Database) -> None:
    before = read_change_count(database)
    purge = add_purge(database, tenant="ann")
    assert read_change_count(database) == before + 1
    assert read_fleet(database).purges == [purge]


def test_ids_increase_even_if_the_clock_goes_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add_purge(database, tenant="a")
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert add_purge(database, tenant="b").id == first.id + 1


def test_a_repeated_purge_takes_one_row(database: Database) -> None:
    for _ in range(3):
        add_purge(database)
        add_purge(database, deployment="d", version="v")
        last = add_purge(database, deployment="d")
    purges = read_fleet(database).purges
    assert len(purges) == 3
    assert purges[-1] == last


def test_concurrent_purges_all_count(database: Database) -> None:
    made: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: made.append(add_purge(database, tenant=f"t{n}").id))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8
    assert sorted(purge.id for purge in read_fleet(database).purges) == sorted(made)


def test_statistics_of_ended_workers_are_left_out(database: Database) -> None:
    save_cache_stats(database, "a", {"entries": 1})
    save_cache_stats(database, "b", {"entries": 2})
    save_cache_stats(database, "a", {"entries": 3})
    assert read_cache_stats(database) == [
        {"worker": "a", "entries": 3},
        {"worker": "b", "entries": 2},
    ]
    remove_cache_stats(database, "b")
    with database.begin() as connection:
        connection.execute(update(cache_stats).values(updated_s=time.time() - LIVE_S - 1))
    assert read_cache_stats(database) == []


@pytest.mark.parametrize(
    ("purge", "covered"),
    [
        (Purge(5), True),
        (Purge(5, "d"), True),
        (Purge(5, "d", "v"), True),
        (Purge(5, "d", "v", "t"), True),
        (Purge(5, tenant="t"), True),
        (Purge(5, "e"), False),
        (Purge(5, "d", "w"), False),
        (Purge(5, tenant="u"), False),
        (Purge(5, tenant=""), False),
    ],
)
def test_a_purge_covers_what_it_names_and_what_is_older(purge: Purge, covered: bool) -> None:
    purges = Purges()
    owner = Owner("d", "r", "v", "t")
    assert purges.update([purge]) == [purge]
    assert purges.update([purge]) == []
    assert purges.cover(owner, 4) is covered
    assert not purges.cover(owner, 5)
    assert not purges.cover(owner, 6)
