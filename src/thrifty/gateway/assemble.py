"""A gateway worker's parts: put together, and taken apart again in the reverse order.

The worker's process and the tests use this one assembly, so that tests run the very parts that
serve requests. What it leaves to them: where to listen, when batches begin to run, when to drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

from thrifty.batches.service import Batches, make_batches
from thrifty.db import Database, open_database
from thrifty.db.cache import remove_cache_stats
from thrifty.errors import DatabaseError
from thrifty.gateway.admission.limits import KeyLimiter
from thrifty.gateway.admission.shared_counts import SharedCounts
from thrifty.gateway.admission.spend import SpendBook, SpendKeeper
from thrifty.gateway.app import Gateway
from thrifty.gateway.cache import ExactCache
from thrifty.gateway.cache.answers import AnswerCache
from thrifty.gateway.forward import Forwarder
from thrifty.gateway.record import Recorder
from thrifty.gateway.settings import GatewaySettings
from thrifty.gateway.shared_store import SharedStore
from thrifty.gateway.table import RoutingTable
from thrifty.gateway.table_reader import TableReader
from thrifty.http.client import HttpClient
from thrifty.http.server import HttpServer, ServerLimits
from thrifty.observe.log_writer import LogWriter
from thrifty.observe.metrics import GatewayMetrics


@dataclass(frozen=True)
class Parts:
    """What serves requests. All of it runs, but the server, which does not listen yet, and batches,
    whose `runner` is to be started.
    """

    table: RoutingTable
    reader: TableReader
    cache: AnswerCache
    writer: LogWriter | None
    """None where requests are not recorded."""
    server: HttpServer
    batches: Batches | None
    """None where there is no place for files."""

    async def drain(self, timeout_s: float, idle_grace_s: float) -> int:
        """End what runs, as `HttpServer.drain` does, and leave batches to the next worker; returns
        how many requests were cut.
        """
        if self.batches is None:
            return await self.server.drain(timeout_s, idle_grace_s)
        leaving = asyncio.ensure_future(self.batches.runner.stop())
        cut = await self.server.drain(timeout_s, idle_grace_s)
        await leaving
        return cut


@contextlib.asynccontextmanager
async def assemble(
    settings: GatewaySettings, database_url: str, redis_url: str = ""
) -> AsyncIterator[Parts]:
    """The parts of one worker, until the block ends; `drain` them first. The database must be up
    to date. Raises `ThriftyError` where something cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        metrics = GatewayMetrics()
        metrics.database_up.set(1)
        database = _open(stack, database_url)
        table = RoutingTable()
        table.keys_exist = settings.require_keys
        table.workers = settings.workers
        reader = TableReader(database, table)
        book = SpendBook()
        spend = SpendKeeper(database, book)
        store = await _open_store(stack, redis_url, metrics, settings.redis_timeout_s)
        shared = None
        if store is not None:
            shared = SharedCounts(store)
            stack.push_async_callback(shared.finish)
        writer = _start_writer(stack, database_url, settings, metrics)
        client = HttpClient()
        forwarder = Forwarder(client, table, metrics, capture=settings.record_prompts)
        cache = AnswerCache(
            ExactCache(settings.cache_bytes),
            table,
            metrics,
            store if settings.cache_shared is not None else None,
            settings.cache_shared,
        )
        gateway = Gateway(
            table=table,
            reader=reader,
            forwarder=forwarder,
            cache=cache,
            recorder=Recorder(metrics, writer, prompts=settings.record_prompts),
            metrics=metrics,
            limiter=KeyLimiter(metrics, book, shared),
        )
        batches = None
        if settings.batches.folder:
            batches = make_batches(
                database=_open(stack, database_url),
                table=table,
                reader=reader,
                forwarder=forwarder,
                metrics=metrics,
                run=gateway.run,
                settings=settings.batches,
                max_body_bytes=settings.max_body_bytes,
            )
            stack.callback(batches.pages.close)
            gateway.batches = batches.pages
        # A worker that shares its port with another must know the fleet before it takes requests.
        await asyncio.gather(reader.start(), spend.start())
        stack.callback(reader.stop)
        stack.push_async_callback(spend.stop)
        stack.callback(client.close)
        cache.start()
        stack.push_async_callback(cache.close)
        _publish(stack, gateway, database, settings.id)
        stack.callback(asyncio.ensure_future(gateway.sweep()).cancel)
        server = _make_server(settings, gateway, batches)
        yield Parts(table, reader, cache, writer, server, batches)


def _open(stack: contextlib.AsyncExitStack, url: str) -> Database:
    """A pool of connections of its own: what one part waits for holds up no other."""
    database = open_database(url, migrate=False)
    stack.callback(database.close)
    return database


async def _open_store(
    stack: contextlib.AsyncExitStack, url: str, metrics: GatewayMetrics, timeout_s: float
) -> SharedStore | None:
    """The shared store, where there is one."""
    if not url:
        return None
    store = SharedStore(
        url,
        timeout_s=timeout_s,
        on_state=lambda up: metrics.shared_store_up.set(1 if up else 0),
        on_error=lambda kind: metrics.shared_store_errors.labels(kind).inc(),
    )
    await store.start()
    stack.push_async_callback(store.close)
    return store


def _start_writer(
    stack: contextlib.AsyncExitStack, url: str, settings: GatewaySettings, metrics: GatewayMetrics
) -> LogWriter | None:
    """The request log's writer, where requests are recorded."""
    if not settings.record_requests:
        return None
    writer = LogWriter(
        _open(stack, url),
        keep_s=settings.record_keep_s,
        max_rows=settings.record_max_rows,
        on_written=metrics.written_rows.inc,
        on_dropped=metrics.dropped_rows.labels("queue_full").inc,
        on_state=lambda up: metrics.database_up.set(1 if up else 0),
    )
    writer.start()
    stack.callback(writer.stop)
    return writer


def _publish(
    stack: contextlib.AsyncExitStack, gateway: Gateway, database: Database, worker_id: str
) -> None:
    """Tell other processes this worker's figures, until it ends."""
    name = f"{socket.gethostname()[:48]}/{worker_id[:32]}/{os.getpid()}"

    async def forget() -> None:
        with contextlib.suppress(DatabaseError):
            await asyncio.to_thread(remove_cache_stats, database, name)

    stack.push_async_callback(forget)
    stack.callback(asyncio.ensure_future(gateway.publish(name)).cancel)


def _make_server(
    settings: GatewaySettings, gateway: Gateway, batches: Batches | None
) -> HttpServer:
    limits = ServerLimits(
        max_body_bytes=settings.max_body_bytes,
        read_timeout_s=settings.read_timeout_s,
        write_timeout_s=settings.write_timeout_s,
    )
    spools = None if batches is None else batches.spools
    return HttpServer(gateway.handle, limits, gateway.count_refusal, spools)
