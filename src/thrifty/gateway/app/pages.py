"""The gateway's own endpoints: models, health, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric

from thrifty.db.keys import Key
from thrifty.db.scaling import ScalingRow
from thrifty.errors import DatabaseError
from thrifty.gateway.admission.check import list_visible
from thrifty.gateway.app.endpoints import OwnRoute
from thrifty.gateway.app.merge_metrics import merge_metrics
from thrifty.gateway.cache import ExactCache
from thrifty.gateway.state.deployment import Deployment
from thrifty.gateway.state.table import RoutingTable
from thrifty.gateway.state.version import Version
from thrifty.http.exchange import Exchange
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.errors import NOT_FOUND, WireError, list_names
from thrifty.types import ReplicaState, Role

_encode = msgspec.json.Encoder().encode
_METRICS_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


class Pages:
    """The endpoints for models, health and metrics."""

    def __init__(
        self,
        table: RoutingTable,
        metrics: GatewayMetrics,
        cache: ExactCache,
        describe_log: Callable[[], dict[str, Any] | None] = lambda: None,
        read_scaling: Callable[[], Iterable[ScalingRow]] = tuple,
    ) -> None:
        """`describe_log` returns what is wrong with the request log, or None. `read_scaling` reads
        the autoscaler's decisions from the database; it is called in a thread.
        """
        self._read_scaling = read_scaling
        self._table = table
        self._metrics = metrics
        self._cache = cache
        self._describe_log = describe_log

    def routes(self) -> list[OwnRoute]:
        """The routes of these endpoints."""
        return [
            OwnRoute("GET", "/healthz", None, self._answer_health, "whether this worker is alive"),
            OwnRoute(
                "GET", "/readyz", None, self._answer_ready, "whether each deployment can answer"
            ),
            OwnRoute("GET", "/metrics", Role.VIEWER, self._answer_metrics, "Prometheus metrics"),
            OwnRoute("GET", "/v1/models", Role.USER, self._list_models, "the models"),
            OwnRoute("GET", "/v1/models/{model:path}", Role.USER, self._show_model, "one model"),
        ]

    async def _answer_health(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        # The pid tells apart workers that share the port.
        exchange.respond(200, _encode({"status": "ok", "pid": os.getpid()}))

    async def _answer_ready(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        """Ready if every deployment has a version with traffic that has a ready replica, or none
        by intent.
        """
        waiting = [d.name for d in self._table.deployments.values() if not d.ready]
        ready = self._table.loaded and bool(self._table.deployments) and not waiting
        body: dict[str, Any] = {
            "status": "ready" if ready else "not ready", "waiting_for": waiting,
        }  # fmt: skip
        if not self._table.loaded:
            body["reason"] = "the state of the service was not read yet"
        elif not self._table.deployments:
            body["reason"] = "no deployment is served (thrifty history says since when)"
        if (log := self._describe_log()) is not None:
            body["request_log"] = log
        exchange.respond(200 if ready else 503, _encode(body))

    async def _answer_metrics(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        await self._refresh()
        text = generate_latest(self._metrics.registry)
        if b"worker=self" not in exchange.query:
            text = await merge_metrics(text, self._table.gateways, exchange.headers)
        exchange.respond(200, text, [_METRICS_TYPE])

    async def collect(self) -> list[Metric]:
        """All metrics as they are now."""
        await self._refresh()
        return list(self._metrics.registry.collect())

    async def _refresh(self) -> None:
        self._refresh_gauges()
        # Without the database the last ones stay.
        with contextlib.suppress(DatabaseError):
            self._metrics.scaling.rows = await asyncio.to_thread(self._read_scaling)

    async def _list_models(self, exchange: Exchange, key: Key | None, _: Any) -> None:
        names = self._table.names
        models = [_describe(name, names[name]) for name in list_visible(names, key)]
        exchange.respond(200, _encode({"object": "list", "data": models}))

    async def _show_model(
        self, exchange: Exchange, key: Key | None, parameters: Mapping[str, str]
    ) -> None:
        name, visible = parameters["model"], list_visible(self._table.names, key)
        if name not in visible:
            raise WireError(
                404,
                f"The model '{name[:100]}' does not exist. "
                f"Models here: {list_names(visible)}.",
                type=NOT_FOUND, param="model", code="model_not_found",
            )  # fmt: skip
        exchange.respond(200, _encode(_describe(name, self._table.names[name])))

    def _refresh_gauges(self) -> None:
        metrics = self._metrics
        for gone in self._table.take_gone():
            metrics.forget_replica(gone.deployment, gone.version, gone.id)
        for version in self._table.versions():
            _refresh_version(metrics, version)
        metrics.replicas.rows = [
            ((version.deployment, version.label, replica.id), replica.state, replica.restarts)
            for version in self._table.versions()
            for replica in version.replicas.values()
        ]
        metrics.cache_bytes.set(self._cache.size_bytes)
        metrics.cache_entries.set(len(self._cache))


def _refresh_version(metrics: GatewayMetrics, version: Version) -> None:
    for replica in version.replicas.values():
        labels = (version.deployment, version.label, replica.id)
        load = replica.load
        metrics.in_flight.labels(*labels).set(replica.in_flight)
        metrics.replica_up.labels(*labels).set(1 if replica.ready else 0)
        metrics.replica_running.labels(*labels).set(load.get("running", 0))
        metrics.replica_waiting.labels(*labels).set(load.get("waiting", 0))
        metrics.replica_kv_usage.labels(*labels).set(load.get("kv_usage", 0))
        facts = load.get("facts") or {}
        if "speculating" in facts:
            metrics.replica_speculating.labels(*labels).set(facts["speculating"])
            acceptance = facts.get("speculation_acceptance", 0)
            metrics.replica_acceptance.labels(*labels).set(acceptance)
        metrics.replica_memory.labels(*labels).set(replica.memory_bytes)
        ejected = version.health.is_ejected(replica.id)
        metrics.replica_ejected.labels(*labels).set(1 if ejected else 0)
    metrics.retries.labels(version.deployment)  # from 0 on, so that the first one is an increase
    own = (version.deployment, version.label)
    metrics.version_weight.labels(*own).set(version.row.weight)
    concurrency = version.concurrency
    metrics.held.labels(*own).set(version.held)
    at_replicas = sum(replica.in_flight for replica in version.replicas.values())
    metrics.demand.labels(*own).set(at_replicas + version.waiting + len(concurrency.queue))
    if version.settings.wakes:
        metrics.wakes.labels(*own).set(version.wakes)
        metrics.start_seconds.labels(*own).set(version.start_s)
        parked = sum(one.state == ReplicaState.PARKED for one in version.replicas.values())
        metrics.parked.labels(*own).set(parked)
    if version.settings.slots is not None:
        metrics.slots.labels(*own).set(concurrency.capacity or 0)
        metrics.slots_taken.labels(*own).set(concurrency.taken)
    if concurrency.capacity is not None:
        for priority, name in enumerate(("interactive", "batch")):
            waiting = concurrency.queue.waiting(priority)
            metrics.queue_length.labels(*own, name).set(waiting)


def _describe(name: str, deployment: Deployment) -> dict[str, Any]:
    main = deployment.main
    lengths = [v.context_length for v in deployment.versions.values() if v.row.weight > 0]
    return {
        "id": name,
        "object": "model",
        "created": int(deployment.settings.created_s),
        "owned_by": "thrifty",
        "version": main.label,
        "versions": [
            {
                "label": v.label,
                "weight": v.row.weight,
                "engine": v.row.engine,
                "max_model_len": v.context_length,
            }
            for v in deployment.versions.values()
        ],
        # A request may reach any of them.
        "max_model_len": min((length for length in lengths if length), default=main.context_length),
        "engine": main.row.engine,
        "deployment": deployment.name,
    }
