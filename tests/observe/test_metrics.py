"""Metrics count correctly, and do not grow with the history of the fleet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from thrifty.observe import request_metrics as metrics
from thrifty.observe.metrics import GatewayMetrics
from thrifty.observe.request_metrics import Observation, Verdict


def observation(**changes) -> Observation:
    values = {
        "deployment": "d", "version": "v", "replica": "r", "endpoint": "/v1", "status": 200,
        "error": None, "cache": "miss", "e2e_s": 0.5, "queue_s": 0.0, "overhead_s": 1e-4,
        **changes,
    }  # fmt: skip
    return Observation(**values)


@given(st.lists(st.floats(0, 400), max_size=60))
def test_histograms_are_those_of_prometheus_client(values: list[float]) -> None:
    ours = metrics.Histogram(metrics.TTFT_S)
    registry = CollectorRegistry()
    theirs = Histogram("x", "x", registry=registry, buckets=metrics.TTFT_S)
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


def test_bounds_hold_those_of_vllm() -> None:
    """So that a dashboard may add up engines and gateways."""
    token = (
        0.01,
        0.025,
        0.05,
        0.075,
        0.1,
        0.15,
        0.2,
        0.3,
        0.4,
        0.5,
        0.75,
        1,
        2.5,
        5,
        7.5,
        10,
        20,
        40,
        80,
    )
    request = (
        0.3,
        0.5,
        0.8,
        1,
        1.5,
        2,
        2.5,
        5,
        10,
        15,
        20,
        30,
        40,
        50,
        60,
        120,
        240,
        480,
        960,
        1920,
        7680,
    )
    assert set(token) <= set(metrics.TOKEN_S)
    assert set(request) <= set(metrics.REQUEST_S)
    for bounds in (metrics.TTFT_S, metrics.TOKEN_S, metrics.REQUEST_S):
        assert list(bounds) == sorted(set(bounds))


def test_judged_requests_are_good_slow_or_failed() -> None:
    gateway = GatewayMetrics()
    for verdict in (*Verdict, Verdict.GOOD, None):
        gateway.requests.observe(observation(verdict=verdict))
    gateway.requests.observe(observation(verdict=Verdict.FAILED, timed=False))
    text = generate_latest(gateway.registry).decode()
    labels = '{deployment="d",replica="r",version="v"}'
    counts = {"judged": 4, "good": 2, "slow": 1, "failed": 1}
    for name, count in counts.items():
        assert f"thrifty_{name}_requests_total{labels} {count}.0\n" in text


def test_tenants_are_bounded() -> None:
    gateway = GatewayMetrics(max_tenants=3)
    for index in range(500):
        gateway.requests.observe(observation(tenant=f"t{index}", prompt_tokens=2))
    text = generate_latest(gateway.registry).decode()
    assert text.count("thrifty_tenant_requests_total{") == 4
    assert 'thrifty_tenant_requests_total{deployment="d",tenant="other"} 497.0' in text
    assert 'thrifty_tenant_prompt_tokens_total{deployment="d",tenant="other"} 994.0' in text


def test_no_flood_of_labels_makes_more_than_so_many_series() -> None:
    gateway = GatewayMetrics()
    for index in range(3 * metrics.MAX_SERIES):
        gateway.requests.observe(
            observation(
                replica=f"r{index % 97}", status=400 + index % 200, error=f"code-{index % 999}",
                tenant=f"t{index}", deployment=f"d{index % 7}",
            )
        )  # fmt: skip
    assert len(gateway.requests._errors) <= metrics.MAX_SERIES + 1
    assert sum(gateway.requests._errors.values()) == 3 * metrics.MAX_SERIES
    assert len(gateway.requests._tenants) <= 7 * (metrics.MAX_TENANTS + 1)
