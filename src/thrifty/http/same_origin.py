"""Prevents web pages from controlling the service through an operator's browser.

A browser sends requests on behalf of any page that it shows, also to loopback and to the local
network. Three checks stop them on the routes that change or reveal something:

    Host            must name this service. In a DNS rebinding attack, the attacker's own host name
                    resolves to our address, and the browser sends that name.
    Origin          must be this service, or be listed in `gateway.cors`.
    Content-Type    must be JSON, which other sites can only send after a CORS preflight.

Clients other than browsers send no `Origin`; the second check does not affect them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping

from thrifty.http.exchange import Exchange, is_loopback
from thrifty.openai.errors import PERMISSION, WireError

_AUTHORITY = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {b"http": b"80", b"https": b"443"}
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class SameOrigin:
    """The hosts that this service answers to, and the other origins whose pages it trusts."""

    def __init__(self, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        """`hosts` and `origins` are in the form that browsers send (`spec.origins`). `*` among the
        origins has no effect here: it lets every page call models, not manage the service.
        """
        self._hosts = frozenset(host.encode() for host in hosts)
        self._origins = frozenset(origin.encode() for origin in origins if origin != "*")

    def without_origins(self) -> SameOrigin:
        """The same hosts, and no trusted origins but the service's own."""
        made = SameOrigin()
        made._hosts = self._hosts
        return made

    def check(self, exchange: Exchange) -> None:
        """Raise a 403 or 415 for a request that a page of another site may have sent."""
        local = exchange.local
        self.check_headers(
            exchange.method,
            exchange.headers,
            has_body=bool(exchange.body),
            address=None if local is None else local[0],
        )

    def check_page(self, exchange: Exchange) -> None:
        """Raise a 403 for a request that a page of another site may have sent, on routes that
        anybody may call where no keys exist.

        More is let through than by `check`: every page that `gateway.cors` names, `*` too, bodies
        of every type, and clients elsewhere that know this service by a name of their own.
        """
        origin = exchange.headers.get(b"origin")
        if origin is not None:
            if exchange.cors is not None and exchange.cors.allows(origin):
                return
        elif not exchange.from_this_machine:
            return
        local = exchange.local
        self.check_headers(
            exchange.method,
            exchange.headers,
            has_body=False,
            address=None if local is None else local[0],
        )

    def check_headers(
        self,
        method: str,
        headers: Mapping[bytes, bytes],
        *,
        has_body: bool,
        address: str | None = None,
    ) -> None:
        """As `check`. `address`, to which the client connected, is accepted as a `Host`, because DNS
        rebinding needs a name.
        """
        host = headers.get(b"host", b"")
        if not self._knows(host, address):
            raise _refuse(
                f"This service is not known by the name {_show(host)}. If that is its name, add it "
                "to gateway.hosts in the spec.",
                "host_not_allowed",
            )
        origin = headers.get(b"origin")
        if origin is not None:
            if not (_is_origin_of(origin, host) or origin in self._origins):
                raise _refuse(
                    f"Pages of {_show(origin)} may not use this. If they should, add it to "
                    "gateway.cors in the spec.",
                    "origin_not_allowed",
                )
        elif not _is_harmless(method, headers):
            raise _refuse(
                "A page of another site may not use this (Sec-Fetch-Site).", "origin_not_allowed"
            )
        if has_body and method in _WITH_BODY and not is_json(headers):
            raise WireError(
                415,
                "Send the body as JSON, with the header 'Content-Type: application/json'.",
                code="unsupported_media_type",
            )

    def _knows(self, host: bytes, address: str | None) -> bool:
        match = _AUTHORITY.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().removesuffix(b".")
        if name in self._hosts or name == b"localhost" or name.endswith(b".localhost"):
            return True
        text = name.decode().removeprefix("[").removesuffix("]")
        return is_loopback(text) or (address is not None and _is_same_address(text, address))


def is_json(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the body is declared as JSON."""
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return media_type == b"application/json"


def _is_origin_of(origin: bytes, host: bytes) -> bool:
    """Whether a page of `origin` was served under `host`. Its scheme may be another one than ours:
    a proxy may speak TLS for us.
    """
    scheme, found, authority = origin.lower().partition(b"://")
    port = _DEFAULT_PORTS.get(scheme)
    if not found or port is None:
        return False
    here, there = _AUTHORITY.fullmatch(host.lower()), _AUTHORITY.fullmatch(authority)
    if here is None or there is None:
        return False
    return here[1] == there[1] and (here[2] or port) == (there[2] or port)


def _is_harmless(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request without `Origin` was not made by a page of another site, or is a link to a
    page of ours that somebody followed.
    """
    site = headers.get(b"sec-fetch-site")
    if site is None or site in (b"same-origin", b"none"):
        return True
    return (
        method in ("GET", "HEAD")
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    )


def _is_same_address(text: str, address: str) -> bool:
    try:
        first, second = ipaddress.ip_address(text), ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(second, "ipv4_mapped", None)
    return first in (second, mapped)


def _refuse(message: str, code: str) -> WireError:
    return WireError(403, message, type=PERMISSION, code=code)


def _show(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))
