"""The gateway's Prometheus metrics, labelled with deployment, version and replica.

Requests are counted in plain lists and converted to Prometheus families on a scrape:
prometheus_client's own counters take a lock for every number, which is a tenth of the gateway's
time at ten thousand requests a second. Everything here runs on the event loop, so no lock is
needed. Gauges and rare counters are prometheus_client's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from thrifty.observe.log_writer import LogHealth, LogWriter

VERSION = ("deployment", "version")
LABELS = (*VERSION, "replica")

LATENCY_S = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
OVERHEAD_S = (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.25)
MAX_SERIES = 4096
"""Bound on kept series, because replicas come and go, and memory must stay bounded."""


class Observation(msgspec.Struct, frozen=True, gc=False):
    """One request for the metrics. Times are in seconds; None if not measured."""

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
    saved: Saved | None = None
    timed: bool = True
    """Whether its times count; the times of batch lines would mask those of clients."""


class Saved(msgspec.Struct, frozen=True, gc=False):
    """What a cache hit saved an engine. `cost` is in the currency of the prices."""

    tier: str
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    cost: float


class Histogram:
    """Counts per bucket, and the sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds and cumulative counts, in Prometheus's format."""
        cumulative, found = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            cumulative += count
            found.append(("+Inf" if bound == float("inf") else repr(bound), float(cumulative)))
        return found


class _Series:
    """The histograms and token counts of one (deployment, version, replica)."""

    __slots__ = ("cached", "completion", "e2e", "overhead", "prompt", "queue", "tpot", "ttft")

    def __init__(self) -> None:
        self.ttft = Histogram(LATENCY_S)
        self.tpot = Histogram(TOKEN_S)
        self.e2e = Histogram(LATENCY_S)
        self.queue = Histogram(LATENCY_S)
        self.overhead = Histogram(OVERHEAD_S)
        self.prompt = 0
        self.completion = 0
        self.cached = 0


_HISTOGRAMS = {
    "ttft": ("thrifty_ttft_seconds", "Time to first token."),
    "tpot": ("thrifty_tpot_seconds", "Time per output token after the first."),
    "e2e": ("thrifty_e2e_seconds", "Time from request to the last byte."),
    "queue": ("thrifty_queue_seconds", "Time spent waiting for a replica."),
    "overhead": (
        "thrifty_gateway_overhead_seconds",
        "Time that the gateway itself took before it forwarded a request.",
    ),
}
_SAVED = (
    ("thrifty_cache_saved_seconds", "Generation time saved by answers from the exact cache."),
    ("thrifty_cache_saved_prompt_tokens", "Prompt tokens saved by the exact cache."),
    ("thrifty_cache_saved_completion_tokens", "Generated tokens saved by the exact cache."),
    ("thrifty_cache_saved_cost", "Cost of the saved tokens, by the prices of the spec."),
)
_SAVED_NAMES = ("saved_s", "saved_prompt_tokens", "saved_completion_tokens", "saved_cost")
_TOKENS = {
    "prompt": ("thrifty_prompt_tokens", "Prompt tokens computed."),
    "completion": ("thrifty_completion_tokens", "Tokens generated."),
    "cached": ("thrifty_cached_tokens", "Prompt tokens found in an engine's prefix cache."),
}


class RequestMetrics(Collector):
    """The metrics counted for every request."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._requests: dict[tuple[str, str, str, str, str], int] = {}
        self._errors: dict[tuple[str, str, str, str], int] = {}
        self._cache: dict[tuple[str, str, str], int] = {}
        self._hits: dict[tuple[str, str, str], int] = {}
        self._saved: dict[tuple[str, str], list[float]] = {}

    def observe(self, seen: Observation) -> None:
        """Count one request."""
        labels = (seen.deployment, seen.version, seen.replica)
        series = self._series.get(labels)
        if series is None:
            series = self._add_series(labels)
        request = (*labels, seen.endpoint, str(seen.status))
        self._requests[request] = self._requests.get(request, 0) + 1
        if seen.error is not None:
            error = (*labels, seen.error)
            self._errors[error] = self._errors.get(error, 0) + 1
        if seen.cache:
            cache = (seen.deployment, seen.version, seen.cache)
            self._cache[cache] = self._cache.get(cache, 0) + 1
        if seen.saved is not None:
            self._count_saved(seen.deployment, seen.version, seen.saved)
        if seen.timed:
            series.e2e.observe(seen.e2e_s)
            series.queue.observe(seen.queue_s)
            series.overhead.observe(seen.overhead_s)
            if seen.ttft_s is not None:
                series.ttft.observe(seen.ttft_s)
            if seen.tpot_s is not None:
                series.tpot.observe(seen.tpot_s)
        series.prompt += seen.prompt_tokens
        series.completion += seen.completion_tokens
        series.cached += seen.cached_tokens

    def cache_figures(self) -> dict[str, dict[str, float]]:
        """Statistics of the exact cache, by deployment."""
        found: dict[str, dict[str, float]] = {}
        for (deployment, _, result), count in self._cache.items():
            if not deployment:
                continue  # refused before its deployment was known
            figures = found.setdefault(deployment, {})
            figures[result] = figures.get(result, 0) + count
        for (deployment, _, tier), count in self._hits.items():
            figures = found.setdefault(deployment, {})
            figures[f"hits_{tier}"] = figures.get(f"hits_{tier}", 0) + count
        for (deployment, _), sums in self._saved.items():
            figures = found.setdefault(deployment, {})
            for name, value in zip(_SAVED_NAMES, sums, strict=True):
                figures[name] = figures.get(name, 0) + value
        return found

    def count_error(self, kind: str) -> None:
        """Count a request that was refused before it was parsed."""
        key = ("", "", "", kind)
        self._errors[key] = self._errors.get(key, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """The Prometheus families of everything counted so far."""
        yield _counter(
            "thrifty_requests",
            "Requests answered.",
            (*LABELS, "endpoint", "status"),
            self._requests,
        )
        yield _counter(
            "thrifty_errors", "Requests that failed, by kind.", (*LABELS, "kind"), self._errors
        )
        yield _counter(
            "thrifty_cache_requests",
            "Requests by the result of the exact cache.",
            ("deployment", "version", "result"),
            self._cache,
        )
        yield _counter(
            "thrifty_cache_hits",
            "Answers from the exact cache, by tier.",
            ("deployment", "version", "tier"),
            self._hits,
        )
        yield self._collect_hit_ratio()
        for index, (metric, text) in enumerate(_SAVED):
            spared = {labels: sums[index] for labels, sums in self._saved.items()}
            yield _counter(metric, text, ("deployment", "version"), spared)
        for name, (metric, text) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(metric, text, labels=LABELS)
            for labels, series in self._series.items():
                histogram: Histogram = getattr(series, name)
                family.add_metric(list(labels), histogram.buckets(), histogram.total)
            yield family
        for name, (metric, text) in _TOKENS.items():
            counts = {labels: getattr(series, name) for labels, series in self._series.items()}
            yield _counter(metric, text, LABELS, counts)

    def _count_saved(self, deployment: str, version: str, saved: Saved) -> None:
        hit = (deployment, version, saved.tier)
        self._hits[hit] = self._hits.get(hit, 0) + 1
        sums = self._saved.get(hit[:2])
        if sums is None:
            sums = self._saved[hit[:2]] = [0.0] * len(_SAVED)
        sums[0] += saved.seconds
        sums[1] += saved.prompt_tokens
        sums[2] += saved.completion_tokens
        sums[3] += saved.cost

    def _collect_hit_ratio(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "thrifty_cache_hit_ratio",
            "Hit ratio of the requests that the exact cache may answer, since the worker started.",
            labels=("deployment",),
        )
        for deployment, figures in self.cache_figures().items():
            hits, misses = figures.get("hit", 0), figures.get("miss", 0)
            if hits + misses:
                family.add_metric([deployment], hits / (hits + misses))
        return family

    def _add_series(self, labels: tuple[str, str, str]) -> _Series:
        if len(self._series) >= MAX_SERIES:
            for counted in (
                self._series, self._requests, self._errors, self._cache, self._hits, self._saved,
            ):  # fmt: skip
                counted.clear()
        series = self._series[labels] = _Series()
        return series


def _counter(
    name: str, text: str, labels: tuple[str, ...], counts: Mapping[Any, float]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(list(values), count)
    return family


class SharedCacheMetrics(Collector):
    """The counts of the cache's shared tier."""

    def __init__(self) -> None:
        self.figures: Mapping[str, float] = {}
        """The tier's counts, if there is a shared tier."""

    def collect(self) -> Iterator[Metric]:
        """The Prometheus family of these counts."""
        counts = {(name,): count for name, count in self.figures.items()}
        yield _counter(
            "thrifty_cache_shared", "Events of the cache's shared tier, by kind.", ("kind",), counts
        )


class GatewayMetrics:
    """The metrics of one gateway worker, in their own registry."""

    def __init__(self) -> None:
        # For the whole process: a time of creation for each counter would double what is exposed.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = RequestMetrics()
        self.registry.register(self.requests)
        self.retries = self._counter(
            "thrifty_retries", "Requests retried on another replica.", ("deployment",)
        )
        self.shared = self._counter(
            "thrifty_shared_requests",
            "Requests that joined an identical one in flight.",
            ("deployment",),
        )
        self.rejections = self._counter(
            "thrifty_rejections",
            "Requests that were not admitted, by reason.",
            ("deployment", "reason"),
        )
        self.limit_fallbacks = self._counter(
            "thrifty_limit_fallbacks",
            "Requests of limited keys counted in this process because Redis was unavailable.",
            (),
        )
        self.queue_length = self._gauge(
            "thrifty_queue_length",
            "Requests that wait for a slot at a replica, by priority (interactive, batch).",
            (*VERSION, "priority"),
        )
        self.slots = self._gauge(
            "thrifty_slots", "Concurrent requests that this worker may have at replicas.", VERSION
        )
        self.slots_taken = self._gauge("thrifty_slots_taken", "Requests that have a slot.", VERSION)
        self.version_weight = self._gauge(
            "thrifty_version_weight", "The weight of each version in its deployment.", VERSION
        )
        self.ejections = self._counter(
            "thrifty_ejections", "How often a replica was ejected because it failed.", LABELS
        )
        self.replica_ejected = self._gauge(
            "thrifty_replica_ejected", "1 while a replica is ejected or on trial.", LABELS
        )
        self.hedges = self._counter(
            "thrifty_hedges", "Requests that were also sent to a second replica.", ("deployment",)
        )
        self.hedges_won = self._counter(
            "thrifty_hedges_won",
            "Hedged requests that the second replica answered.",
            ("deployment",),
        )
        self.in_flight = self._gauge(
            "thrifty_in_flight", "Requests in flight at a replica.", LABELS
        )
        self.replica_up = self._gauge("thrifty_replica_up", "1 while a replica is ready.", LABELS)
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
        self.cache_forgotten = self._counter(
            "thrifty_cache_forgotten",
            "Answers removed from memory early, by reason: a purge, or a promotion.",
            ("reason",),
        )
        self.shared_cache = SharedCacheMetrics()
        self.registry.register(self.shared_cache)
        self.dropped_rows = self._counter(
            "thrifty_log_rows_dropped",
            "Dropped request log rows, by reason.",
            ("reason",),
        )
        self.written_rows = self._counter(
            "thrifty_log_rows_written", "Request log rows written.", ()
        )
        self.log_up = self._gauge("thrifty_log_up", "0 while the request log is stopped.", ())
        self.log_rows_waiting = self._gauge(
            "thrifty_log_rows_waiting", "Request log rows that wait to be written.", ()
        )
        self.fallbacks = self._counter(
            "thrifty_fallbacks",
            "Requests that another deployment answered.",
            ("deployment", "by"),
        )
        self.reroutes = self._counter(
            "thrifty_reroutes",
            "Requests that another version answered, because the chosen one had no ready replica.",
            ("deployment", "version", "by"),
        )
        self.shadows = self._counter(
            "thrifty_shadow_requests",
            "Copies of requests for versions under test, by result.",
            ("deployment", "version", "result"),
        )
        self.share_alarms = self._counter(
            "thrifty_routing_share_alarms",
            "Windows in which a replica's share was far from fair.",
            ("deployment", "replica"),
        )
        self.signals_lost = self._gauge(
            "thrifty_routing_signals_lost",
            "1 while replicas have stopped reporting cached prompt tokens.",
            VERSION,
        )
        self.batch_lines = self._counter(
            "thrifty_batch_lines",
            "Attempts at lines of batches, by result.",
            ("deployment", "result"),
        )
        self.batch_lines_in_flight = self._gauge(
            "thrifty_batch_lines_in_flight", "Lines of batches in flight.", ("deployment",)
        )
        self.batches_running = self._gauge(
            "thrifty_batches_running", "Batches that this worker runs.", ()
        )
        self.database_up = self._gauge("thrifty_database_up", "1 while the database answers.", ())
        self.shared_store_up = self._gauge(
            "thrifty_shared_store_up", "1 while the shared Redis answers.", ()
        )
        self.shared_store_errors = self._counter(
            "thrifty_shared_store_errors", "Errors of the shared Redis, by kind.", ("kind",)
        )

    def watch_log(self, writer: LogWriter) -> None:
        """Make the request log's gauges show the state of a writer on every scrape."""
        self.log_up.set_function(lambda: float(writer.state.health is not LogHealth.STOPPED))
        self.log_rows_waiting.set_function(lambda: float(writer.state.waiting_rows))

    def forget_replica(self, deployment: str, version: str, replica: str) -> None:
        """Remove the gauges of a replica that is gone; counters stay, as Prometheus expects."""
        for gauge in (
            self.in_flight, self.replica_up, self.replica_running, self.replica_waiting,
            self.replica_kv_usage, self.replica_memory, self.replica_ejected,
        ):  # fmt: skip
            try:
                gauge.remove(deployment, version, replica)
            except KeyError:
                continue

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)
