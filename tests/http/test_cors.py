"""CORS: what a browser asks, and what it is told, on every kind of answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.http.raw import Answer, RawClient, Served
from thrifty.http.cors import EXPOSED_HEADERS, Cors
from thrifty.http.exchange import Exchange
from thrifty.http.routes import Route, RouteTable
from thrifty.http.server import HttpServer, ServerLimits
from thrifty.http.types import EVENT_STREAM_HEADERS, JSON_TYPE, encode_lines
from thrifty.openai.errors import bad_request

SOURCE = Path(__file__).parent.parent.parent / "src" / "thrifty"
PAGE = "https://chat.example.com"


def answer_ready(exchange: Exchange) -> None:
    exchange.respond_ready(encode_lines([JSON_TYPE]), b"{}")


def answer_ready_stream(exchange: Exchange) -> None:
    exchange.respond_ready(encode_lines(EVENT_STREAM_HEADERS), b"data: 1\n\n", stream=True)


def answer_stream(exchange: Exchange) -> None:
    exchange.start(200, EVENT_STREAM_HEADERS)
    exchange.write(b"data: 1\n\n")
    exchange.finish()


def answer_error(exchange: Exchange) -> None:
    raise bad_request("no")


def answer_bug(exchange: Exchange) -> None:
    raise ValueError("a bug")


HANDLERS = {
    "/plain": lambda exchange: exchange.respond(200, b"{}"),
    "/ready": answer_ready,
    "/ready-stream": answer_ready_stream,
    "/stream": answer_stream,
    "/error": answer_error,
    "/bug": answer_bug,
}
TABLE = RouteTable([Route("POST", path, None, handler, "") for path, handler in HANDLERS.items()])


def handle(exchange: Exchange) -> None:
    found = TABLE.find(exchange.method, exchange.path)
    if found is None:
        TABLE.answer_unmatched(exchange)
    else:
        found.route.handler(exchange)


class CorsServer:
    """A server with CORS, and a connection to it."""

    def __init__(self, *origins: str) -> None:
        self.server = HttpServer(
            handle, ServerLimits(max_body_bytes=100), cors=Cors(origins) if origins else None
        )

    async def __aenter__(self) -> RawClient:
        port = await self.server.start("127.0.0.1", 0)
        self._connection = Served(self.server, port).connect()
        return await self._connection.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        await self._connection.__aexit__(None, None, None)
        await self.server.drain(0.5)


def cors_of(answer: Answer) -> dict[str, str]:
    return {
        name: value
        for name, value in answer.headers.items()
        if name.startswith("access-control-") or name == "vary"
    }


@pytest.mark.parametrize("path", [*HANDLERS, "/nothing"])
async def test_every_answer_says_who_may_read_it(path: str) -> None:
    exposed = ", ".join(EXPOSED_HEADERS)
    async with CorsServer(PAGE, "http://localhost:3000") as client:
        for origin in (PAGE, "http://localhost:3000"):
            answer = await client.post(b"", path, f"origin: {origin}\r\n")
            assert cors_of(answer) == {
                "access-control-allow-origin": origin,
                "access-control-expose-headers": exposed,
                "vary": "Origin",
            }
        for headers in ("", "origin: https://evil.example\r\n", "origin: null\r\n"):
            assert cors_of(await client.post(b"", path, headers)) == {"vary": "Origin"}
    async with CorsServer("*") as client:
        for headers in ("", "origin: https://evil.example\r\n"):
            assert cors_of(await client.post(b"", path, headers)) == {
                "access-control-allow-origin": "*",
                "access-control-expose-headers": exposed,
            }
    async with CorsServer() as client:
        assert cors_of(await client.post(b"", path, f"origin: {PAGE}\r\n")) == {}


async def test_refusals_of_the_server_can_be_read_too() -> None:
    async with CorsServer(PAGE) as client:
        answer = await client.post(b"x" * 101, "/plain", f"origin: {PAGE}\r\n")
        assert answer.status == 413
        assert cors_of(answer)["access-control-allow-origin"] == PAGE


def preflight(
    path: str, origin: str, headers: str | None = "authorization,x-stainless-os"
) -> bytes:
    lines = [f"OPTIONS {path} HTTP/1.1", "host: x", f"origin: {origin}"]
    lines.append("access-control-request-method: POST")
    if headers is not None:
        lines.append(f"access-control-request-headers: {headers}")
    return "\r\n".join([*lines, "", ""]).encode()


async def test_preflights_are_answered() -> None:
    async with CorsServer(PAGE) as client:
        await client.send(preflight("/plain", PAGE))
        answer = await client.read_answer()
        assert answer.status == 204
        assert "content-length" not in answer.headers
        found = cors_of(answer)
        assert found["access-control-allow-origin"] == PAGE
        assert found["access-control-allow-methods"] == "POST, OPTIONS"
        assert found["access-control-allow-headers"] == "authorization,x-stainless-os"
        assert found["access-control-max-age"] == "7200"
        assert found["vary"] == "Origin"
        assert "access-control-allow-credentials" not in found
        for wanted in (None, "bad header", "a" * 5000):
            await client.send(preflight("/plain", PAGE, wanted))
            found = cors_of(await client.read_answer())
            assert found["access-control-allow-headers"] == "authorization, content-type"
        await client.send(preflight("/plain", "https://evil.example"))
        answer = await client.read_answer()
        assert answer.status == 204
        assert cors_of(answer) == {"vary": "Origin"}
        assert (await client.post(b"", "/plain")).status == 200
    async with CorsServer() as client:
        await client.send(preflight("/plain", PAGE))
        answer = await client.read_answer()
        assert (answer.status, cors_of(answer)) == (204, {})


def test_every_header_that_we_send_is_exposed() -> None:
    sent = set()
    for path in SOURCE.rglob("*.py"):
        if path.name != "cors.py":
            text = path.read_text()
            sent |= set(re.findall(r'\(b"(x-[a-z-]+)", ', text))
            sent |= set(re.findall(r'(?:\\n|")(x-[a-z-]+): %b', text))
    sent -= {"x-content-type-options", "x-forwarded-proto", "x-frame-options"}
    assert len(sent) > 5
    assert sent <= set(EXPOSED_HEADERS)
