"""Gateways and replicas of a fleet know each other by certificates, also while these change."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.http.raw import RawClient
from thrifty.engines.server.access import require_key
from thrifty.fleet.certificates import (
    begin_new_authority,
    drop_old_authority,
    make_certificates,
)
from thrifty.http import certificates
from thrifty.http import server as server_module
from thrifty.http.certificates import load_gateway_side
from thrifty.http.client import ConnectFailed, HttpClient, TransportError
from thrifty.http.exchange import Exchange
from thrifty.http.server import EVENT_STREAM_HEADERS, HttpServer, ServerLimits
from thrifty.http.tls import ServerTls, load_replica_side

pytestmark = pytest.mark.usefixtures("either_loop")

KEY = "k" * 40
KEY_LINE = f"authorization: Bearer {KEY}\r\n".encode()


class Sides:
    """One folder where certificates are made, and what each side has of it."""

    def __init__(self, folder: Path) -> None:
        self.made, self.gateway, self.replica = (
            folder / name for name in ("made", "gateway", "replica")
        )
        self.done = asyncio.Event()
        """Set when the slow answer may end."""
        self.tls: ServerTls | None = None
        make_certificates(self.made)
        self.bring("gateway")
        self.bring("replica")

    def read(self, part: str) -> ssl.SSLContext:
        """What that side goes by now."""
        if part == "gateway":
            return load_gateway_side().context
        assert self.tls is not None
        return self.tls._newest.context

    def bring(self, part: str) -> None:
        """Copy to one side what it needs, as an operator does."""
        folder: Path = getattr(self, part)
        folder.mkdir(exist_ok=True)
        for name in ("ca.crt", f"{part}.crt", f"{part}.key"):
            shutil.copy(self.made / name, folder / f".{name}")
            (folder / f".{name}").replace(folder / name)


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sides:
    made = Sides(tmp_path)
    monkeypatch.setenv("THRIFTY_FLEET_TLS", str(made.gateway))
    return made


async def answer(exchange: Exchange) -> None:
    exchange.respond(200, ",".join(sorted(exchange.peer_names)).encode())


@contextlib.asynccontextmanager
async def replica(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """A replica's server; its port."""

    async def handle(exchange: Exchange) -> None:
        if exchange.path != "/slow":
            await answer(exchange)
            return
        exchange.start(200, EVENT_STREAM_HEADERS)
        exchange.write(b"x")
        await sides.done.wait()
        exchange.write(b"x")
        exchange.finish()

    with monkeypatch.context() as patch:
        patch.setenv("THRIFTY_FLEET_TLS", str(sides.replica))
        sides.tls = load_replica_side()
    tls = sides.tls
    server = HttpServer(require_key(handle, KEY, certificate=True), ServerLimits())
    port = await server.start("127.0.0.1", 0, tls=tls)
    try:
        yield port
    finally:
        await server.drain(0)


@contextlib.contextmanager
def client() -> Iterator[HttpClient]:
    made = HttpClient()
    try:
        yield made
    finally:
        made.close()


async def test_both_sides_prove_who_they_are(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(sides, monkeypatch) as port:
        with client() as asking:
            url = f"mtls://127.0.0.1:{port}"
            status, body = await asking.fetch(f"{url}/v1", headers=KEY_LINE)
            assert (status, body) == (200, b"gateway.thrifty-fleet.internal")
            # A certificate does not stand in for the key.
            status, _ = await asking.fetch(f"{url}/v1")
            assert status == 401


async def test_without_a_certificate_only_probes_are_answered(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ssl._create_unverified_context()
    async with replica(sides, monkeypatch) as port:
        for path, status in (("/health", 200), ("/v1/chat/completions", 401)):
            streams = await asyncio.open_connection("127.0.0.1", port, ssl=plain)
            raw = RawClient(*streams)
            reply = await raw.get(path, KEY_LINE.decode())
            assert reply.status == status
            raw.cut()
        with client() as asking, pytest.raises(TransportError):
            await asking.fetch(f"http://127.0.0.1:{port}/v1", headers=KEY_LINE, timeout_s=5)


async def test_strangers_are_refused_on_both_sides(
    sides: Sides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strangers").mkdir()
    stranger = Sides(tmp_path / "strangers")
    async with replica(sides, monkeypatch) as port:
        monkeypatch.setenv("THRIFTY_FLEET_TLS", str(stranger.gateway))
        with client() as asking, pytest.raises(ConnectFailed, match=r"(?i)verif"):
            await asking.fetch(f"mtls://127.0.0.1:{port}/v1", headers=KEY_LINE)
        # One who believes our replica, and has a certificate of another fleet.
        context = ssl.create_default_context(cafile=sides.made / "ca.crt")
        context.load_cert_chain(stranger.made / "gateway.crt", stranger.made / "gateway.key")
        await expect_no_answer(port, context)
        # A replica of the same fleet is no gateway.
        context = ssl.create_default_context(cafile=sides.made / "ca.crt")
        context.load_cert_chain(sides.made / "replica.crt", sides.made / "replica.key")
        await expect_no_answer(port, context)


async def expect_no_answer(port: int, context: ssl.SSLContext) -> None:
    """The handshake fails, or, as the client's part of it ends first, what is read after it."""
    try:
        streams = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="replica.thrifty-fleet.internal"
        )
    except OSError:
        return
    raw = RawClient(*streams)
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await raw.get("/v1", KEY_LINE.decode())
    raw.cut()


async def test_a_server_that_shows_a_gateways_certificate_is_no_replica(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("crt", "key"):
        shutil.copy(sides.made / f"gateway.{name}", sides.replica / f"replica.{name}")
    async with replica(sides, monkeypatch) as port:
        with client() as asking, pytest.raises(ConnectFailed):
            await asking.fetch(f"mtls://127.0.0.1:{port}/v1", headers=KEY_LINE)


async def test_a_new_authority_comes_in_steps_and_no_request_is_lost(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two sides get the files one after the other, with new connections all the time."""
    monkeypatch.setattr(certificates, "CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr(server_module, "CHECK_INTERVAL_S", 0.02)
    async with replica(sides, monkeypatch) as port:
        url = f"mtls://127.0.0.1:{port}"
        with client() as long:
            slow = asyncio.ensure_future(long.fetch(f"{url}/slow", headers=KEY_LINE, timeout_s=90))
            await ask_once(url)
            for step in (
                lambda: make_certificates(sides.made, renew=True),
                lambda: begin_new_authority(sides.made),
                lambda: make_certificates(sides.made, renew=True),
                lambda: drop_old_authority(sides.made),
            ):
                step()
                for part in ("replica", "gateway"):
                    before = sides.read(part)
                    sides.bring(part)
                    await ask_once(url)
                    while sides.read(part) is before:
                        await ask_once(url)
                    await ask_once(url)
            sides.done.set()
            assert await slow == (200, b"xx"), "what runs is not cut"


async def ask_once(url: str) -> None:
    """On a new connection."""
    with client() as asking:
        status, _ = await asking.fetch(f"{url}/v1", headers=KEY_LINE, timeout_s=30)
    assert status == 200
    await asyncio.sleep(0.01)
