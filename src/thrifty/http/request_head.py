"""The head of a request, beyond what the parser checks: its target, its version, its `Host`."""

from __future__ import annotations

import functools
import re
from urllib.parse import unquote

from thrifty.http.exchange import Exchange
from thrifty.openai.errors import WireError

MAX_HOST_BYTES = 261
"""A name of 255 bytes and a port: more never matches, and would only fill memory."""
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]{2,64}\]|[A-Za-z0-9._~!$&'()*+,;=%-]{0,255})(?::[0-9]{0,5})?"
)


def read_target(exchange: Exchange, target: bytes) -> None:
    """Set the path and the query of a request from its target."""
    path, _, exchange.query = target.partition(b"?")
    exchange.path = path.decode("latin-1") if path[:1] == b"/" else _to_origin_form(path)
    if "%" in exchange.path:
        exchange.path = unquote(exchange.path)


def check_head(exchange: Exchange) -> None:
    """Refuse what RFC 9112 requires a server to refuse and the parser takes (2.3, 3.2, 6.1)."""
    if exchange.version == "1.1":
        host = exchange.headers.get(b"host")
        if host is None or len(host) > MAX_HOST_BYTES or not _is_host(host):
            raise malformed("its Host header is missing or not valid")
    elif exchange.version != "1.0":
        raise WireError(505, "use HTTP/1.1", code="http_version_not_supported")
    elif b"transfer-encoding" in exchange.headers:
        raise malformed("HTTP/1.0 has no Transfer-Encoding")
    codings = exchange.headers.get(b"transfer-encoding", b"chunked").lower().split(b",")
    if codings[-1].strip() != b"chunked":
        raise malformed("its length is not known: the last transfer coding is not 'chunked'")
    if len(codings) > 1:
        raise WireError(
            501,
            "no transfer coding but 'chunked' is supported",
            code="unsupported_transfer_coding",
        )


@functools.lru_cache(maxsize=256)
def _is_host(value: bytes) -> bool:
    """Whether a `Host` header is valid. Clients send few different ones, again and again."""
    return _HOST.fullmatch(value) is not None


def malformed(reason: str) -> WireError:
    """The 400 for a request that is not valid HTTP."""
    return WireError(400, f"this is not a valid HTTP request: {reason}", code="malformed_http")


def _to_origin_form(target: bytes) -> str:
    """The path in `http://host/path`, the form that clients of proxies send; `*` as it is."""
    _, found, rest = target.partition(b"://")
    if not found:
        return target.decode("latin-1")
    return "/" + rest.partition(b"/")[2].decode("latin-1")
