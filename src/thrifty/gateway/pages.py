"""What the gateway answers by itself: its models, its health, its metrics."""

from __future__ import annotations

import os
import re
from typing import Any

import msgspec
from prometheus_client import generate_latest

from thrifty.db.keys import Role
from thrifty.gateway.authenticate import authenticate_late
from thrifty.gateway.cache import ExactCache
from thrifty.gateway.cache_pages import PATH as CACHE_PATH
from thrifty.gateway.cache_pages import CachePages
from thrifty.gateway.merge_metrics import merge_metrics
from thrifty.gateway.table import Deployment, RoutingTable
from thrifty.gateway.table_reader import TableReader
from thrifty.http.server import Exchange
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.errors import NOT_FOUND, WireError
from thrifty.openai.fields import FIELDS

_encode = msgspec.json.Encoder().encode
_MODEL_PATH = re.compile(r"/v1/models/(.+)")
_METRICS_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_CALLERS = frozenset({Role.USER, Role.ADMIN})
_WATCHERS = frozenset({Role.MONITOR, Role.ADMIN})


class Pages:
    """The endpoints beside those that reach a model."""

    def __init__(
        self,
        table: RoutingTable,
        reader: TableReader,
        metrics: GatewayMetrics,
        cache: ExactCache,
        cache_pages: CachePages,
    ) -> None:
        self._table = table
        self._reader = reader
        self._metrics = metrics
        self._cache = cache
        self._cache_pages = cache_pages

    async def answer(self, exchange: Exchange) -> None:
        """Answer, or raise a 404, 405, 401 or 403."""
        path = exchange.path
        if path == CACHE_PATH:
            await self._cache_pages.answer(exchange)
            return
        if exchange.method not in ("GET", "HEAD"):
            raise _no_such_path(exchange)
        if path == "/healthz":
            # With the pid, because several workers may share the port.
            exchange.respond(200, _encode({"status": "ok", "pid": os.getpid()}))
        elif path == "/readyz":
            self._answer_ready(exchange)
        elif path == "/metrics":
            await authenticate_late(exchange, self._table, self._reader, _WATCHERS)
            self._refresh_gauges()
            text = generate_latest(self._metrics.registry)
            if b"worker=self" not in exchange.query:
                text = await merge_metrics(text, self._table.gateways, exchange.headers)
            exchange.respond(200, text, [_METRICS_TYPE])
        elif path == "/v1/models":
            await authenticate_late(exchange, self._table, self._reader, _CALLERS)
            models = [_describe(name, d) for name, d in self._table.names.items()]
            exchange.respond(200, _encode({"object": "list", "data": models}))
        elif match := _MODEL_PATH.fullmatch(path):
            await authenticate_late(exchange, self._table, self._reader, _CALLERS)
            deployment = self._table.names.get(match.group(1))
            if deployment is None:
                raise WireError(
                    404,
                    f"The model '{match.group(1)[:100]}' does not exist.",
                    type=NOT_FOUND,
                    param="model",
                    code="model_not_found",
                )
            exchange.respond(200, _encode(_describe(match.group(1), deployment)))
        else:
            raise _no_such_path(exchange)

    def _answer_ready(self, exchange: Exchange) -> None:
        """Ready when every deployment has a ready replica."""
        waiting = [
            deployment.name
            for deployment in self._table.deployments.values()
            if not any(replica.ready for replica in deployment.replicas.values())
        ]
        ready = self._table.loaded and bool(self._table.deployments) and not waiting
        body = {"status": "ready" if ready else "not ready", "waiting_for": waiting}
        exchange.respond(200 if ready else 503, _encode(body))

    def _refresh_gauges(self) -> None:
        metrics = self._metrics
        for gone in self._table.take_gone():
            metrics.forget_replica(gone.deployment, gone.version, gone.id)
        for deployment in self._table.deployments.values():
            for replica in deployment.replicas.values():
                labels = (deployment.name, replica.version, replica.id)
                load = replica.load
                metrics.in_flight.labels(*labels).set(replica.in_flight)
                metrics.replica_up.labels(*labels).set(1 if replica.ready else 0)
                metrics.replica_running.labels(*labels).set(load.get("running", 0))
                metrics.replica_waiting.labels(*labels).set(load.get("waiting", 0))
                metrics.replica_kv_usage.labels(*labels).set(load.get("kv_usage", 0))
                metrics.replica_memory.labels(*labels).set(replica.memory_bytes)
                ejected = deployment.health.is_ejected(replica.id)
                metrics.replica_ejected.labels(*labels).set(1 if ejected else 0)
            concurrency = deployment.concurrency
            if concurrency.capacity is not None:
                metrics.slots.labels(deployment.name).set(concurrency.capacity)
                metrics.slots_taken.labels(deployment.name).set(concurrency.taken)
                for priority, name in enumerate(("interactive", "batch")):
                    waiting = concurrency.queue.waiting(priority)
                    metrics.queue_length.labels(deployment.name, name).set(waiting)
        metrics.cache_bytes.set(self._cache.size_bytes)
        metrics.cache_entries.set(len(self._cache))


def _describe(name: str, deployment: Deployment) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(deployment.settings.created_s),
        "owned_by": "thrifty",
        "version": deployment.version,
        "engine": deployment.row.engine,
        "deployment": deployment.name,
    }


def _no_such_path(exchange: Exchange) -> WireError:
    posts = {endpoint.value for endpoint in FIELDS}
    if exchange.path in posts:
        return WireError(
            405, f"{exchange.path} takes POST, not {exchange.method}.", code="method_not_allowed"
        )
    return WireError(
        404,
        f"There is nothing at {exchange.method} {exchange.path[:100]}. POST: "
        f"{', '.join(sorted(posts))}; GET: /v1/models, /v1/cache, /healthz, /readyz, /metrics.",
        type=NOT_FOUND,
        code="unknown_path",
    )
