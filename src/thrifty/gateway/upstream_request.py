"""What a replica is sent: the client's own bytes, unless something must be added or renamed, with
header lines that are the gateway's.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import msgspec

from thrifty.gateway.call import Call
from thrifty.gateway.table import Deployment
from thrifty.openai.fields import GATEWAY_FIELDS, Endpoint

_encode = msgspec.json.Encoder().encode


def prepare_body(call: Call, deployment: Deployment) -> bytes:
    """The bytes to send for a call, whose own body stays as it is."""
    changes: dict[str, Any] = {}
    if call.stream and not call.include_usage:
        # Token counts are asked for in any case; the relay keeps them from who did not ask.
        changes["stream_options"] = {"include_usage": True}
    upstream_model = deployment.settings.upstream_model or deployment.name
    if call.body.get("model", upstream_model) != upstream_model:
        changes["model"] = upstream_model
    salt_field = deployment.settings.salt_field
    if salt_field is not None and call.tenant and call.endpoint is not Endpoint.TOKENIZE:
        changes[salt_field] = _make_salt(call.tenant, call.body.get(salt_field))
    priority_field = deployment.settings.priority_field
    generates = call.endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS)
    if priority_field is not None and generates and (call.priority or call.may_yield):
        changes[priority_field] = max(1, call.priority, call.body.get(priority_field) or 0)
    ours = deployment.honours is not None
    if ours and any(name in GATEWAY_FIELDS for name in call.body):
        kept = {name: value for name, value in call.body.items() if name not in GATEWAY_FIELDS}
        return _encode({**kept, **changes})
    if not changes:
        return call.exchange.body
    return _encode({**call.body, **changes})


def make_headers(deployment: Deployment) -> bytes:
    """Header lines that every request to a deployment carries; the client's key is not among them."""
    lines = b"content-type: application/json\r\n"
    key = os.environ.get(deployment.settings.key_env or "")
    if key:
        lines += b"authorization: Bearer %b\r\n" % key.encode()
    return lines


def _make_salt(tenant: str, given: Any) -> str:
    """What keeps a tenant's prefixes apart. A client's own salt parts them further, and cannot name
    another tenant's.
    """
    own = given if isinstance(given, str) else ""
    return hashlib.blake2b(f"{tenant}\0{own}".encode(), digest_size=16).hexdigest()
