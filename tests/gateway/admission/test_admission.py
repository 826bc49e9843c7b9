"""The queue, deadlines, ejection and hedging in a whole gateway with real replicas."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.parts import (
    add_key,
    echo_deployment,
    make_deployment,
    replica_row,
    running_echo,
    running_gateway,
    running_server,
    until,
)
from thrifty.http.client import HttpClient
from thrifty.http.server import EVENT_STREAM_HEADERS, Exchange

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "Hello there"}]}


async def load_of(url: str) -> int:
    client = HttpClient()
    _, body = await client.fetch(f"{url}/load")
    client.close()
    load = json.loads(body)
    return int(load["running"]) + int(load["waiting"])


# The queue


async def test_a_replica_never_has_more_than_its_slots(tmp_path: Path) -> None:
    row = echo_deployment(slots=3)
    async with (
        running_echo(ttft_s=0.05) as one,
        running_echo(ttft_s=0.05) as two,
        running_gateway(tmp_path, [one, two], deployment=row) as gateway,
    ):
        tasks = [asyncio.ensure_future(gateway.ask({**CHAT, "user": str(i)})) for i in range(30)]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, await load_of(one), await load_of(two))
            await asyncio.sleep(0.005)
        assert {task.result().status for task in tasks} == {200}
        assert 0 < most <= 3
        concurrency = gateway.version().concurrency
        assert (concurrency.capacity, concurrency.taken, len(concurrency.queue)) == (6, 0, 0)
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_slots", deployment="echo") == 6
        assert metrics.metric("thrifty_queue_length", priority="interactive") == 0
        assert metrics.metric("thrifty_queue_seconds_sum") > 0.2


@pytest.mark.slow
async def test_a_greedy_tenant_delays_only_itself(tmp_path: Path) -> None:
    row = echo_deployment(slots=4)
    async with (
        running_echo(ttft_s=0.04) as url,
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        greedy, modest = await add_key(gateway, "greedy"), await add_key(gateway, "modest")
        await gateway.ask(CHAT, headers=modest)
        flood = [asyncio.ensure_future(gateway.ask(CHAT, headers=greedy)) for _ in range(100)]
        queue = gateway.version().concurrency.queue
        await until(lambda: len(queue) > 80)
        overtaken = []
        for _ in range(10):
            before = sum(task.done() for task in flood)
            assert (await gateway.ask(CHAT, headers=modest)).status == 200
            overtaken.append(sum(task.done() for task in flood) - before)
        assert not all(task.done() for task in flood)
        # It waits for a slot, which the next of four gives, and is served beside three others.
        assert sorted(overtaken)[5] <= 8
        replies = await asyncio.gather(*flood)
        assert {reply.status for reply in replies} == {200}


async def test_the_queue_is_bounded_and_says_when_to_retry(tmp_path: Path) -> None:
    row = echo_deployment(slots=1, waiting=2, wait_timeout_s=1.0)
    async with (
        running_echo(ttft_s=4.0) as url,
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        replies = await asyncio.gather(*(gateway.ask(CHAT) for _ in range(5)))
        codes = sorted(r.error["code"] if r.status != 200 else "" for r in replies)
        assert codes == ["", "queue_full", "queue_full", "queue_timeout", "queue_timeout"]
        for reply in replies:
            if reply.status != 200:
                assert reply.status == 503
                assert int(reply.headers[b"retry-after"]) >= 1
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_rejections_total", reason="queue_full") == 2
        assert metrics.metric("thrifty_rejections_total", reason="queue_timeout") == 2


async def test_slots_do_not_matter_without_a_ready_replica(tmp_path: Path) -> None:
    row = echo_deployment(slots=2, waiting=3, wait_timeout_s=2.0)
    async with running_echo() as url, running_gateway(tmp_path, [], deployment=row) as gateway:
        replies = await asyncio.gather(*(gateway.ask(CHAT) for _ in range(5)))
        codes = sorted(reply.error["code"] for reply in replies)
        assert codes == ["no_replica_ready"] * 3 + ["queue_full"] * 2
        waiting = [asyncio.ensure_future(gateway.ask(CHAT)) for _ in range(3)]
        await asyncio.sleep(0.1)  # as a rule they wait by now; all are answered in any case
        await gateway.set_replicas([replica_row(0, url)])
        assert {reply.status for reply in await asyncio.gather(*waiting)} == {200}


async def test_a_client_that_leaves_the_queue_is_not_served(tmp_path: Path) -> None:
    row = echo_deployment(slots=1)
    served = 0
    go_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        nonlocal served
        served += 1
        await go_on.wait()
        exchange.respond(200, b'{"id":"x-1","choices":[]}')

    async with (
        running_server(slow) as (url, _),
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        tasks = [asyncio.ensure_future(gateway.ask({**CHAT, "user": "0"}))]
        await until(lambda: served == 1)
        tasks += [asyncio.ensure_future(gateway.ask({**CHAT, "user": str(i)})) for i in range(1, 6)]
        queue = gateway.version().concurrency.queue
        await until(lambda: len(queue) == 5)
        for task in tasks[1:5]:
            task.cancel()
        await until(lambda: len(queue) == 1)
        go_on.set()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(not isinstance(reply, BaseException) for reply in replies) == 2
        concurrency = gateway.version().concurrency
        for _ in range(100):
            if concurrency.taken == 0 and not len(concurrency.queue):
                break
            await asyncio.sleep(0.02)
        assert (concurrency.taken, len(concurrency.queue)) == (0, 0)
        assert served == 2


# Deadlines


async def test_a_deadline_must_be_a_number(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        for value in ("soon", "-1", "0", "1.5", "99999999999999999999", "0" * 11 + "1" + "0" * 400):
            reply = await gateway.ask(CHAT, headers={"x-thrifty-timeout-ms": value})
            assert (reply.status, reply.error["code"]) == (400, "invalid_value"), value
            assert reply.error["param"] == "x-thrifty-timeout-ms"
        assert (await gateway.ask(CHAT, headers={"x-thrifty-timeout-ms": "5000"})).status == 200


async def test_an_answer_that_misses_its_deadline_is_abandoned(tmp_path: Path) -> None:
    async with running_echo(ttft_s=2.0) as url, running_gateway(tmp_path, [url]) as gateway:
        for body in (CHAT, {**CHAT, "stream": True}, {**CHAT, "temperature": 0}):
            reply = await gateway.ask(body, headers={"x-thrifty-timeout-ms": "100"})
            assert (reply.status, reply.error["code"]) == (504, "deadline_exceeded")
        # The replica stopped working on it, and does not count as failed.
        for _ in range(100):
            if await load_of(url) == 0:
                break
            await asyncio.sleep(0.01)
        assert await load_of(url) == 0
        assert gateway.version().health.all_healthy
        assert (await gateway.ask(CHAT, headers={"x-thrifty-timeout-ms": "60000"})).status == 200


async def test_a_stream_without_a_token_has_not_begun(tmp_path: Path) -> None:
    async def hesitate(exchange: Exchange) -> None:
        exchange.start(200, EVENT_STREAM_HEADERS)
        await asyncio.sleep(600)

    async with (
        running_server(hesitate) as (url, _),
        running_gateway(tmp_path, [url]) as gateway,
    ):
        reply = await gateway.ask({**CHAT, "stream": True}, headers={"x-thrifty-timeout-ms": "200"})
        assert (reply.status, reply.error["code"]) == (504, "deadline_exceeded")


async def test_the_spec_may_set_a_deadline_for_all(tmp_path: Path) -> None:
    row = echo_deployment(timeout_s=0.1)
    async with (
        running_echo(ttft_s=30.0) as url,
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        assert (await gateway.ask(CHAT)).error["code"] == "deadline_exceeded"
        # A client may ask for less time, but not for more.
        reply = await gateway.ask(CHAT, headers={"x-thrifty-timeout-ms": "60000"})
        assert reply.error["code"] == "deadline_exceeded"


@pytest.mark.slow
async def test_an_unreachable_deadline_is_refused_at_once(tmp_path: Path) -> None:
    row = echo_deployment(slots=1)
    async with (
        running_echo(ttft_s=1.0) as url,
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        await gateway.ask(CHAT)
        crowd = [asyncio.ensure_future(gateway.ask({**CHAT, "user": str(i)})) for i in range(5)]
        queue = gateway.version().concurrency.queue
        await until(lambda: len(queue) == 4)
        reply = await gateway.ask(CHAT, headers={"x-thrifty-timeout-ms": "1500"})
        assert (reply.status, reply.error["code"]) == (503, "deadline_unreachable")
        assert int(reply.headers[b"retry-after"]) >= 1
        assert {r.status for r in await asyncio.gather(*crowd)} == {200}


async def test_requests_of_large_tenants_get_a_lower_engine_priority(
    tmp_path: Path,
) -> None:
    asked: list[tuple[str, Any]] = []
    go_on = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        body = json.loads(exchange.body)
        asked.append((body["messages"][0]["content"], body.get("priority")))
        await go_on.wait()
        exchange.respond(200, b'{"id":"x","object":"chat.completion","choices":[]}')

    row = make_deployment(engine="remote", label="remote@1", slots=8, priority_field="priority")
    async with (
        running_server(answer) as (url, _),
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        keys = {name: await add_key(gateway, name) for name in ("greedy", "modest")}

        def ask(name: str) -> asyncio.Future[Any]:
            body = {"model": "echo", "messages": [{"role": "user", "content": name}]}
            return asyncio.ensure_future(gateway.ask(body, headers=keys[name]))

        first = [ask("greedy") for _ in range(4)]
        await until(lambda: len(asked) == 4)
        second = [ask("modest")]
        await until(lambda: len(asked) == 5)
        third = [ask("greedy")]
        await until(lambda: len(asked) == 6)
        third.append(ask("modest"))
        await until(lambda: len(asked) == 7)
        go_on.set()
        replies = await asyncio.gather(*first, *second, *third)
        assert {reply.status for reply in replies} == {200}
        assert asked == [("greedy", None)] * 4 + [("modest", None), ("greedy", 1), ("modest", None)]


# Ejection


@pytest.mark.slow
async def test_a_broken_replica_is_ejected_and_restored(tmp_path: Path) -> None:
    broken, asked = True, 0

    async def sick(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        if broken:
            exchange.respond(500, b'{"error": {"message": "broken", "type": "server_error"}}')
        else:
            exchange.respond(200, b'{"id":"x-1","choices":[]}')

    async with (
        running_server(sick) as (bad, _),
        running_echo() as good,
        running_gateway(tmp_path, [bad, good]) as gateway,
    ):
        health = gateway.version().health
        for _ in range(200):
            assert (await gateway.ask(CHAT)).status == 200
            if health.is_ejected("echo-0"):
                break
            await asyncio.sleep(0.05)
        assert health.is_ejected("echo-0")
        assert asked <= 4
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_ejections_total", replica="echo-0") == 1
        assert metrics.metric("thrifty_replica_ejected", replica="echo-0") == 1
        before = asked
        for _ in range(50):
            assert (await gateway.ask(CHAT)).status == 200
        assert asked == before
        # Pretend that its ejection is over: one trial request restores it.
        broken = False
        health._records["echo-0"].ejected_until_s = time.monotonic()
        replies = [await gateway.ask(CHAT) for _ in range(20)]
        assert {reply.status for reply in replies} == {200}
        assert asked > before
        assert health.all_healthy


# Hedging


@contextlib.asynccontextmanager
async def stalling() -> Any:
    """A server that begins a stream, sends nothing more, and records cancelled requests."""
    seen = {"asked": 0, "cancelled": 0}

    async def stall(exchange: Exchange) -> None:
        seen["asked"] += 1
        try:
            exchange.start(200, EVENT_STREAM_HEADERS)
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            seen["cancelled"] += 1
            raise

    async with running_server(stall) as (url, _):
        yield url, seen


async def test_a_stalled_request_is_hedged(tmp_path: Path) -> None:
    row = echo_deployment(hedge_s=0.1, routing="round_robin")
    async with (
        stalling() as (bad, seen),
        running_echo() as good,
        running_gateway(tmp_path, [bad, good], deployment=row) as gateway,
    ):
        for stream in (True, False, True, False):
            reply = await gateway.ask({**CHAT, "stream": stream})
            assert reply.status == 200
            assert reply.headers[b"x-thrifty-replica"] == b"echo-1"
            assert b"Hello" in reply.body
        assert seen["asked"] >= 2
        for _ in range(100):
            if seen["cancelled"] == seen["asked"]:
                break
            await asyncio.sleep(0.02)
        assert seen["cancelled"] == seen["asked"]
        replicas = gateway.version().replicas.values()
        assert [replica.in_flight for replica in replicas] == [0, 0]
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_hedges_total") == seen["asked"]
        assert metrics.metric("thrifty_hedges_won_total") == seen["asked"]


async def test_quick_answers_are_not_hedged(tmp_path: Path) -> None:
    row = echo_deployment(hedge_s=10.0)
    async with (
        running_echo(ttft_s=0.02) as one,
        running_echo(ttft_s=0.02) as two,
        running_gateway(tmp_path, [one, two], deployment=row) as gateway,
    ):
        for stream in (True, False):
            assert (await gateway.ask({**CHAT, "stream": stream})).status == 200
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_hedges_total") == 0


async def test_hedges_are_bounded_by_the_retry_budget(tmp_path: Path) -> None:
    row = echo_deployment(hedge_s=0.01)
    async with (
        running_echo(ttft_s=0.06) as one,
        running_echo(ttft_s=0.06) as two,
        running_gateway(tmp_path, [one, two], deployment=row) as gateway,
    ):
        for _ in range(5):
            replies = await asyncio.gather(*(gateway.ask(CHAT) for _ in range(20)))
            assert {reply.status for reply in replies} == {200}
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert 0 < metrics.metric("thrifty_hedges_total") <= 20 + 100 * 0.2 + 1


async def test_a_client_that_hangs_up_cancels_both(tmp_path: Path) -> None:
    row = echo_deployment(hedge_s=0.05)
    async with (
        stalling() as (one, first),
        stalling() as (two, second),
        running_gateway(tmp_path, [one, two], deployment=row) as gateway,
    ):
        task = asyncio.ensure_future(gateway.ask({**CHAT, "stream": True}))
        await until(lambda: (first["asked"], second["asked"]) == (1, 1))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _ in range(100):
            if first["cancelled"] == second["cancelled"] == 1:
                break
            await asyncio.sleep(0.02)
        assert (first["cancelled"], second["cancelled"]) == (1, 1)
        replicas = gateway.version().replicas.values()
        assert [replica.in_flight for replica in replicas] == [0, 0]


async def test_a_request_that_fails_on_both_is_retried_or_refused(tmp_path: Path) -> None:
    async def dying(exchange: Exchange) -> None:
        await asyncio.sleep(0.1)
        exchange.abort()

    row = echo_deployment(hedge_s=0.05)
    async with (
        running_server(dying) as (one, _),
        running_server(dying) as (two, _),
        running_gateway(tmp_path, [one, two], deployment=row) as gateway,
    ):
        reply = await gateway.ask(CHAT)
        assert (reply.status, reply.error["code"]) == (502, "replica_lost")
        replicas = gateway.version().replicas.values()
        assert [replica.in_flight for replica in replicas] == [0, 0]
