"""Failures behind, before and beside the gateway, and what clients see of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.db.test_database import row
from tests.parts import (
    ask,
    echo_deployment,
    replica_row,
    running_echo,
    running_gateway,
    running_server,
    until,
)
from thrifty.db.tables import requests
from thrifty.fleet.ports import find_free_port
from thrifty.http.client import BrokenResponse, HttpClient, NoResponse
from thrifty.http.origin import parse_origin
from thrifty.http.server import EVENT_STREAM_HEADERS, Exchange, ServerLimits

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "Hello there"}]}
CHUNK = (
    b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
)


# Bad input


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"", "invalid_json", None),
        (b"[1]", "invalid_json", None),
        (b'{"model": "echo", "messages": [{"role": "user", "content": "\xff\xfe"}]}', "invalid_json", None),
        (b"[" * 200_000, "invalid_json", None),
        (b'{"messages": []}', "missing_required_parameter", "model"),
        (b'{"model": 3, "messages": []}', "invalid_value", "model"),
        (b'{"model": "echo"}', "missing_required_parameter", "messages"),
        (b'{"model": "echo", "messages": []}', "invalid_value", "messages"),
        (b'{"model": "echo", "messages": "x"}', "invalid_value", "messages"),
        (b'{"model": "echo", "messages": [3]}', "invalid_value", "messages"),
        (b'{"model": "echo", "messages": [{"role": "pope", "content": "x"}]}', "invalid_value", "messages"),
        (b'{"model": "echo", "messages": [{"role": "user"}]}', "invalid_value", "messages"),
    ],
)  # fmt: skip
async def test_bad_bodies_are_refused_with_the_reason(
    tmp_path: Path, body: bytes, code: str, param: str | None
) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        reply = await gateway.ask(body)
        assert reply.status == 400
        assert reply.error["type"] == "invalid_request_error"
        assert (reply.error["code"], reply.error["param"]) == (code, param)
        assert len(reply.error["message"]) > 15
        # The gateway continues to serve.
        assert (await gateway.ask(CHAT)).status == 200


async def test_unknown_model_and_parameter_are_named(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        reply = await gateway.ask({**CHAT, "model": "gpt"})
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert "'echo'" in reply.error["message"]
        reply = await gateway.ask({**CHAT, "temprature": 1})
        assert (reply.status, reply.error["code"]) == (400, "unknown_parameter")
        assert "Did you mean 'temperature'?" in reply.error["message"]
        reply = await gateway.ask({**CHAT, "logit_bias": {"5": 3}})
        assert (reply.status, reply.error["code"]) == (400, "unsupported_parameter")
        assert reply.error["param"] == "logit_bias"


async def test_limits_of_the_spec_are_kept(tmp_path: Path) -> None:
    row = echo_deployment(max_tokens=50)
    limits = ServerLimits(max_body_bytes=2000)
    async with (
        running_echo() as url,
        running_gateway(tmp_path, [url], deployment=row, limits=limits) as gateway,
    ):
        reply = await gateway.ask({**CHAT, "max_tokens": 51})
        assert (reply.status, reply.error["code"]) == (400, "max_tokens_exceeded")
        reply = await gateway.ask({**CHAT, "user": "x" * 3000})
        assert (reply.status, reply.error["code"]) == (413, "body_too_large")
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_errors_total", kind="body_too_large") == 1


async def test_unknown_paths_and_methods(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        reply = await gateway.ask(b"", "/v1/nothing", method="GET")
        assert (reply.status, reply.error["code"]) == (404, "unknown_path")
        reply = await gateway.ask(b"", "/v1/chat/completions", method="GET")
        assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
        assert reply.headers[b"allow"] == b"POST, OPTIONS"
        reply = await gateway.ask(CHAT, "/healthz")
        assert (reply.status, reply.headers[b"allow"]) == (405, b"GET, HEAD, OPTIONS")
        reply = await gateway.ask(b"", "/v1/chat/completions", method="OPTIONS")
        assert (reply.status, reply.headers[b"allow"]) == (204, b"POST, OPTIONS")


# Replicas that fail


async def test_a_missing_replica_costs_only_a_retry(tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{find_free_port()}"
    async with running_echo() as url, running_gateway(tmp_path, [dead, url]) as gateway:
        for _ in range(20):
            reply = await gateway.ask(CHAT)
            assert reply.status == 200
            assert reply.headers[b"x-thrifty-replica"] == b"echo-1"


async def test_a_replica_that_dies_before_its_first_byte_is_replaced(tmp_path: Path) -> None:
    async def dying(exchange: Exchange) -> None:
        await asyncio.sleep(0.01)
        exchange.abort()

    async with (
        running_server(dying) as (bad, _),
        running_echo() as good,
        running_gateway(tmp_path, [bad, good]) as gateway,
    ):
        for stream in (False, True):
            replies = await asyncio.gather(
                *(gateway.ask({**CHAT, "stream": stream}) for _ in range(10))
            )
            assert {reply.status for reply in replies} == {200}
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_retries_total", deployment="echo") >= 1


async def test_an_incomplete_answer_is_retried(tmp_path: Path) -> None:
    async def half(exchange: Exchange) -> None:
        exchange.start(200, [(b"content-type", b"application/json")])
        exchange.write(b'{"id": "half')
        await asyncio.sleep(0.01)
        exchange.abort()

    async with (
        running_server(half) as (bad, _),
        running_echo() as good,
        running_gateway(tmp_path, [bad, good]) as gateway,
    ):
        for _ in range(6):
            reply = await gateway.ask(CHAT)
            assert reply.status == 200
            assert reply.json()["choices"][0]["message"]["content"] == "Hello there"


async def test_an_interrupted_stream_ends_with_an_error_event(tmp_path: Path) -> None:
    async def breaking(exchange: Exchange) -> None:
        exchange.start(200, EVENT_STREAM_HEADERS)
        exchange.write(CHUNK)
        await asyncio.sleep(0.02)
        exchange.abort()

    async with running_server(breaking) as (url, _), running_gateway(tmp_path, [url]) as gateway:
        reply = await gateway.ask({**CHAT, "stream": True})
        assert reply.status == 200
        assert reply.body.startswith(CHUNK)
        assert reply.events[-1]["error"]["code"] == "replica_lost"
        assert b"[DONE]" not in reply.body
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_errors_total", kind="replica_lost") == 1


async def test_a_poisonous_request_is_sent_to_two_replicas_at_most(tmp_path: Path) -> None:
    deaths = 0

    async def dying(exchange: Exchange) -> None:
        nonlocal deaths
        deaths += 1
        exchange.abort()

    async with contextlib.AsyncExitStack() as stack:
        urls = [(await stack.enter_async_context(running_server(dying)))[0] for _ in range(5)]
        gateway = await stack.enter_async_context(running_gateway(tmp_path, urls))
        reply = await gateway.ask(CHAT)
        assert (reply.status, reply.error["code"]) == (502, "replica_lost")
        assert deaths == 2


async def test_retries_stop_when_the_budget_is_spent(tmp_path: Path) -> None:
    """A fleet that fails every request must not receive each of them twice."""
    sends = 0

    async def failing(exchange: Exchange) -> None:
        nonlocal sends
        sends += 1
        exchange.respond(500, b'{"error": {"message": "broken", "type": "server_error"}}')

    async with (
        running_server(failing) as (one, _),
        running_server(failing) as (two, _),
        running_gateway(tmp_path, [one, two]) as gateway,
    ):
        for _ in range(200):
            reply = await gateway.ask(CHAT)
            assert reply.status == 500
            assert reply.error["message"] == "broken"
        # 200 sends, the initial reserve of 20, and a fifth of a retry for each request.
        assert 200 <= sends <= 200 + 20 + 41


async def test_an_idle_connection_closed_under_a_request_is_not_the_clients_problem(
    tmp_path: Path,
) -> None:
    """llama.cpp's server closes idle connections just when a request may be sent."""
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        served = 0

        async def closing(exchange: Exchange) -> None:
            nonlocal served
            served += 1
            exchange.respond(200, b'{"id":"x-1","choices":[]}')
            protocol = exchange._protocol
            asyncio.get_running_loop().call_later(0.005, protocol.abort)

        async with running_server(closing) as (flaky, _):
            await gateway.set_replicas([replica_row(0, flaky)])
            for index in range(60):
                reply = await gateway.ask({**CHAT, "user": str(index)})
                assert reply.status == 200
                await asyncio.sleep(0.0049)
            assert served == 60


async def test_requests_wait_for_a_replica_and_are_answered_when_it_comes(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, []) as gateway:
        waiting = [asyncio.ensure_future(gateway.ask(CHAT)) for _ in range(5)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in waiting)
        await gateway.set_replicas([replica_row(0, url)])
        replies = await asyncio.gather(*waiting)
        assert {reply.status for reply in replies} == {200}
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_queue_seconds_sum", replica="echo-0") > 0


async def test_waiting_is_bounded_in_time_and_number(tmp_path: Path) -> None:
    row = echo_deployment(wait_timeout_s=0.3, waiting=3)
    async with running_gateway(tmp_path, [], deployment=row) as gateway:
        replies = await asyncio.gather(*(gateway.ask(CHAT) for _ in range(6)))
        codes = sorted(reply.error["code"] for reply in replies)
        assert codes == ["no_replica_ready"] * 3 + ["queue_full"] * 3
        for reply in replies:
            assert reply.status == 503
            assert int(reply.headers[b"retry-after"]) >= 1


async def test_only_ready_replicas_get_traffic(tmp_path: Path) -> None:
    async with (
        running_echo() as one,
        running_echo() as two,
        running_gateway(tmp_path, [one, two]) as gateway,
    ):
        for state in ("starting", "unhealthy", "draining", "backoff", "crash_loop", "stopped"):
            await gateway.set_replicas([replica_row(0, one, state=state)])
            replies = [await gateway.ask(CHAT) for _ in range(6)]
            assert {r.headers[b"x-thrifty-replica"] for r in replies} == {b"echo-1"}, state


@pytest.mark.slow
async def test_in_flight_requests_are_counted_until_their_last_byte(tmp_path: Path) -> None:
    """Guards against a load that is always zero, which sent everything to one of eight engines."""
    async with contextlib.AsyncExitStack() as stack:
        urls = [
            await stack.enter_async_context(running_echo(ttft_s=1.0, tpot_s=0.001))
            for _ in range(4)
        ]
        gateway = await stack.enter_async_context(running_gateway(tmp_path, urls))
        for path, body in (
            ("/v1/chat/completions", {**CHAT, "stream": True}),
            ("/v1/chat/completions", CHAT),
            ("/v1/completions", {"model": "echo", "prompt": "x"}),
        ):
            tasks = [asyncio.ensure_future(gateway.ask(body, path)) for _ in range(16)]
            replicas = gateway.version().replicas.values()
            await until(lambda found=replicas: sum(r.in_flight for r in found) == 16)
            assert [replica.in_flight for replica in replicas] == [4, 4, 4, 4]
            await asyncio.gather(*tasks)
            assert [replica.in_flight for replica in replicas] == [0, 0, 0, 0]


@pytest.mark.slow
async def test_a_silent_stream_is_ended_with_an_error_event(tmp_path: Path) -> None:
    async def silent(exchange: Exchange) -> None:
        exchange.start(200, EVENT_STREAM_HEADERS)
        exchange.write(CHUNK)
        await asyncio.sleep(30)

    row = echo_deployment(idle_timeout_s=0.5)
    async with (
        running_server(silent) as (url, _),
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        reply = await gateway.ask({**CHAT, "stream": True})
        assert reply.events[-1]["error"]["code"] == "replica_lost"
        assert "0.5 s" in reply.events[-1]["error"]["message"]


async def test_a_replica_that_never_begins_times_out(tmp_path: Path) -> None:
    async def mute(exchange: Exchange) -> None:
        await asyncio.sleep(30)

    row = echo_deployment(first_token_timeout_s=0.3)
    async with (
        running_server(mute) as (bad, _),
        running_echo() as good,
        running_gateway(tmp_path, [bad, good], deployment=row) as gateway,
    ):
        replies = await asyncio.gather(*(gateway.ask(CHAT) for _ in range(6)))
        assert {reply.status for reply in replies} == {200}


@pytest.mark.slow
async def test_a_stream_without_a_first_token_is_retried_elsewhere(tmp_path: Path) -> None:
    async def hesitate(exchange: Exchange) -> None:
        exchange.start(200, EVENT_STREAM_HEADERS)
        await asyncio.sleep(30)

    row = echo_deployment(first_token_timeout_s=0.3)
    async with (
        running_server(hesitate) as (bad, _),
        running_echo() as good,
        running_gateway(tmp_path, [bad, good], deployment=row) as gateway,
    ):
        replies = await asyncio.gather(*(gateway.ask({**CHAT, "stream": True}) for _ in range(6)))
        assert {reply.status for reply in replies} == {200}


async def test_an_invalid_upstream_response_is_an_error_not_a_hang(tmp_path: Path) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"\x00\x01 this is not HTTP \xff\xff\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with running_gateway(tmp_path, [f"http://127.0.0.1:{port}"]) as gateway:
        reply = await gateway.ask(CHAT)
        assert (reply.status, reply.error["code"]) == (502, "replica_lost")
    server.close()


# Clients that misbehave


async def test_a_client_that_hangs_up_cancels_its_generation(tmp_path: Path) -> None:
    async with (
        running_echo(ttft_s=0.5, tpot_s=0.02) as url,
        running_gateway(tmp_path, [url]) as gateway,
    ):
        client = HttpClient()
        long = {**CHAT, "ignore_eos": True, "max_tokens": 10_000}
        for body in (long, {**long, "stream": True}):
            with pytest.raises((NoResponse, BrokenResponse)):
                await client.open(
                    parse_origin(gateway.url), "POST", "/v1/chat/completions",
                    body=json.dumps(body).encode(), head_timeout_s=0.1,
                )  # fmt: skip
            for _ in range(200):
                _, load = await client.fetch(f"{url}/load")
                if json.loads(load)["running"] == 0:
                    break
                await asyncio.sleep(0.02)
            assert json.loads(load)["running"] == 0
        client.close()
        for _ in range(100):
            if all(r.in_flight == 0 for r in gateway.version().replicas.values()):
                break
            await asyncio.sleep(0.02)
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_errors_total", kind="client_gone") == 2


async def test_a_request_whose_client_leaves_between_attempts_is_not_sent_again(
    tmp_path: Path,
) -> None:
    asked = asyncio.Event()
    sends = 0

    async def dying(exchange: Exchange) -> None:
        nonlocal sends
        sends += 1
        exchange.abort()
        asked.set()

    async with running_server(dying) as (url, _), running_gateway(tmp_path, [url]) as gateway:
        asking = asyncio.ensure_future(gateway.ask(CHAT))
        await asked.wait()
        version = gateway.version()
        await until(lambda: version.waiting)  # the only replica has just failed
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        gateway.client.close()

        client, gone = HttpClient(), 0.0
        async with asyncio.timeout(20):
            while not gone:
                metrics = await ask(client, gateway.url, b"", "/metrics", method="GET")
                gone = metrics.metric("thrifty_errors_total", kind="client_gone")
        client.close()
        assert sends == 1


@pytest.mark.slow
async def test_a_client_that_stops_reading_blocks_no_one(tmp_path: Path) -> None:
    limits = ServerLimits(write_timeout_s=1.0)
    async with (
        running_echo(slots=64) as url,
        running_gateway(tmp_path, [url], limits=limits) as gateway,
    ):
        origin = parse_origin(gateway.url)
        _, writer = await asyncio.open_connection(origin.host, origin.port)
        body = json.dumps(
            {**CHAT, "stream": True, "ignore_eos": True, "max_tokens": 120_000, "n": 12}
        )
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.transport.pause_reading()
        writer.write(head.encode() + body.encode())
        await writer.drain()
        for _ in range(10):
            assert (await gateway.ask(CHAT)).status == 200
            await asyncio.sleep(0.05)
        # Its connection is closed, and its generation is cancelled.
        for _ in range(300):
            if not any(c.write_paused for c in gateway.server.connections):
                break
            await asyncio.sleep(0.02)
        assert not any(c.write_paused for c in gateway.server.connections)
        writer.close()


# The database


def log_rows(path: Path) -> int:
    from thrifty.db import open_database

    database = open_database(f"sqlite:///{path}", migrate=False)
    try:
        with database.begin() as connection:
            return int(connection.execute(select(func.count()).select_from(requests)).scalar() or 0)
    finally:
        database.close()


async def test_a_locked_database_stops_no_request_and_loses_no_row(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        path = tmp_path / "thrifty.db"
        locker = sqlite3.connect(path, isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        replies = await asyncio.gather(*(gateway.ask(CHAT) for _ in range(50)))
        assert {reply.status for reply in replies} == {200}
        await asyncio.sleep(0.5)
        assert (await gateway.ask(CHAT)).status == 200
        locker.execute("ROLLBACK")
        locker.close()
        for _ in range(400):
            if log_rows(path) == 51:
                break
            await asyncio.sleep(0.05)
        assert log_rows(path) == 51


async def test_a_deleted_database_stops_no_request(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        await gateway.ask(CHAT)
        for name in ("thrifty.db", "thrifty.db-wal", "thrifty.db-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(tmp_path / name)
        for _ in range(20):
            assert (await gateway.ask(CHAT)).status == 200
            await asyncio.sleep(0.02)
        assert gateway.table.loaded


async def test_a_row_that_cannot_be_read_stops_no_later_one(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        with contextlib.closing(sqlite3.connect(tmp_path / "thrifty.db")) as other, other:
            [good] = other.execute("SELECT settings FROM deployments").fetchone()
            other.execute("UPDATE deployments SET settings = '{'")
            other.commit()
            for _ in range(3):
                await gateway.reader.refresh()
            assert (await gateway.ask(CHAT)).status == 200
            other.execute("UPDATE deployments SET settings = ?", [good])
        await gateway.set_replicas([replica_row(0, url, state="draining")])
        await until(lambda: not gateway.version().ready)


async def test_a_full_log_queue_drops_rows_and_counts_them(tmp_path: Path) -> None:
    from thrifty.observe.recorder import line

    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        locker = sqlite3.connect(tmp_path / "thrifty.db", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        for _ in range(line.QUEUE_ROWS + 100):
            gateway.line.put(row())
        assert (await gateway.ask(CHAT)).status == 200
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_log_rows_dropped_total", reason="queue_full") >= 100
        locker.execute("ROLLBACK")
        locker.close()


async def test_a_conversation_survives_many_changes_of_the_fleet(tmp_path: Path) -> None:
    """Replicas come, go and move while requests run; no request is lost."""
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(running_echo(ttft_s=0.01)) for _ in range(4)]
        gateway = await stack.enter_async_context(running_gateway(tmp_path, urls[:1]))
        statuses: list[int] = []

        async def talk() -> None:
            for _ in range(40):
                statuses.append((await gateway.ask(CHAT)).status)

        async def change() -> None:
            for step in range(12):
                rows = [
                    replica_row(
                        i, urls[(i + step) % 4], state="ready" if (i + step) % 3 else "draining"
                    )
                    for i in range(4)
                ]
                await gateway.set_replicas(rows)
                await asyncio.sleep(0.03)

        await asyncio.gather(change(), *(talk() for _ in range(6)))
        assert statuses == [200] * 240
