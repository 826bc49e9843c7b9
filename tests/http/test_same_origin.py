"""What web pages of other sites may not do, with requests as Chromium sends them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.raw import Answer, Served, serving
from thrifty.http.exchange import Exchange
from thrifty.http.same_origin import SameOrigin
from thrifty.openai.errors import WireError

POLICY = SameOrigin(
    hosts=["llm.example.com", "[2001:db8::1]"], origins=["https://ops.example.com", "*"]
)
JSON = "content-type: application/json\r\n"


class Steered:
    """A service that something can be done to."""

    def __init__(self) -> None:
        self.done: list[bytes] = []

    def handle(self, exchange: Exchange) -> None:
        POLICY.check(exchange)
        self.done.append(exchange.body)
        exchange.respond(200, b'{"secret": 1}')

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Served]:
        async with serving(self.handle) as served:
            yield served


async def send(
    served: Served, method: str, host: str, headers: str = "", body: bytes = b""
) -> Answer:
    async with served.connect() as client:
        length = f"content-length: {len(body)}\r\n" if body or method != "GET" else ""
        host_line = f"host: {host}\r\n" if host else ""
        await client.send(
            f"{method} /api/v1/apply HTTP/1.1\r\n{host_line}{headers}{length}\r\n".encode() + body
        )
        return await client.read_answer()


def code_of(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["code"])


# DNS rebinding: the attacker's name resolves to our address, so that its page is of one origin with us


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_dns_rebinding_reads_and_does_nothing(method: str) -> None:
    service = Steered()
    async with service.serving() as served:
        host = f"rebound.attacker.example:{served.port}"
        answer = await send(
            served, method, host,
            f"connection: keep-alive\r\norigin: http://{host}\r\nsec-fetch-site: same-origin\r\n"
            f"sec-fetch-mode: cors\r\nsec-fetch-dest: empty\r\nreferer: http://{host}/\r\n{JSON}",
            b"" if method == "GET" else b"{}",
        )  # fmt: skip
        assert answer.status == 403
        assert code_of(answer) == "host_not_allowed"
        assert b"secret" not in answer.body
        assert not service.done


@pytest.mark.parametrize(
    "host",
    ["", "localhost.attacker.example", "127.0.0.1.nip.io", "attacker.example", "llm.example.com.evil",
     "localhost@attacker.example", "localhost, attacker.example", "localhost:80:90", "10.9.8.7",
     "[::2]", "xlocalhost", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::]"],
)  # fmt: skip
async def test_other_hosts_are_refused(host: str) -> None:
    service = Steered()
    async with service.serving() as served:
        answer = await send(served, "POST", host, JSON, b"{}")
        # Without a Host, the request is not valid in HTTP/1.1, whoever says so.
        assert answer.status in (400, 403)
        assert not service.done


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:PORT", "LOCALHOST:PORT", "localhost.", "127.0.0.1:PORT", "127.9.9.9",
     "[::1]:PORT", "app.localhost", "llm.example.com", "LLM.example.com:443", "llm.example.com.",
     "[2001:db8::1]:8080"],
)  # fmt: skip
async def test_own_hosts_are_served(host: str) -> None:
    service = Steered()
    async with service.serving() as served:
        answer = await send(served, "POST", host.replace("PORT", str(served.port)), JSON, b"{}")
        assert answer.status == 200
        assert service.done == [b"{}"]


def test_the_address_that_was_connected_to_is_a_host() -> None:
    def check(host: bytes, address: str | None) -> None:
        POLICY.check_headers("GET", {b"host": host}, has_body=False, address=address)

    check(b"10.0.0.5:8080", "10.0.0.5")
    check(b"10.0.0.5", "::ffff:10.0.0.5")
    check(b"[fe80::1]:8080", "fe80::1%eth0")
    for host, address in ((b"10.0.0.5", "10.0.0.6"), (b"10.0.0.5", None), (b"host", "10.0.0.5")):
        with pytest.raises(WireError, match="is not known by the name"):
            check(host, address)


# Requests of other sites: the host is right, the page is not ours


FETCH = "sec-fetch-site: cross-site\r\nsec-fetch-mode: cors\r\nsec-fetch-dest: empty\r\n"
FORM = (
    "sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\nsec-fetch-dest: document\r\n"
    "sec-fetch-user: ?1\r\nupgrade-insecure-requests: 1\r\n"
)
IMAGE = "sec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\nsec-fetch-dest: image\r\n"
FRAME = "sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\nsec-fetch-dest: iframe\r\n"


@pytest.mark.parametrize(
    ("method", "headers", "body"),
    [
        # fetch(..., {method: "POST", body: "{...}"}): a simple request, sent without a preflight
        ("POST", f"origin: https://evil.example\r\n{FETCH}content-type: text/plain\r\n", b"{}"),
        # the same after a preflight, had one been granted
        ("POST", f"origin: https://evil.example\r\n{FETCH}{JSON}", b"{}"),
        # a form that sends itself, from a page and from a sandboxed frame
        ("POST", f"origin: https://evil.example\r\n{FORM}content-type: text/plain\r\n", b"{}"),
        ("POST", f"origin: null\r\n{FORM}content-type: text/plain\r\n", b"{}"),
        # another service on this machine
        ("POST", f"origin: http://localhost:3000\r\n{JSON}", b"{}"),
        ("POST", f"origin: http://localhost\r\n{JSON}", b"{}"),
        ("POST", "origin: https://evil.example\r\n", b""),
        ("DELETE", f"origin: https://evil.example\r\n{FETCH}", b""),
        # <img>, <iframe>, <script>: no Origin
        ("GET", IMAGE, b""),
        ("GET", FRAME, b""),
        ("GET", "sec-fetch-site: same-site\r\nsec-fetch-mode: no-cors\r\n", b""),
        ("POST", FETCH, b""),
        # origins that look like ours
        ("POST", f"origin: http://localhost:PORT.evil.example\r\n{JSON}", b"{}"),
        ("POST", f"origin: http://localhost:PORT@evil.example\r\n{JSON}", b"{}"),
        ("POST", f"origin: chrome-extension://localhost:PORT\r\n{JSON}", b"{}"),
        ("POST", f"origin: http://localhost:PORT, https://evil.example\r\n{JSON}", b"{}"),
        ("POST", f"origin: \r\n{JSON}", b"{}"),
    ],
)
async def test_pages_of_other_sites_do_nothing(method: str, headers: str, body: bytes) -> None:
    service = Steered()
    async with service.serving() as served:
        port = str(served.port)
        headers = headers.replace("PORT", port)
        answer = await send(served, method, f"localhost:{port}", headers, body)
        assert answer.status == 403
        assert code_of(answer) == "origin_not_allowed"
        assert b"secret" not in answer.body
        assert not service.done


@pytest.mark.parametrize(
    ("method", "headers", "body"),
    [
        ("GET", "", b""),
        ("POST", JSON, b"{}"),
        ("POST", "content-type: Application/JSON; charset=utf-8\r\n", b"{}"),
        ("POST", "", b""),
        # our own page
        ("POST", f"origin: http://localhost:PORT\r\nsec-fetch-site: same-origin\r\n{JSON}", b"{}"),
        ("GET", "sec-fetch-site: same-origin\r\nsec-fetch-mode: cors\r\n", b""),
        # typed, and a link that was followed
        ("GET", "sec-fetch-site: none\r\nsec-fetch-mode: navigate\r\n", b""),
        ("GET", FORM, b""),
        # a page that the spec names
        ("POST", f"origin: https://ops.example.com\r\n{FETCH}{JSON}", b"{}"),
    ],
)
async def test_own_pages_and_clients_are_served(method: str, headers: str, body: bytes) -> None:
    service = Steered()
    async with service.serving() as served:
        port = str(served.port)
        headers = headers.replace("PORT", port)
        assert (await send(served, method, f"localhost:{port}", headers, body)).status == 200


async def test_a_proxy_may_speak_tls_for_us() -> None:
    service = Steered()
    async with service.serving() as served:
        for origin in ("https://llm.example.com", "https://llm.example.com:443"):
            headers = f"origin: {origin}\r\n{JSON}"
            assert (await send(served, "POST", "llm.example.com", headers, b"{}")).status == 200


@pytest.mark.parametrize(
    "headers",
    ["", "content-type: text/plain\r\n", "content-type: application/x-www-form-urlencoded\r\n",
     "content-type: multipart/form-data; boundary=application/json\r\n",
     "content-type: text/plain; application/json\r\n", "content-type: application/jsonp\r\n",
     "content-type: text/plain, application/json\r\n"],
)  # fmt: skip
async def test_only_json_is_taken(headers: str) -> None:
    service = Steered()
    async with service.serving() as served:
        answer = await send(served, "POST", "localhost", headers, b"{}")
        assert (answer.status, code_of(answer)) == (415, "unsupported_media_type")
        assert not service.done


@given(host=st.binary(max_size=40), origin=st.none() | st.binary(max_size=40))
def test_no_bytes_break_it(host: bytes, origin: bytes | None) -> None:
    headers = {b"host": host} | ({} if origin is None else {b"origin": origin})
    with contextlib.suppress(WireError):
        SameOrigin().check_headers("POST", headers, has_body=False)
        assert re.match(rb"(?i)([a-z0-9._-]+\.)?localhost|127\.|\[", host), host


def test_every_origin_for_models_is_none_for_management() -> None:
    headers = {b"host": b"localhost", b"origin": b"https://evil.example"}
    with pytest.raises(WireError, match=r"gateway\.cors"):
        SameOrigin(origins=["*"]).check_headers("GET", headers, has_body=False)
