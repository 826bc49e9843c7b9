"""Assembles the parts of a gateway worker, and closes them in the reverse order.

The worker's process and the tests use the same assembly, so that tests run the parts that serve
requests. The caller decides where to listen, when batches start to run, and when to drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from thrifty.api.services import ApiServices
from thrifty.batches.service import Batches, make_batches
from thrifty.console.oidc import Provider
from thrifty.console.oidc_pages import OidcPages
from thrifty.console.pages import ConsolePages
from thrifty.db import Database, open_database
from thrifty.db.cache import remove_cache_stats
from thrifty.db.nodes import RENEW_S, NodeClaim
from thrifty.db.scaling import read_scaling
from thrifty.db.sign_ins import end_sign_in
from thrifty.errors import DatabaseError
from thrifty.feedback.pages import FeedbackPages
from thrifty.fleet.notices import NoticeLine
from thrifty.gateway.admission.limits import KeyLimiter
from thrifty.gateway.admission.shared_counts import SharedCounts
from thrifty.gateway.admission.spend import SpendLedger, SpendSync
from thrifty.gateway.app.answer import Answerer
from thrifty.gateway.app.cache_pages import CachePages
from thrifty.gateway.app.demand_report import DemandReport
from thrifty.gateway.app.endpoints import Answer, Endpoints, OwnRoute
from thrifty.gateway.app.gateway import Gateway, Steps
from thrifty.gateway.app.pages import Pages
from thrifty.gateway.app.record import Recorder
from thrifty.gateway.app.request_pages import RequestPages
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
from thrifty.http.cors import Cors
from thrifty.http.routes import RouteTable
from thrifty.http.same_origin import SameOrigin
from thrifty.http.server import HttpServer, ServerLimits
from thrifty.http.sessions import Sessions
from thrifty.observe.metrics import GatewayMetrics
from thrifty.observe.names.finder import NameFinder
from thrifty.observe.recorder.line import RecorderLine
from thrifty.observe.redact import Redactor
from thrifty.observe.trace import Tracer
from thrifty.openai.conversations import Conversations
from thrifty.openai.feedback_tokens import FeedbackTokens
from thrifty.openai.response_ids import ResponseIds
from thrifty.worker.management import Management
from thrifty.worker.settings import GatewaySettings
from thrifty.worker.telemetry import make_tracer, open_line, send_metrics

SHORTCUTS_BYTES = 16_000_000
REFUSE_AFTER = 0.9
"""The share of the drain's time after which requests that still wait are refused."""
MakeServices = Callable[[], ApiServices]


@dataclass(frozen=True)
class Parts:
    """The parts of a worker. All of them run, except for the server, which does not listen yet, and
    batches, whose `runner` must be started.
    """

    table: RoutingTable
    reader: TableReader
    forwarder: Forwarder
    cache: AnswerCache
    line: RecorderLine | None
    """To the recorder; None if there is nothing to record."""
    server: HttpServer
    batches: Batches | None
    """None if there is no folder for files."""
    management: Management | None
    """None if there is no home to manage."""
    routes: RouteTable[Answer]
    """All routes of the worker; the documentation's API page lists them."""

    async def drain(self, timeout_s: float, idle_grace_s: float) -> int:
        """Drain the server as `HttpServer.drain` does, and leave batches to the next worker;
        returns how many requests were cut off. Those that still wait for a replica shortly before
        are refused instead.
        """
        if self.management is not None:
            self.management.end_streams()
        loop = asyncio.get_running_loop()
        loop.call_later(REFUSE_AFTER * timeout_s, self.forwarder.refuse_waiting)
        if self.batches is None:
            return await self.server.drain(timeout_s, idle_grace_s)
        leaving = asyncio.ensure_future(self.batches.runner.stop())
        cut = await self.server.drain(timeout_s, idle_grace_s)
        await leaving
        return cut


@dataclass(frozen=True)
class Secrets:
    """Secrets that a worker receives separately from its settings."""

    database_url: str
    redis_url: str = ""
    ids: bytes = b""
    """The key that signs response and conversation ids, the same in all workers. If empty, the
    worker generates its own."""


@contextlib.asynccontextmanager
async def assemble(
    settings: GatewaySettings, secrets_: Secrets, make_services: MakeServices | None = None
) -> AsyncIterator[Parts]:
    """The parts of one worker until the block ends; `drain` them first. The database schema must be
    current. `make_services` makes the services of the management API; without it there is no such
    API. Raises `ThriftyError` if a part cannot be created.
    """
    async with contextlib.AsyncExitStack() as stack:
        metrics = GatewayMetrics(settings.observe.tenants)
        metrics.database_up.set(1)
        database = _open(stack, secrets_.database_url)
        table = RoutingTable(make_policy)
        table.keys_exist = settings.require_keys
        table.workers = settings.workers
        store = await _open_store(stack, secrets_.redis_url, metrics, settings.redis_timeout_s)
        client = HttpClient()
        secret = secrets_.ids or secrets.token_bytes(32)
        redactor = _make_redactor(stack, settings, secret)
        line = await open_line(
            stack, settings, name_worker(settings), secrets_.database_url, secret, metrics
        )
        base = _Base(
            settings=settings,
            metrics=metrics,
            table=table,
            reader=TableReader(database, table),
            store=store,
            line=line,
            redactor=redactor,
            forwarder=Forwarder(client, table, metrics, capture=settings.record_prompts),
            cache=_make_cache(settings, table, metrics, store),
            ids=await _make_ids(stack, database, secret),
            conversations=Conversations(secret),
            same_origin=SameOrigin(settings.hosts, settings.cors),
            tokens=FeedbackTokens(secret),
            tracer=make_tracer(settings.observe.otlp, line),
        )
        ledger = SpendLedger()
        spend = SpendSync(database, ledger)
        gateway = _make_gateway(stack, base, ledger)
        batches = _make_batches(stack, base, secrets_.database_url, gateway)
        management, console = None, list[OwnRoute]()
        if make_services is not None:
            management = Management(make_services)
            stack.push_async_callback(management.stop)
            console = _make_console(stack, base, secrets_.database_url, secret, management)
        cache_pages = CachePages(base.reader, base.cache)
        feedback = _make_feedback(stack, base, secrets_.database_url)
        log_pages = RequestPages(_open(stack, secrets_.database_url), base.ids, base.same_origin)
        stack.callback(log_pages.close)
        pages = [*cache_pages.routes(), *log_pages.routes(), *feedback.routes(), *console]
        own_pages = _make_pages(base)
        endpoints = _make_endpoints(base, gateway, own_pages, pages, batches, management)
        gateway.answer_other = endpoints.answer
        # A worker that shares its port must know the fleet before it takes requests.
        await asyncio.gather(base.reader.start(), spend.start())
        stack.callback(base.reader.stop)
        stack.push_async_callback(spend.stop)
        stack.callback(client.close)
        base.cache.start()
        stack.push_async_callback(base.cache.close)
        if line is not None:
            send_metrics(stack, settings.observe.otlp, own_pages.collect, line)
        _publish(stack, cache_pages, database, settings.id)
        _report_demand(stack, base, settings)
        stack.callback(asyncio.ensure_future(gateway.sweep()).cancel)
        server = _make_server(settings, gateway, batches)
        yield Parts(
            table, base.reader, base.forwarder, base.cache, base.line, server, batches,
            management, endpoints.routes,
        )  # fmt: skip


@dataclass(frozen=True)
class _Base:
    """The dependencies that the parts share."""

    settings: GatewaySettings
    metrics: GatewayMetrics
    table: RoutingTable
    reader: TableReader
    store: SharedStore | None
    line: RecorderLine | None
    forwarder: Forwarder
    cache: AnswerCache
    ids: ResponseIds
    conversations: Conversations
    same_origin: SameOrigin
    tokens: FeedbackTokens
    redactor: Redactor | None
    tracer: Tracer | None


def _make_gateway(stack: contextlib.AsyncExitStack, base: _Base, ledger: SpendLedger) -> Gateway:
    """Make the request path."""
    settings, metrics = base.settings, base.metrics
    shared = None
    if base.store is not None:
        shared = SharedCounts(base.store)
        stack.push_async_callback(shared.finish)
    shortcuts = Shortcuts(SHORTCUTS_BYTES)
    steps = Steps(
        table=base.table,
        reader=base.reader,
        forwarder=base.forwarder,
        answerer=Answerer(
            base.table, base.forwarder, base.cache, shortcuts, metrics,
            keep_texts=settings.record_prompts,
        ),
        shortcuts=shortcuts,
        recorder=Recorder(
            metrics, base.line if settings.record_requests else None,
            prompts=settings.record_prompts, tracer=base.tracer,
        ),
        metrics=metrics,
        limiter=KeyLimiter(metrics, ledger, shared),
        ids=base.ids,
        conversations=base.conversations,
        same_origin=base.same_origin,
        tokens=base.tokens if settings.feedback.tokens else None,
        tracer=base.tracer,
    )  # fmt: skip
    gateway = Gateway(steps)
    shadows = Shadows(gateway.run, metrics)
    gateway.on_ended = shadows.note_ended
    stack.push_async_callback(shadows.stop)
    return gateway


def _make_pages(base: _Base) -> Pages:
    return Pages(
        base.table, base.metrics, base.cache.memory, functools.partial(_describe_log, base.line),
        lambda: read_scaling(base.reader.database).values(),
    )  # fmt: skip


def _make_endpoints(
    base: _Base,
    gateway: Gateway,
    pages: Pages,
    own_routes: list[OwnRoute],
    batches: Batches | None,
    management: Management | None,
) -> Endpoints:
    """Make the table of routes and its dispatcher."""
    routes = [*gateway.routes(), *pages.routes(), *own_routes]
    if batches is not None:
        routes += batches.pages.routes()
    if management is not None:
        routes += management.routes()
    table = RouteTable(routes)
    return Endpoints(base.table, base.reader, table, base.same_origin)


def _describe_log(line: RecorderLine | None) -> dict[str, Any] | None:
    """What is wrong with the request log; None if nothing is, or there is none."""
    return line.state.describe() if line is not None else None


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
    """Make response ids with a node number that no other worker has."""
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
    stack: contextlib.AsyncExitStack, base: _Base, database_url: str, gateway: Gateway
) -> Batches | None:
    """Make files and batches, if there is a folder for files."""
    settings = base.settings
    if not settings.batches.folder:
        return None
    batches = make_batches(
        database=_open(stack, database_url),
        table=base.table,
        forwarder=base.forwarder,
        metrics=base.metrics,
        run=gateway.run,
        settings=settings.batches,
        max_body_bytes=settings.max_body_bytes,
        conversations=base.conversations,
        same_origin=base.same_origin,
    )
    stack.callback(batches.pages.close)
    return batches


def _make_feedback(
    stack: contextlib.AsyncExitStack, base: _Base, database_url: str
) -> FeedbackPages:
    pages = FeedbackPages(
        database=_open(stack, database_url),
        table=base.table,
        reader=base.reader,
        ids=base.ids,
        conversations=base.conversations,
        tokens=base.tokens,
        same_origin=base.same_origin,
        settings=base.settings.feedback,
        keep_s=base.settings.record_keep_s,
        redactor=base.redactor,
    )
    stack.callback(pages.close)
    return pages


def _make_console(
    stack: contextlib.AsyncExitStack,
    base: _Base,
    database_url: str,
    secret: bytes,
    management: Management,
) -> list[OwnRoute]:
    """Make the console's pages, and sign-in through an identity provider if the spec names one."""
    table, oidc = base.table, base.settings.oidc
    sessions = table.sessions = Sessions(secret, base.same_origin)
    if oidc is None:
        return ConsolePages(table, base.reader, sessions, management.warm_up).routes()
    table.sign_in_rules = oidc.rules
    # Whoever may sign in must: without keys, too, nobody else is let in.
    table.keys_exist = True
    database = _open(stack, database_url)
    end = functools.partial(end_sign_in, database)
    pages = ConsolePages(table, base.reader, sessions, management.warm_up, oidc.name, end)
    steps = OidcPages(oidc, Provider(oidc), sessions, database, base.reader, secret)
    return [*pages.routes(), *steps.routes()]


def _open(stack: contextlib.AsyncExitStack, url: str) -> Database:
    """Open a separate connection pool, so that parts do not wait for each other's connections."""
    database = open_database(url, migrate=False)
    stack.callback(database.close)
    return database


async def _open_store(
    stack: contextlib.AsyncExitStack, url: str, metrics: GatewayMetrics, timeout_s: float
) -> SharedStore | None:
    """Open the shared store, if one is configured."""
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


def _make_redactor(
    stack: contextlib.AsyncExitStack, settings: GatewaySettings, secret: bytes
) -> Redactor | None:
    """Make what redacts texts, with a process that finds names if there is to be one."""
    if not settings.record_redact:
        return None
    if not settings.record_names:
        return Redactor(secret)
    finder = NameFinder(settings.record_names)
    stack.callback(finder.close)
    return Redactor(secret, finder.find)


def _publish(
    stack: contextlib.AsyncExitStack, pages: CachePages, database: Database, worker_id: str
) -> None:
    """Publish this worker's statistics to other processes until it ends."""
    name = f"{socket.gethostname()[:48]}/{worker_id[:32]}/{os.getpid()}"

    async def forget() -> None:
        with contextlib.suppress(DatabaseError):
            await asyncio.to_thread(remove_cache_stats, database, name)

    stack.push_async_callback(forget)
    stack.callback(asyncio.ensure_future(pages.publish(name)).cancel)


def _report_demand(
    stack: contextlib.AsyncExitStack, base: _Base, settings: GatewaySettings
) -> None:
    """Report what is asked of each version until the worker ends."""
    name = f"{name_worker(settings)}/{secrets.token_hex(4)}"
    notify = _open_line(stack, base, settings)
    report = DemandReport(
        lambda: base.reader.database, base.table, name, base.forwarder.measure_work, notify
    )
    base.forwarder.on_held = report.note_held
    task = asyncio.ensure_future(report.run())

    async def stop() -> None:
        task.cancel()
        await asyncio.wait({task})
        await report.forget()

    stack.push_async_callback(stop)


def name_worker(settings: GatewaySettings) -> str:
    """What tells this process from all others."""
    return f"{socket.gethostname()[:40]}/{settings.id[:24]}/{os.getpid()}"


def _open_line(
    stack: contextlib.AsyncExitStack, base: _Base, settings: GatewaySettings
) -> Callable[[], None]:
    """Open the line to the controller, if there is one; what sends a notice."""
    if settings.notice_fd is None:
        return lambda: None
    line = NoticeLine(socket.socket(fileno=settings.notice_fd))
    line.listen(base.reader.notice)
    stack.callback(line.close)
    return line.send


def _make_server(
    settings: GatewaySettings, gateway: Gateway, batches: Batches | None
) -> HttpServer:
    limits = ServerLimits(
        max_body_bytes=settings.max_body_bytes,
        read_timeout_s=settings.read_timeout_s,
        write_timeout_s=settings.write_timeout_s,
    )
    spools = None if batches is None else batches.spools
    cors = Cors(settings.cors) if settings.cors else None
    return HttpServer(gateway.handle, limits, gateway.count_refusal, spools, cors)
