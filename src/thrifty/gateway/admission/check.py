"""Validation of a request: JSON, model, fields, version, token limits, deadline.

`parse_request` and `find_target` run before the limits of the key, `check_version` after them. The
allowed fields depend on the version that answers, but the choice of version never depends on the
request's fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from thrifty.db.keys import Key
from thrifty.gateway.state.call import Call, ParsedRequest, Target
from thrifty.gateway.state.deployment import Deployment
from thrifty.gateway.state.table import RoutingTable
from thrifty.gateway.state.version import Version
from thrifty.openai.bodies import decode_body
from thrifty.openai.conversations import Conversations
from thrifty.openai.errors import (
    NOT_FOUND,
    PERMISSION,
    WireError,
    bad_request,
    list_names,
    unavailable,
)
from thrifty.openai.fields import (
    STREAMED,
    Endpoint,
    check_family,
    check_honoured,
    check_values,
    missing_parameter,
    show_value,
)
from thrifty.openai.stream_options import read_stream_options
from thrifty.types import Role

TIMEOUT_HEADER = b"x-thrifty-timeout-ms"
VERSION_HEADER = b"x-thrifty-version"
CONVERSATION_HEADER = b"x-thrifty-conversation"
MAX_TIMEOUT_MS = 86_400_000
MAX_TIMEOUT_DIGITS = 12
_PINNERS = Role.OPERATOR.holders()


def parse_request(call: Call, table: RoutingTable) -> ParsedRequest:
    """Parse and validate the body of a call, independently of the version that answers it. Raises a
    4xx that names the error, or a 503 while the gateway starts.
    """
    if not table.loaded:
        raise unavailable("the gateway is starting; retry in a moment", "starting")
    body = decode_body(call.exchange.body)
    _require_model(body, call.endpoint, table)
    check_values(body, call.endpoint)
    return ParsedRequest(
        body,
        stream=body.get("stream") is True and call.endpoint in STREAMED,
        stream_options=read_stream_options(body.get("stream_options")),
    )


def find_target(
    call: Call, parsed: ParsedRequest, table: RoutingTable, conversations: Conversations
) -> Target:
    """The deployment that the request names, and the version that its conversation is assigned to
    or that an operator pinned. Raises a 403 or 404.
    """
    deployment = find_deployment(parsed.body, call.endpoint, table, call.key)
    headers = call.exchange.headers
    conversation_id = conversations.identify(
        call.tenant, headers.get(CONVERSATION_HEADER), call.endpoint, parsed.body
    )
    return assign_version(call, deployment, conversation_id)


def assign_version(call: Call, deployment: Deployment, conversation_id: str) -> Target:
    """The target of a conversation within a deployment. Raises a 403 or 404."""
    pinned = call.exchange.headers.get(VERSION_HEADER)
    if pinned is not None:
        version = _find_pinned(call, deployment, pinned)
        return Target(deployment, version, version, conversation_id, pinned=True)
    chosen, version = deployment.find_answering(conversation_id)
    return Target(deployment, chosen, version, conversation_id)


def check_version(call: Call, parsed: ParsedRequest, target: Target) -> None:
    """Check that the version honours the request's fields, and set the deadline. Raises a 400 that
    names the field and the version.
    """
    version, limits = target.version, target.deployment.settings
    if version.honours is not None:
        check_family(call.endpoint, target.deployment.row.family)
    check_honoured(parsed.body, call.endpoint, version.honours, version.row.engine, version.label)
    if limits.max_tokens is not None:
        _limit_tokens(parsed.body, limits.max_tokens)
    asked = call.exchange.headers.get(TIMEOUT_HEADER)
    if asked is not None or limits.timeout_s is not None:
        parsed.deadline_s = call.received_s + _read_timeout_s(asked, limits.timeout_s)


def find_deployment(
    body: dict[str, Any], endpoint: Endpoint, table: RoutingTable, key: Key | None = None
) -> Deployment:
    """The deployment that a body names. Raises a 404, which names those that `key` may call."""
    model = body.get("model")
    if model is None and endpoint is Endpoint.TOKENIZE and len(table.deployments) == 1:
        return next(iter(table.deployments.values()))
    deployment = table.names.get(model) if isinstance(model, str) else None
    if deployment is None:
        raise _make_unknown(model, list_visible(table.names, key))
    return deployment


def check_scope(key: Key, deployment: Deployment, parsed: ParsedRequest) -> None:
    """Check that the key may call the deployment. Raises the 404 of one that does not exist."""
    if not key.may_call(deployment.name):
        raise _make_unknown(parsed.body.get("model"), key.deployments or ())


def list_visible(names: Mapping[str, Deployment], key: Key | None) -> list[str]:
    """The names that the holder of a key may write in `model`."""
    return [name for name, one in names.items() if key is None or key.may_call(one.name)]


def _make_unknown(model: Any, known: Iterable[str]) -> WireError:
    return WireError(
        404,
        f"The model '{str(model)[:100]}' does not exist or you do not have access to it. "
        f"Models here: {list_names(known)}.",
        type=NOT_FOUND,
        param="model",
        code="model_not_found",
    )


def _find_pinned(call: Call, deployment: Deployment, pinned: bytes) -> Version:
    key = call.key
    if not (call.exchange.from_this_machine if key is None else key.role in _PINNERS):
        raise WireError(
            403,
            f"The header '{VERSION_HEADER.decode()}' pins a version and requires an operator's key. "
            "Remove the header, or use such a key.",
            type=PERMISSION,
            code="role_not_allowed",
        )
    label = pinned.decode("latin-1")
    version = deployment.versions.get(label)
    if version is None:
        raise WireError(
            404,
            f"'{deployment.name}' has no version {label[:64]!r}. Its versions: "
            f"{list_names(deployment.versions)}.",
            type=NOT_FOUND,
            param=VERSION_HEADER.decode(),
            code="version_not_found",
        )
    return version


def _require_model(body: dict[str, Any], endpoint: Endpoint, table: RoutingTable) -> None:
    model = body.get("model")
    if model is None and endpoint is Endpoint.TOKENIZE and len(table.deployments) == 1:
        return
    if model is None:
        raise missing_parameter("model")
    if not isinstance(model, str):
        raise bad_request(
            f"'model' must be a string, not {show_value(model)}.", "model", "invalid_value"
        )


def _read_timeout_s(asked: bytes | None, default_s: float | None) -> float:
    """The time until the answer must begin: the client's value, bounded by the deployment's."""
    if asked is None:
        return default_s or 0.0
    text = asked.strip()
    asked_ms = int(text) if text.isdigit() and len(text) <= MAX_TIMEOUT_DIGITS else 0
    if not 0 < asked_ms <= MAX_TIMEOUT_MS:
        raise bad_request(
            f"The header '{TIMEOUT_HEADER.decode()}' must be a whole number of milliseconds from 1 "
            f"to {MAX_TIMEOUT_MS}, not {text[:40].decode('latin-1')!r}.",
            TIMEOUT_HEADER.decode(),
            "invalid_value",
        )
    asked_s = asked_ms / 1e3
    return asked_s if default_s is None else min(asked_s, default_s)


def _limit_tokens(body: dict[str, Any], limit: int) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        asked = body.get(name)
        if asked is not None and asked > limit:
            raise bad_request(
                f"'{name}' is {asked}, but this deployment generates at most {limit} tokens per "
                "request.",
                name,
                "max_tokens_exceeded",
            )
