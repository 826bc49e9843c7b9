"""The console's routes: the page, its files, and signing in.

`GET /api/v1/session` says who is asking; `POST` exchanges an API key for a cookie
(`http.sessions`), `DELETE` takes the cookie back. People of an identity provider sign in by `oidc_pages`. Without keys nobody signs in: who may reach the
API may use the console.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from thrifty.console.assets import CONTENT_SECURITY_POLICY, PREFIX, Asset, load_assets
from thrifty.db.keys import Key, hash_key
from thrifty.errors import DatabaseError
from thrifty.gateway.admission.authenticate import authenticate_late
from thrifty.gateway.app.endpoints import OwnRoute
from thrifty.gateway.state.reader import TableReader
from thrifty.gateway.state.table import RoutingTable
from thrifty.http.exchange import Exchange
from thrifty.http.sessions import Sessions
from thrifty.openai.bodies import decode_body
from thrifty.openai.errors import NOT_FOUND, WireError, bad_request, explain_database
from thrifty.types import Role
from thrifty.version import __version__

MAX_BODY_BYTES = 10_000
_encode = msgspec.json.Encoder().encode
_NO_STORE = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_PAGE_HEADERS = [
    *_SECURITY,
    (b"content-security-policy", CONTENT_SECURITY_POLICY),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
]
_FILE_HEADERS = [*_SECURITY, (b"cache-control", b"public, max-age=31536000, immutable")]


class ConsolePages:
    """Handles requests for the console and its session."""

    def __init__(
        self,
        table: RoutingTable,
        reader: TableReader,
        sessions: Sessions,
        warm_up: Callable[[], None] = lambda: None,
        provider_name: str | None = None,
        end_sign_in: Callable[[str], object] = lambda digest: None,
    ) -> None:
        """`warm_up` is called when the page is asked for: its first requests follow at once.
        `provider_name` is that of the identity provider, if there is one, and `end_sign_in` ends
        what somebody signed in with there.
        """
        self._table = table
        self._reader = reader
        self._sessions = sessions
        self._warm_up = warm_up
        self._provider_name = provider_name
        self._end_sign_in = end_sign_in

    def routes(self) -> list[OwnRoute]:
        """The routes. Those of the session check their callers themselves."""
        return [
            OwnRoute("GET", "/console", None, self._send_page, "the console, a page for people"),
            OwnRoute(
                "GET", f"{PREFIX}/{{version}}/{{file}}", None, self._send_file, "its files"
            ),
            OwnRoute("GET", "/api/v1/session", None, self._show, "who is asking, and with which role"),
            OwnRoute(
                "POST", "/api/v1/session", None, self._sign_in,
                "exchange an API key for a cookie that browsers send in its place",
            ),
            OwnRoute("DELETE", "/api/v1/session", None, self._sign_out, "take the cookie back"),
        ]  # fmt: skip

    async def _send_page(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        assets = load_assets()
        self._warm_up()
        _send(exchange, assets.page, _PAGE_HEADERS)

    async def _send_file(
        self, exchange: Exchange, _: Key | None, parameters: Mapping[str, str]
    ) -> None:
        assets = load_assets()
        asset = assets.files.get(parameters["file"])
        if asset is None or parameters["version"] != assets.version:
            raise WireError(
                404,
                "There is no such file of the console; after an update, load /console again.",
                type=NOT_FOUND,
                code="unknown_path",
            )
        _send(exchange, asset, _FILE_HEADERS)

    async def _show(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        key = None
        try:
            key = await authenticate_late(exchange, self._table, self._reader, frozenset(Role))
        except WireError as error:
            if error.status != 401:
                raise
        exchange.respond(200, _encode(self._describe(exchange, key)), _NO_STORE)

    async def _sign_in(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        if len(exchange.body) > MAX_BODY_BYTES:
            raise WireError(413, "The body is too large for a key.", code="body_too_large")
        secret = decode_body(exchange.body).get("key")
        if not isinstance(secret, str) or not secret.strip():
            raise bad_request("'key' must be an API key.", "key", "missing_required_parameter")
        # By the rules of every other request that shows this key.
        exchange.headers[b"authorization"] = b"Bearer " + secret.strip().encode(errors="replace")
        key = await authenticate_late(exchange, self._table, self._reader, frozenset(Role))
        if key is None:
            raise bad_request(
                "This service has no keys, so nobody signs in; 'thrifty keys create --name NAME "
                "--role admin' makes the first one.",
                "key",
                "no_keys",
            )
        # For what was shown: the secret before a rotation ends when it was said to.
        digest = hash_key(secret.strip().encode(errors="replace"))
        cookie = self._sessions.make_cookie(digest, secure=_is_secure(exchange))
        exchange.respond(
            200, _encode(self._describe(exchange, key)), [*_NO_STORE, (b"set-cookie", cookie)]
        )

    async def _sign_out(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        digest = self._sessions.find_key(exchange)
        if digest is not None and digest in self._table.sign_ins:
            try:
                await asyncio.to_thread(self._end_sign_in, digest)
            except DatabaseError as error:
                raise explain_database(error) from None
            await self._reader.refresh()
        cookie = self._sessions.clear_cookie(secure=_is_secure(exchange))
        exchange.respond(200, b'{"signed_out":true}', [*_NO_STORE, (b"set-cookie", cookie)])

    def _describe(self, exchange: Exchange, key: Key | None) -> dict[str, Any]:
        """Who is asking. Without keys, callers on this machine are admins, and others users."""
        role: Role | None = None
        if key is not None:
            role = key.role
        elif not self._table.keys_exist:
            role = Role.ADMIN if exchange.from_this_machine else Role.USER
        may = [one.value for one in Role if role is not None and role.may_act_as(one)]
        if not self._table.keys_exist and role is Role.USER:
            may.append(Role.VIEWER.value)
        return {
            "keys_exist": self._table.keys_exist,
            "name": key.name if key is not None else None,
            "role": role,
            "tenant": key.tenant if key is not None else None,
            "provider": self._provider_name,
            "may": may,
            "version": __version__,
        }


def _send(exchange: Exchange, asset: Asset, headers: list[tuple[bytes, bytes]]) -> None:
    packs = b"gzip" in exchange.headers.get(b"accept-encoding", b"").lower()
    own = [(b"content-type", asset.media_type), (b"vary", b"accept-encoding")]
    if packs:
        own.append((b"content-encoding", b"gzip"))
    exchange.respond(200, asset.packed if packs else asset.plain, [*own, *headers])


def _is_secure(exchange: Exchange) -> bool:
    """Whether the browser speaks TLS to us, or to a proxy in front."""
    proto = exchange.headers.get(b"x-forwarded-proto", b"").strip().lower()
    return exchange.encrypted or proto == b"https"
