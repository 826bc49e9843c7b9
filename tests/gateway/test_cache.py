"""The exact cache: when an answer is reused, how it is returned, and how much memory it uses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parts import echo_deployment, running_echo, running_gateway, until
from thrifty.db.fleet import FleetState, save_deployment
from thrifty.gateway.cache import Entry, ExactCache, Owner, make_key
from thrifty.gateway.cache.key import is_deterministic
from thrifty.gateway.cache.replay import ID_MARK, make_chunks
from thrifty.gateway.cache.shortcuts import Shortcuts
from thrifty.gateway.routing import make_policy
from thrifty.gateway.state.call import Call, ParsedRequest, Target
from thrifty.gateway.state.table import RoutingTable
from thrifty.openai.fields import Endpoint
from thrifty.openai.stream_answers import assemble_answer
from thrifty.openai.stream_options import PLAIN

CHAT: dict[str, Any] = {
    "model": "echo",
    "messages": [{"role": "user", "content": "The same question"}],
    "temperature": 0,
}
HONOURS = frozenset({"seed", "temperature"})


def entry(body: bytes = b'{"id":"chatcmpl-1","choices":[]}', owner: Owner = Owner()) -> Entry:  # noqa: B008
    return Entry(body, replica="r", usage=None, owner=owner)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# Keys


def test_key_changes_with_every_parameter_that_matters() -> None:
    base = make_key(Endpoint.CHAT, "r1", "ann", CHAT)
    for changed in (
        {**CHAT, "messages": [{"role": "user", "content": "another"}]},
        {**CHAT, "max_tokens": 5},
        {**CHAT, "temperature": 0.0001},
        {**CHAT, "stop": ["x"]},
        {**CHAT, "tools": [{"type": "function"}]},
        {**CHAT, "response_format": {"type": "json_object"}},
        {**CHAT, "logprobs": True},
        {**CHAT, "n": 2},
    ):
        assert make_key(Endpoint.CHAT, "r1", "ann", changed) != base, changed
    assert make_key(Endpoint.COMPLETIONS, "r1", "ann", CHAT) != base
    assert make_key(Endpoint.CHAT, "r2", "ann", CHAT) != base
    assert make_key(Endpoint.CHAT, "r1", "bob", CHAT) != base


FIRST = {"type": "object", "properties": {"number": {}, "prime": {}}, "required": ["number"]}
SECOND = {"type": "object", "properties": {"prime": {}, "number": {}}, "required": ["number"]}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"response_format": {"json_schema": {"schema": FIRST}}},
         {"response_format": {"json_schema": {"schema": SECOND}}}),
        ({"tools": [{"function": {"parameters": FIRST}}]},
         {"tools": [{"function": {"parameters": SECOND}}]}),
        ({"tools": [{"type": "function", "function": {}}]},
         {"tools": [{"function": {}, "type": "function"}]}),
        ({"chat_template_kwargs": {"a": 1, "b": 2}}, {"chat_template_kwargs": {"b": 2, "a": 1}}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
         {"messages": [{"role": "user", "content": [{"text": "x", "type": "text"}]}]}),
    ],
)  # fmt: skip
def test_order_has_meaning_below_the_fields(first: dict[str, Any], second: dict[str, Any]) -> None:
    """An answer follows the order of a schema's properties; tools are in the prompt."""
    one = make_key(Endpoint.CHAT, "r1", "ann", {**CHAT, **first})
    assert one != make_key(Endpoint.CHAT, "r1", "ann", {**CHAT, **second})
    assert one == make_key(Endpoint.CHAT, "r1", "ann", {**first, **CHAT, **first})


def test_key_ignores_how_an_answer_is_sent_and_the_order_of_fields() -> None:
    base = make_key(Endpoint.CHAT, "r1", "ann", CHAT)
    for same in (
        {**CHAT, "stream": True, "stream_options": {"include_usage": True}},
        {**CHAT, "user": "somebody"},
        {**CHAT, "safety_identifier": "somebody"},
        {**CHAT, "max_tokens": None},
        dict(reversed(CHAT.items())),
    ):
        assert make_key(Endpoint.CHAT, "r1", "ann", same) == base


@given(st.text(), st.text(), st.text(), st.text())
def test_tenant_and_revision_are_separated_in_the_key(a: str, b: str, c: str, d: str) -> None:
    """A tenant's name must not be able to produce another tenant's key."""
    one = make_key(Endpoint.CHAT, a.replace("\0", ""), b.replace("\0", ""), CHAT)
    two = make_key(Endpoint.CHAT, c.replace("\0", ""), d.replace("\0", ""), CHAT)
    same = (a.replace("\0", ""), b.replace("\0", "")) == (c.replace("\0", ""), d.replace("\0", ""))
    assert (one == two) == same


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"top_k": 1, "temperature": 1}, True),
        ({"seed": 3}, True),
        ({}, False),
        ({"temperature": 0.7}, False),
    ],
)
def test_only_greedy_or_seeded_requests_are_deterministic(body: dict, expected: bool) -> None:
    assert is_deterministic(Endpoint.CHAT, body, HONOURS) is expected


def test_a_seed_counts_only_where_the_engine_honours_seeds() -> None:
    assert not is_deterministic(Endpoint.CHAT, {"seed": 1}, frozenset())
    assert not is_deterministic(Endpoint.CHAT, {"seed": 1}, None)
    assert is_deterministic(Endpoint.EMBEDDINGS, {}, None)
    assert is_deterministic(Endpoint.RERANK, {}, None)


# Bounds


def test_expired_answers_are_not_returned() -> None:
    clock = Clock()
    cache = ExactCache(1_000_000, clock)
    cache.put(b"k", entry(), ttl_s=10)
    assert cache.get(b"k") is not None
    clock.now = 10.1
    assert cache.get(b"k") is None
    assert (len(cache), cache.size_bytes) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3000)), max_size=80))
def test_cache_never_exceeds_its_bytes(puts: list[tuple[int, int]]) -> None:
    cache = ExactCache(20_000)
    for key, size in puts:
        cache.put(b"%d" % key, entry(b"x" * size), ttl_s=60)
        assert cache.size_bytes <= 20_000
        assert cache.size_bytes == sum(e.size_bytes for e in cache._entries.values())


def test_the_least_recently_used_is_evicted_first() -> None:
    cache = ExactCache(4 * entry().size_bytes)
    for key in (b"a", b"b", b"c", b"d"):
        cache.put(key, entry(), 60)
    cache.get(b"a")
    cache.put(b"e", entry(), 60)
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None


def test_an_answer_too_large_for_the_cache_is_not_kept() -> None:
    cache = ExactCache(10_000)
    cache.put(b"k", entry(b"x" * 9_000), 60)
    assert len(cache) == 0


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 30), st.sampled_from("abc"), st.integers(1, 2000)),
        st.tuples(st.just("get"), st.integers(0, 30), st.just(""), st.just(0)),
        st.tuples(st.just("forget"), st.just(0), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("free"), st.just(0), st.just(""), st.just(0)),
    ),
    max_size=120,
)


@given(operations)
def test_invalidation_is_immediate_and_sizes_stay_correct(steps: list[tuple]) -> None:
    """Compared with a plain dictionary that checks every answer."""
    cache = ExactCache(40_000)
    known: dict[bytes, Entry] = {}
    for what, number, tenant, size in steps:
        key = b"%d" % number
        if what == "put":
            made = entry(b"x" * size, Owner(tenant=tenant))
            cache.put(key, made, 60)
            known[key] = made
        elif what == "get":
            found = cache.get(key)
            assert found is None or found is known.get(key)
        elif what == "forget":
            cache.invalidate(lambda owner, tenant=tenant: owner.tenant == tenant)
            known = {k: e for k, e in known.items() if e.owner.tenant != tenant}
        else:
            cache.free()
        there = {k: e for k, e in known.items() if cache.get(k) is e}
        assert len(cache) == len(there)
        assert cache.size_bytes == sum(e.size_bytes for e in there.values()) <= 40_000
        assert sum(count for count, _ in cache.sizes().values()) == len(there)
    while cache.free():
        pass
    assert len(cache._entries) == len(cache)


def test_freeing_is_done_in_pieces() -> None:
    cache = ExactCache(10_000_000)
    for number in range(2500):
        cache.put(b"%d" % number, entry(owner=Owner(tenant="a")), 60)
    cache.put(b"kept", entry(owner=Owner(tenant="b")), 60)
    assert cache.invalidate(lambda owner: owner.tenant == "a") == 2500
    assert (len(cache), cache.get(b"7")) == (1, None)
    assert cache.size_bytes == entry().size_bytes
    pieces = 1
    while cache.free():
        pieces += 1
    assert pieces == 3
    assert len(cache._entries) == 1


# Answers


async def test_second_identical_request_is_a_hit_with_an_id_of_its_own(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        first = await gateway.ask(CHAT)
        second = await gateway.ask(CHAT)
        assert first.headers[b"x-thrifty-cache"] == b"miss"
        assert second.headers[b"x-thrifty-cache"] == b"hit"
        assert second.headers[b"x-thrifty-replica"] == b"echo-0"
        assert second.headers[b"x-thrifty-version"] == b"echo@v1"
        one, two = first.json(), second.json()
        assert one.pop("id") != two.pop("id")
        assert one == two


@pytest.mark.parametrize("first_streams", [False, True])
@pytest.mark.parametrize("second_streams", [False, True])
async def test_a_hit_is_returned_whole_or_as_a_stream(
    tmp_path: Path, first_streams: bool, second_streams: bool
) -> None:
    async with running_echo(tpot_s=0.001) as url, running_gateway(tmp_path, [url]) as gateway:
        await gateway.ask({**CHAT, "stream": first_streams})
        usage = {"stream_options": {"include_usage": True}} if second_streams else {}
        reply = await gateway.ask({**CHAT, "stream": second_streams, **usage})
        assert reply.headers[b"x-thrifty-cache"] == b"hit"
        if second_streams:
            assert reply.body.endswith(b"data: [DONE]\n\n")
            text = "".join(
                choice["delta"].get("content") or ""
                for event in reply.events
                for choice in event["choices"]
            )
            assert reply.events[0]["choices"][0]["delta"]["role"] == "assistant"
            assert reply.events[-2]["choices"][0]["finish_reason"] == "stop"
            assert reply.events[-1]["usage"]["completion_tokens"] == 17
            assert len({event["id"] for event in reply.events}) == 1
        else:
            text = reply.json()["choices"][0]["message"]["content"]
            assert reply.json()["usage"]["completion_tokens"] == 17
        assert text == "The same question"


async def test_a_streamed_hit_leaves_usage_out_unless_asked(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        await gateway.ask(CHAT)
        reply = await gateway.ask({**CHAT, "stream": True})
        assert not any("usage" in event for event in reply.events)


async def test_completions_are_cached_both_ways(tmp_path: Path) -> None:
    body = {"model": "echo", "prompt": ["ab", "cd"], "temperature": 0, "echo": True}
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        first = await gateway.ask({**body, "stream": True}, "/v1/completions")
        second = await gateway.ask(body, "/v1/completions")
        assert second.headers[b"x-thrifty-cache"] == b"hit"
        assert [c["text"] for c in second.json()["choices"]] == ["abab", "cdcd"]
        streamed = ["".join(c["text"] for e in first.events for c in e["choices"] if c["index"] == i)
                    for i in (0, 1)]  # fmt: skip
        assert streamed == ["abab", "cdcd"]


async def test_sampled_requests_bypass_the_cache(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        for _ in range(2):
            reply = await gateway.ask({**CHAT, "temperature": 0.7})
            assert reply.headers[b"x-thrifty-cache"] == b"bypass"
        assert len(gateway.cache) == 0


@pytest.mark.parametrize("control", ["no-store", "no-cache", "max-age=0, no-cache"])
async def test_a_client_can_refuse_the_cache(tmp_path: Path, control: str) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        await gateway.ask(CHAT)
        reply = await gateway.ask(CHAT, headers={"cache-control": control})
        assert reply.headers[b"x-thrifty-cache"] == b"bypass"


async def test_the_spec_can_turn_the_cache_off_or_on_for_all(tmp_path: Path) -> None:
    for when, result in (("never", b"bypass"), ("always", b"hit")):
        folder = tmp_path / when
        folder.mkdir()
        row = echo_deployment(cache_when=when)
        async with running_echo() as url, running_gateway(folder, [url], deployment=row) as gateway:
            body = {**CHAT, "temperature": 1.0}
            await gateway.ask(body)
            reply = await gateway.ask(body)
            assert reply.headers[b"x-thrifty-cache"] == result


async def test_errors_are_not_cached(tmp_path: Path) -> None:
    async with running_echo(context_length=100) as url, running_gateway(tmp_path, [url]) as gateway:
        long = {**CHAT, "messages": [{"role": "user", "content": "x" * 200}]}
        for _ in range(2):
            reply = await gateway.ask(long)
            assert reply.status == 400
            assert reply.error["code"] == "context_length_exceeded"
            assert "100" in reply.error["message"]
            assert "202" in reply.error["message"]
        assert len(gateway.cache) == 0


async def test_tenants_do_not_share_answers(tmp_path: Path) -> None:
    from thrifty.db.keys import create_key

    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        keys = {}
        for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b")):
            _, keys[name] = await asyncio.to_thread(
                create_key, gateway.database, name, "user", tenant
            )
        await gateway.reader.refresh()
        results = []
        for name in ("a1", "a2", "b1", "b1"):
            reply = await gateway.ask(CHAT, headers={"authorization": f"Bearer {keys[name]}"})
            results.append(reply.headers[b"x-thrifty-cache"])
        assert results == [b"miss", b"hit", b"miss", b"hit"]


# Requests that are not parsed again


async def test_a_known_body_is_invalid_after_its_deployment_changed(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        body = {**CHAT, "max_tokens": 40}
        results = [(await gateway.ask(body)).headers[b"x-thrifty-cache"] for _ in range(4)]
        assert results == [b"miss", b"hit", b"hit", b"hit"]
        for control in ("no-store", "no-cache"):
            reply = await gateway.ask(body, headers={"cache-control": control})
            assert reply.headers[b"x-thrifty-cache"] == b"bypass"
            assert reply.json()["choices"][0]["message"]["content"] == "The same question"
        await asyncio.to_thread(save_deployment, gateway.database, echo_deployment(max_tokens=20))
        await gateway.reader.refresh()
        reply = await gateway.ask(body)
        assert (reply.status, reply.error["code"]) == (400, "max_tokens_exceeded")
        await asyncio.to_thread(
            save_deployment, gateway.database, echo_deployment(cache_when="never")
        )
        await gateway.reader.refresh()

        async def bypassed() -> bool:
            return (await gateway.ask(body)).headers[b"x-thrifty-cache"] == b"bypass"

        await until(bypassed)


@pytest.mark.slow
async def test_a_known_body_without_a_cached_answer_is_forwarded(tmp_path: Path) -> None:
    row = echo_deployment(cache_ttl_s=2.0)
    async with running_echo() as url, running_gateway(tmp_path, [url], deployment=row) as gateway:
        for stream in (False, True):
            body = {**CHAT, "user": f"u{stream}", "stream": stream}
            replies = [await gateway.ask(body) for _ in range(3)]
            await asyncio.sleep(2.05)
            replies.append(await gateway.ask(body))
            replies.append(await gateway.ask(body))
            results = [reply.headers[b"x-thrifty-cache"] for reply in replies]
            assert results[-2:] == [b"miss", b"hit"]
            assert b"hit" in results[:3]


async def test_the_same_bytes_to_another_path_are_another_request(tmp_path: Path) -> None:
    body = {"model": "echo", "prompt": "hello", "temperature": 0}
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        for _ in range(3):
            assert (await gateway.ask(body, "/v1/completions")).status == 200
        reply = await gateway.ask(body, "/v1/chat/completions")
        assert (reply.status, reply.error["param"]) == (400, "messages")


def test_shortcuts_are_bounded() -> None:
    class Asked:
        path = "/v1/chat/completions"

        def __init__(self, body: bytes) -> None:
            self.body = body
            self.headers: dict[bytes, bytes] = {}
            self.received_s = 0.0

    table = RoutingTable(make_policy)
    table.apply(FleetState(1, [echo_deployment()], [], []))
    deployment = table.deployments["echo"]

    def make_call(body: bytes) -> Call:
        call = Call(Asked(body), Endpoint.CHAT)  # type: ignore[arg-type]
        call.parsed = ParsedRequest({"model": "echo"}, stream=False)
        call.target = Target(deployment, deployment.main, deployment.main, "")
        return call

    shortcuts = Shortcuts(100_000)
    for number in range(100):
        call = make_call(b"x" * 200 + b"%d" % number)
        shortcuts.note(call, b"k")
        shortcuts.note(call, b"k")
        assert shortcuts.size_bytes <= 100_000
    assert 40 < len(shortcuts) < 60
    before = len(shortcuts)
    shortcuts.note(make_call(b"x" * 40_000), b"k")
    assert len(shortcuts) == before
    assert shortcuts.take(make_call(b"x" * 40_000), {}) is None


# Concurrent requests


@pytest.mark.parametrize("streams", [False, True])
async def test_identical_requests_in_flight_share_one_generation(
    tmp_path: Path, streams: bool
) -> None:
    async with (
        running_echo(ttft_s=0.2, tpot_s=0.005) as url,
        running_gateway(tmp_path, [url]) as gateway,
    ):
        body = {**CHAT, "stream": streams}
        replies = await asyncio.gather(*(gateway.ask(body) for _ in range(12)))
        results = sorted(reply.headers[b"x-thrifty-cache"] for reply in replies)
        assert results == [b"hit"] * 11 + [b"miss"]
        texts = set()
        for reply in replies:
            if streams:
                assert reply.body.endswith(b"[DONE]\n\n")
                parts = [e["choices"][0]["delta"].get("content") or "" for e in reply.events]
                texts.add("".join(parts))
            else:
                texts.add(reply.json()["choices"][0]["message"]["content"])
        assert texts == {"The same question"}
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_shared_requests_total") == 11
        assert metrics.metric("thrifty_completion_tokens_total", replica="echo-0") == 17


async def test_a_follower_gets_the_stream_live(tmp_path: Path) -> None:
    """The first token arrives while the generation still runs."""
    from thrifty.http.client import HttpClient
    from thrifty.http.origin import parse_origin

    async with (
        running_echo(ttft_s=0.05, tpot_s=0.2) as url,
        running_gateway(tmp_path, [url]) as gateway,
    ):
        body = json.dumps({**CHAT, "stream": True}).encode()
        leader = asyncio.ensure_future(gateway.ask(body))
        client = HttpClient()

        async def running() -> int:
            return int(json.loads((await client.fetch(f"{url}/load"))[1])["running"])

        await until(running)
        answer = await client.open(
            parse_origin(gateway.url), "POST", "/v1/chat/completions", body=body
        )
        assert answer.headers[b"x-thrifty-cache"] == b"hit"
        await answer.wait_body()
        assert await running() == 1, "the first token has come, the last has not been made"
        assert (await answer.read()).endswith(b"[DONE]\n\n")
        await leader
        client.close()


async def test_followers_continue_when_the_leader_disconnects(tmp_path: Path) -> None:
    from thrifty.http.client import HttpClient
    from thrifty.http.origin import parse_origin

    async with (
        running_echo(ttft_s=0.1, tpot_s=0.2) as url,
        running_gateway(tmp_path, [url]) as gateway,
    ):
        body = json.dumps({**CHAT, "stream": True}).encode()
        client = HttpClient()
        leader = await client.open(
            parse_origin(gateway.url), "POST", "/v1/chat/completions", body=body
        )
        follower = asyncio.ensure_future(gateway.ask({**CHAT, "stream": True}))
        other = asyncio.ensure_future(gateway.ask(CHAT))

        async def joined() -> bool:
            metrics = await gateway.ask(b"", "/metrics", method="GET")
            return metrics.metric("thrifty_shared_requests_total") == 2

        await until(joined)
        leader.abort()
        streamed, whole = await asyncio.gather(follower, other)
        assert streamed.body.endswith(b"[DONE]\n\n")
        assert whole.json()["choices"][0]["message"]["content"] == "The same question"


async def test_a_generation_nobody_waits_for_is_cancelled(tmp_path: Path) -> None:
    from thrifty.http.client import HttpClient
    from thrifty.http.origin import parse_origin

    async with running_echo(tpot_s=0.02) as url, running_gateway(tmp_path, [url]) as gateway:
        client = HttpClient()
        body = json.dumps({**CHAT, "stream": True, "ignore_eos": True, "max_tokens": 5000}).encode()
        answer = await client.open(
            parse_origin(gateway.url), "POST", "/v1/chat/completions", body=body
        )
        answer.abort()
        for _ in range(100):
            await asyncio.sleep(0.02)
            _, load = await client.fetch(f"{url}/load")
            if json.loads(load)["running"] == 0:
                break
        assert json.loads(load)["running"] == 0
        client.close()


async def test_the_same_error_goes_to_all_who_shared(tmp_path: Path) -> None:
    async with running_echo(context_length=50) as url, running_gateway(tmp_path, [url]) as gateway:
        long = {**CHAT, "messages": [{"role": "user", "content": "x" * 200}]}
        replies = await asyncio.gather(*(gateway.ask(long) for _ in range(4)))
        assert {reply.status for reply in replies} == {400}
        assert {reply.error["code"] for reply in replies} == {"context_length_exceeded"}


# Assembled streams


@pytest.mark.parametrize("message", [{"content": "Hi"}, {"content": None}, {
    "content": None, "tool_calls": [{"id": "a", "type": "function",
                                     "function": {"name": "f", "arguments": "{}"}}] * 2}])  # fmt: skip
def test_a_replayed_stream_has_the_log_probabilities_once(message: dict[str, Any]) -> None:
    logprobs = {"content": [{"token": "a", "logprob": -1.0, "bytes": None, "top_logprobs": []}]}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
    chunks = make_chunks({"object": "chat.completion", "choices": [choice]}, PLAIN)
    found = [
        json.loads(one.removeprefix(b"data: ").replace(ID_MARK, b""))["choices"][0]["logprobs"]
        for one in chunks
    ]
    assert [one for one in found if one is not None] == [logprobs]


def test_assembling_refuses_a_stream_that_did_not_end() -> None:
    chunk = {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}],
    }
    assert assemble_answer([chunk]) is None
    assert assemble_answer([]) is None
    assert assemble_answer([{"object": "other"}]) is None


def test_assembling_joins_tool_calls_that_came_in_pieces() -> None:
    def chunk(delta: dict, finish: str | None = None) -> dict:
        return {
            "id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }  # fmt: skip

    body = assemble_answer(
        [
            chunk({"role": "assistant"}),
            chunk(
                {
                    "tool_calls": [
                        {"index": 0, "id": "t1", "function": {"name": "f", "arguments": '{"a'}}
                    ]
                }
            ),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '": 1}'}}]}),
            chunk(
                {
                    "tool_calls": [
                        {"index": 1, "id": "t2", "function": {"name": "g", "arguments": "{}"}}
                    ]
                }
            ),
            chunk(
                {
                    "tool_calls": [
                        {
                            "index": 2,
                            "id": "t3",
                            "type": "custom",
                            "custom": {"name": "h", "input": "a"},
                        }
                    ]
                }
            ),
            chunk({"tool_calls": [{"index": 2, "custom": {"input": "b"}}]}),
            chunk({}, "tool_calls"),
        ]
    )
    assert body is not None
    choice = json.loads(body)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    *functions, custom = choice["message"]["tool_calls"]
    assert [c["function"] for c in functions] == [
        {"name": "f", "arguments": '{"a": 1}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert custom == {"id": "t3", "type": "custom", "custom": {"name": "h", "input": "ab"}}
