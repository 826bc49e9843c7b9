"""Signing in to the console through an identity provider: the two steps in the browser.

    GET /console/sign-in    sends the person to the provider, and notes in a cookie what must come back
    GET /console/signed-in  the provider sends the person here, with a code; signed in, to the console

The cookie of the first step holds the state, the nonce and PKCE's verifier under a MAC, so that every
worker can take the second step and none keeps anything. It is `SameSite=Lax`, because the second
request comes from the provider's page; the console's own cookie (`http.sessions`) is `Strict`. A code
that was sent to another browser finds no cookie there, and gets nobody signed in.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any
from urllib.parse import parse_qs

import msgspec

from thrifty.console.oidc import Challenge, OidcSettings, Provider, SignInFault
from thrifty.db import Database
from thrifty.db.keys import Key
from thrifty.db.sign_ins import add_sign_in
from thrifty.errors import DatabaseError, ThriftyError
from thrifty.gateway.app.endpoints import OwnRoute
from thrifty.gateway.state.reader import TableReader
from thrifty.http.exchange import Exchange
from thrifty.http.sessions import Sessions
from thrifty.untrusted_text import sanitize_line

log = logging.getLogger(__name__)

COOKIE = "thrifty-sign-in"
TTL_S = 600.0
"""How long a person may take to sign in at the provider."""
MAX_RUNNING = 16
"""Sign-ins that are worked on at once; more are told to try again."""
_MAX_QUERY_BYTES = 8_000
_MAC_BYTES = 20
_VALUE = re.compile(rb"([A-Za-z0-9_-]{1,1000})\.([0-9a-f]{40})")


class _Begun(msgspec.Struct, frozen=True):
    """What the cookie holds."""

    state: str
    nonce: str
    verifier: str
    until_s: float


class OidcPages:
    """Handles the two steps."""

    def __init__(
        self,
        settings: OidcSettings,
        provider: Provider,
        sessions: Sessions,
        database: Database,
        reader: TableReader,
        secret: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`secret` is shared by all workers; `database` is used on threads."""
        self._settings = settings
        self._provider = provider
        self._sessions = sessions
        self._database = database
        self._reader = reader
        self._mac = blake2b(key=secret, digest_size=_MAC_BYTES, person=b"oidc-sign-in")
        self._clock = clock
        self._running = 0

    def routes(self) -> list[OwnRoute]:
        """The routes, for anybody."""
        return [
            OwnRoute(
                "GET", "/console/sign-in", None, self._begin,
                "sign in to the console through the identity provider",
            ),
            OwnRoute(
                "GET", "/console/signed-in", None, self._complete,
                "where the identity provider sends people back to",
            ),
        ]  # fmt: skip

    async def _begin(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        challenge = Challenge(*(secrets.token_urlsafe(size) for size in (24, 24, 48)))
        try:
            url = await self._run(self._provider.make_url, challenge)
        except SignInFault as fault:
            self._give_up(exchange, fault)
            return
        begun = _Begun(challenge.state, challenge.nonce, challenge.verifier, self._clock() + TTL_S)
        cookie = self._write_cookie(self._sign(begun), int(TTL_S))
        _redirect(exchange, url, cookie)

    async def _complete(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        try:
            digest = await self._run(self._sign_in, exchange)
        except SignInFault as fault:
            self._give_up(exchange, fault)
            return
        await self._reader.refresh()
        cookie = self._sessions.make_cookie(
            digest, secure=self._secure, ttl_s=self._settings.session_s
        )
        _redirect(exchange, f"{self._settings.url}/console", cookie, self._write_cookie("", 0))

    def _sign_in(self, exchange: Exchange) -> str:
        """Sign in who was sent back; the hash for the cookie. Runs on a thread."""
        query = _read_query(exchange)
        begun = self._read_cookie(exchange)
        if begun is None or begun.until_s <= self._clock():
            raise SignInFault("expired", "no sign-in was begun in this browser, or too long ago")
        if not hmac.compare_digest(begun.state.encode(), query.get("state", "").encode()):
            raise SignInFault("expired", "the answer belongs to another sign-in (state)")
        if "error" in query:
            denied = query["error"] == "access_denied"
            raise SignInFault(
                "denied" if denied else "failed",
                f"the provider signed nobody in: {sanitize_line(query['error'], 100)}",
            )
        challenge = Challenge(begun.state, begun.nonce, begun.verifier)
        person = self._provider.identify(query.get("code", ""), query.get("iss"), challenge)
        try:
            return add_sign_in(self._database, person, self._settings.session_s)
        except DatabaseError as error:
            raise SignInFault("unreachable", str(error)) from None

    async def _run(self, work: Callable[..., str], *arguments: Any) -> str:
        if self._running >= MAX_RUNNING:
            raise SignInFault("unreachable", f"{MAX_RUNNING} sign-ins are under way")
        self._running += 1
        try:
            return await asyncio.to_thread(work, *arguments)
        except ThriftyError:
            raise
        except Exception:
            log.exception("a sign-in failed")
            raise SignInFault("failed", "see the traceback above") from None
        finally:
            self._running -= 1

    def _give_up(self, exchange: Exchange, fault: SignInFault) -> None:
        """Back to the console, which says why in words of its own."""
        log.warning("nobody was signed in to the console: %s", fault)
        url = f"{self._settings.url}/console?sign-in={fault.code}"
        _redirect(exchange, url, self._write_cookie("", 0))

    @property
    def _secure(self) -> bool:
        return self._settings.url.startswith("https://")

    def _write_cookie(self, value: str, seconds: int) -> bytes:
        rest = "; Secure" if self._secure else ""
        return (
            f"{COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{rest}"
        ).encode()

    def _read_cookie(self, exchange: Exchange) -> _Begun | None:
        name = f"{COOKIE}=".encode()
        for part in exchange.headers.get(b"cookie", b"").split(b";"):
            part = part.strip()
            match = _VALUE.fullmatch(part[len(name) :]) if part.startswith(name) else None
            if match is not None and hmac.compare_digest(match[2], self._make_mac(match[1])):
                padded = match[1] + b"=" * (-len(match[1]) % 4)
                return msgspec.json.decode(base64.urlsafe_b64decode(padded), type=_Begun)
        return None

    def _sign(self, begun: _Begun) -> str:
        data = base64.urlsafe_b64encode(msgspec.json.encode(begun)).rstrip(b"=")
        return f"{data.decode()}.{self._make_mac(data).decode()}"

    def _make_mac(self, data: bytes) -> bytes:
        mac = self._mac.copy()
        mac.update(data)
        return mac.hexdigest().encode()


def _read_query(exchange: Exchange) -> dict[str, str]:
    if len(exchange.query) > _MAX_QUERY_BYTES:
        raise SignInFault("failed", "the provider's answer is too long")
    try:
        parsed = parse_qs(exchange.query.decode("ascii"), max_num_fields=20)
    except (UnicodeDecodeError, ValueError):
        raise SignInFault("failed", "the provider's answer cannot be read") from None
    return {name: values[0] for name, values in parsed.items() if len(values) == 1}


def _redirect(exchange: Exchange, url: str, *cookies: bytes) -> None:
    headers = [
        (b"location", url.encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
        *((b"set-cookie", cookie) for cookie in cookies),
    ]
    exchange.respond(303, b"", headers)
