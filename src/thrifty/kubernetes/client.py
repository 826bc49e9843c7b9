"""Requests to Kubernetes' API server, on the event loop, and what may come of them.

    ApiAway       it was not reached, or did not answer: nothing is known, ask again
    ApiRefused    it answered, and the answer is no; `status` and `reason` say why

The client knows paths and JSON, and nothing of what the objects mean. Objects are written by
server-side apply under one name of ours, so that the server knows which fields are whose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import msgspec

from thrifty.errors import FleetError
from thrifty.http.client import Answer, HttpClient, TransportError
from thrifty.kubernetes.config import Cluster
from thrifty.version import __version__

Object = dict[str, Any]

REQUEST_TIMEOUT_S = 15.0
APPLY = "application/apply-patch+yaml"
"""JSON is YAML."""
MERGE = "application/merge-patch+json"
JSON = "application/json"
NOTHING: Mapping[str, str] = MappingProxyType({})
MAX_LINE_BYTES = 16_000_000
"""Of one event of a watch: an object has at most about 1.5 MB."""


class ApiAway(FleetError):
    """The API server was not reached, or gave no complete answer."""


class ApiRefused(FleetError):
    """The API server said no."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        """Such as `NotFound`, `Conflict`, `Forbidden`, `Expired`."""


class ApiClient:
    """Requests to one cluster. Used on one event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.calls = 0
        """How many requests were sent, watches included."""
        self._http = HttpClient(cluster.tls)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        kind: str = JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
        query: Mapping[str, str] = NOTHING,
    ) -> Object:
        """One request; the object that came back. Raises `ApiAway`, `ApiRefused`."""
        self.calls += 1
        where = f"{path}?{urlencode(query)}" if query else path
        try:
            status, data = await self._http.fetch_from(
                self.cluster.origin, method, where, headers=self._headers(kind),
                body=b"" if body is None else msgspec.json.encode(body), timeout_s=timeout_s,
            )  # fmt: skip
        except (TransportError, OSError) as error:
            raise ApiAway(str(error)) from None
        if status >= 500 or status == 429:
            raise ApiAway(str(make_refusal(status, data)))
        if status >= 400:
            raise make_refusal(status, data)
        try:
            found: Object = msgspec.json.decode(data)
        except msgspec.DecodeError:
            raise ApiAway(f"{self.cluster.origin.url}{path} answered no JSON") from None
        return found

    async def read_text(self, path: str, query: Mapping[str, str] = NOTHING) -> str:
        """What is text, such as a pod's log. Raises `ApiAway`, `ApiRefused`."""
        self.calls += 1
        where = f"{path}?{urlencode(query)}" if query else path
        try:
            status, data = await self._http.fetch_from(
                self.cluster.origin, "GET", where, headers=self._headers(JSON),
                timeout_s=REQUEST_TIMEOUT_S,
            )  # fmt: skip
        except (TransportError, OSError) as error:
            raise ApiAway(str(error)) from None
        if status >= 400:
            raise make_refusal(status, data)
        return data.decode("utf-8", "replace")

    async def apply(self, path: str, body: Mapping[str, Any], manager: str) -> Object:
        """Create an object or change ours, by server-side apply as `manager`. Fields of others that
        we set, too, become ours. Raises `ApiAway`, `ApiRefused`.
        """
        return await self.request(
            "PATCH", path, body, kind=APPLY, query={"fieldManager": manager, "force": "true"}
        )

    async def watch(
        self,
        path: str,
        on_event: Callable[[str, Object], None],
        timeout_s: float,
        query: Mapping[str, str] = NOTHING,
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `on_event` with the type and object of each event, until the server ends the watch,
        which it is asked to do after `timeout_s`. `on_open` is called once the server has taken it.
        Raises `ApiAway`, `ApiRefused`.
        """
        self.calls += 1
        where = urlencode({**query, "watch": "1", "timeoutSeconds": str(round(timeout_s))})
        answer: Answer | None = None
        ended = False
        try:
            answer = await self._http.open(
                self.cluster.origin, "GET", f"{path}?{where}", headers=self._headers(JSON),
                connect_timeout_s=REQUEST_TIMEOUT_S, head_timeout_s=REQUEST_TIMEOUT_S,
            )  # fmt: skip
            if answer.status >= 400:
                raise make_refusal(answer.status, await answer.read())
            on_open()
            answer.attach(_Lines(on_event).feed)
            # A server that hangs says nothing more, not even that it ends.
            async with asyncio.timeout(timeout_s + REQUEST_TIMEOUT_S):
                await answer.done
            ended = True
        except (TransportError, OSError, TimeoutError) as error:
            raise ApiAway(str(error) or "the watch got no answer") from None
        finally:
            # Whoever is cancelled cancels `answer.done`, too.
            if answer is not None and not ended:
                answer.abort()

    def _headers(self, kind: str) -> bytes:
        lines = [f"content-type: {kind}", "accept: application/json"]
        lines.append(f"user-agent: thrifty/{__version__}")
        token = self.cluster.read_token()
        if token:
            lines.append(f"authorization: Bearer {token}")
        return "".join(f"{line}\r\n" for line in lines).encode("ascii")


class _Lines:
    """Cuts a watch's bytes into events."""

    def __init__(self, on_event: Callable[[str, Object], None]) -> None:
        self._on_event = on_event
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise ValueError(f"an event of a watch has more than {MAX_LINE_BYTES} bytes")
        for line in lines:
            if line:
                event = msgspec.json.decode(line)
                self._on_event(str(event.get("type")), event.get("object") or {})


def make_refusal(status: int, data: bytes) -> ApiRefused:
    """The error of an answer that is no, from the `Status` object that comes with it."""
    reason, message = "", ""
    try:
        body = msgspec.json.decode(data)
        reason, message = str(body.get("reason") or ""), str(body.get("message") or "")
    except (msgspec.DecodeError, AttributeError):
        message = data[:200].decode("utf-8", "replace")
    return ApiRefused(status, reason, message or f"the API server answered {status}")
