"""Is it a request that this deployment can answer? JSON, model, fields, bounds, deadline."""

from __future__ import annotations

from typing import Any

import msgspec

from thrifty.gateway.call import Call
from thrifty.gateway.table import Deployment, RoutingTable
from thrifty.openai.errors import NOT_FOUND, WireError, bad_request, unavailable
from thrifty.openai.fields import Endpoint, check_fields

TIMEOUT_HEADER = b"x-thrifty-timeout-ms"
MAX_TIMEOUT_MS = 86_400_000

_decode = msgspec.json.Decoder().decode


def admit(call: Call, table: RoutingTable) -> None:
    """Fill in the call's body and deployment. Raises a 4xx that names the fault."""
    if not table.loaded:
        raise unavailable("the gateway is starting; try again in a moment", "starting")
    call.body = body = _decode_body(call.exchange.body)
    call.deployment = deployment = _find_deployment(body, call.endpoint, table)
    check_fields(body, call.endpoint, deployment.honours, deployment.row.engine)
    call.stream = body.get("stream") is True
    options = body.get("stream_options")
    call.include_usage = bool(options and options.get("include_usage"))
    _limit_tokens(body, deployment.settings.max_tokens)
    asked = call.exchange.headers.get(TIMEOUT_HEADER)
    if asked is not None or deployment.settings.timeout_s is not None:
        call.deadline_s = call.received_s + _read_timeout_s(asked, deployment.settings.timeout_s)


def _read_timeout_s(asked: bytes | None, default_s: float | None) -> float:
    """How long the answer may take to begin: what the client asks for, but not more than the
    deployment allows.
    """
    if asked is None:
        return default_s or 0.0
    text = asked.strip()
    if not text.isdigit() or not 0 < int(text[:12]) <= MAX_TIMEOUT_MS:
        raise bad_request(
            f"The header '{TIMEOUT_HEADER.decode()}' must be a whole number of milliseconds, from 1 "
            f"to {MAX_TIMEOUT_MS}, not {text[:40].decode('latin-1')!r}.",
            TIMEOUT_HEADER.decode(),
            "invalid_value",
        )
    asked_s = int(text) / 1e3
    return asked_s if default_s is None else min(asked_s, default_s)


def _decode_body(data: bytes) -> dict[str, Any]:
    try:
        body = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise bad_request("The body is nested too deeply.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.", code="invalid_json")
    return body


def _find_deployment(body: dict[str, Any], endpoint: Endpoint, table: RoutingTable) -> Deployment:
    model = body.get("model")
    if model is None and endpoint is Endpoint.TOKENIZE and len(table.deployments) == 1:
        return next(iter(table.deployments.values()))
    if model is None:
        raise bad_request(
            "Missing required parameter: 'model'.", "model", "missing_required_parameter"
        )
    if not isinstance(model, str):
        raise bad_request(f"'model' must be a string, not {model!r}.", "model", "invalid_value")
    deployment = table.names.get(model)
    if deployment is None:
        names = ", ".join(repr(name) for name in table.names) or "none"
        raise WireError(
            404,
            f"The model '{model[:100]}' does not exist or you do not have access to it. "
            f"Models here: {names}.",
            type=NOT_FOUND,
            param="model",
            code="model_not_found",
        )
    return deployment


def _limit_tokens(body: dict[str, Any], limit: int | None) -> None:
    if limit is None:
        return
    for name in ("max_tokens", "max_completion_tokens"):
        asked = body.get(name)
        if asked is not None and asked > limit:
            raise bad_request(
                f"'{name}' is {asked}; this deployment generates at most {limit} tokens a request.",
                name,
                "max_tokens_exceeded",
            )
