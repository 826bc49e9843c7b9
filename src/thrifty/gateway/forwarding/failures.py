"""Failures of replicas, and the error that the client receives if no other replica answers."""

from __future__ import annotations

import msgspec

from thrifty.gateway.state.call import Call
from thrifty.openai.errors import SERVER, WireError
from thrifty.untrusted_text import sanitize_line, sanitize_text, to_text

REFUSED = 401
"""The server refuses the key of this service; the client's own was checked before."""
RETRIABLE_STATUSES = frozenset({REFUSED, 500, 502, 503, 504})
BUSY = 503
MAX_MESSAGE_CHARS = 4000
MAX_CODE_CHARS = 64
"""As long as the request log's column. A replica may send anything as a code."""


class ReplicaError(Exception):
    """A replica answered with an error that another replica may not give, or with a status that is
    not an answer, such as a redirect.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body


def is_busy(failure: Exception) -> bool:
    """Whether a replica was only overloaded."""
    return isinstance(failure, ReplicaError) and failure.status == BUSY


def make_error(failure: Exception, call: Call) -> WireError:
    """The error that the client receives when its call is not retried any more."""
    if isinstance(failure, ReplicaError):
        if 300 <= failure.status < 400:
            return WireError(
                502,
                f"The server behind this model answered with a redirect ({failure.status}), which is "
                "not followed. Its operator should set 'engine.urls' to where it leads.",
                type=SERVER,
                code="upstream_redirect",
            )
        if failure.status == REFUSED:
            # What the server says may name the key.
            return WireError(
                502,
                "The server behind this model refuses the key of this service. Its operator should "
                "look at 'engine.key_env'.",
                type=SERVER,
                code="upstream_credentials",
            )
        return _read_error(failure) or WireError(
            502,
            f"a replica answered {failure.status}: {_show(failure.body)}",
            type=SERVER,
            code="engine_error",
        )
    return WireError(
        502,
        f"no replica could answer ({call.delivery.attempts} tried; the last: {failure})",
        type=SERVER,
        code="replica_lost",
        retry_after_s=1.0,
    )


def _read_error(failure: ReplicaError) -> WireError | None:
    """The replica's own error, if its body is one in the OpenAI shape. Only the shape is given:
    each field may be any value of any size.
    """
    try:
        fault = msgspec.json.decode(failure.body)["error"]
        message = fault["message"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return None
    if failure.status not in (200, *RETRIABLE_STATUSES):
        return None
    return WireError(
        502 if failure.status == 200 else failure.status,
        sanitize_text(to_text(message), MAX_MESSAGE_CHARS),
        type=sanitize_line(fault.get("type"), MAX_CODE_CHARS) or SERVER,
        param=sanitize_line(fault.get("param"), MAX_CODE_CHARS) or None,
        code=sanitize_line(fault.get("code"), MAX_CODE_CHARS) or "engine_error",
        retry_after_s=2.0 if failure.status == BUSY else None,
    )


def _show(body: bytes) -> str:
    return sanitize_line(body[:200].decode("utf-8", "replace"), 200)
