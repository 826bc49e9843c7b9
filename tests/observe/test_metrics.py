"""Metrics count correctly, and do not grow with the history of the fleet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from thrifty.observe import request_metrics as metrics
from thrifty.observe.metrics import GatewayMetrics
from thrifty.observe.request_metrics import Observation


def observation(**changes) -> Observation:
    values = {
        "deployment": "d", "version": "v", "replica": "r", "endpoint": "/v1", "status": 200,
        "error": None, "cache": "miss", "e2e_s": 0.5, "queue_s": 0.0, "overhead_s": 1e-4,
        **changes,
    }  # fmt: skip
    return Observation(**values)


@given(st.lists(st.floats(0, 400), max_size=60))
def test_histograms_are_those_of_prometheus_client(values: list[float]) -> None:
    ours = metrics.Histogram(metrics.LATENCY_S)
    registry = CollectorRegistry()
    theirs = Histogram("x", "x", registry=registry, buckets=metrics.LATENCY_S)
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    (family,) = theirs.collect()
    expected = [s.value for s in family.samples if s.name == "x_bucket"]
    assert [count for _, count in ours.buckets()] == expected


def test_exposition_is_readable_and_complete() -> None:
    gateway = GatewayMetrics()
    gateway.requests.observe(
        observation(ttft_s=0.1, tpot_s=0.01, prompt_tokens=3, completion_tokens=4, cached_tokens=2)
    )
    gateway.requests.observe(observation(status=500, error="engine_error"))
    text = generate_latest(gateway.registry).decode()
    for name in (
        "thrifty_requests_total", "thrifty_errors_total", "thrifty_cache_requests_total",
        "thrifty_ttft_seconds_bucket", "thrifty_tpot_seconds_sum", "thrifty_e2e_seconds_count",
        "thrifty_prompt_tokens_total", "thrifty_completion_tokens_total",
        "thrifty_cached_tokens_total",
    ):  # fmt: skip
        assert f"\n{name}{{" in text, name
    assert "_created" not in text


def test_series_are_bounded() -> None:
    gateway = GatewayMetrics()
    for index in range(metrics.MAX_SERIES + 10):
        gateway.requests.observe(observation(replica=f"r{index}"))
    assert len(gateway.requests._series) <= metrics.MAX_SERIES


def test_kinds_of_errors_are_bounded() -> None:
    gateway = GatewayMetrics()
    for index in range(metrics.MAX_KINDS + 50):
        gateway.requests.observe(observation(status=500, error=f"code-{index}"))
        gateway.requests.count_error("code-1")
    kinds = {key[-1] for key in gateway.requests._errors}
    assert len(kinds) == metrics.MAX_KINDS + 1
    assert gateway.requests._errors["d", "v", "r", metrics.OTHER] == 50
    assert gateway.requests._errors["", "", "", "code-1"] == metrics.MAX_KINDS + 50


def test_gauges_of_a_replica_that_left_are_dropped() -> None:
    gateway = GatewayMetrics()
    gateway.replica_up.labels("d", "v", "r").set(1)
    gateway.forget_replica("d", "v", "r")
    gateway.forget_replica("d", "v", "never-there")
    assert "replica_up{" not in generate_latest(gateway.registry).decode()
