"""A gateway worker's parts: put together, and taken apart again in the reverse order.

The worker's process and the tests use this one assembly, so that tests run the very parts that
serve requests. What it leaves to them: where to listen, when batches begin to run, when to drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

from thrifty.batches.service import Batches, make_batches
from thrifty.db import Database, open_database
from thrifty.db.cache import remove_cache_stats
from thrifty.db.nodes import RENEW_S, NodeClaim
from thrifty.errors import DatabaseError
from thrifty.gateway.admission.limits import KeyLimiter
from thrifty.gateway.admission.shared_counts import SharedCounts
from thrifty.gateway.admission.spend import SpendBook, SpendKeeper
from thrifty.gateway.app.answer import Answerer
from thrifty.gateway.app.cache_pages import CachePages
from thrifty.gateway.app.endpoints import Endpoints
from thrifty.gateway.app.gateway import Gateway
from thrifty.gateway.app.pages import Pages
from thrifty.gateway.app.record import Recorder
from thrifty.gateway.app.shadow import Shadows
from thrifty.gateway.cache import ExactCache
from thrifty.gateway.cache.answers import AnswerCache
from thrifty.gateway.cache.shortcuts import Shortcuts
from thrifty.gateway.forwarding.forward import Forwarder
from thrifty.gateway.routing import make_policy
from thrifty.gateway.state.reader import TableReader
from thrifty.gateway.state.shared_store import SharedStore
from thrifty.gateway.state.table import RoutingTable
from thrifty.http.client import HttpClient
from thrifty.http.routes import RouteTable
from thrifty.http.server import HttpServer, ServerLimits
from thrifty.observe.log_writer import LogWriter
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.conversations import Conversations
from thrifty.openai.response_ids import ResponseIds
from thrifty.worker.settings import GatewaySettings

SHORTCUTS_BYTES = 16_000_000


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


@dataclass(frozen=True)
class Secrets:
    """What a worker is told beside its settings, because others must not see it."""

    database_url: str
    redis_url: str = ""
    ids: bytes = b""
    """Marks response and conversation ids as ours; the same in all workers. Empty: one of this
    worker's own."""


@contextlib.asynccontextmanager
async def assemble(settings: GatewaySettings, secrets_: Secrets) -> AsyncIterator[Parts]:
    """The parts of one worker, until the block ends; `drain` them first. The database must be up
    to date. Raises `ThriftyError` where something cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        metrics = GatewayMetrics()
        metrics.database_up.set(1)
        database = _open(stack, secrets_.database_url)
        table = RoutingTable(make_policy)
        table.keys_exist = settings.require_keys
        table.workers = settings.workers
        reader = TableReader(database, table)
        store = await _open_store(stack, secrets_.redis_url, metrics, settings.redis_timeout_s)
        writer = _start_writer(stack, secrets_.database_url, settings, metrics)
        client = HttpClient()
        forwarder = Forwarder(client, table, metrics, capture=settings.record_prompts)
        cache = _make_cache(settings, table, metrics, store)
        secret = secrets_.ids or secrets.token_bytes(32)
        ids = await _make_ids(stack, database, secret)
        conversations = Conversations(secret)
        gateway, spend, pages = _make_gateway(
            stack,
            settings,
            table,
            reader,
            forwarder,
            cache,
            writer,
            metrics,
            store,
            ids,
            conversations,
        )
        batches = _make_batches(
            stack,
            secrets_.database_url,
            settings,
            table,
            forwarder,
            metrics,
            gateway,
            conversations,
        )
        cache_pages = CachePages(reader, cache)
        routes = [*gateway.routes(), *pages.routes(), *cache_pages.routes()]
        if batches is not None:
            routes += batches.pages.routes()
        gateway.answer_other = Endpoints(table, reader, RouteTable(routes)).answer
        # A worker that shares its port with another must know the fleet before it takes requests.
        await asyncio.gather(reader.start(), spend.start())
        stack.callback(reader.stop)
        stack.push_async_callback(spend.stop)
        stack.callback(client.close)
        cache.start()
        stack.push_async_callback(cache.close)
        _publish(stack, cache_pages, database, settings.id)
        stack.callback(asyncio.ensure_future(gateway.sweep()).cancel)
        server = _make_server(settings, gateway, batches)
        yield Parts(table, reader, cache, writer, server, batches)


def _make_gateway(
    stack: contextlib.AsyncExitStack,
    settings: GatewaySettings,
    table: RoutingTable,
    reader: TableReader,
    forwarder: Forwarder,
    cache: AnswerCache,
    writer: LogWriter | None,
    metrics: GatewayMetrics,
    store: SharedStore | None,
    ids: ResponseIds,
    conversations: Conversations,
) -> tuple[Gateway, SpendKeeper, Pages]:
    """The path of requests to models."""
    book = SpendBook()
    shared = None
    if store is not None:
        shared = SharedCounts(store)
        stack.push_async_callback(shared.finish)
    shortcuts = Shortcuts(SHORTCUTS_BYTES)
    gateway = Gateway(
        table=table,
        reader=reader,
        forwarder=forwarder,
        answerer=Answerer(
            table, forwarder, cache, shortcuts, metrics, keep_texts=settings.record_prompts
        ),
        shortcuts=shortcuts,
        recorder=Recorder(metrics, writer, prompts=settings.record_prompts),
        metrics=metrics,
        limiter=KeyLimiter(metrics, book, shared),
        ids=ids,
        conversations=conversations,
    )
    shadows = Shadows(gateway.run, metrics)
    gateway.on_ended = shadows.note_ended
    stack.push_async_callback(shadows.stop)
    pages = Pages(table, metrics, cache.memory, writer.describe if writer is not None else _fine)
    return gateway, SpendKeeper(reader.database, book), pages


def _fine() -> None:
    """Nothing is wrong with a request log that is not kept."""


def _make_cache(
    settings: GatewaySettings,
    table: RoutingTable,
    metrics: GatewayMetrics,
    store: SharedStore | None,
) -> AnswerCache:
    return AnswerCache(
        ExactCache(settings.cache_bytes),
        table,
        metrics,
        store if settings.cache_shared is not None else None,
        settings.cache_shared,
    )


async def _make_ids(
    stack: contextlib.AsyncExitStack, database: Database, secret: bytes
) -> ResponseIds:
    """Ids of responses, under a node number that no other worker has."""
    claim = await asyncio.to_thread(NodeClaim, database)
    stack.push_async_callback(asyncio.to_thread, claim.release)
    ids = ResponseIds(secret, claim.number)

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            number = await asyncio.to_thread(claim.renew)
            if number != ids.node:
                ids.node = number

    stack.callback(asyncio.ensure_future(renew()).cancel)
    return ids


def _make_batches(
    stack: contextlib.AsyncExitStack,
    database_url: str,
    settings: GatewaySettings,
    table: RoutingTable,
    forwarder: Forwarder,
    metrics: GatewayMetrics,
    gateway: Gateway,
    conversations: Conversations,
) -> Batches | None:
    """Files and batches, where there is a place for files."""
    if not settings.batches.folder:
        return None
    batches = make_batches(
        database=_open(stack, database_url),
        table=table,
        forwarder=forwarder,
        metrics=metrics,
        run=gateway.run,
        settings=settings.batches,
        max_body_bytes=settings.max_body_bytes,
        conversations=conversations,
    )
    stack.callback(batches.pages.close)
    return batches


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
        on_rejected=metrics.dropped_rows.labels("bad_row").inc,
        on_state=lambda up: metrics.database_up.set(1 if up else 0),
    )
    metrics.watch_log(writer)
    writer.start()
    stack.callback(writer.stop)
    return writer


def _publish(
    stack: contextlib.AsyncExitStack, pages: CachePages, database: Database, worker_id: str
) -> None:
    """Tell other processes this worker's figures, until it ends."""
    name = f"{socket.gethostname()[:48]}/{worker_id[:32]}/{os.getpid()}"

    async def forget() -> None:
        with contextlib.suppress(DatabaseError):
            await asyncio.to_thread(remove_cache_stats, database, name)

    stack.push_async_callback(forget)
    stack.callback(asyncio.ensure_future(pages.publish(name)).cancel)


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
