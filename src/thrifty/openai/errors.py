"""Errors as they are sent over HTTP, in the OpenAI shape that client libraries understand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from thrifty.errors import BadDataError, DatabaseError, ThriftyError
from thrifty.untrusted_text import sanitize_text

INVALID_REQUEST = "invalid_request_error"
AUTHENTICATION = "authentication_error"
PERMISSION = "permission_error"
NOT_FOUND = "not_found_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"
OVERLOADED = "overloaded_error"
MAX_NAMES = 50
"""At most so many names stand in one message."""


class WireError(ThriftyError):
    """An error to answer with: its HTTP status and the OpenAI error object.

    `param` names the request field at fault; `code` is a short name for programs to test.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self._headers = headers

    @property
    def body(self) -> dict[str, Any]:
        """The error object as it is sent."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def encode(self) -> bytes:
        """The JSON bytes of the error object."""
        try:
            return msgspec.json.encode(self.body)
        except UnicodeEncodeError:
            # A message may quote half of a surrogate pair.
            fields: dict[str, str | None] = self.body["error"]
            clean = {k: v if v is None else sanitize_text(v) for k, v in fields.items()}
            return msgspec.json.encode({"error": clean})

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Response headers that belong to it, such as `retry-after` and `allow`."""
        if self.retry_after_s is None:
            return list(self._headers)
        return [(b"retry-after", b"%d" % max(1, round(self.retry_after_s))), *self._headers]


def read_message(body: bytes) -> str:
    """The message in an error that a server sent, or the beginning of what it sent instead."""
    try:
        return sanitize_text(str(msgspec.json.decode(body)["error"]["message"]), 1000)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return body[:300].decode("utf-8", "replace")


def read_code(body: bytes) -> str | None:
    """The code in an error that a server sent; None where there is none."""
    try:
        code = msgspec.json.decode(body)["error"]["code"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return None
    return code if isinstance(code, str) else None


def list_names(names: Iterable[str]) -> str:
    """The names that there are, for a message about one that there is not."""
    found = [f"'{name[:100]}'" for name in names]
    more = len(found) - MAX_NAMES
    shown = ", ".join(found[:MAX_NAMES]) or "none"
    return f"{shown} and {more} more" if more > 0 else shown


def bad_request(message: str, param: str | None = None, code: str | None = None) -> WireError:
    """A 400: the client's mistake, in the field `param`."""
    return WireError(400, message, param=param, code=code)


def forbid_tenant(what: str) -> WireError:
    """A 403: the caller asks for `what` of another tenant."""
    return WireError(
        403,
        f"Only admins may see the {what} of other tenants; remove 'tenant'.",
        type=PERMISSION,
        param="tenant",
        code="role_not_allowed",
    )


def unavailable(message: str, code: str, retry_after_s: float = 1.0) -> WireError:
    """A 503: not possible now; the client may try again."""
    return WireError(503, message, type=OVERLOADED, code=code, retry_after_s=retry_after_s)


def explain_database(error: DatabaseError) -> WireError:
    """A 400 if the database refuses a value of the request, a 503 while it is unavailable."""
    if isinstance(error, BadDataError):
        return bad_request(
            "The database cannot store or compare a value in this request; remove control "
            "characters and shorten long values.",
            code="invalid_value",
        )
    return unavailable("the database is unavailable; retry later", "database_away", 5.0)


def internal_error(message: str = "the server had an internal error") -> WireError:
    """A 500: an error of our own."""
    return WireError(500, message, type=SERVER, code="internal_error")
