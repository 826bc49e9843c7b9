"""Servers that send too much, or nothing: what an answer may cost the gateway."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gateway.test_upstreams import (
    CHAT,
    END,
    STREAM,
    WHOLE,
    chunk,
    head,
    read_text,
    remote,
    sse,
)
from tests.http.raw import Peer, Scripted, scripted
from tests.parts import JSON_HEADER, make_deployment, running_gateway, until
from thrifty.gateway.forwarding import relay
from thrifty.http import client
from thrifty.http.origin import parse_origin

LIMIT = 100_000


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MAX_EVENT_BYTES", LIMIT)
    monkeypatch.setattr(relay, "MAX_CAPTURED_BYTES", LIMIT)
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 5 * LIMIT)
    monkeypatch.setattr(client, "MAX_OVERHEAD_BYTES", LIMIT)


@pytest.mark.parametrize(
    "pieces",
    [[b":" + b"x" * 999] * 500, [b": x\n" * 250] * 500, [b'data: {"id": "', *[b"x" * 1000] * 500]],
    ids=["comment", "lines", "data"],
)
async def test_an_event_without_end_breaks_the_stream_off(
    tmp_path: Path, pieces: list[bytes]
) -> None:
    """It was kept and copied: 5 GB of memory, and a gateway that stood still for half a minute."""
    first = b"data: %b\n\n" % chunk("a")
    async with remote(tmp_path, lambda _: [sse(first), *pieces]) as (gateway, _):
        reply = await gateway.ask(STREAM)
        assert reply.events[-1]["error"]["code"] == "replica_lost"
        assert len(reply.body) < LIMIT
        assert len(gateway.cache) == 0


async def test_a_whole_answer_is_bounded(tmp_path: Path) -> None:
    body = [WHOLE[:-1] + b',"x":"', *[b"x" * 1000] * 1000, b'"}']
    async with remote(tmp_path, lambda _: [head(), *body]) as (gateway, _):
        reply = await gateway.ask(CHAT)
        assert (reply.status, reply.error["code"]) == (502, "replica_lost")


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nx: ", *[b"x" * 1000] * 500],
        [b"HTTP/1.1 200 OK\r\n", *[b"x: y\r\n" * 200] * 500],
        [b"HTTP/1.1 100 Continue\r\n\r\n" * 50] * 500,
        [head(200, "a/b", "transfer-encoding: chunked"), b"2;", *[b"x" * 1000] * 500],
        [head(200, "a/b", "transfer-encoding: chunked"), b"0\r\n", *[b"x: y\r\n" * 200] * 500],
    ],
    ids=["header", "headers", "informational", "chunk extension", "trailers"],
)
async def test_what_stands_beside_a_body_is_bounded(tmp_path: Path, pieces: list[bytes]) -> None:
    async with remote(tmp_path, lambda _: pieces) as (gateway, _):
        reply = await gateway.ask(CHAT)
        assert (reply.status, reply.error["code"]) == (502, "replica_lost")
        assert "too much" in reply.error["message"]


async def test_a_long_stream_is_passed_on_and_not_kept(tmp_path: Path) -> None:
    events = [b"data: %b\n\n" % chunk("abcd" * 100)] * 500
    whole = b"".join(events) + b"data: %b\n\ndata: [DONE]\n\n" % END
    gate = asyncio.Event()

    async def serve(state: Scripted, peer: Peer) -> None:
        state.requests.append(await peer.read_request())
        await peer.send(sse(whole[:-20]))
        await gate.wait()
        await peer.send(whole[-20:])

    async with (
        scripted(serve) as server,
        running_gateway(
            tmp_path, [server.url], deployment=make_deployment(engine="remote")
        ) as gateway,
    ):
        first = await gateway.client.open(
            parse_origin(gateway.url), "POST", "/v1/chat/completions", headers=JSON_HEADER,
            body=json.dumps(STREAM).encode(),
        )  # fmt: skip
        pieces: list[bytes] = []
        first.attach(pieces.append)
        await until(lambda: sum(map(len, pieces)) > LIMIT)
        another = asyncio.ensure_future(gateway.ask(STREAM))
        await until(lambda: len(server.requests) == 2)
        gate.set()
        assert read_text(await another) == "abcd" * 100 * 500
        await first.done
        assert b"".join(pieces).count(b"abcd" * 100) == 500
        assert len(gateway.cache) == 0


async def test_a_whole_answer_that_stalls_is_given_up(tmp_path: Path) -> None:
    """A client of a server that sent a head and no more waited for ever."""

    async def serve(state: Scripted, peer: Peer) -> None:
        state.requests.append(await peer.read_request())
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n", WHOLE[:50])
        await peer.wait_gone()

    deployment = make_deployment(engine="remote", idle_timeout_s=0.1)
    async with (
        scripted(serve) as server,
        running_gateway(tmp_path, [server.url], deployment=deployment) as gateway,
    ):
        reply = await gateway.ask(CHAT)
        assert (reply.status, reply.error["code"]) == (502, "replica_lost")
        assert "sent nothing" in reply.error["message"]


async def test_trailers_change_nothing(tmp_path: Path) -> None:
    body = b"%x\r\n%b\r\n0\r\ncontent-type: text/html\r\ncontent-encoding: gzip\r\n\r\n"
    response = head(200, "application/json", "transfer-encoding: chunked")
    pieces = [response + body % (len(WHOLE), WHOLE)]
    async with remote(tmp_path, lambda _: pieces) as (gateway, _):
        reply = await gateway.ask(CHAT)
        assert (reply.status, read_text(reply)) == (200, "Hi there")


async def test_a_transfer_coding_is_not_passed_on_as_the_answer(tmp_path: Path) -> None:
    response = head(200, "application/json", "transfer-encoding: gzip, chunked")
    async with remote(tmp_path, lambda _: [response + b"2\r\n\x1f\x8b\r\n0\r\n\r\n"]) as (
        gateway,
        _,
    ):
        reply = await gateway.ask(CHAT)
        assert (reply.status, reply.error["code"]) == (502, "replica_lost")


@pytest.mark.parametrize("number", [b"1e999", b"-1e5000"])
async def test_numbers_out_of_range_are_passed_on_and_not_cached(
    tmp_path: Path, number: bytes
) -> None:
    """They were cached, and each repeat as a stream was a 500."""
    body = WHOLE[:-1] + b',"created":%b}' % number
    async with remote(tmp_path, lambda _: [head(), body]) as (gateway, _):
        for _ in range(2):
            reply = await gateway.ask(CHAT)
            assert (reply.status, reply.headers[b"x-thrifty-cache"]) == (200, b"miss")
            assert (await gateway.ask(STREAM)).status == 200


def _delta(**fields: Any) -> bytes:
    made = msgspec.json.decode(chunk())
    made["choices"][0]["delta"] = fields
    return b"data: %b\n\n" % msgspec.json.encode(made)


async def test_objects_in_pieces_are_cached_as_one(tmp_path: Path) -> None:
    """The last piece was cached alone."""
    events = [
        _delta(function_call={"name": "f", "arguments": ""}, audio={"id": "a"}),
        _delta(function_call={"arguments": '{"a"'}, audio={"data": "AB"}),
        _delta(function_call={"arguments": ":1}"}, audio={"data": "CD", "expires_at": 5}),
        b"data: %b\n\ndata: [DONE]\n\n" % END,
    ]
    async with remote(tmp_path, lambda _: [sse(*events)]) as (gateway, _):
        await gateway.ask(STREAM)
        reply = await gateway.ask(CHAT)
        assert reply.headers[b"x-thrifty-cache"] == b"hit"
        message = reply.json()["choices"][0]["message"]
        assert message["function_call"] == {"name": "f", "arguments": '{"a":1}'}
        assert message["audio"] == {"id": "a", "data": "ABCD", "expires_at": 5}


def _call(**fields: Any) -> dict[str, Any]:
    return {"id": "t", "function": {"name": "f", "arguments": "{}"}, **fields}


@pytest.mark.parametrize(
    "deltas",
    [
        [{"content": "a"}, {"content": 5}],
        [{"tool_calls": [_call(index=0), _call(index=0, id="u")]}],
        [{"tool_calls": [_call(index=2)]}],
        [{"tool_calls": [_call(index=0, function={"name": "f", "arguments": {"a": 1}})]}],
    ],
    ids=["text and number", "two calls in one", "a call is missing", "arguments are no text"],
)
async def test_pieces_that_do_not_fit_are_not_cached(
    tmp_path: Path, deltas: list[dict[str, Any]]
) -> None:
    events = [*(_delta(**delta) for delta in deltas), b"data: %b\n\ndata: [DONE]\n\n" % END]
    async with remote(tmp_path, lambda _: [sse(*events)]) as (gateway, server):
        for number in (1, 2):
            assert (await gateway.ask(STREAM)).status == 200
            assert len(server.requests) == number


async def test_calls_without_numbers_go_on_until_another_is_named(tmp_path: Path) -> None:
    events = [
        _delta(tool_calls=[{"function": {"name": "f", "arguments": "{"}}]),
        _delta(tool_calls=[{"function": {"arguments": "}"}}]),
        _delta(tool_calls=[{"index": None, "function": {"name": "g", "arguments": "{}"}}]),
        b"data: %b\n\ndata: [DONE]\n\n" % END,
    ]
    async with remote(tmp_path, lambda _: [sse(*events)]) as (gateway, _):
        await gateway.ask(STREAM)
        calls = (await gateway.ask(CHAT)).json()["choices"][0]["message"]["tool_calls"]
        assert [json.dumps(call["function"]) for call in calls] == [
            '{"name": "f", "arguments": "{}"}',
            '{"name": "g", "arguments": "{}"}',
        ]
