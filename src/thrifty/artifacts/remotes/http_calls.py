"""Requests of the remotes that speak HTTP themselves, with errors as remotes raise them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import requests
import urllib3

from thrifty.artifacts.remotes.base import MAX_MANIFEST_BYTES, RemoteAway
from thrifty.artifacts.remotes.reference import redact
from thrifty.errors import RemoteError

TIMEOUT_S = (10.0, 60.0)
"""To connect, and between bytes."""
PIECE_BYTES = 1024 * 1024
_MAX_ERROR_BYTES = 2000


def call(
    session: requests.Session,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    data: bytes | None = None,
    params: Mapping[str, str] | None = None,
    stream: bool = False,
) -> requests.Response:
    """The response to one request, whatever its status; its body is read unless it is to `stream`.

    Raises `RemoteAway` where none comes, and `RemoteError` for a body that is too large.
    """
    with own_errors(url):
        response = session.request(
            method, url, headers={"Accept-Encoding": "identity", **(headers or {})}, data=data,
            params=params, stream=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        if not stream:
            body = response.raw.read(MAX_MANIFEST_BYTES + 1, decode_content=True)
            if len(body) > MAX_MANIFEST_BYTES:
                response.close()
                raise RemoteError(
                    f"{redact(url)} answered with more than {MAX_MANIFEST_BYTES} bytes"
                )
            response.raw = io.BytesIO(body)
    return response


def read_body(response: requests.Response, url: str) -> Iterator[bytes]:
    """The body of a streamed response, in pieces as they come; closes it."""
    with own_errors(url), response:
        raw = response.raw
        read_some = getattr(raw, "read1", raw.read)
        while piece := read_some(PIECE_BYTES):
            yield piece


def check(response: requests.Response, url: str, what: str, *, expected: tuple[int, ...]) -> None:
    """Raise `RemoteError` unless the status is expected; `RemoteAway` where it may pass."""
    status = response.status_code
    if status in expected:
        return
    with own_errors(url):
        body = next(response.iter_content(_MAX_ERROR_BYTES), b"")
    said = redact(body.decode("utf-8", errors="replace"))
    response.close()
    message = f"{url} answered {status} to {what}" + (f": {said}" if said else "")
    if status in (408, 425, 429) or (status >= 500 and status != 507):
        raise RemoteAway(message)
    if status in (401, 403):
        message += "; check the credentials, what they may do, and quotas (docs/remotes.md)"
    if status in (413, 507):
        message += "; the remote is full or takes no files of this size"
    raise RemoteError(message)


@contextlib.contextmanager
def own_errors(url: str) -> Iterator[None]:
    """Errors of the libraries as `RemoteAway`: connections that fail or break."""
    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
        raise RemoteError(f"{redact(url)} cannot be asked: {redact(str(error))}") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise RemoteAway(f"{redact(url)} does not answer: {redact(str(error))}") from None


def read_json(response: requests.Response, url: str) -> dict[str, Any]:
    """A response's JSON object. Raises `RemoteError`."""
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RemoteError(f"{redact(url)} answered no JSON object; is it what its URL says?")
    return found
