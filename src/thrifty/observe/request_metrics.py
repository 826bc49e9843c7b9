"""Metrics that are counted for every request.

Requests are counted in plain lists and converted to Prometheus families on a scrape:
prometheus_client's own counters take a lock for every number, which is a tenth of the gateway's
time at ten thousand requests a second. Everything here runs on the event loop, so no lock is
needed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

import msgspec
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

VERSION = ("deployment", "version")
LABELS = (*VERSION, "replica")

# vLLM's bounds (vllm/v1/metrics), so that one dashboard shows engines and gateway. Smaller ones
# come
# before them, for answers of caches and of small models.
TTFT_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
    7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0,
    50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
OVERHEAD_S = (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.25)
MAX_KINDS = 256
"""Bound on the kinds of errors, some of which external servers name: more count as `OTHER`."""
OTHER = "other"
MAX_SERIES = 4096
"""Bound on kept series, because replicas come and go, and memory must stay bounded."""
MAX_TENANTS = 50
"""Tenants with series of their own where the spec says nothing else; more count as `OTHER`."""


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
    verdict: Verdict | None = None
    """How it counts for the version's objectives; None where it does not: refusals that clients
    cause, and clients that left."""
    tenant: str = ""


class Verdict(StrEnum):
    """How a request counts for the objectives of its version."""

    GOOD = "good"
    SLOW = "slow"
    """Answered, and later than `slo` says."""
    FAILED = "failed"


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
    """The counts of one (deployment, version, replica)."""

    __slots__ = (
        "cached", "completion", "e2e", "failed", "good", "judged", "overhead", "pieces", "prompt",
        "queue", "requests", "slow", "tpot", "ttft",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}
        """By endpoint and status."""
        self.ttft = Histogram(TTFT_S)
        self.tpot = Histogram(TOKEN_S)
        self.pieces = Histogram(TOKEN_S)
        self.e2e = Histogram(REQUEST_S)
        self.queue = Histogram(REQUEST_S)
        self.overhead = Histogram(OVERHEAD_S)
        self.judged = 0
        self.good = 0
        self.slow = 0
        self.failed = 0
        self.prompt = 0
        self.completion = 0
        self.cached = 0


_HISTOGRAMS = {
    "ttft": ("thrifty_ttft_seconds", "Time to the first token of streams."),
    "tpot": (
        "thrifty_tpot_seconds",
        "Mean time for each token after the first, one value for each stream.",
    ),
    "pieces": (
        "thrifty_inter_token_seconds",
        "Time between two pieces of a stream; engines send about one token in each.",
    ),
    "e2e": ("thrifty_e2e_seconds", "Time from the request to the last byte."),
    "queue": ("thrifty_queue_seconds", "Time spent waiting for a slot or a replica."),
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
_COUNTS = {
    "prompt": ("thrifty_prompt_tokens", "Tokens of prompts; cached ones are included."),
    "completion": ("thrifty_completion_tokens", "Tokens generated."),
    "cached": ("thrifty_cached_tokens", "Prompt tokens found in an engine's prefix cache."),
    "judged": (
        "thrifty_judged_requests",
        "Requests that count for objectives: all but refusals that clients cause (4xx), clients "
        "that left, and lines of batches.",
    ),
    "good": (
        "thrifty_good_requests",
        "Judged requests that were answered without error and within the version's slo.",
    ),
    "slow": (
        "thrifty_slow_requests",
        "Judged requests that were answered without error, and missed the version's slo.",
    ),
    "failed": ("thrifty_failed_requests", "Judged requests that the service failed."),
}
_TENANTS = (
    ("thrifty_tenant_requests", "Requests of each tenant."),
    ("thrifty_tenant_errors", "Requests of each tenant that failed, refusals included."),
    ("thrifty_tenant_prompt_tokens", "Tokens of each tenant's prompts that engines read."),
    ("thrifty_tenant_completion_tokens", "Tokens generated for each tenant."),
)
"""Tenants beyond the bound of the spec (`observe.tenants`) count together as `OTHER`."""


class RequestMetrics(Collector):
    """The metrics counted for every request."""

    def __init__(self, max_tenants: int = MAX_TENANTS) -> None:
        self._max_tenants = max_tenants
        self._tenants: dict[tuple[str, str], list[int]] = {}
        """By tenant and deployment, in the order of `_TENANTS`."""
        self._known_tenants: set[str] = set()
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._errors: dict[tuple[str, str, str, str], int] = {}
        self._kinds: set[str] = set()
        self._cache: dict[tuple[str, str, str], int] = {}
        self._hits: dict[tuple[str, str, str], int] = {}
        self._saved: dict[tuple[str, str], list[float]] = {}

    def observe(self, observation: Observation) -> None:
        """Count one request."""
        labels = (observation.deployment, observation.version, observation.replica)
        series = self._series.get(labels)
        if series is None:
            series = self._add_series(labels)
        request = (observation.endpoint, observation.status)
        series.requests[request] = series.requests.get(request, 0) + 1
        if observation.error is not None:
            self._count_error(labels, observation.error)
        if observation.cache:
            cache = (observation.deployment, observation.version, observation.cache)
            self._cache[cache] = self._cache.get(cache, 0) + 1
        if observation.saved is not None:
            self._count_saved(observation.deployment, observation.version, observation.saved)
        if observation.timed:
            series.e2e.observe(observation.e2e_s)
            series.queue.observe(observation.queue_s)
            series.overhead.observe(observation.overhead_s)
            if observation.ttft_s is not None:
                series.ttft.observe(observation.ttft_s)
            if observation.tpot_s is not None:
                series.tpot.observe(observation.tpot_s)
            if observation.verdict is not None:
                series.judged += 1
                if observation.verdict is Verdict.GOOD:
                    series.good += 1
                elif observation.verdict is Verdict.SLOW:
                    series.slow += 1
                else:
                    series.failed += 1
        series.prompt += observation.prompt_tokens
        series.completion += observation.completion_tokens
        series.cached += observation.cached_tokens
        if observation.tenant and self._max_tenants:
            self._count_tenant(observation)

    def watch_pieces(self, deployment: str, version: str, replica: str) -> Histogram:
        """The histogram that takes the times between the pieces of a stream."""
        labels = (deployment, version, replica)
        series = self._series.get(labels)
        return (series if series is not None else self._add_series(labels)).pieces

    def cache_stats(self) -> dict[str, dict[str, float]]:
        """Statistics of the exact cache, by deployment."""
        found: dict[str, dict[str, float]] = {}
        for (deployment, _, result), count in self._cache.items():
            if not deployment:
                continue  # refused before its deployment was known
            stats = found.setdefault(deployment, {})
            stats[result] = stats.get(result, 0) + count
        for (deployment, _, tier), count in self._hits.items():
            stats = found.setdefault(deployment, {})
            stats[f"hits_{tier}"] = stats.get(f"hits_{tier}", 0) + count
        for (deployment, _), sums in self._saved.items():
            stats = found.setdefault(deployment, {})
            for name, value in zip(_SAVED_NAMES, sums, strict=True):
                stats[name] = stats.get(name, 0) + value
        return found

    def count_error(self, kind: str) -> None:
        """Count a request that was refused before it was parsed."""
        self._count_error(("", "", ""), kind)

    def collect(self) -> Iterator[Metric]:
        """The Prometheus families of everything counted so far."""
        yield make_counter(
            "thrifty_requests",
            "Requests answered, by endpoint and status.",
            (*LABELS, "endpoint", "status"),
            {
                (*labels, endpoint, str(status)): count
                for labels, series in self._series.items()
                for (endpoint, status), count in series.requests.items()
            },
        )
        yield make_counter(
            "thrifty_errors",
            "Requests that failed, by kind: codes of errors, client_gone, and codes of other servers.",
            (*LABELS, "kind"),
            self._errors,
        )
        yield make_counter(
            "thrifty_cache_requests",
            "Requests by the result of the exact cache: hit, miss, bypass.",
            ("deployment", "version", "result"),
            self._cache,
        )
        yield make_counter(
            "thrifty_cache_hits",
            "Answers from the exact cache, by tier: memory, shared (Redis), in_flight (a generation in "
            "progress).",
            ("deployment", "version", "tier"),
            self._hits,
        )
        yield self._collect_hit_ratio()
        for index, (metric, text) in enumerate(_SAVED):
            spared = {labels: sums[index] for labels, sums in self._saved.items()}
            yield make_counter(metric, text, ("deployment", "version"), spared)
        for name, (metric, text) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(metric, text, labels=LABELS)
            for labels, series in self._series.items():
                histogram: Histogram = getattr(series, name)
                family.add_metric(list(labels), histogram.buckets(), histogram.total)
            yield family
        for name, (metric, text) in _COUNTS.items():
            counts = {labels: getattr(series, name) for labels, series in self._series.items()}
            yield make_counter(metric, text, LABELS, counts)
        for index, (metric, text) in enumerate(_TENANTS):
            shares = {labels: counts[index] for labels, counts in self._tenants.items()}
            yield make_counter(metric, text, ("tenant", "deployment"), shares)

    def _count_error(self, labels: tuple[str, str, str], kind: str) -> None:
        if kind not in self._kinds:
            if len(self._kinds) >= MAX_KINDS:
                kind = OTHER
            self._kinds.add(kind)
        error = (*labels, kind)
        if error not in self._errors and len(self._errors) >= MAX_SERIES:
            error = ("", "", "", OTHER)
        self._errors[error] = self._errors.get(error, 0) + 1

    def _count_tenant(self, observation: Observation) -> None:
        tenant = observation.tenant
        if tenant not in self._known_tenants:
            if len(self._known_tenants) >= self._max_tenants:
                tenant = OTHER
            self._known_tenants.add(tenant)
        labels = (tenant, observation.deployment)
        counts = self._tenants.get(labels)
        if counts is None:
            counts = self._tenants[labels] = [0] * len(_TENANTS)
        counts[0] += 1
        counts[1] += observation.error is not None or observation.status >= 400
        counts[2] += observation.prompt_tokens
        counts[3] += observation.completion_tokens

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
        for deployment, stats in self.cache_stats().items():
            hits, misses = stats.get("hit", 0), stats.get("miss", 0)
            if hits + misses:
                family.add_metric([deployment], hits / (hits + misses))
        return family

    def _add_series(self, labels: tuple[str, str, str]) -> _Series:
        if len(self._series) >= MAX_SERIES:
            for counted in (self._series, self._errors, self._cache, self._hits, self._saved):
                counted.clear()
            self._tenants.clear()
        series = self._series[labels] = _Series()
        return series


def make_counter(
    name: str, text: str, labels: tuple[str, ...], counts: Mapping[Any, float]
) -> CounterMetricFamily:
    """A counter family of counts by label values."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(list(values), count)
    return family
