"""The same tables on a real PostgreSQL, installed from a package."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select, text

from tests.parts import running_echo, running_gateway, until
from tests.postgres_server import running_postgres
from thrifty.db import Database, open_database
from thrifty.db.cache import add_purge, read_cache_stats, save_cache_stats
from thrifty.db.fleet import read_fleet
from thrifty.db.keys import create_key, list_keys, revoke_key
from thrifty.db.spend import exchange_spend
from thrifty.db.tables import requests
from thrifty.errors import ThriftyError

pytestmark = [pytest.mark.peer]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture
def database(postgres: str) -> Iterator[Database]:
    database = open_database(postgres, migrate=True)
    yield database
    with database.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    database.close()


def test_migrations_make_the_tables_of_the_code(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from thrifty.db.tables import metadata

    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_keys_work(database: Database) -> None:
    create_key(database, "ann")
    with pytest.raises(ThriftyError, match="exists"):
        create_key(database, "ann")
    revoke_key(database, "ann")
    assert list_keys(database) == []


async def test_a_gateway_serves_and_records_on_it(
    tmp_path: Path, database: Database, postgres: str
) -> None:
    chat = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
    async with (
        running_echo() as url,
        running_gateway(tmp_path, [url], database_url=postgres) as gateway,
    ):
        replies = await asyncio.gather(*(gateway.ask(chat) for _ in range(20)))
        assert {reply.status for reply in replies} == {200}

        def count_rows() -> int:
            with gateway.database.begin() as connection:
                return len(connection.execute(select(requests.c.id)).all())

        await until(lambda: count_rows() == 20)


def test_workers_add_to_the_same_sums_of_spend_at_once(database: Database) -> None:
    def work(number: int) -> None:
        for turn in range(25):
            amounts = {(f"k{i}", "2026-11-23"): 0.5 for i in range((number + turn) % 4 + 1)}
            exchange_spend(database, amounts, "2026-11-01", 0.0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    sums = exchange_spend(database, {}, "2026-11-01", 0.0)
    assert sums[("k0", "2026-11-23")] == 50.0
    assert sum(sums.values()) == 0.5 * sum((n + t) % 4 + 1 for n in range(4) for t in range(25))


def test_cache_purges_and_statistics_work(database: Database) -> None:
    first = add_purge(database, tenant="ann")
    assert add_purge(database).id > first.id
    again = add_purge(database, tenant="ann")
    assert [purge.id for purge in read_fleet(database).purges][-1] == again.id
    assert len(read_fleet(database).purges) == 2
    save_cache_stats(database, "a", {"entries": 1})
    save_cache_stats(database, "a", {"entries": 2})
    assert read_cache_stats(database) == [{"worker": "a", "entries": 2}]
