"""Function URL events (payload format 2.0) as HTTP requests, and the heads of answers to them.

Source: docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html. API Gateway's HTTP APIs send the
same format.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from thrifty.errors import ThriftyError

_NOT_PASSED_ON = frozenset(
    {
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization", "te",
        "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Headers that concern one connection, or that the next request gets anew."""
_PATH_CHARACTERS = "/%:@!$&'()*+,;=~-._"
_PRELUDE_END = b"\0" * 8
PRELUDE_TYPE = "application/vnd.awslambda.http-integration-response"
"""The type of a streamed response that begins with the status and the headers, as JSON."""


class EventRefused(ThriftyError):
    """An event that is no HTTP request."""


@dataclass(frozen=True)
class HttpRequest:
    """One request of a client."""

    method: str
    target: str
    """Path and query."""
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes
    signed: bool
    """Whether Lambda checked an IAM signature."""


def parse_event(data: bytes) -> HttpRequest:
    """The request in an event. Raises `EventRefused`."""
    try:
        event = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise EventRefused(f"the event is no JSON ({error})") from None
    if not isinstance(event, dict) or event.get("version") != "2.0":
        found = event.get("version") if isinstance(event, dict) else None
        raise EventRefused(
            f"the event has the version {found!r}; invoke the function by its URL, or by an HTTP API "
            "with payload format 2.0"
        )
    context = event.get("requestContext") or {}
    method = (context.get("http") or {}).get("method")
    if not isinstance(method, str) or not method.isascii() or not method.isalpha():
        raise EventRefused("the event has no requestContext.http.method")
    query = event.get("rawQueryString") or ""
    target = quote(str(event.get("rawPath") or "/"), safe=_PATH_CHARACTERS)
    if query:
        target += "?" + quote(str(query), safe=_PATH_CHARACTERS + "?")
    return HttpRequest(
        method.upper(), target, _read_headers(event), _read_body(event),
        signed=bool((context.get("authorizer") or {}).get("iam")),
    )  # fmt: skip


def make_prelude(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """What a streamed response begins with."""
    plain: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in headers:
        lower = name.lower()
        if lower == "set-cookie":
            cookies.append(value)
        elif lower not in _NOT_PASSED_ON and lower not in ("date", "server"):
            plain[lower] = f"{plain[lower]}, {value}" if lower in plain else value
    head: dict[str, Any] = {"statusCode": status, "headers": plain}
    if cookies:
        head["cookies"] = cookies
    return msgspec.json.encode(head) + _PRELUDE_END


def _read_headers(event: dict[str, Any]) -> dict[str, str]:
    headers = {}
    for name, value in (event.get("headers") or {}).items():
        if str(name).lower() not in _NOT_PASSED_ON:
            headers[str(name).lower()] = str(value)
    if event.get("cookies"):
        headers["cookie"] = "; ".join(map(str, event["cookies"]))
    for name, value in headers.items():
        if not f"{name}{value}".isprintable() or not name.isascii():
            raise EventRefused(f"the header {name!r} has characters that HTTP does not allow")
    return headers


def _read_body(event: dict[str, Any]) -> bytes:
    body = event.get("body") or ""
    if not isinstance(body, str):
        raise EventRefused("the event's body is no text")
    if not event.get("isBase64Encoded"):
        return body.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise EventRefused(f"the event's body is not base64 ({error})") from None
