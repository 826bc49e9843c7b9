"""Authentication, the first step of a request.

If the database holds no keys, the gateway needs none; it only starts like this on a loopback
address or when told to. With keys, every request needs one, or the cookie of a person who has
signed in to the console with one (`http.sessions`).
"""

from __future__ import annotations

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
        key = table.keys.get(hash_key(secret))
        if key is None:
            raise _make_unknown(secret)
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
    key = table.keys.get(found)
    if key is None:
        raise UnknownKey(
            401,
            "The key that you signed in with is not valid any more. Sign in with another one.",
            type=AUTHENTICATION,
            code="invalid_api_key",
        )
    return key


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
