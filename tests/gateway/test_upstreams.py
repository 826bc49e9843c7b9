"""Servers that others run, as strange as they come: their errors, streams, statuses, base URLs."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from tests.http.raw import Peer, Scripted, scripted
from tests.parts import GatewayUnderTest, Reply, make_deployment, running_gateway, until
from thrifty.db.tables import requests

CHAT: dict[str, Any] = {
    "model": "echo", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0,
}  # fmt: skip
STREAM = {**CHAT, "stream": True}
Respond = Callable[[bytes], Sequence[bytes]]
"""The pieces of a whole response to a request."""


def head(status: int = 200, kind: str = "application/json", *lines: str) -> bytes:
    """A response's head; its body ends with the connection."""
    fields = [f"HTTP/1.1 {status} X", f"content-type: {kind}", "connection: close", *lines]
    return "".join(f"{field}\r\n" for field in [*fields, ""]).encode()


def sse(*events: bytes) -> bytes:
    """A stream's head and its events."""
    return head(kind="text/event-stream") + b"".join(events)


def read_body(request: bytes) -> Any:
    return json.loads(request.partition(b"\r\n\r\n")[2])


@contextlib.asynccontextmanager
async def remote(
    folder: Path, respond: Respond, path: str = "", **settings: Any
) -> AsyncIterator[tuple[GatewayUnderTest, Scripted]]:
    """A gateway in front of a server that answers each request with `respond`."""

    async def serve(state: Scripted, peer: Peer) -> None:
        request = await peer.read_request()
        state.requests.append(request)
        await peer.send(*respond(request))

    deployment = make_deployment(engine="remote", **settings)
    async with (
        scripted(serve) as server,
        running_gateway(folder, [server.url + path], deployment=deployment) as gateway,
    ):
        yield gateway, server


def chunk(content: str | None = None, **fields: Any) -> bytes:
    """The JSON of a chunk."""
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": None, **fields}
    return msgspec.json.encode(
        {"id": "up-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
    )


COUNTS = {"prompt_tokens": 3, "completion_tokens": 2}
END = chunk(finish_reason="stop")
USAGE = msgspec.json.encode(
    {"id": "up-1", "object": "chat.completion.chunk", "choices": [], "usage": COUNTS}
)
MESSAGE = {"role": "assistant", "content": "Hi there"}
WHOLE = msgspec.json.encode(
    {"id": "up-1", "object": "chat.completion", "usage": COUNTS,
     "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]}
)  # fmt: skip


def read_text(reply: Reply) -> str:
    """The text of an answer, whole or as a stream, read as the standard says."""
    if reply.headers[b"content-type"].startswith(b"application/json"):
        return str(reply.json()["choices"][0]["message"]["content"])
    text = ""
    for block in reply.body.decode().split("\n\n"):
        lines = [line[5:].removeprefix(" ") for line in block.split("\n") if line[:5] == "data:"]
        if lines and lines != ["[DONE]"]:
            for choice in json.loads("\n".join(lines)).get("choices", ()):
                text += choice["delta"].get("content") or ""
    return text


# Errors


async def test_an_error_may_hold_any_value_in_any_field(tmp_path: Path) -> None:
    """vLLM's integer as a code ended /metrics for good, and the log on PostgreSQL."""
    values = [
        500, 10**30, 1.5, True, "", "x" * 5000, "a\nb\x00c\u202e", ["list"], {"a": {"b": 1}},
        "\U0001f600", '"}\n# HELP x',
    ]  # fmt: skip

    def respond(request: bytes) -> list[bytes]:
        value = values[read_body(request)["seed"]]
        fault = {"message": value, "type": value, "param": value, "code": value}
        return [head(500), json.dumps({"error": fault}).encode()]

    async with remote(tmp_path, respond) as (gateway, _):
        replies = await asyncio.gather(
            *(gateway.ask({**CHAT, "seed": number}) for number in range(len(values)))
        )
        for reply in replies:
            assert reply.status == 500
            assert len(reply.body) < 5000
            for name in ("code", "type"):
                assert isinstance(reply.error[name], str)
                assert 0 < len(reply.error[name]) <= 64
                assert reply.error[name].isprintable()
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.status == 200
        assert metrics.metric("thrifty_errors_total", kind="500") == 1
        assert metrics.metric("thrifty_errors_total", kind="engine_error") == 1

        def read_errors() -> list[str]:
            with gateway.database.begin() as connection:
                return list(connection.execute(select(requests.c.error)).scalars())

        await until(lambda: len(read_errors()) == len(values))
        assert all(0 < len(error) <= 64 for error in read_errors())


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"error": "boom"}', b'{"error": null}', b'{"error": []}', b"\xff\x00",
     b'{"error": {}}', b'{"error":' * 20_000],
)  # fmt: skip
async def test_an_error_in_no_known_shape_is_a_502(tmp_path: Path, body: bytes) -> None:
    async with remote(tmp_path, lambda _: [head(500, "text/html"), body]) as (gateway, _):
        reply = await gateway.ask(CHAT)
        assert (reply.status, reply.error["code"]) == (502, "engine_error")
        assert "answered 500" in reply.error["message"]
        assert (await gateway.ask(b"", "/metrics", method="GET")).status == 200


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed_and_told(tmp_path: Path, status: int) -> None:
    def respond(_: bytes) -> list[bytes]:
        return [head(status, "text/plain", "location: http://secret.example/v1?token=1")]

    async with remote(tmp_path, respond) as (gateway, _):
        for body in (CHAT, STREAM):
            reply = await gateway.ask(body)
            assert (reply.status, reply.error["code"]) == (502, "upstream_redirect")
            assert b"location" not in reply.headers
            assert b"secret" not in reply.body


@pytest.mark.parametrize("status", [201, 204, 206, 299, 600, 999])
async def test_a_status_that_is_no_answer_is_a_502(tmp_path: Path, status: int) -> None:
    async with remote(tmp_path, lambda _: [head(status), WHOLE]) as (gateway, _):
        reply = await gateway.ask(CHAT)
        assert (reply.status, reply.error["type"]) == (502, "server_error")


async def test_only_harmless_headers_are_passed_on(tmp_path: Path) -> None:
    def respond(request: bytes) -> list[bytes]:
        kind = "x" * 1000 if read_body(request)["seed"] else "application/problem+json; a=b"
        lines = ("retry-after: 7", "set-cookie: a=b", "transfer-encoding-x: y")
        return [head(429, kind, *lines), b'{"error": {"message": "slow"}}']

    async with remote(tmp_path, respond) as (gateway, _):
        reply = await gateway.ask({**CHAT, "seed": 0})
        assert reply.headers[b"content-type"] == b"application/problem+json; a=b"
        assert (reply.status, reply.headers[b"retry-after"]) == (429, b"7")
        assert b"set-cookie" not in reply.headers
        reply = await gateway.ask({**CHAT, "seed": 1})
        assert reply.headers[b"content-type"] == b"application/json"


async def test_a_coded_answer_is_not_asked_for_and_not_passed_on(tmp_path: Path) -> None:
    response = [head(200, "application/json", "content-encoding: gzip"), gzip.compress(WHOLE)]
    async with remote(tmp_path, lambda _: response) as (gateway, server):
        reply = await gateway.ask(CHAT)
        assert (reply.status, reply.error["code"]) == (502, "replica_lost")
        assert "content coding" in reply.error["message"]
        assert b"accept-encoding: identity\r\n" in server.requests[0]


# Streams

FORMS: dict[str, tuple[bytes, ...]] = {
    "plain": (b"data: %b\n\n" % chunk("Hi "), b"data: %b\n\n" % chunk("there"),
              b"data: %b\n\n" % END, b"data: %b\n\n" % USAGE, b"data: [DONE]\n\n"),
    "comments": (b": working\n\n", b"data: %b\n\n: ping\n\n" % chunk("Hi "), b":\n\n",
                 b": x\ndata: %b\n\n" % chunk("there"), b"data: %b\n\ndata: [DONE]\n\n: bye\n\n" % END),
    "no space": (b"data:%b\n\ndata:%b\n\n" % (chunk("Hi "), chunk("there")),
                 b"data:%b\n\ndata:[DONE]\n\n" % END),
    "CRLF": (b"data: %b\r\n\r\ndata: %b\r\n\r\n" % (chunk("Hi "), chunk("there")),
             b"data: %b\r\n\r\ndata: [DONE]\r\n\r\n" % END),
    "CR": (b"data: %b\r\rdata: %b\r\r" % (chunk("Hi "), chunk("there")),
           b"data: %b\r\rdata: [DONE]\r\r" % END),
    "mixed": (b"data: %b\r\n\ndata: %b\n\r" % (chunk("Hi "), chunk("there")),
              b"data: %b\n\r\ndata: [DONE]\r\r\n" % END),
    "Azure": (b'data: {"choices":[],"id":"","object":"","model":"","prompt_filter_results":[{"a":1}]}\n\n',
              b"data: %b\n\ndata: %b\n\n" % (chunk("Hi "), chunk("there")),
              b"data: %b\n\ndata: [DONE]\n\n" % END),
    "several lines": (b"data: %b\n\n" % chunk("Hi ").replace(b",", b",\ndata:"),
                      b"data: %b\n\n" % chunk("there").replace(b",", b"\ndata: ,"),
                      b"data: %b\n\ndata: [DONE]\n\n" % END),
    "no last blank line": (b"data: %b\n\ndata: %b\n\n" % (chunk("Hi "), chunk("there")),
                           b"data: %b\n\ndata: [DONE]" % END),
    "no mark": (b"data: %b\n\ndata: %b\n\n" % (chunk("Hi "), chunk("there")), b"data: %b\n\n" % END),
    "no mark and no last blank line": (b"data: %b\n\ndata: %b\n\n" % (chunk("Hi "), chunk("there")),
                                       b"data: %b\r" % END),
    "fields": (b"retry: 100\n\n", b"event: message\nid: 1\ndata: %b\n\n" % chunk("Hi "),
               b"id: 2\ndata: %b\nevent: message\n\n" % chunk("there"),
               b"id\ndata: %b\n\nevent: done\ndata: [DONE]\n\nid: 9\n\n" % END),
    "BOM": (b"\xef\xbb\xbfdata: %b\n\n" % chunk("Hi "), b"data: %b\n\n" % chunk("there"),
            b"data: %b\n\ndata: [DONE]\n\n" % END),
}  # fmt: skip
"""The same answer in every form of an event stream that the standard allows."""


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("form", FORMS)
async def test_every_form_of_a_stream_is_read_cached_and_replayed(
    tmp_path: Path, form: str, bytewise: bool
) -> None:
    """An upstream's comment made the exact cache give raw events as JSON, and a 500 as a stream."""
    events = b"".join(FORMS[form])
    pieces = [bytes([byte]) for byte in events] if bytewise else list(FORMS[form])

    async with remote(tmp_path, lambda _: [sse(), *pieces]) as (gateway, server):
        first = await gateway.ask(STREAM)
        assert first.status == 200
        assert read_text(first) == "Hi there"
        ends = [line for line in first.body.split(b"\n") if line.startswith(b"data")][-1]
        assert ends.removeprefix(b"data:").strip() == b"[DONE]"
        assert b"\r" not in first.body
        assert b"usage" not in first.body
        assert b"up-1" not in first.body
        if form in ("comments", "fields"):
            # Comments keep connections alive, and are the client's to pass over.
            assert b": working" in first.body or b"retry: 100" in first.body
        for body in (CHAT, STREAM, CHAT):
            reply = await gateway.ask(body)
            assert (reply.status, reply.headers[b"x-thrifty-cache"]) == (200, b"hit")
            assert read_text(reply) == "Hi there"
        assert len(server.requests) == 1


NOT_UNDERSTOOD: dict[str, bytes] = {
    "not JSON": sse(b"data: %b\n\ndata: {oops\n\ndata: %b\n\ndata: [DONE]\n\n" % (chunk("a"), END)),
    "error": sse(b'data: %b\n\ndata: {"error": {"message": "x"}}\n\n' % chunk("a")),
    "error event": sse(b"data: %b\n\nevent: error\ndata: out of memory\n\n" % chunk("a")),
    "no end": sse(b"data: %b\n\n" % chunk("a")),
    "end without a reason": sse(b"data: %b\n\ndata: [DONE]\n\n" % chunk("a")),
    "cut": sse(b'data: %b\n\ndata: {"id": "up-1", "cho' % chunk("a")),
    "another dialect": sse(b'event: content\ndata: {"type": "text", "text": "a"}\n\n'),
    "only comments": sse(b": a\n\n: b\n\n"),
    "a choice too few": sse(b"data: %b\n\ndata: %b\n\n" % (chunk("a", index=1),
                            chunk(index=1, finish_reason="stop"))),
    "JSON of another kind": head() + b'{"id": "a", "object": "thing", "choices": []}',
    "no choices": head() + b'{"id": "a", "object": "chat.completion", "choices": []}',
    "no message": head() + b'{"id": "a", "object": "chat.completion", "choices": [{"index": 0, '
                           b'"finish_reason": "stop"}]}',
    "calls that are none": head() + WHOLE.replace(b'"Hi there"', b'null,"tool_calls":[1]'),
    "a failed choice": head() + WHOLE.replace(b'"index"', b'"error":{"code":502},"index"'),
    "a choice that ends in an error": head() + WHOLE.replace(b'"stop"', b'"error"'),
    "an error beside choices": head() + WHOLE.replace(b'"object"', b'"error":{"code":502},"object"'),
    "a failed choice as a stream": sse(b"data: %b\n\ndata: %b\n\ndata: [DONE]\n\n" % (
        chunk("a"), chunk(finish_reason="error", error={"code": 502}))),
    "an error that ends no choice": sse(b"data: %b\n\ndata: %b\n\ndata: [DONE]\n\n" % (
        chunk("a", error={"code": 502}), END)),
    "events called JSON": head() + b"data: %b\n\ndata: %b\n\n" % (chunk("a"), END),
    "JSON called events": sse() + WHOLE,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
async def test_what_cannot_be_replayed_is_passed_on_and_not_cached(
    tmp_path: Path, name: str
) -> None:
    response = NOT_UNDERSTOOD[name]
    content = response.partition(b"\r\n\r\n")[2]
    async with remote(tmp_path, lambda _: [response]) as (gateway, server):
        for number, body in enumerate((STREAM, CHAT, STREAM), start=1):
            reply = await gateway.ask(body)
            assert reply.status == 200
            assert reply.headers[b"x-thrifty-cache"] == b"miss"
            assert len(server.requests) == number
            if b"up-1" not in content and b'"id"' not in content:
                assert reply.body == content
        assert len(gateway.cache) == 0


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (head() + b'{"error": {"message": "no credits", "code": 402}}', "no credits"),
        (head() + b'{"error": "down"}', "a replica answered 200"),
        (head(kind="text/html") + b"<html>Hello</html>", "a replica answered 200: <html>Hello"),
        (head(), "a replica answered 200"),
        (head() + b"\xff\xfe\x00", "a replica answered 200"),
        (head() + b'{"choices": null}', "a replica answered 200"),
    ],
    ids=["error", "text", "page", "nothing", "bytes", "no choices"],
)
async def test_what_is_no_answer_of_a_model_is_an_error_whatever_its_status(
    tmp_path: Path, response: bytes, said: str
) -> None:
    async with remote(tmp_path, lambda _: [response]) as (gateway, server):
        for body in (CHAT, STREAM):
            reply = await gateway.ask(body)
            assert (reply.status, reply.error["type"]) == (502, "server_error")
            assert said in reply.error["message"]
        assert len(server.requests) > 2, "another replica may answer"
        assert len(gateway.cache) == 0


async def test_a_key_that_is_refused_is_the_operators_and_not_shown(tmp_path: Path) -> None:
    content = b'{"error": {"message": "Incorrect API key provided: sk-ours", "code": "invalid"}}'
    async with remote(tmp_path, lambda _: [head(401), content]) as (gateway, _):
        reply = await gateway.ask(CHAT)
        assert (reply.status, reply.error["code"]) == (502, "upstream_credentials")
        assert b"sk-ours" not in reply.body
        assert "engine.key_env" in reply.error["message"]


async def test_an_empty_stream_is_a_lost_replica(tmp_path: Path) -> None:
    async with remote(tmp_path, lambda _: [sse()]) as (gateway, server):
        reply = await gateway.ask(STREAM)
        assert (reply.status, reply.error["code"]) == (502, "replica_lost")
        assert len(server.requests) == 2


async def test_a_stream_that_nobody_asked_for_becomes_a_whole_answer(tmp_path: Path) -> None:
    for kind in ("Text/Event-Stream", "text/event-stream ; charset=utf-8"):
        events = b"".join(FORMS["comments"])
        (tmp_path / kind[:4]).mkdir()
        async with remote(tmp_path / kind[:4], lambda _, k=kind, e=events: [head(kind=k), e]) as (
            gateway,
            _,
        ):
            reply = await gateway.ask(CHAT)
            assert reply.headers[b"content-type"] == b"application/json"
            assert reply.json()["id"].startswith("chatcmpl-")
            assert read_text(reply) == "Hi there"


async def test_a_whole_answer_to_who_asked_for_a_stream_becomes_one(tmp_path: Path) -> None:
    async with remote(tmp_path, lambda _: [head(), WHOLE]) as (gateway, server):
        options = {"stream_options": {"include_usage": True}}
        for body in (STREAM, {**STREAM, "temperature": 1}, {**STREAM, "temperature": 1, **options}):
            reply = await gateway.ask(body)
            assert reply.headers[b"content-type"].startswith(b"text/event-stream")
            assert reply.headers[b"x-thrifty-cache"] in (b"miss", b"bypass")
            assert read_text(reply) == "Hi there"
            assert reply.body.endswith(b"data: [DONE]\n\n")
            assert (b"prompt_tokens" in reply.body) == ("stream_options" in body)
            assert b"up-1" not in reply.body
        assert read_text(await gateway.ask(CHAT)) == "Hi there"
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    "events",
    [
        b"data: %b\n\n" % chunk("a"),
        b'data: %b\n\ndata: {"id": "up-1", "cho' % chunk("a"),
        b"data: %b\n\n: ping\n\n" % chunk("a"),
        b"data: %b\n\ndata: %b\n\n" % (END, chunk("a", index=1)),
    ],
    ids=["answer", "event", "comment", "second choice"],
)
async def test_a_stream_that_breaks_off_ends_with_an_error_event(
    tmp_path: Path, events: bytes
) -> None:
    """A body that ends with its connection has no other sign of it."""
    async with remote(tmp_path, lambda _: [sse(events)]) as (gateway, _):
        reply = await gateway.ask(STREAM)
        last = reply.body.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "replica_lost"
        assert b"[DONE]" not in reply.body
        assert b'"cho' not in reply.body.replace(b'"choices"', b"")


async def test_who_follows_a_stream_that_cannot_be_put_together_asks_for_itself(
    tmp_path: Path,
) -> None:
    gate = asyncio.Event()

    async def serve(state: Scripted, peer: Peer) -> None:
        request = await peer.read_request()
        state.requests.append(request)
        if not read_body(request).get("stream"):
            await peer.send(head(), WHOLE)
            return
        await peer.send(sse(b"data: %b\n\n" % chunk("a")))
        await gate.wait()
        await peer.send(b"data: {oops\n\ndata: %b\n\ndata: [DONE]\n\n" % END)

    async with (
        scripted(serve) as server,
        running_gateway(
            tmp_path, [server.url], deployment=make_deployment(engine="remote")
        ) as gateway,
    ):
        leading = asyncio.ensure_future(gateway.ask(STREAM))
        await until(lambda: server.requests)
        following = asyncio.ensure_future(gateway.ask(CHAT))

        async def joined() -> bool:
            page = await gateway.ask(b"", "/metrics", method="GET")
            return page.metric("thrifty_shared_requests_total", deployment="echo") == 1

        await until(joined)
        gate.set()
        assert (await leading).status == 200
        reply = await following
        assert (reply.status, read_text(reply)) == (200, "Hi there")
        assert reply.headers[b"x-thrifty-cache"] == b"miss"


async def test_followers_of_a_strange_stream_get_it_too(tmp_path: Path) -> None:
    for name in ("CR", "no mark"):
        folder = tmp_path / name
        folder.mkdir()
        gate = asyncio.Event()

        async def serve(
            state: Scripted, peer: Peer, name: str = name, gate: asyncio.Event = gate
        ) -> None:
            state.requests.append(await peer.read_request())
            first, *rest = FORMS[name]
            await peer.send(sse(first))
            await gate.wait()
            await peer.send(*rest)

        async with (
            scripted(serve) as server,
            running_gateway(
                folder, [server.url], deployment=make_deployment(engine="remote")
            ) as gateway,
        ):
            asking = [asyncio.ensure_future(gateway.ask(STREAM)) for _ in range(3)]
            asking.append(asyncio.ensure_future(gateway.ask(CHAT)))
            await until(lambda: gateway.parts.table.loaded and server.requests)

            async def joined(gateway: GatewayUnderTest = gateway) -> bool:
                page = await gateway.ask(b"", "/metrics", method="GET")
                return page.metric("thrifty_shared_requests_total", deployment="echo") == 3

            await until(joined)
            gate.set()
            assert [read_text(await reply) for reply in asking] == ["Hi there"] * 4
            assert len(server.requests) == 1


# Token counts


@pytest.mark.parametrize(
    "usage",
    [{"prompt_tokens": 3.0, "completion_tokens": 2}, {"prompt_tokens": None}, {"x": 1}, [], "none",
     {"prompt_tokens": -5, "completion_tokens": 2}, {"prompt_tokens": 10**40}],
)  # fmt: skip
@pytest.mark.parametrize("spaced", [False, True])
async def test_counts_alone_are_withheld_whatever_they_are(
    tmp_path: Path, usage: Any, spaced: bool
) -> None:
    separators = (" , ", " : ") if spaced else (",", ":")
    alone = json.dumps({"id": "up-1", "choices": [], "usage": usage}, separators=separators)
    events = [b"data: %b\n\n" % chunk("Hi"), b"data: %b\n\n" % END,
              b"data: %b\n\n" % alone.encode(), b"data: [DONE]\n\n"]  # fmt: skip
    async with remote(tmp_path, lambda _: [sse(*events)], cache_when="never") as (gateway, _):
        reply = await gateway.ask(STREAM)
        assert [event["choices"] != [] for event in reply.events] == [True, True]
        reply = await gateway.ask({**STREAM, "stream_options": {"include_usage": True}})
        assert reply.events[-1]["usage"] == usage
        assert (await gateway.ask(b"", "/metrics", method="GET")).status == 200


@pytest.mark.parametrize("status", [400, 422])
async def test_stream_options_that_are_refused_are_left_out_from_then_on(
    tmp_path: Path, status: int
) -> None:
    def respond(request: bytes) -> list[bytes]:
        if "stream_options" in read_body(request):
            detail = [{"type": "extra_forbidden", "loc": ["body", "stream_options"]}]
            return [head(status), json.dumps({"detail": detail}).encode()]
        return [sse(*[event for event in FORMS["plain"] if b"usage" not in event])]

    async with remote(tmp_path, respond, cache_when="never") as (gateway, server):
        for _ in range(3):
            reply = await gateway.ask(STREAM)
            assert (reply.status, read_text(reply)) == (200, "Hi there")
        asked = ["stream_options" in read_body(request) for request in server.requests]
        assert asked == [True, False, False, False]
        # The counts are estimated.
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_completion_tokens_total") == 6
        assert metrics.metric("thrifty_prompt_tokens_total") > 0
        # What the client asks for itself is the client's.
        reply = await gateway.ask({**STREAM, "stream_options": {"include_usage": True}})
        assert reply.status == status


CALL = {
    "index": 0,
    "id": "c",
    "type": "function",
    "function": {"name": "f", "arguments": '{"a": 12345678}'},
}


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ([head(), WHOLE.replace(b'"usage"', b'"use"')], 2),
        ([head(), WHOLE.replace(b'"prompt_tokens":3', b'"prompt_tokens":-3')], 2),
        ([head(), WHOLE.replace(b'"Hi there"', b'null,"tool_calls":[%b]' % msgspec.json.encode(CALL))
          .replace(b'"usage"', b'"use"')], 4),
        ([sse(*[event for event in FORMS["plain"] if b"usage" not in event])], 1),
    ],
    ids=["whole", "absurd", "calls", "stream"],
)  # fmt: skip
async def test_tokens_are_estimated_where_none_are_told(
    tmp_path: Path, answer: list[bytes], tokens: int
) -> None:
    async with remote(tmp_path, lambda _: answer, cache_when="never") as (gateway, _):
        assert (await gateway.ask(STREAM if b"event-stream" in answer[0] else CHAT)).status == 200
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_completion_tokens_total") == tokens
        assert metrics.metric("thrifty_prompt_tokens_total") > 0


async def test_pieces_of_calls_and_reasoning_count_as_tokens(tmp_path: Path) -> None:
    deltas = [{"tool_calls": [CALL]}, {"reasoning": "Hm"}, {"reasoning_content": "Hm"}, {"refusal": "No"},
              {"tool_calls": [{"index": 0, "custom": {"input": "x"}}]}, {"content": ""}]  # fmt: skip
    events = [b"data: %b\n\n" % chunk(delta=delta) for delta in deltas]
    answer = sse(*events, b"data: %b\n\ndata: [DONE]\n\n" % END)
    async with remote(tmp_path, lambda _: [answer], takes_stream_options=False) as (gateway, _):
        assert (await gateway.ask(STREAM)).status == 200
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_completion_tokens_total") == 5


async def test_an_error_about_something_else_is_the_clients(tmp_path: Path) -> None:
    body = b'{"error": {"message": "temperature is too high"}}'
    async with remote(tmp_path, lambda _: [head(400), body]) as (gateway, server):
        assert (await gateway.ask(STREAM)).status == 400
        assert len(server.requests) == 1
        await gateway.ask(STREAM)
        assert "stream_options" in read_body(server.requests[-1])


async def test_a_deployment_may_send_no_stream_options(tmp_path: Path) -> None:
    async with remote(tmp_path, lambda _: [sse(*FORMS["plain"])], takes_stream_options=False) as (
        gateway,
        server,
    ):
        assert (await gateway.ask(STREAM)).status == 200
        assert "stream_options" not in read_body(server.requests[0])


# Base URLs


@pytest.mark.parametrize(
    ("path", "chat", "tokenize"),
    [
        ("", "/v1/chat/completions", "/tokenize"),
        ("/v1", "/v1/chat/completions", "/tokenize"),
        ("/v1/", "/v1/chat/completions", "/tokenize"),
        ("/v3", "/v3/chat/completions", "/v3/tokenize"),
        ("/v1beta/openai", "/v1beta/openai/chat/completions", "/v1beta/openai/tokenize"),
        ("/api/paas/v4/", "/api/paas/v4/chat/completions", "/api/paas/v4/tokenize"),
        ("/proxy/v1", "/proxy/v1/chat/completions", "/proxy/tokenize"),
    ],
)
async def test_a_base_url_is_what_stands_before_chat_completions(
    tmp_path: Path, path: str, chat: str, tokenize: str
) -> None:
    async with remote(tmp_path, lambda _: [head(), WHOLE], path) as (gateway, server):
        assert (await gateway.ask(CHAT)).status == 200
        await gateway.ask({"model": "echo", "prompt": "x"}, "/tokenize")
        asked = [request.split(b" ")[1].decode() for request in server.requests]
        assert asked == [chat, tokenize]
