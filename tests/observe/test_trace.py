"""Traces: W3C's context in and out, what is kept, the spans that a collector gets, and its faults."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.parts import GatewayUnderTest, running_echo, running_gateway, running_server, until
from thrifty.db.request_log import COLUMNS
from thrifty.http.exchange import Exchange
from thrifty.observe.otlp import exporter
from thrifty.observe.otlp.conventions import OWN
from thrifty.observe.otlp.exporter import Exporter, read_headers
from thrifty.observe.otlp.spans import make_request_spans
from thrifty.observe.settings import ObserveSettings, OtlpSettings
from thrifty.observe.trace import KEPT_PER_S, Ended, Trace, Tracer, pass_on

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hi there"}], "temperature": 0.7}
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


class Collector:
    """An OTLP receiver: what it was sent, decoded by the protocol's own messages."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: dict[str, Any] = {}
        self.resource: dict[str, str] = {}
        self.headers: dict[bytes, bytes] = {}
        self.posts = 0
        self.status = 200
        self.hold: asyncio.Event | None = None

    def handle(self, exchange: Exchange) -> Any:
        return self._take(exchange)

    async def _take(self, exchange: Exchange) -> None:
        self.posts += 1
        self.headers = dict(exchange.headers)
        if self.hold is not None:
            await self.hold.wait()
        if self.status != 200:
            exchange.respond(self.status, b"no")
            return
        if exchange.path == "/v1/traces":
            message = ExportTraceServiceRequest.FromString(bytes(exchange.body))
            for resource in message.resource_spans:
                found = {a.key: a.value.string_value for a in resource.resource.attributes}
                self.resource = found
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        else:
            points = ExportMetricsServiceRequest.FromString(bytes(exchange.body))
            for one in points.resource_metrics:
                for scope in one.scope_metrics:
                    self.metrics |= {metric.name: metric for metric in scope.metrics}
        exchange.respond(200, b"")

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    async def wait_for(self, count: int) -> None:
        """Wait for the spans of so many requests."""

        async def look() -> bool:
            return sum(span.kind == Span.SPAN_KIND_SERVER for span in self.spans) >= count

        await until(look)


@contextlib.asynccontextmanager
async def traced(
    folder: Path, urls: list[str], *, metrics: bool = False, **settings: Any
) -> AsyncIterator[tuple[GatewayUnderTest, Collector]]:
    collector = Collector()
    async with running_server(collector.handle) as (url, _):
        otlp = OtlpSettings(url, metrics=metrics, **{"sample": 1.0, **settings})
        observe = ObserveSettings(otlp=otlp)
        async with running_gateway(folder, urls, observe=observe) as gateway:
            try:
                yield gateway, collector
            finally:
                if collector.hold is not None:
                    collector.hold.set()


def attributes(span: Span) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@given(st.binary(max_size=80))
def test_no_header_breaks_a_trace(given_parent: bytes) -> None:
    trace = Tracer(1.0, 1.0, lambda ended: None).begin({b"traceparent": given_parent})
    assert len(trace.trace_id) == 32
    assert int(trace.trace_id, 16)


@pytest.mark.parametrize(
    "wrong",
    [
        "", "00", PARENT.upper(), f"ff-{TRACE_ID}-{SPAN_ID}-01", f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01", PARENT + "-more", PARENT + "\n",
    ],
)  # fmt: skip
def test_a_wrong_parent_is_no_parent(wrong: str) -> None:
    headers = {b"traceparent": wrong.encode(), b"tracestate": b"a=b"}
    trace = Tracer(1.0, 1.0, lambda ended: None).begin(headers)
    assert trace.parent_id is None
    assert trace.trace_id != TRACE_ID
    assert not trace.state
    assert not pass_on(headers)


def test_a_parent_is_followed_and_passed_on() -> None:
    headers = {b"traceparent": PARENT.encode(), b"tracestate": b"vendor=1"}
    trace = Tracer(0.0, 1.0, lambda ended: None).begin(headers)
    assert (trace.trace_id, trace.parent_id, trace.sampled) == (TRACE_ID, SPAN_ID, True)
    lines = trace.begin_attempt("r", "v")
    span_id = trace.attempts[0].span_id
    assert lines == f"traceparent: 00-{TRACE_ID}-{span_id}-01\r\ntracestate: vendor=1\r\n".encode()
    assert pass_on(headers) == f"traceparent: {PARENT}\r\ntracestate: vendor=1\r\n".encode()
    later = Tracer(0.0, 1.0, lambda ended: None).begin(
        {b"traceparent": f"01-{TRACE_ID}-{SPAN_ID}-00-extra".encode()}
    )
    assert (later.trace_id, later.sampled) == (TRACE_ID, False)


def make_ended(trace: Trace, *, notable: bool = False, at_s: float = 1e9) -> Ended:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"at_s": at_s, "endpoint": "/v1/chat/completions", "status": 200, "cache": "miss"}
    return Ended(trace, tuple(row.values()), "id", 10.0, 10.1, 10.2, 10.4, 10.5, "", notable)


def end(tracer: Tracer, ended: Ended) -> None:
    """As the recorder does it."""
    if tracer.keeps(ended.trace, notable=ended.notable):
        tracer.put(ended)


def test_chance_keeps_the_share_that_was_asked_for() -> None:
    kept: list[Ended] = []
    tracer = Tracer(0.25, 1.0, kept.append)
    for _ in range(4000):
        end(tracer, make_ended(tracer.begin({})))
    assert 800 < len(kept) < 1200
    assert all(one.trace.sampled for one in kept)
    ids = [one.trace.trace_id for one in kept]
    assert len(set(ids)) == len(ids)


def test_what_fails_or_is_slow_is_kept_up_to_a_rate() -> None:
    kept: list[Ended] = []
    now_s = [0.0]
    tracer = Tracer(0.0, 1.0, kept.append, clock=lambda: now_s[0])
    for _ in range(1000):
        end(tracer, make_ended(tracer.begin({}), notable=True))
        end(tracer, make_ended(tracer.begin({})))
    assert len(kept) == KEPT_PER_S
    now_s[0] += 0.5
    for _ in range(1000):
        end(tracer, make_ended(tracer.begin({}), notable=True))
    assert len(kept) == 1.5 * KEPT_PER_S


def test_a_clock_that_is_set_makes_no_span_run_backwards() -> None:
    """The wall clock is read once for each request; all else are differences of a steady one."""
    trace = Tracer(1.0, 1.0, lambda ended: None).begin({})
    trace.begin_attempt("r", "v")
    trace.attempts[0].sent_s = 10.1
    for at_s in (1e9, 4e9, 3.0):
        spans = make_request_spans(make_ended(trace, at_s=at_s))
        assert all(s.start_time_unix_nano <= s.end_time_unix_nano for s in spans)
        assert abs(spans[0].start_time_unix_nano - at_s * 1e9) < 1e3
        assert abs(spans[0].end_time_unix_nano - spans[0].start_time_unix_nano - 5e8) < 1e4


async def test_a_request_is_seen_through_every_step(tmp_path: Path) -> None:
    async with running_echo() as url, traced(tmp_path, [url]) as (gateway, collector):
        headers = {
            "traceparent": PARENT, "tracestate": "vendor=1", "x-request-id": "ann@example.com",
        }  # fmt: skip
        answer = await gateway.ask(CHAT | {"stream": True}, headers=headers)
        await collector.wait_for(1)
        root = collector.named("POST /v1/chat/completions")[0]
        assert attributes(root)["thrifty.client_request_id"].startswith("<EMAIL_")
        assert root.trace_id.hex() == TRACE_ID
        assert root.parent_span_id.hex() == SPAN_ID
        assert root.trace_state == "vendor=1"
        (admit,) = collector.named("admit")
        (chat,) = collector.named("chat echo")
        assert {admit.parent_span_id, chat.parent_span_id} == {root.span_id}
        assert len({span.span_id for span in collector.spans}) == 3
        assert [event.name for event in chat.events] == ["first token"]
        times = [
            root.start_time_unix_nano, admit.end_time_unix_nano, chat.start_time_unix_nano,
            chat.events[0].time_unix_nano, chat.end_time_unix_nano, root.end_time_unix_nano,
        ]  # fmt: skip
        assert times == sorted(times)
        found = attributes(root)
        expected = {
            "gen_ai.operation.name": "chat", "gen_ai.provider.name": "thrifty",
            "gen_ai.request.model": "echo", "gen_ai.response.model": "echo@v1",
            "http.response.status_code": 200, f"{OWN}replica": "echo-0",
            "gen_ai.response.id": answer.headers[b"x-thrifty-response-id"].decode(),
        }  # fmt: skip
        assert expected.items() <= found.items()
        assert attributes(chat)["gen_ai.usage.output_tokens"] > 0
        assert not any("Hi there" in str(span) for span in collector.spans)
        assert collector.resource["service.name"] == "thrifty"


async def test_retries_and_cache_hits_are_told_apart(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        async with running_echo() as url, traced(tmp_path, [dead, url]) as (gateway, collector):
            asked = 0
            failed: list[Span] = []
            while not failed:
                asked += 1
                body = CHAT | {"messages": [{"role": "user", "content": f"again {asked}"}]}
                assert (await gateway.ask(body)).status == 200
                await collector.wait_for(asked)
                failed = [
                    span for span in collector.named("chat echo")
                    if span.status.code == Status.STATUS_CODE_ERROR
                ]  # fmt: skip
            assert attributes(failed[0])["error.type"] == "ConnectFailed"
            assert attributes(failed[0])[f"{OWN}replica"] == "echo-0"
            same = [s for s in collector.named("chat echo") if s.trace_id == failed[0].trace_id]
            assert [attributes(s)[f"{OWN}replica"] for s in same] == ["echo-0", "echo-1"]
            (root,) = [
                s for s in collector.spans
                if s.trace_id == failed[0].trace_id and s.kind == Span.SPAN_KIND_SERVER
            ]  # fmt: skip
            assert root.status.code == Status.STATUS_CODE_UNSET
            greedy = CHAT | {"temperature": 0}
            await gateway.ask(greedy)
            await gateway.ask(greedy)
            await collector.wait_for(asked + 2)
            hits = [
                attributes(s) for s in collector.spans
                if attributes(s).get(f"{OWN}cache.result") == "hit"
            ]  # fmt: skip
            assert [hit[f"{OWN}cache.tier"] for hit in hits] == ["memory"]


async def test_replicas_get_the_context_with_traces_and_without(tmp_path: Path) -> None:
    seen: list[dict[bytes, bytes]] = []

    def note(exchange: Exchange) -> None:
        seen.append(dict(exchange.headers))
        exchange.respond(200, b'{"choices": []}')

    async with running_server(note) as (url, _):
        (tmp_path / "on").mkdir()
        async with traced(tmp_path / "on", [url]) as (gateway, collector):
            await gateway.ask(CHAT, headers={"traceparent": PARENT})
            await collector.wait_for(1)
            span_id = collector.named("chat echo")[0].span_id.hex()
            assert seen[-1][b"traceparent"].decode() == f"00-{TRACE_ID}-{span_id}-01"
            await gateway.ask(CHAT)
            assert seen[-1][b"traceparent"].endswith(b"-01")
        (tmp_path / "off").mkdir()
        async with running_gateway(tmp_path / "off", [url]) as gateway:
            await gateway.ask(CHAT, headers={"traceparent": PARENT})
            assert seen[-1][b"traceparent"].decode() == PARENT
            await gateway.ask(CHAT, headers={"traceparent": "nonsense"})
            assert b"traceparent" not in seen[-1]
            await gateway.ask(CHAT)
            assert b"traceparent" not in seen[-1]


async def test_only_what_went_wrong_is_kept_where_chance_keeps_nothing(tmp_path: Path) -> None:
    def fail(exchange: Exchange) -> None:
        exchange.respond(500, b'{"error": {"message": "broken"}}')

    async with running_server(fail) as (bad, _), running_echo() as good:
        (tmp_path / "good").mkdir()
        async with traced(tmp_path / "good", [good], sample=0.0) as (gateway, collector):
            await gateway.ask(CHAT)
            assert (await gateway.ask({"model": "none"})).status in (400, 404)
        assert not collector.spans
        (tmp_path / "bad").mkdir()
        async with traced(tmp_path / "bad", [bad], sample=0.0) as (gateway, collector):
            assert (await gateway.ask(CHAT)).status >= 500
            await collector.wait_for(1)
            (root,) = collector.named("POST /v1/chat/completions")
            assert root.status.code == Status.STATUS_CODE_ERROR


async def test_metrics_go_by_otlp_under_their_names(tmp_path: Path) -> None:
    async with running_echo() as url:
        settings = {"metrics": True, "traces": False, "interval_s": 0.05}
        async with traced(tmp_path, [url], **settings) as (gateway, collector):
            await gateway.ask(CHAT | {"stream": True})

            async def look() -> bool:
                family = collector.metrics.get("gen_ai.server.time_to_first_token")
                return bool(family is not None and family.histogram.data_points)

            await until(look)
            (point,) = collector.metrics["gen_ai.server.time_to_first_token"].histogram.data_points
            assert point.count == 1
            assert sum(point.bucket_counts) == 1
            assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
            assert 0 < point.sum < 60
            labels = {one.key: one.value.string_value for one in point.attributes}
            assert labels == {
                "gen_ai.request.model": "echo", "gen_ai.response.model": "echo@v1",
                f"{OWN}replica": "echo-0",
            }  # fmt: skip
            total = collector.metrics[f"{OWN}requests"].sum
            assert total.is_monotonic
            assert total.data_points[0].as_double == 1
            assert collector.metrics[f"{OWN}replica_up"].gauge.data_points[0].as_double == 1
            assert not collector.spans


async def test_a_collector_that_hangs_costs_traces_and_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "QUEUE_TRACES", 8)
    monkeypatch.setattr(exporter, "BATCH_TRACES", 2)
    async with running_echo() as url, traced(tmp_path, [url]) as (gateway, collector):
        collector.hold = asyncio.Event()

        async def is_full() -> bool:
            assert (await gateway.ask(CHAT)).status == 200
            page = await gateway.ask(b"", "/metrics", method="GET")
            return page.metric("thrifty_traces_dropped_total", reason="queue_full") > 5

        await until(is_full)
        collector.hold.set()
        await collector.wait_for(4)


async def test_a_collector_that_refuses_is_told_apart_from_one_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "RETRY_S", (0.01,))
    async with running_echo() as url, traced(tmp_path, [url]) as (gateway, collector):

        async def dropped(reason: str) -> bool:
            assert (await gateway.ask(CHAT)).status == 200
            page = await gateway.ask(b"", "/metrics", method="GET")
            up = page.metric("thrifty_collector_up", exporter="otlp")
            return page.metric("thrifty_traces_dropped_total", reason=reason) > 0 and up == 0

        collector.status = 400
        await until(lambda: dropped("collector_refused"))
        collector.status = 503
        await until(lambda: dropped("collector_away"))
        collector.status = 200
        await collector.wait_for(1)

        async def is_up() -> bool:
            page = await gateway.ask(b"", "/metrics", method="GET")
            return page.metric("thrifty_collector_up", exporter="otlp") == 1

        await until(is_up)


def test_keys_come_from_the_environment() -> None:
    settings = OtlpSettings("http://127.0.0.1:1", headers_env="OTLP_HEADERS")
    environment = {"OTLP_HEADERS": "api-key=secret%20one, x-team=a"}
    made = Exporter(settings, environment=environment)
    assert made._headers["api-key"] == "secret one"
    assert made._headers["x-team"] == "a"
    assert read_headers("") == {}
    assert "secret" not in repr(settings)
