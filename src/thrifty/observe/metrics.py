"""The gateway's Prometheus metrics, labelled with deployment, version and replica.

`request_metrics` counts what every request changes. Gauges and rare counters are
prometheus_client's, and are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from thrifty.db.scaling import ScalingRow
from thrifty.db.sealed_text import unreadable
from thrifty.observe.log_state import LogHealth, LogState
from thrifty.observe.request_metrics import (
    LABELS,
    MAX_TENANTS,
    VERSION,
    RequestMetrics,
    make_counter,
)
from thrifty.version import __version__


class SharedCacheMetrics(Collector):
    """The counts of the cache's shared tier."""

    def __init__(self) -> None:
        self.stats: Mapping[str, float] = {}
        """The tier's counts, if there is a shared tier."""

    def collect(self) -> Iterator[Metric]:
        """The Prometheus family of these counts."""
        counts = {(name,): count for name, count in self.stats.items()}
        yield make_counter(
            "thrifty_cache_shared",
            "Events of the cache in Redis, by kind: hits, misses, waited (for another worker's "
            "generation), late, damaged, written, written_bytes, dropped.",
            ("kind",),
            counts,
        )


class ScalingMetrics(Collector):
    """The autoscaler's last decisions, as the controller wrote them."""

    def __init__(self) -> None:
        self.rows: Iterable[ScalingRow] = ()

    def collect(self) -> Iterator[Metric]:
        """A family for each figure; what is not known has no sample."""
        for name, text, read in _SCALING:
            family = GaugeMetricFamily(name, text, labels=VERSION)
            for row in self.rows:
                value = read(row)
                if value is not None:
                    family.add_metric((row.deployment, row.version), value)
            yield family
        decision = GaugeMetricFamily(
            "thrifty_scaling_decision",
            "1 for what the last decision rests on: demand, unreachable, or what keeps it from more "
            "(max, memory, cores, accelerators, cost).",
            labels=(*VERSION, "reason"),
        )
        for row in self.rows:
            reason = row.limit or ("unreachable" if row.unreachable else "demand")
            decision.add_metric((row.deployment, row.version, reason), 1.0)
        yield decision


_SCALING: tuple[tuple[str, str, Callable[[ScalingRow], float | None]], ...] = (
    ("thrifty_replicas_wanted", "Replicas that should run.", lambda row: row.count),
    (
        "thrifty_replicas_needed",
        "Replicas that the objective needs, before bounds and capacity.",
        lambda row: row.needed,
    ),
    ("thrifty_replicas_ready", "Replicas that answer.", lambda row: row.ready),
    ("thrifty_replicas_starting", "Replicas that start.", lambda row: row.starting),
    (
        "thrifty_scaling_arrivals_per_second",
        "The rate of requests that the last decision is for.",
        lambda row: row.arrivals_per_s,
    ),
    (
        "thrifty_scaling_utilisation",
        "The share of what the wanted replicas can serve, predicted.",
        lambda row: row.utilisation,
    ),
    (
        "thrifty_scaling_ttft_p95_seconds",
        "Time to the first token with the wanted replicas, waiting included, predicted.",
        lambda row: row.ttft_p95_s,
    ),
    (
        "thrifty_scaling_tpot_p95_seconds",
        "Time for each further token with the wanted replicas, predicted.",
        lambda row: row.tpot_p95_s,
    ),
    (
        "thrifty_scaling_start_seconds",
        "How long a replica takes until it is ready, learned.",
        lambda row: row.start_s,
    ),
)


class ReplicaMetrics(Collector):
    """The states of replicas, as the controller wrote them."""

    def __init__(self) -> None:
        self.rows: Sequence[tuple[tuple[str, str, str], str, int]] = ()
        """For each replica its labels, its state, and how often it was started anew."""

    def collect(self) -> Iterator[Metric]:
        """The Prometheus families of the rows."""
        states = GaugeMetricFamily(
            "thrifty_replica_state",
            "1 for the state that a replica is in.",
            labels=(*LABELS, "state"),
        )
        for labels, state, _ in self.rows:
            states.add_metric((*labels, state), 1.0)
        yield states
        restarts = {labels: count for labels, _, count in self.rows}
        yield make_counter(
            "thrifty_replica_restarts", "How often a replica was started anew.", LABELS, restarts
        )


class GatewayMetrics:
    """The metrics of one gateway worker, in their own registry."""

    def __init__(self, max_tenants: int = MAX_TENANTS) -> None:
        # Process-wide: a creation time for each counter would double the exposed series.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = RequestMetrics(max_tenants)
        self.registry.register(self.requests)
        self._add_request_metrics()
        self._add_replica_metrics()
        self._add_cache_metrics()
        self._add_log_metrics()
        self._add_version_metrics()
        self._add_batch_metrics()
        self._add_store_metrics()
        self._add_telemetry_metrics()
        self.scaling = ScalingMetrics()
        self.registry.register(self.scaling)
        self.replicas = ReplicaMetrics()
        self.registry.register(self.replicas)
        self._gauge("thrifty_build_info", "1 for the release that runs.", ("release",)).labels(
            __version__
        ).set(1)

    def watch_log(self, read_state: Callable[[], LogState]) -> None:
        """Make the request log's gauges show the state that `read_state` gives on every scrape."""
        self.log_up.set_function(lambda: float(read_state().health is not LogHealth.STOPPED))
        self.log_rows_waiting.set_function(lambda: float(read_state().waiting_rows))

    def forget_replica(self, deployment: str, version: str, replica: str) -> None:
        """Remove the gauges of a replica that is gone; counters stay, as Prometheus expects."""
        for gauge in (
            self.in_flight, self.replica_up, self.replica_running, self.replica_waiting,
            self.replica_kv_usage, self.replica_memory, self.replica_ejected,
            self.replica_speculating, self.replica_acceptance,
        ):  # fmt: skip
            try:
                gauge.remove(deployment, version, replica)
            except KeyError:
                continue

    def _add_request_metrics(self) -> None:
        """Admission, queues, retries and hedges."""
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
            "Requests that were not admitted, by reason: a key's requests, tokens, concurrency, "
            "budget_day or budget_month; queue_full, queue_timeout, no_replica_ready, cannot_start, "
            "deadline_unreachable, deadline_exceeded.",
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
        self.demand = self._gauge(
            "thrifty_demand",
            "Requests that are there, at replicas or waiting: what a cluster's autoscaler goes by.",
            VERSION,
        )
        self.held = self._gauge(
            "thrifty_held_requests", "Requests that wait because no replica is ready.", VERSION
        )
        self.wakes = self._gauge(
            "thrifty_wakes",
            "How often requests have woken a version from zero since the controller started.",
            VERSION,
        )
        self.start_seconds = self._gauge(
            "thrifty_start_seconds",
            "How long a replica is expected to take until it is ready.",
            VERSION,
        )
        self.parked = self._gauge(
            "thrifty_parked_replicas", "Replicas that are kept loaded while nobody asks.", VERSION
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

    def _add_replica_metrics(self) -> None:
        """The state of each replica."""
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
        self.replica_speculating = self._gauge(
            "thrifty_engine_speculating", "1 while an engine guesses tokens ahead.", LABELS
        )
        self.replica_acceptance = self._gauge(
            "thrifty_engine_speculation_acceptance",
            "The share of the tokens guessed of late that were right.",
            LABELS,
        )
        self.replica_memory = self._gauge(
            "thrifty_replica_memory_bytes", "Resident memory of a replica.", LABELS
        )

    def _add_cache_metrics(self) -> None:
        """The exact cache."""
        self.cache_bytes = self._gauge("thrifty_cache_bytes", "Size of the exact cache.", ())
        self.cache_entries = self._gauge("thrifty_cache_entries", "Answers in the exact cache.", ())
        self.cache_forgotten = self._counter(
            "thrifty_cache_forgotten",
            "Answers removed from memory early, by reason: a purge, or a promotion.",
            ("reason",),
        )
        self.shared_cache = SharedCacheMetrics()
        self.registry.register(self.shared_cache)

    def _add_log_metrics(self) -> None:
        """The request log."""
        self.dropped_rows = self._counter(
            "thrifty_log_rows_dropped",
            "Rows of the request log that were lost, by reason: queue_full (the database was away for "
            "too long), bad_row (it refuses the values).",
            ("reason",),
        )
        self.written_rows = self._counter(
            "thrifty_log_rows_written", "Request log rows written.", ()
        )
        self.lost_texts = self._counter(
            "thrifty_log_texts_lost",
            "Texts of requests that were not recorded: they came faster than they are written, or the "
            "key that encrypts them is missing.",
            (),
        )
        unread = self._gauge(
            "thrifty_texts_unreadable",
            "Recorded texts that this worker could not decrypt since it started.",
            (),
        )
        unread.set_function(lambda: float(unreadable.total()))
        self.log_up = self._gauge("thrifty_log_up", "0 while the request log is stopped.", ())
        self.log_up.set(1)  # none is stopped where none is kept
        self.log_rows_waiting = self._gauge(
            "thrifty_log_rows_waiting", "Request log rows that wait to be written.", ()
        )

    def _add_version_metrics(self) -> None:
        """The choice of versions and routing."""
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
            "Copies of requests for versions with a shadow, by result: answered, failed, left_out (no "
            "idle slot).",
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

    def _add_batch_metrics(self) -> None:
        """Batches."""
        self.batch_lines = self._counter(
            "thrifty_batch_lines",
            "Attempts at lines of batches, by status; withdrawn where they had to yield.",
            ("deployment", "result"),
        )
        self.batch_lines_in_flight = self._gauge(
            "thrifty_batch_lines_in_flight", "Lines of batches in flight.", ("deployment",)
        )
        self.batches_running = self._gauge(
            "thrifty_batches_running", "Batches that this worker runs.", ()
        )

    def _add_store_metrics(self) -> None:
        """The database and the shared Redis."""
        self.database_up = self._gauge("thrifty_database_up", "1 while the database answers.", ())
        self.shared_store_up = self._gauge(
            "thrifty_shared_store_up", "1 while the shared Redis answers.", ()
        )
        self.shared_store_errors = self._counter(
            "thrifty_shared_store_errors",
            "Errors of the shared Redis, by kind: timeout, connection, reply.",
            ("kind",),
        )

    def _add_telemetry_metrics(self) -> None:
        """What is sent to a collector."""
        self.traces_sent = self._counter(
            "thrifty_traces_exported", "Traces of requests that the collector took.", ()
        )
        self.traces_dropped = self._counter(
            "thrifty_traces_dropped",
            "Traces that were lost, by reason: queue_full, collector_away, collector_refused, "
            "recorder_ended, stopped, error.",
            ("reason",),
        )
        self.collector_up = self._gauge(
            "thrifty_collector_up",
            "1 while the collector takes what it is sent, where there is one.",
            ("exporter",),
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)
