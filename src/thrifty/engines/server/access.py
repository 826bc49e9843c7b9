"""Who may use a model server that others can reach: whoever has its key."""

from __future__ import annotations

import hmac

from thrifty.engines.server import KEY_VARIABLE
from thrifty.errors import EngineError
from thrifty.http.certificates import GATEWAY, name_part
from thrifty.http.exchange import Exchange, Handler
from thrifty.openai.errors import AUTHENTICATION, WireError

MIN_KEY = 32
"""Characters. A shorter key may be guessed."""
OPEN_PATHS = frozenset({"/health"})
"""What a platform's probes ask for, without a key."""
_LOOPBACK = ("127.", "::1", "localhost")
_BEARER = b"bearer "


def check_access(host: str, key: str | None) -> None:
    """Refuse an address that others can reach without a key, and a key that could be guessed.
    Raises `EngineError`.
    """
    if key is None:
        if not host.startswith(_LOOPBACK):
            raise EngineError(
                f"refusing to listen on {host}, which others can reach, without a key: put one of "
                f"at least {MIN_KEY} characters into {KEY_VARIABLE} (openssl rand -hex 32)"
            )
    elif len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise EngineError(
            f"{KEY_VARIABLE} must hold at least {MIN_KEY} printable ASCII characters without "
            "spaces (openssl rand -hex 32)"
        )


def require_key(handle: Handler, key: str, *, certificate: bool = False) -> Handler:
    """`handle` for requests that carry `key` as `Authorization: Bearer`, and with `certificate` come
    from a gateway with a certificate of this fleet; a 401 for others.
    """
    expected, gateway = key.encode(), name_part(GATEWAY)

    async def checked(exchange: Exchange) -> None:
        if exchange.path not in OPEN_PATHS:
            if certificate and gateway not in exchange.peer_names:
                raise WireError(
                    401,
                    "This replica needs a certificate of a gateway of its fleet.",
                    type=AUTHENTICATION,
                    code="certificate_required",
                )
            value = exchange.headers.get(b"authorization", b"")
            given = value[len(_BEARER) :].strip() if value[:7].lower() == _BEARER else b""
            if not hmac.compare_digest(given, expected):
                raise WireError(
                    401,
                    "This replica needs its key, as 'Authorization: Bearer KEY'.",
                    type=AUTHENTICATION,
                    code="invalid_api_key",
                )
        answering = handle(exchange)
        if answering is not None:
            await answering

    return checked
