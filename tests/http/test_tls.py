"""TLS: real clients with certificates of our own making, and files that change while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

import openai
from tests.http.raw import RawClient, wait_for
from thrifty.errors import ThriftyError
from thrifty.http.client import HttpClient
from thrifty.http.exchange import Exchange, Handler
from thrifty.http.server import HttpServer, ServerLimits
from thrifty.http.tls import ServerTls
from thrifty.http.types import EVENT_STREAM_HEADERS

pytestmark = pytest.mark.usefixtures("either_loop")

CHUNK = {"id": "a", "object": "chat.completion.chunk", "created": 0, "model": "m"}


def handle(exchange: Exchange) -> None:
    if exchange.path == "/v1/chat/completions":
        exchange.start(200, EVENT_STREAM_HEADERS)
        for text in ("on", "e"):
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            exchange.write(b"data: %b\n\n" % json.dumps({**CHUNK, "choices": [choice]}).encode())
        exchange.write(b"data: [DONE]\n\n")
        exchange.finish()
    else:
        body = {"length": len(exchange.body), "encrypted": exchange.encrypted}
        exchange.respond(200, json.dumps(body).encode())


class Authority:
    """A CA of a test, and the files that the server reads."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.root = folder / "root.pem"
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.ca.cert_pem.write_to_path(self.root)

    def issue(self, *, cert: bool = True, key: bool = True) -> None:
        """Write a new certificate, its key, or both."""
        made = self.ca.issue_cert("localhost", "127.0.0.1", key_type=trustme.KeyType.ECDSA)
        if cert:
            self.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        if key:
            self.key.write_bytes(made.private_key_pem.bytes())

    @property
    def context(self) -> ssl.SSLContext:
        """What a client needs to trust it."""
        return ssl.create_default_context(cafile=self.root)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.issue()
    return made


@contextlib.asynccontextmanager
async def serving(
    authority: Authority, handler: Handler = handle, **limits: float
) -> AsyncIterator[tuple[HttpServer, int]]:
    server = HttpServer(handler, ServerLimits(**limits))  # type: ignore[arg-type]
    tls = ServerTls(authority.cert, authority.key)
    port = await server.start("127.0.0.1", 0, tls=tls)
    try:
        yield server, port
    finally:
        await server.drain(0)


@contextlib.asynccontextmanager
async def connected(port: int, context: ssl.SSLContext) -> AsyncIterator[RawClient]:
    client = RawClient(*await asyncio.open_connection("127.0.0.1", port, ssl=context))
    try:
        yield client
    finally:
        client.cut()


async def read_serial(port: int, context: ssl.SSLContext) -> str:
    """The number of the certificate that a new connection is shown."""
    async with connected(port, context) as client:
        found = client.writer.get_extra_info("peercert")
        assert isinstance(found, dict)
        return str(found["serialNumber"])


# Clients


async def test_our_client_sends_and_is_refused_as_without_tls(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.root))
    async with serving(authority) as (server, port):
        client = HttpClient()
        url = f"https://localhost:{port}"
        try:
            for _ in range(2):
                status, body = await client.fetch(f"{url}/a", method="POST", body=b"x" * 100_000)
                assert (status, json.loads(body)) == (200, {"length": 100_000, "encrypted": True})
            assert len(server.connections) == 1
            status, _ = await client.fetch(url, method="POST", body=b"x" * 9_000_000)
            assert status == 413
        finally:
            client.close()


async def test_what_a_handler_has_begun_ends_where_its_client_leaves_at_once(
    authority: Authority,
) -> None:
    begun: list[str] = []
    ended: list[str] = []

    def begin(exchange: Exchange) -> Coroutine[Any, Any, None]:
        begun.append(exchange.path)

        async def rest() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(exchange.path)

        return rest()

    async with serving(authority, begin) as (_, port):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = authority.context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65_536))
        tls.write(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        writer.write(outgoing.read())  # the request and the end of the connection, in one piece
        await wait_for(lambda: begun == ["/a"] and ended == ["/a"])
        writer.close()


async def test_httpx_and_openai_are_served(authority: Authority) -> None:
    async with (
        serving(authority) as (_, port),
        httpx.AsyncClient(verify=authority.context) as client,
        openai.AsyncOpenAI(
            base_url=f"https://127.0.0.1:{port}/v1",
            api_key="k",
            http_client=openai.DefaultAsyncHttpxClient(verify=authority.context),
        ) as dialect,
    ):
        answer = await client.post(f"https://localhost:{port}/", content=b"abc")
        assert answer.json() == {"length": 3, "encrypted": True}
        stream = await dialect.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert [chunk.choices[0].delta.content async for chunk in stream] == ["on", "e"]


async def test_curl_is_served(authority: Authority) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    async with serving(authority) as (_, port):
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "--cacert", str(authority.root), "-d", "abc", f"https://localhost:{port}/",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert json.loads(out) == {"length": 3, "encrypted": True}, err


async def test_strangers_do_not_trust_it(authority: Authority) -> None:
    async with serving(authority) as (_, port):
        with pytest.raises(ssl.SSLCertVerificationError):
            await read_serial(port, ssl.create_default_context())
        assert await read_serial(port, authority.context)


async def test_old_versions_of_tls_are_refused(authority: Authority) -> None:
    async with serving(authority) as (_, port):
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = authority.context
            context.minimum_version = context.maximum_version = version
            assert await read_serial(port, context)
        context = authority.context
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")  # else this client would not even try
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await read_serial(port, context)


async def test_it_goes_on_after_what_is_no_handshake(authority: Authority) -> None:
    async with serving(authority, read_timeout_s=0.2) as (_, port):
        silent = socket.create_connection(("127.0.0.1", port))
        plain = RawClient(*await asyncio.open_connection("127.0.0.1", port))
        await plain.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await plain.expect_cut()
        await plain.close()
        # Who does not even begin a handshake is cut off, too.
        assert await asyncio.to_thread(silent.recv, 1) == b""
        silent.close()
        async with connected(port, authority.context) as client:
            assert (await client.get()).status == 200


# Files that change


async def test_a_new_certificate_is_shown_without_a_restart(authority: Authority) -> None:
    async with serving(authority) as (_, port):
        before = await read_serial(port, authority.context)
        async with connected(port, authority.context) as client:
            authority.issue()
            serials = set()

            async def look() -> None:
                while len(serials) < 2:
                    serials.add(await read_serial(port, authority.context))
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(look(), 60)
            assert before in serials
            assert (await client.get()).status == 200  # a connection from before goes on


async def test_a_broken_pair_leaves_the_old_one(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    server = HttpServer(handle)
    tls = ServerTls(authority.cert, authority.key)
    port = await server.start("127.0.0.1", 0, tls=tls)
    server._watchers[0].cancel()  # the test looks by itself
    before = await read_serial(port, authority.context)
    whole = authority.cert.read_bytes()
    for damage in ("half", "other key", "missing"):
        caplog.clear()
        if damage == "half":
            authority.cert.write_bytes(whole[: len(whole) // 2])
        elif damage == "other key":
            authority.issue(key=False)
        else:
            authority.cert.unlink()
        tls.reload_if_changed()
        assert caplog.text.count("the certificate from before stays in use") == 1, damage
        tls.reload_if_changed()
        assert caplog.text.count("the certificate from before stays in use") == 1, damage
        assert await read_serial(port, authority.context) == before
    authority.issue()
    tls.reload_if_changed()
    assert await read_serial(port, authority.context) != before
    await server.drain(0)


def test_files_are_read_again_whatever_time_they_claim(authority: Authority) -> None:
    tls = ServerTls(authority.cert, authority.key)
    before = authority.key.stat()
    good = authority.key.read_bytes()
    current = tls._newest.context
    for content in (b"x" * len(good), good):
        authority.key.write_bytes(content)
        os.utime(authority.key, ns=(before.st_atime_ns, before.st_mtime_ns))
        tls.reload_if_changed()
        assert (tls._newest.context is current) == (content != good)


def test_files_that_cannot_be_used_are_named(authority: Authority) -> None:
    with pytest.raises(ThriftyError, match=r"other\.pem cannot be read"):
        ServerTls(authority.cert, authority.key.with_name("other.pem"))
    with pytest.raises(ThriftyError, match="not a PEM certificate and its unencrypted key"):
        ServerTls(authority.key, authority.cert)
    private = load_pem_private_key(authority.key.read_bytes(), None)
    authority.key.write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    with pytest.raises(ThriftyError, match="unencrypted key"):
        ServerTls(authority.cert, authority.key)


async def test_the_watcher_ends_with_the_server(authority: Authority) -> None:
    async with serving(authority) as (server, _):
        (watcher,) = server._watchers
        assert not watcher.done()
    await wait_for(watcher.done)
