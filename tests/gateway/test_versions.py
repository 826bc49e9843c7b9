"""Versions with weights: which one answers, and that versions never share answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.parts import (
    GatewayUnderTest,
    add_key,
    echo_deployment,
    replica_row,
    running_echo,
    running_gateway,
    running_server,
    until,
)
from thrifty.db.fleet import DeploymentRow, ReplicaRow, save_deployment
from thrifty.db.tables import request_texts, requests
from thrifty.fleet.ports import find_free_port
from thrifty.http.exchange import Exchange
from thrifty.http.types import EVENT_STREAM_HEADERS


def chat(text: str = "Hello there", **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **fields}


def two_versions(
    a: float = 50, b: float = 50, *, shadow: float = 0, **settings: Any
) -> DeploymentRow:
    row = echo_deployment(**settings)
    (version,) = row.versions
    return replace(
        row,
        versions=(
            replace(version, label="a", revision="ra", weight=a),
            replace(version, label="b", revision="rb", weight=b, shadow=shadow),
        ),
    )


def version_replicas(urls: dict[str, str], **states: str) -> list[ReplicaRow]:
    return [
        replica_row(
            number, url, version=label, revision=f"r{label}", state=states.get(label, "ready")
        )
        for number, (label, url) in enumerate(urls.items())
    ]


@contextlib.asynccontextmanager
async def versions_a_and_b(
    folder: Path, row: DeploymentRow | None = None, **options: Any
) -> AsyncIterator[tuple[GatewayUnderTest, dict[str, str]]]:
    """A gateway with two versions that identify themselves."""
    async with (
        running_echo(reply="from a") as url_a,
        running_echo(reply="from b") as url_b,
        running_gateway(folder, [], deployment=row or two_versions(), **options) as gateway,
    ):
        urls = {"a": url_a, "b": url_b}
        await gateway.set_replicas(version_replicas(urls))
        yield gateway, urls


def label_of(reply: Any) -> str:
    return reply.headers[b"x-thrifty-version"].decode()


def text_of(reply: Any) -> str:
    return reply.json()["choices"][0]["message"]["content"]


async def set_weights(gateway: GatewayUnderTest, a: float, b: float, **settings: Any) -> None:
    row = two_versions(a, b, **settings)
    await asyncio.to_thread(save_deployment, gateway.database, row)
    await gateway.reader.refresh()


async def read_rows(gateway: GatewayUnderTest, table: Any = requests) -> list[dict[str, Any]]:
    await gateway.line.stop()
    with gateway.database.begin() as connection:
        return [dict(row) for row in connection.execute(select(table)).mappings()]


async def test_the_header_names_the_version_and_conversations_stay(tmp_path: Path) -> None:
    async with versions_a_and_b(tmp_path) as (gateway, _):
        seen = Counter()
        for number in range(40):
            first = await gateway.ask(chat(f"question {number}"))
            assert text_of(first) == f"from {label_of(first)}"
            seen[label_of(first)] += 1
            turns = chat(f"question {number}")
            turns["messages"] += [
                {"role": "assistant", "content": "an answer"},
                {"role": "user", "content": "more"},
            ]
            second = await gateway.ask(turns)
            assert label_of(second) == label_of(first)
            assert (
                second.headers[b"x-thrifty-conversation"]
                == first.headers[b"x-thrifty-conversation"]
            )
        assert set(seen) == {"a", "b"}


async def test_versions_never_share_cached_answers(tmp_path: Path) -> None:
    async with versions_a_and_b(tmp_path) as (gateway, _):
        greedy = chat(temperature=0)
        for number in range(20):
            headers = {"x-thrifty-conversation": f"talk {number % 10}"}
            reply = await gateway.ask(greedy, headers=headers)
            assert text_of(reply) == f"from {label_of(reply)}"
        assert len(gateway.cache) == 2
        await set_weights(gateway, 0, 1)
        for number in range(10):
            reply = await gateway.ask(greedy, headers={"x-thrifty-conversation": f"talk {number}"})
            assert (label_of(reply), text_of(reply)) == ("b", "from b")
            assert reply.headers[b"x-thrifty-cache"] == b"hit"


async def test_the_same_bytes_go_to_another_version_once_weights_change(tmp_path: Path) -> None:
    """The shortcut for known bodies must not keep the version chosen earlier."""
    async with versions_a_and_b(tmp_path, two_versions(1, 0)) as (gateway, _):
        greedy = chat(temperature=0)
        for _ in range(3):
            assert text_of(await gateway.ask(greedy)) == "from a"
        await set_weights(gateway, 0, 1)
        for _ in range(3):
            reply = await gateway.ask(greedy)
            assert (label_of(reply), text_of(reply)) == ("b", "from b")


async def test_a_conversation_id_that_is_sent_back_stays_in_its_conversation(
    tmp_path: Path,
) -> None:
    async with versions_a_and_b(tmp_path) as (gateway, _):
        first = await gateway.ask(chat("one thing"))
        own = first.headers[b"x-thrifty-conversation"].decode()
        other = await gateway.ask(chat("another"), headers={"x-thrifty-conversation": own})
        assert other.headers[b"x-thrifty-conversation"].decode() == own
        assert label_of(other) == label_of(first)


async def test_another_version_answers_if_the_chosen_one_has_no_replica(
    tmp_path: Path,
) -> None:
    async with versions_a_and_b(tmp_path, two_versions(1, 1)) as (gateway, urls):
        replies = [await gateway.ask(chat(f"q{n}", temperature=0)) for n in range(8)]
        assert {label_of(reply) for reply in replies} == {"a", "b"}
        await gateway.set_replicas(version_replicas(urls, b="backoff"))
        for n in range(8):
            reply = await gateway.ask(chat(f"q{n}", temperature=0))
            assert (label_of(reply), text_of(reply)) == ("a", "from a")
        await gateway.set_replicas(version_replicas(urls))
        again = [await gateway.ask(chat(f"q{n}", temperature=0)) for n in range(8)]
        assert [label_of(reply) for reply in again] == [label_of(reply) for reply in replies]
        rows = await read_rows(gateway)
        rerouted = [row for row in rows if row["rerouted"]]
        assert len(rerouted) == sum(label_of(reply) == "b" for reply in replies)
        assert {row["version"] for row in rerouted} == {"a"}


async def test_another_version_answers_if_the_chosen_one_refuses_connections(
    tmp_path: Path,
) -> None:
    """Its replicas are gone, and the routing table does not say so yet."""
    async with versions_a_and_b(tmp_path, two_versions(1, 1)) as (gateway, urls):
        await gateway.set_replicas(
            version_replicas({**urls, "b": f"http://127.0.0.1:{find_free_port()}"})
        )
        for n in range(8):
            reply = await gateway.ask(chat(f"q{n}", temperature=0))
            assert (reply.status, label_of(reply), text_of(reply)) == (200, "a", "from a")
        assert {row["version"] for row in await read_rows(gateway)} == {"a"}


async def test_versions_that_all_refuse_connections_are_tried_once(tmp_path: Path) -> None:
    async with versions_a_and_b(tmp_path, two_versions(1, 1)) as (gateway, urls):
        gone = {label: f"http://127.0.0.1:{find_free_port()}" for label in urls}
        await gateway.set_replicas(version_replicas(gone))
        reply = await gateway.ask(chat("q", temperature=0))
        assert (reply.status, reply.json()["error"]["code"]) == (502, "replica_lost")


async def test_requests_that_wait_for_a_version_go_to_another_one(tmp_path: Path) -> None:
    """Its last replica leaves while they wait for a slot."""
    row = two_versions(1, 1, slots=1, wait_timeout_s=60)
    async with (
        running_echo(reply="from a") as url_a,
        running_echo(reply="from b", ttft_s=30) as url_b,
        running_gateway(tmp_path, [], deployment=row) as gateway,
    ):
        urls = {"a": url_a, "b": url_b}
        await gateway.set_replicas(version_replicas(urls))
        to_b = []
        for number in range(200):
            label = gateway.table.deployments["echo"].choose(_conversation(number)).label
            if label == "b":
                to_b.append(number)
            if len(to_b) == 3:
                break
        tasks = [
            asyncio.ensure_future(
                gateway.ask(chat(f"q{n}"), headers={"x-thrifty-conversation": f"talk-{n}"})
            )
            for n in range(12)
        ]
        version = gateway.version("echo", "b")
        while not len(version.concurrency.queue):
            await asyncio.sleep(0.01)
        await gateway.set_replicas(version_replicas(urls, b="backoff"))
        replies = []
        for done in asyncio.as_completed(tasks):
            replies.append(await done)
            if len(replies) == len(tasks) - 1:
                break
        assert all(reply.status == 200 and text_of(reply) == "from a" for reply in replies)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_requests_that_wait_for_a_removed_version_go_to_the_fallback(tmp_path: Path) -> None:
    """Rather than wait for the version that took its place and has no replica."""
    row = echo_deployment(slots=1, wait_timeout_s=600, fallback=("other",))
    async with (
        running_echo(ttft_s=600) as busy,
        running_echo("other", reply="from other") as url,
        running_gateway(tmp_path, [busy], deployment=row) as gateway,
    ):
        other = replica_row(0, url, "other")
        await asyncio.to_thread(save_deployment, gateway.database, echo_deployment("other"))
        await gateway.set_replicas([replica_row(0, busy), other])
        tasks = [asyncio.ensure_future(gateway.ask(chat("q"))) for _ in range(2)]
        await until(lambda: len(gateway.version().concurrency.queue) == 1)
        newer = replace(row, versions=(replace(row.versions[0], label="echo@v2"),))
        await asyncio.to_thread(save_deployment, gateway.database, newer)
        await gateway.set_replicas([replica_row(0, busy), other])
        done, _ = await asyncio.wait(tasks, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert [text_of(task.result()) for task in done] == ["from other"]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _conversation(number: int) -> str:
    return f"conv-{number}"


async def test_a_field_that_the_version_cannot_honour_is_a_400_that_names_it(
    tmp_path: Path,
) -> None:
    row = two_versions(1, 1)
    a, b = row.versions
    limited = tuple(f for f in b.settings.honours or () if f != "seed")
    row = replace(row, versions=(a, replace(b, settings=replace(b.settings, honours=limited))))
    async with versions_a_and_b(tmp_path, row) as (gateway, _):
        statuses = {}
        for number in range(20):
            plain = await gateway.ask(chat(f"q{number}"))
            seeded = await gateway.ask(chat(f"q{number}", seed=7))
            statuses.setdefault(label_of(plain), set()).add(seeded.status)
            assert label_of(seeded) == label_of(plain), "the choice must not depend on fields"
            if seeded.status == 400:
                assert "version b" in seeded.error["message"]
                assert seeded.error["param"] == "seed"
        assert statuses == {"a": {200}, "b": {400}}


# Pins


async def test_a_pin_requires_an_operator_or_this_machine(tmp_path: Path) -> None:
    async with versions_a_and_b(tmp_path, two_versions(1, 0)) as (gateway, urls):
        pin = {"x-thrifty-version": "b"}
        reply = await gateway.ask(chat(), headers=pin)
        assert (label_of(reply), text_of(reply)) == ("b", "from b")
        reply = await gateway.ask(chat(), headers={"x-thrifty-version": "c"})
        assert (reply.status, reply.error["code"]) == (404, "version_not_found")
        proxied = await gateway.ask(chat(), headers={**pin, "x-forwarded-for": "198.51.100.7"})
        assert (proxied.status, proxied.error["code"]) == (403, "role_not_allowed")
        user = await add_key(gateway, "u", "user")
        operator = await add_key(gateway, "o", "operator")
        admin = await add_key(gateway, "x", "admin")
        assert (await gateway.ask(chat(), headers={**pin, **user})).status == 403
        for key in (operator, admin):
            assert label_of(await gateway.ask(chat(), headers={**pin, **key})) == "b"
        await gateway.set_replicas(version_replicas(urls, b="backoff"))
        reply = await gateway.ask(chat(), headers={**pin, **operator})
        assert (reply.status, reply.error["code"]) == (503, "no_replica_ready")


# Shadows


async def test_a_shadow_gets_copies_with_discarded_answers(tmp_path: Path) -> None:
    row = two_versions(1, 0, shadow=1.0, slots=8)
    async with versions_a_and_b(tmp_path, row, prompts=True) as (gateway, _):
        visible = []
        for number in range(6):
            reply = await gateway.ask(chat(f"q{number}", temperature=0, stream=number % 2 == 1))
            assert reply.status == 200
            visible.append(reply.headers[b"x-thrifty-response-id"].decode())
        shadow = gateway.version("echo", "b")
        while gateway.parts.table and any(r.in_flight for r in shadow.replicas.values()):
            await asyncio.sleep(0.01)
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_requests_total", version="b") == 0
        assert metrics.metric("thrifty_requests_total", version="a") == 6
        rows = await read_rows(gateway)
        shadows = [row for row in rows if row["origin"] == "shadow"]
        originals = {row["id"] for row in rows if row["origin"] == "client"}
        assert len(originals) == 6
        assert {row["shadow_of"] for row in shadows} == originals
        assert {row["version"] for row in shadows} == {"b"}
        assert not {row["id"] for row in shadows} & originals
        with gateway.database.begin() as connection:
            kept = {row["id"] for row in connection.execute(select(request_texts)).mappings()}
        # Releases compare the two answers.
        assert kept == originals | {row["id"] for row in shadows}


async def test_a_shadow_leaves_busy_slots_alone(tmp_path: Path) -> None:
    row = two_versions(1, 0, shadow=1.0, slots=1)
    async with (
        running_echo(reply="from a") as url_a,
        running_echo(reply="from b", ttft_s=60) as url_b,
        running_gateway(tmp_path, [], deployment=row) as gateway,
    ):
        await gateway.set_replicas(version_replicas({"a": url_a, "b": url_b}))
        for number in range(4):
            assert text_of(await gateway.ask(chat(f"q{number}"))) == "from a"
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_shadow_requests_total", result="left_out") == 3


# Ids


@pytest.mark.parametrize("stream", [False, True])
async def test_the_id_of_a_foreign_engine_is_replaced(tmp_path: Path, stream: bool) -> None:
    call = '{"id":"call_1","type":"function","function":{"name":"f","arguments":"{}"}}'

    def answer(exchange: Exchange) -> None:
        if not json.loads(exchange.body).get("stream"):
            body = (
                '{"id":"theirs","object":"chat.completion","choices":[{"index":0,"message":'
                '{"role":"assistant","content":null,"tool_calls":[' + call + "]},"
                '"finish_reason":"tool_calls"}]}'
            )
            exchange.respond(200, body.encode())
            return
        exchange.start(200, EVENT_STREAM_HEADERS)
        for delta in ('{"tool_calls":[' + call + "]}", "{}"):
            event = (
                'data: {"id":"theirs","object":"chat.completion.chunk","choices":[{"index":0,'
                '"delta":' + delta + ',"finish_reason":null}]}\n\n'
            )
            exchange.write(event.encode())
        exchange.write(b"data: [DONE]\n\n")
        exchange.finish()

    row = echo_deployment(honours=None, accepts_response_id=False)
    async with (
        running_server(answer) as (url, _),
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        reply = await gateway.ask(chat(stream=stream))
        own = f"chatcmpl-{reply.headers[b'x-thrifty-response-id'].decode()}"
        assert b"theirs" not in reply.body
        assert b'"call_1"' in reply.body
        ids = {event["id"] for event in reply.events} if stream else {reply.json()["id"]}
        assert ids == {own}


async def test_each_response_has_a_row_and_an_id_of_its_own(tmp_path: Path) -> None:
    row = echo_deployment()
    async with (
        running_echo(ttft_s=0.2) as url,
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        greedy = chat(temperature=0, stream=True)
        sent = {"x-request-id": "order-1"}
        together = await asyncio.gather(*(gateway.ask(greedy, headers=sent) for _ in range(4)))
        hit = await gateway.ask(chat(temperature=0), headers=sent)
        refused = await gateway.ask(chat(temperature=9), headers=sent)
        assert [reply.status for reply in (*together, hit, refused)] == [200] * 5 + [400]
        ids = []
        for reply in (*together, hit, refused):
            assert reply.headers[b"x-request-id"] == b"order-1"
            ids.append(reply.headers[b"x-thrifty-response-id"].decode())
        assert len(set(ids)) == 6
        for reply, own in zip(together, ids, strict=False):
            assert {event["id"] for event in reply.events} == {f"chatcmpl-{own}"}
        assert hit.json()["id"] == f"chatcmpl-{ids[4]}"
        rows = await read_rows(gateway)
        assert len(rows) == 6
        assert {row["client_request_id"] for row in rows} == {"order-1"}
        assert all(row["conversation_id"] for row in rows if row["status"] == 200)


async def test_measurements_stay_out_of_users_statistics(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url], prompts=True) as gateway:
        await gateway.ask(chat(), headers={"x-thrifty-origin": "measurement"})
        await gateway.ask(chat())
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_requests_total", status="200") == 1
        user = await add_key(gateway, "u", "user")
        await gateway.ask(chat(), headers={"x-thrifty-origin": "measurement", **user})
        rows = await read_rows(gateway)
        assert [row["origin"] for row in rows] == ["measurement", "client", "client"]
        with gateway.database.begin() as connection:
            texts = connection.execute(select(request_texts)).mappings().all()
        assert len(texts) == 2
