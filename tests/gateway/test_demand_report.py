"""Rows of demand, as a gateway worker writes them beside its requests."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.parts import running_echo, running_gateway, until
from thrifty.db import Database
from thrifty.db.demand import Figures, read_demand

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "a b c"}], "temperature": 1.0}


def read(database: Database) -> Figures | None:
    rows = read_demand(database)
    return rows[0].figures if rows else None


async def test_arrivals_and_answers_are_reported_and_rows_go_with_the_worker(
    tmp_path: Path,
) -> None:
    async with running_echo(tpot_s=0.001) as url, running_gateway(tmp_path, [url]) as gateway:
        for _ in range(8):
            assert (await gateway.ask(CHAT)).status == 200
        database = gateway.database

        async def reported() -> bool:
            found = await asyncio.to_thread(read, database)
            return found is not None and found.arrivals == 8 and found.answered == 3

        await until(reported, what="the report of eight requests")
        found = read(database)
        assert found is not None
        assert (found.held, found.queued, found.in_flight, found.work) == (0, 0, 0, {})
        assert found.output_tokens > 0
        assert found.held_s > 0
        assert found.counted_s > 0
    async with running_gateway(tmp_path, []) as other:
        rows = await asyncio.to_thread(read_demand, other.database)
        assert all(row.figures.arrivals == 0 for row in rows)


async def test_a_request_that_is_held_is_reported_at_once(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, []) as gateway:
        asking = asyncio.ensure_future(gateway.ask(CHAT))
        began_s = time.monotonic()

        async def held() -> bool:
            found = await asyncio.to_thread(read, gateway.database)
            return found is not None and found.held == 1

        await until(held, what="the report of a held request")
        # Within milliseconds on a machine that does nothing else; within the next report on any.
        assert time.monotonic() - began_s < 30
        asking.cancel()
