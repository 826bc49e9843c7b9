"""Builds upstream requests: the client's own bytes unless fields must be added or renamed, with
header lines of the gateway.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import msgspec

from thrifty.gateway.state.call import Call
from thrifty.gateway.state.version import Version
from thrifty.openai.bodies import BYTE_ORDER_MARK
from thrifty.openai.fields import GATEWAY_FIELDS, Endpoint

_encode = msgspec.json.Encoder().encode


def adds_usage(call: Call, version: Version) -> bool:
    """Whether token counts are requested for a stream whose client did not. The relay withholds
    them.
    """
    parsed = call.admitted
    return (
        parsed.stream and not parsed.stream_options.usage and version.settings.takes_stream_options
    )


def asks_usage(call: Call) -> bool:
    """Whether the call's replica was asked for the token counts of its stream."""
    if call.admitted.stream_options.usage:
        return True
    replica = call.delivery.replica
    takes = replica is None or replica.takes_stream_options
    return takes and adds_usage(call, call.placed.version)


def prepare_body(call: Call, version: Version, *, ask_usage: bool = True) -> bytes:
    """The bytes to send for a call, whose own body is not changed. Without `ask_usage`, no token
    counts are requested beyond what the client does.
    """
    changes: dict[str, Any] = {}
    parsed, settings = call.admitted, version.settings
    if ask_usage and adds_usage(call, version):
        given = parsed.body.get("stream_options") or {}
        changes["stream_options"] = {**given, "include_usage": True}
    upstream_model = settings.upstream_model or version.deployment
    if parsed.body.get("model", upstream_model) != upstream_model:
        changes["model"] = upstream_model
    salt_field = settings.salt_field
    if salt_field is not None and call.tenant and call.endpoint is not Endpoint.TOKENIZE:
        changes[salt_field] = _make_salt(call.tenant, parsed.body.get(salt_field))
    priority_field = settings.priority_field
    generates = call.endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS)
    if priority_field is not None and generates and (call.priority or call.delivery.may_yield):
        changes[priority_field] = max(1, call.priority, parsed.body.get(priority_field) or 0)
    ours = version.honours is not None
    if ours and any(name in GATEWAY_FIELDS for name in parsed.body):
        kept = {name: value for name, value in parsed.body.items() if name not in GATEWAY_FIELDS}
        return _encode({**kept, **changes})
    if not changes:
        return call.exchange.body.removeprefix(BYTE_ORDER_MARK)
    return _encode({**parsed.body, **changes})


def make_headers(key_env: str | None) -> bytes:
    """Header lines of every request to a version whose key is in the environment variable
    `key_env`; the client's key is not among them.
    """
    lines = b"content-type: application/json\r\naccept-encoding: identity\r\n"
    key = os.environ.get(key_env) if key_env is not None else None
    return b"%bauthorization: Bearer %b\r\n" % (lines, key.encode()) if key else lines


def _make_salt(tenant: str, given: Any) -> str:
    """A salt that separates the cached prefixes of tenants. A client's own salt separates them
    further, and cannot name another tenant's.
    """
    own = given if isinstance(given, str) else ""
    return hashlib.blake2b(f"{tenant}\0{own}".encode(), digest_size=16).hexdigest()
