"""Authentication, the first step of a request.

If the database holds no keys, the gateway needs none; it only starts like this on a loopback
address or when told to. With keys, every request needs one, or the cookie of a person who has
signed in to the console with one (`http.sessions`).
"""

from __future__ import annotations

import time

from thrifty.db.keys import PREFIX, Key, Role, hash_key
from thrifty.gateway.state.reader import TableReader
from thrifty.gateway.state.table import RoutingTable
from thrifty.http.server import Exchange
from thrifty.openai.errors import AUTHENTICATION, PERMISSION, WireError

_BEARER = b"bearer "
_PREFIX = PREFIX.encode()


class UnknownKey(WireError):
    """A key that is not in the table. It may be new, so the database is read once more."""


def authenticate(exchange: Exchange, table: RoutingTable, roles: frozenset[Role]) -> Key | None:
    """The key of this request; None if no keys are needed. Raises a 401 or 403."""
    secret = _read_secret(exchange.headers)
    if not table.keys_exist:
        if secret is not None and secret.startswith(_PREFIX):
            raise _make_unknown(secret)  # it may be the first key created
        return None
    if secret is None:
        key = _find_signed_in(exchange, table)
    else:
        digest = hash_key(secret)
        key = table.keys.get(digest)
        if key is None:
            raise _make_unknown(secret)
        _require_good(key, digest)
    if key is None:
        raise WireError(
            401,
            "You didn't provide an API key. Send it as 'Authorization: Bearer KEY'; "
            "'thrifty keys create --name NAME' makes one.",
            type=AUTHENTICATION,
            code="missing_api_key",
        )
    if key.role not in roles:
        raise WireError(
            403,
            f"The key {key.name!r} has the role {key.role.value!r}, which may not do this.",
            type=PERMISSION,
            code="role_not_allowed",
        )
    return key


async def authenticate_late(
    exchange: Exchange, table: RoutingTable, reader: TableReader, roles: frozenset[Role]
) -> Key | None:
    """Like `authenticate`, but reads the database if the key is unknown."""
    try:
        return authenticate(exchange, table, roles)
    except UnknownKey:
        await reader.refresh()
        return authenticate(exchange, table, roles) if table.keys_exist else None


def _find_signed_in(exchange: Exchange, table: RoutingTable) -> Key | None:
    """The key of a person who is signed in to the console. Raises a 401 where it is unknown, and a
    403 for a page of another origin.
    """
    found = table.sessions.find_key(exchange) if table.sessions is not None else None
    if found is None:
        return None
    key = table.keys.get(found) or table.sign_ins.get(found)
    if key is None:
        raise UnknownKey(
            401,
            "What you signed in with is not valid any more. Sign in again.",
            type=AUTHENTICATION,
            code="invalid_api_key",
        )
    _require_good(key, found)
    return key


def _require_good(key: Key, digest: str) -> None:
    """Raise a 401 for a key that has expired, or a secret that was replaced and is good no more."""
    if (key.expires_s is not None or digest != key.hash) and key.is_over(digest, time.time()):
        raise WireError(
            401,
            f"The key {key.name!r} has expired, or its secret was replaced. Ask for another one.",
            type=AUTHENTICATION,
            code="expired_api_key",
        )


def _make_unknown(secret: bytes) -> UnknownKey:
    return UnknownKey(
        401,
        f"Incorrect API key provided: {_mask(secret)}.",
        type=AUTHENTICATION,
        code="invalid_api_key",
    )


def _read_secret(headers: dict[bytes, bytes]) -> bytes | None:
    value = headers.get(b"authorization")
    if value is not None and value[:7].lower() == _BEARER:
        return value[7:].strip()
    return headers.get(b"api-key") or headers.get(b"x-api-key")


def _mask(secret: bytes) -> str:
    text = secret.decode("latin-1")
    return f"{text[:3]}...{text[-2:]}" if len(text) > 12 else "***"
