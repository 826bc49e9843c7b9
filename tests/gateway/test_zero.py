"""Requests to a deployment at zero: held, bounded, kept alive, refused with a reason."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import openai
from tests.batches.talk import Talk, make_line
from tests.gateway.test_versions import two_versions
from tests.parts import (
    GatewayUnderTest,
    echo_deployment,
    replica_row,
    running_echo,
    running_gateway,
    until,
)
from thrifty.batches.settings import BatchSettings
from thrifty.db.fleet import DeploymentRow, save_deployment
from thrifty.gateway.state.version import Version
from thrifty.http.origin import parse_origin

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}], "seed": 1}
STREAM = {**CHAT, "stream": True}


def asleep(**settings: object) -> DeploymentRow:
    """A deployment that is at zero while nobody asks."""
    return echo_deployment(wakes=True, cache_when="never", **settings)


def watch_wakes(gateway: GatewayUnderTest) -> list[str]:
    """The labels of the versions that requests ask to wake, as they do."""
    found: list[str] = []

    def note(version: Version) -> None:
        found.append(version.label)

    gateway.parts.forwarder.on_held = note
    return found


async def held(gateway: GatewayUnderTest, count: int) -> None:
    await until(lambda: gateway.version().held == count, what=f"{count} held requests")


@pytest.mark.parametrize("slots", [None, 2])
async def test_requests_are_held_until_a_replica_is_ready(
    tmp_path: Path, slots: int | None
) -> None:
    row = asleep(slots=slots, wait_timeout_s=0.01)
    async with running_echo() as url, running_gateway(tmp_path, [], deployment=row) as gateway:
        woken = watch_wakes(gateway)
        waiting = [asyncio.ensure_future(gateway.ask(CHAT)) for _ in range(5)]
        await held(gateway, 5)
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_held_requests") == 5
        await gateway.set_replicas([replica_row(0, url)])
        replies = await asyncio.gather(*waiting)
        assert [reply.status for reply in replies] == [200] * 5
        assert woken == ["echo@v1"] * 5
        assert gateway.version().held == 0


async def test_health_and_lists_of_models_wake_nothing(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], deployment=asleep()) as gateway:
        woken = watch_wakes(gateway)
        for path in ("/healthz", "/readyz", "/v1/models", "/v1/models/echo", "/metrics"):
            reply = await gateway.ask(b"", path, method="GET")
            assert reply.status == 200, path
        assert woken == []


async def test_held_requests_are_bounded_in_number_bytes_and_time(tmp_path: Path) -> None:
    row = asleep(waiting=2, waiting_bytes=3000, wake_timeout_s=0.5)
    async with running_gateway(tmp_path, [], deployment=row) as gateway:
        first = asyncio.ensure_future(gateway.ask(CHAT))
        await held(gateway, 1)
        large = {**CHAT, "messages": [{"role": "user", "content": "x" * 3000}]}
        assert (await gateway.ask(large)).error["code"] == "queue_full"
        second = asyncio.ensure_future(gateway.ask(CHAT))
        await held(gateway, 2)
        assert (await gateway.ask(CHAT)).error["code"] == "queue_full"
        replies = await asyncio.gather(first, second)
        assert [reply.error["code"] for reply in replies] == ["no_replica_ready"] * 2
        assert gateway.version().concurrency.queued_bytes == 0


async def test_a_refusal_says_when_to_come_back_and_wakes(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], deployment=asleep()) as gateway:
        woken = watch_wakes(gateway)
        gateway.version().start_s = 40.0
        reply = await gateway.ask(CHAT, headers={"x-thrifty-timeout-ms": "2000"})
        assert (reply.status, reply.error["code"]) == (503, "deadline_unreachable")
        assert 30 < int(reply.headers[b"retry-after"]) <= 40
        assert woken == ["echo@v1"]


@pytest.mark.parametrize("state", ["failed", "crash_loop"])
async def test_a_model_that_cannot_start_says_so_at_once(tmp_path: Path, state: str) -> None:
    async with running_gateway(tmp_path, [], deployment=asleep()) as gateway:
        waiting = [asyncio.ensure_future(gateway.ask(CHAT)) for _ in range(3)]
        await held(gateway, 3)
        why = "the KV cache does not fit"
        lost = replica_row(0, "http://127.0.0.1:1", state=state, message=why)
        await gateway.set_replicas([lost])
        for reply in [*await asyncio.gather(*waiting), await gateway.ask(CHAT)]:
            assert (reply.status, reply.error["code"]) == (503, "cannot_start")
            assert why in reply.error["message"]
        ready = await gateway.ask(b"", "/readyz", method="GET")
        assert (ready.status, ready.json()["waiting_for"]) == (503, ["echo"])


async def test_a_client_that_leaves_while_held_leaves_nothing(tmp_path: Path) -> None:
    row = echo_deployment(wakes=True, slots=1)
    async with running_echo() as url, running_gateway(tmp_path, [], deployment=row) as gateway:
        # With a seed, the second joins the first one's generation; the third stands alone.
        bodies = [CHAT, CHAT, {**CHAT, "seed": 2}, {**CHAT, "seed": 3}]
        tasks = [asyncio.ensure_future(gateway.ask(body)) for body in bodies]
        await held(gateway, 3)
        for task in (tasks[0], tasks[2]):
            task.cancel()
        await held(gateway, 2)
        await gateway.set_replicas([replica_row(0, url)])
        assert [(await task).status for task in (tasks[1], tasks[3])] == [200, 200]
        version = gateway.version()
        await until(lambda: version.concurrency.taken == 0)
        assert [r.in_flight for r in version.replicas.values()] == [0]


async def test_a_version_at_zero_wakes_and_is_not_passed_over(tmp_path: Path) -> None:
    """Otherwise one that shares the traffic would never get its share."""
    row = two_versions(1e-6, 1, wakes=True, cache_when="never")
    async with (
        running_echo(reply="awake") as one,
        running_echo(reply="woken") as two,
        running_gateway(tmp_path, [], deployment=row) as gateway,
    ):
        woken = watch_wakes(gateway)
        awake = replica_row(0, one, version="a", revision="ra")
        await gateway.set_replicas([awake])
        waiting = asyncio.ensure_future(gateway.ask(CHAT))
        await until(lambda: woken == ["b"])
        late = replica_row(1, two, version="b", revision="rb")
        await gateway.set_replicas([awake, late])
        reply = await waiting
        assert (reply.status, reply.headers[b"x-thrifty-version"]) == (200, b"b")


async def test_a_fallback_answers_only_for_what_cannot_wake(tmp_path: Path) -> None:
    row = asleep(fallback=("other",))
    async with (
        running_echo("other") as url,
        running_gateway(tmp_path, [], deployment=row) as gateway,
    ):
        save_deployment(gateway.database, echo_deployment("other"))
        other = replica_row(0, url, "other")
        await gateway.set_replicas([other])
        waiting = asyncio.ensure_future(gateway.ask(CHAT))
        await held(gateway, 1)
        lost = replica_row(0, "http://127.0.0.1:1", state="failed", message="no")
        await gateway.set_replicas([lost, other])
        reply = await waiting
        assert (reply.status, reply.headers[b"x-thrifty-replica"]) == (200, b"other-0")


async def test_openai_clients_skip_the_comments_of_a_held_stream(tmp_path: Path) -> None:
    row = asleep(keep_alive_s=0.02)
    async with running_echo() as url, running_gateway(tmp_path, [], deployment=row) as gateway:
        client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)

        async def ask() -> str:
            stream = await client.chat.completions.create(**STREAM)  # type: ignore[call-overload]
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        asked = asyncio.ensure_future(ask())
        plain = await gateway.client.open(
            parse_origin(gateway.url), "POST", "/v1/completions",
            headers=b"content-type: application/json\r\n",
            body=b'{"model": "echo", "prompt": "plain", "stream": true}',
        )  # fmt: skip
        # The head is there although no replica is.
        assert plain.status == 200
        await plain.wait_body()
        await gateway.set_replicas([replica_row(0, url)])
        assert await asked == "hello there"
        events = (await plain.read()).split(b"\n\n")
        assert events[0] == b": waiting"
        assert events[-2:] == [b"data: [DONE]", b""]
        await client.close()


async def test_an_error_after_a_comment_is_an_event(tmp_path: Path) -> None:
    row = asleep(keep_alive_s=0.02, wake_timeout_s=0.2)
    async with running_gateway(tmp_path, [], deployment=row) as gateway:
        client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="became ready within"):
            async for _ in await client.chat.completions.create(**STREAM):  # type: ignore[call-overload]
                pass
        reply = await gateway.ask(STREAM)
        assert reply.body.startswith(b": waiting\n\n")
        assert reply.events[-1]["error"]["code"] == "no_replica_ready"
        # Without a stream there is nothing to keep alive.
        assert (await gateway.ask(CHAT)).status == 503
        await client.close()


async def test_a_drain_refuses_what_is_still_held_and_cuts_nothing(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], deployment=asleep()) as gateway:
        waiting = asyncio.ensure_future(gateway.ask(CHAT))
        await held(gateway, 1)
        assert await gateway.parts.drain(1.0, 0.1) == 0
        reply = await waiting
        assert (reply.status, reply.error["code"]) == (503, "stopping")
        assert reply.headers[b"retry-after"] == b"5"


async def test_one_line_of_a_batch_wakes_and_the_others_follow(tmp_path: Path) -> None:
    async with (
        running_echo() as url,
        running_gateway(tmp_path, [], deployment=asleep(), batches=BatchSettings()) as gateway,
    ):
        woken = watch_wakes(gateway)
        talk = Talk(gateway)
        batch = await talk.create([make_line(f"c{i}", f"line {i}") for i in range(5)])
        await held(gateway, 1)
        assert woken == ["echo@v1"]
        await gateway.set_replicas([replica_row(0, url)])
        ended = await talk.wait(batch["id"])
        assert ended["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
