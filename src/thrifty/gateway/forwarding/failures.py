"""Failures of replicas, and the error that the client receives if no other replica answers."""

from __future__ import annotations

import msgspec

from thrifty.gateway.state.call import Call
from thrifty.openai.errors import SERVER, WireError

RETRIABLE_STATUSES = frozenset({500, 502, 503, 504})
BUSY = 503


class ReplicaError(Exception):
    """A replica answered with an error that another replica may not give."""

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
        try:
            fault = msgspec.json.decode(failure.body)["error"]
            return WireError(
                failure.status, str(fault["message"]), type=str(fault.get("type") or SERVER),
                param=fault.get("param"), code=fault.get("code") or "engine_error",
                retry_after_s=2.0 if failure.status == BUSY else None,
            )  # fmt: skip
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
            text = failure.body[:200].decode("utf-8", "replace")
            return WireError(502, f"a replica answered {failure.status}: {text}", type=SERVER,
                             code="engine_error")  # fmt: skip
    return WireError(
        502,
        f"no replica could answer ({call.delivery.attempts} tried; the last: {failure})",
        type=SERVER,
        code="replica_lost",
        retry_after_s=1.0,
    )
