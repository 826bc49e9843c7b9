"""Answers that are bytes already: the same on the wire as those that are put together."""

from __future__ import annotations

import pytest

from tests.http.raw import Answer, serving
from thrifty.http.exchange import Exchange
from thrifty.http.types import EVENT_STREAM_HEADERS, JSON_TYPE, encode_lines

pytestmark = pytest.mark.usefixtures("either_loop")

BODY = b'{"a": 1}'
HEADERS = [JSON_TYPE, (b"x-request-id", b"r1")]


def answer_whole(exchange: Exchange) -> None:
    if exchange.path == "/ready":
        exchange.respond_ready(encode_lines(HEADERS), BODY)
    else:
        exchange.respond(200, BODY, HEADERS)


def answer_stream(exchange: Exchange) -> None:
    if exchange.path == "/ready":
        exchange.respond_ready(encode_lines(EVENT_STREAM_HEADERS), BODY, stream=True)
    else:
        exchange.start(200, EVENT_STREAM_HEADERS)
        exchange.write(BODY)
        exchange.finish()


@pytest.mark.parametrize("handler", [answer_whole, answer_stream])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("headers", ["", "connection: keep-alive\r\n", "connection: close\r\n"])
async def test_ready_answers_are_what_others_are(handler, version: str, headers: str) -> None:  # type: ignore[no-untyped-def]
    async with serving(handler) as served:
        answers: list[Answer] = []
        for path in ("/ready", "/made"):
            async with served.connect() as client:
                await client.send(
                    f"POST {path} HTTP/{version}\r\nhost: x\r\n{headers}content-length: 0\r\n\r\n".encode()
                )
                answers.append(await client.read_answer())
                if answers[-1].headers.get("connection") == "close":
                    await client.expect_end()
                elif version == "1.1":
                    assert (await client.post(b"", path)).body == BODY
        ready, made = answers
        ready.headers["date"] = made.headers["date"]
        assert ready == made
        assert ready.body == BODY


async def test_a_ready_answer_to_who_is_gone_is_dropped() -> None:
    calls = 0

    def twice(exchange: Exchange) -> None:
        nonlocal calls
        exchange.respond_ready(encode_lines(HEADERS), BODY)
        exchange.respond_ready(encode_lines(HEADERS), b"again")
        calls += 1

    async with serving(twice) as served, served.connect() as client:
        assert (await client.post(b"")).body == BODY
        assert (await client.post(b"")).body == BODY
        assert calls == 2


async def test_a_server_that_drains_says_that_it_closes() -> None:
    async with serving(answer_whole) as served, served.connect() as client:
        served.server.draining = True
        assert (await client.post(b"", "/ready")).headers["connection"] == "close"
