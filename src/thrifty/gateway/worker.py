"""A gateway worker's process: its settings, its parts, its life."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from pathlib import Path

import msgspec

from thrifty.db import open_database
from thrifty.db.cache import remove_cache_stats
from thrifty.errors import DatabaseError
from thrifty.gateway.admission.limits import Limiter
from thrifty.gateway.admission.shared_counts import SharedCounts
from thrifty.gateway.admission.spend import SpendBook, SpendKeeper
from thrifty.gateway.app import Gateway
from thrifty.gateway.batches.service import make_batches
from thrifty.gateway.batches.settings import BatchSettings
from thrifty.gateway.cache import ExactCache
from thrifty.gateway.cache.answers import AnswerCache, SharedSettings
from thrifty.gateway.forward import Forwarder
from thrifty.gateway.record import Recorder
from thrifty.gateway.shared_store import TIMEOUT_S, SharedStore
from thrifty.gateway.table import RoutingTable
from thrifty.gateway.table_reader import TableReader
from thrifty.observe.log_writer import LogWriter
from thrifty.observe.metrics import GatewayMetrics
from thrifty.wire.client import HttpClient
from thrifty.wire.process import ADDRESS_IN_USE, report_error, run_process
from thrifty.wire.server import HttpServer, ServerLimits

log = logging.getLogger(__name__)

IDLE_GRACE_S = 1.0
"""A client that sends its requests one after the other on one connection has sent the next by then,
on a busy machine too, and is told with its answer to come back on another one."""
SWITCH_INTERVAL_S = 0.0005
"""The log writer's and the table reader's threads give way this fast (Python's default is 5 ms)."""


class GatewaySettings(msgspec.Struct, frozen=True):
    """What a worker is started with."""

    host: str
    port: int
    id: str = "gateway-0"
    listen_fd: int | None = None
    """A socket that listens on `host` and `port` already; it stays when this worker goes."""
    ready_file: str | None = None
    """Where it says that it listens, and the address that is its own."""
    database_url_env: str = "THRIFTY_DATABASE_URL"
    """The variable that holds the URL: it may hold a password, which a command line would show."""
    redis_url_env: str = "THRIFTY_REDIS_URL"
    redis_timeout_s: float = TIMEOUT_S
    """As for the database; empty or not set where there is none."""
    max_body_bytes: int = 8_000_000
    cache_bytes: int = 256_000_000
    cache_shared: SharedSettings | None = None
    """How answers are shared through Redis; None: they are not."""
    read_timeout_s: float = 20.0
    write_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0
    record_requests: bool = True
    record_prompts: bool = False
    record_keep_s: float = 30 * 86400.0
    record_max_rows: int = 10_000_000
    require_keys: bool = False
    workers: int = 1
    """How many gateway workers share the replicas' slots."""
    batches: BatchSettings = BatchSettings()


def run_worker(settings: GatewaySettings) -> int:
    """Serve until SIGTERM or SIGINT; returns the process's exit status."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    async def main(stopping: asyncio.Event) -> int:
        return await _serve(settings, stopping)

    return run_process(main)


async def _serve(settings: GatewaySettings, stopping: asyncio.Event) -> int:
    url = os.environ[settings.database_url_env]
    table_database = open_database(url, migrate=False)
    log_database = open_database(url, migrate=False)
    metrics = GatewayMetrics()
    metrics.database_up.set(1)
    shared_store = await open_store(
        os.environ.get(settings.redis_url_env, ""), metrics, settings.redis_timeout_s
    )
    table = RoutingTable()
    table.keys_exist = settings.require_keys
    table.workers = settings.workers
    reader = TableReader(table_database, table)
    book = SpendBook()
    spend = SpendKeeper(table_database, book)
    shared = None if shared_store is None else SharedCounts(shared_store)
    writer = None
    if settings.record_requests:
        writer = LogWriter(
            log_database,
            keep_s=settings.record_keep_s,
            max_rows=settings.record_max_rows,
            on_written=metrics.written_rows.inc,
            on_dropped=metrics.dropped_rows.labels("queue_full").inc,
            on_state=lambda up: metrics.database_up.set(1 if up else 0),
        )
        writer.start()
    client = HttpClient()
    forwarder = Forwarder(client, table, metrics, capture=settings.record_prompts)
    cache = AnswerCache(
        ExactCache(settings.cache_bytes),
        table,
        metrics,
        shared_store if settings.cache_shared is not None else None,
        settings.cache_shared,
    )
    gateway = Gateway(
        table=table,
        reader=reader,
        forwarder=forwarder,
        cache=cache,
        recorder=Recorder(metrics, writer, prompts=settings.record_prompts),
        metrics=metrics,
        limiter=Limiter(metrics, book, shared),
    )
    batches = None
    batch_database = None
    if settings.batches.folder:
        batch_database = open_database(url, migrate=False)
        batches = make_batches(
            database=batch_database,
            table=table,
            reader=reader,
            forwarder=forwarder,
            metrics=metrics,
            run=gateway.run,
            settings=settings.batches,
            max_body_bytes=settings.max_body_bytes,
        )
        gateway.batches = batches.pages
    limits = ServerLimits(
        max_body_bytes=settings.max_body_bytes,
        read_timeout_s=settings.read_timeout_s,
        write_timeout_s=settings.write_timeout_s,
    )
    spools = batches.spools if batches is not None else None
    server = HttpServer(gateway.handle, limits, on_refused=gateway.count_refusal, spools=spools)
    # A worker that shares its port with another must know the fleet before it takes requests.
    await asyncio.gather(reader.start(), spend.start())
    cache.start()
    try:
        own_port = await server.start("127.0.0.1", 0)
        inherited = None if settings.listen_fd is None else socket.socket(fileno=settings.listen_fd)
        port = await server.start(settings.host, settings.port, reuse_port=True, sock=inherited)
    except OSError as error:
        report_error(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
        return ADDRESS_IN_USE
    log.info("listening on http://%s:%d", settings.host, port)
    if settings.ready_file is not None:
        _say_ready(Path(settings.ready_file), f"http://127.0.0.1:{own_port}")
    sweeping = asyncio.ensure_future(gateway.sweep())
    worker = f"{socket.gethostname()[:48]}/{settings.id[:32]}/{os.getpid()}"
    publishing = asyncio.ensure_future(gateway.publish(worker))
    if batches is not None:
        batches.runner.start()
    await stopping.wait()
    log.info("draining")
    leaving = asyncio.ensure_future(batches.runner.stop()) if batches is not None else None
    cut = await server.drain(settings.drain_timeout_s, IDLE_GRACE_S)
    if cut:
        log.warning("%d requests were cut after %.0f s", cut, settings.drain_timeout_s)
    sweeping.cancel()
    publishing.cancel()
    await cache.close()
    with contextlib.suppress(DatabaseError):
        await asyncio.to_thread(remove_cache_stats, table_database, worker)
    if batches is not None and leaving is not None:
        await leaving
        batches.pages.close()
    reader.stop()
    if writer is not None:
        writer.stop()
    client.close()
    await spend.stop()
    if shared is not None:
        await shared.finish()
    if shared_store is not None:
        await shared_store.close()
    table_database.close()
    log_database.close()
    if batch_database is not None:
        batch_database.close()
    return 0


async def open_store(
    url: str, metrics: GatewayMetrics, timeout_s: float = TIMEOUT_S
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
    return store


def _say_ready(path: Path, url: str) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps({"pid": os.getpid(), "url": url}))
    os.replace(beside, path)
