"""The gateway's Prometheus metrics, each with deployment, version and replica.

Label lookups are the slow part of a Prometheus client, so the series of one (deployment, version,
replica, endpoint) are looked up once and kept. A request then costs a handful of additions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LABELS = ("deployment", "version", "replica")

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_OVERHEAD_S = (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.25)
MAX_SERIES = 4096
"""Bound on kept series: replicas come and go, and a gateway must not grow with them."""


@dataclass(frozen=True)
class Observation:
    """What one request was, for the metrics. Times in seconds; None where there was none."""

    deployment: str
    version: str
    replica: str
    endpoint: str
    status: int
    error: str | None
    cache: str
    e2e_s: float
    queue_s: float
    overhead_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class _Series:
    """The series of one (deployment, version, replica, endpoint)."""

    __slots__ = ("cached", "completion", "e2e", "overhead", "prompt", "queue", "tpot", "ttft")

    def __init__(
        self, metrics: GatewayMetrics, labels: tuple[str, str, str], endpoint: str
    ) -> None:
        self.ttft = metrics.ttft.labels(*labels)
        self.tpot = metrics.tpot.labels(*labels)
        self.e2e = metrics.e2e.labels(*labels, endpoint)
        self.queue = metrics.queue.labels(*labels)
        self.overhead = metrics.overhead.labels(*labels)
        self.prompt = metrics.prompt_tokens.labels(*labels)
        self.completion = metrics.completion_tokens.labels(*labels)
        self.cached = metrics.cached_tokens.labels(*labels)


class GatewayMetrics:
    """The metrics of one gateway worker, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._series: dict[tuple[str, str, str, str], _Series] = {}
        self._counts: dict[tuple[Any, ...], Any] = {}
        self.requests = self._counter(
            "thrifty_requests", "Requests answered.", (*LABELS, "endpoint", "status")
        )
        self.errors = self._counter(
            "thrifty_errors", "Requests that failed, by kind.", (*LABELS, "kind")
        )
        self.cache = self._counter(
            "thrifty_cache_requests",
            "Requests by what the exact cache said.",
            ("deployment", "version", "result"),
        )
        self.ttft = self._histogram(
            "thrifty_ttft_seconds", "Time to first token.", LABELS, _LATENCY_S
        )
        self.tpot = self._histogram(
            "thrifty_tpot_seconds", "Time per output token after the first.", LABELS, _TOKEN_S
        )
        self.e2e = self._histogram(
            "thrifty_e2e_seconds",
            "Time from request to the last byte.",
            (*LABELS, "endpoint"),
            _LATENCY_S,
        )
        self.queue = self._histogram(
            "thrifty_queue_seconds", "Time spent waiting for a replica.", LABELS, _LATENCY_S
        )
        self.overhead = self._histogram(
            "thrifty_gateway_overhead_seconds",
            "Time that the gateway itself took, before it sent a request on.",
            LABELS,
            _OVERHEAD_S,
        )
        self.prompt_tokens = self._counter("thrifty_prompt_tokens", "Prompt tokens.", LABELS)
        self.completion_tokens = self._counter(
            "thrifty_completion_tokens", "Generated tokens.", LABELS
        )
        self.cached_tokens = self._counter(
            "thrifty_cached_tokens", "Prompt tokens found in an engine's prefix cache.", LABELS
        )
        self.retries = self._counter(
            "thrifty_retries", "Requests sent again elsewhere.", ("deployment",)
        )
        self.shared = self._counter(
            "thrifty_shared_requests",
            "Requests that joined an identical one in flight.",
            ("deployment",),
        )
        self.in_flight = self._gauge("thrifty_in_flight", "Requests now at a replica.", LABELS)
        self.replica_up = self._gauge("thrifty_replica_up", "1 where a replica is ready.", LABELS)
        self.replica_running = self._gauge(
            "thrifty_engine_running", "Generations running in an engine.", LABELS
        )
        self.replica_waiting = self._gauge(
            "thrifty_engine_waiting", "Generations waiting in an engine.", LABELS
        )
        self.replica_kv_usage = self._gauge(
            "thrifty_engine_kv_usage", "Share of an engine's KV cache in use.", LABELS
        )
        self.replica_memory = self._gauge(
            "thrifty_replica_memory_bytes", "Resident memory of a replica.", LABELS
        )
        self.cache_bytes = self._gauge("thrifty_cache_bytes", "Size of the exact cache.", ())
        self.cache_entries = self._gauge("thrifty_cache_entries", "Answers in the exact cache.", ())
        self.dropped_rows = self._counter(
            "thrifty_log_rows_dropped",
            "Request log rows that were dropped, by reason.",
            ("reason",),
        )
        self.written_rows = self._counter(
            "thrifty_log_rows_written", "Request log rows written.", ()
        )
        self.database_up = self._gauge("thrifty_database_up", "1 while the database answers.", ())

    def observe(self, seen: Observation) -> None:
        """Count one request."""
        labels = (seen.deployment, seen.version, seen.replica)
        key = (*labels, seen.endpoint)
        series = self._series.get(key)
        if series is None:
            series = self._add_series(key)
        self._count(self.requests, (*labels, seen.endpoint, str(seen.status)))
        if seen.error is not None:
            self._count(self.errors, (*labels, seen.error))
        if seen.cache:
            self._count(self.cache, (seen.deployment, seen.version, seen.cache))
        series.e2e.observe(seen.e2e_s)
        series.queue.observe(seen.queue_s)
        series.overhead.observe(seen.overhead_s)
        if seen.ttft_s is not None:
            series.ttft.observe(seen.ttft_s)
        if seen.tpot_s is not None:
            series.tpot.observe(seen.tpot_s)
        if seen.prompt_tokens:
            series.prompt.inc(seen.prompt_tokens)
        if seen.completion_tokens:
            series.completion.inc(seen.completion_tokens)
        if seen.cached_tokens:
            series.cached.inc(seen.cached_tokens)

    def forget_replica(self, deployment: str, version: str, replica: str) -> None:
        """Drop the gauges of a replica that is gone; its counters stay, as Prometheus expects."""
        for gauge in (
            self.in_flight, self.replica_up, self.replica_running, self.replica_waiting,
            self.replica_kv_usage, self.replica_memory,
        ):  # fmt: skip
            try:
                gauge.remove(deployment, version, replica)
            except KeyError:
                continue

    def _add_series(self, key: tuple[str, str, str, str]) -> _Series:
        if len(self._series) >= MAX_SERIES:
            self._series.clear()
            self._counts.clear()
        series = self._series[key] = _Series(self, key[:3], key[3])
        return series

    def _count(self, counter: Counter, labels: tuple[str, ...]) -> None:
        key = (counter, *labels)
        child = self._counts.get(key)
        if child is None:
            child = self._counts[key] = counter.labels(*labels)
        child.inc()

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)
