"""The Lambda Runtime API over real HTTP, as a function's runtime sees it; for tests and benchmarks.

It follows docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html and .../runtimes-custom.html. A long
poll that a killed runtime left is dropped: otherwise it would swallow the next event.
"""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import select
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NEXT = "/2018-06-01/runtime/invocation/next"
INIT_ERROR = "/2018-06-01/runtime/init/error"
PRELUDE_END = b"\0" * 8


@dataclass
class Invoked:
    """What came back for one event."""

    id: str
    deadline_s: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    """With the times of their arrival (`time.monotonic`)."""
    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    """What was posted to `/error`."""
    done: threading.Event = field(default_factory=threading.Event)
    leave_after: int | None = None
    """The client goes after so many bytes."""

    @property
    def whole(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    @property
    def head(self) -> dict[str, Any]:
        """The prelude."""
        head: dict[str, Any] = json.loads(self.whole.split(PRELUDE_END, 1)[0])
        return head

    @property
    def body(self) -> bytes:
        return self.whole.split(PRELUDE_END, 1)[1]

    @property
    def fault(self) -> dict[str, Any] | None:
        """What the trailers report."""
        text = self.trailers.get("lambda-runtime-function-error-body")
        return None if text is None else dict(json.loads(base64.b64decode(text)))

    def wait(self, timeout_s: float = 60.0) -> Invoked:
        assert self.done.wait(timeout_s), f"no answer within {timeout_s} s: {self.whole[-500:]!r}"
        return self

    def wait_for(self, text: bytes, timeout_s: float = 60.0) -> float:
        """The time when `text` had come."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            seen = b""
            for at, piece in list(self.pieces):
                seen += piece
                if text in seen:
                    return at
            if self.done.wait(0.005) and text not in self.whole:
                break
        raise AssertionError(f"{text!r} did not come: {self.whole[-500:]!r} {self.error}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A runtime that ends cuts its connections; anything else is a fault of ours."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Emulator:
    """Events go in by `invoke`."""

    def __init__(self) -> None:
        self._pending: queue.Queue[tuple[Invoked, bytes]] = queue.Queue()
        self._live: dict[str, Invoked] = {}
        self.init_error: dict[str, Any] | None = None
        self.polls = 0
        """How often an event was asked for: the first time ends the first phase."""
        self.first_poll_s: float | None = None
        self.stopping = False
        self._server = _Server(("127.0.0.1", 0), self._make_handler())

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def invoke(
        self, event: Any, timeout_s: float = 60.0, leave_after: int | None = None
    ) -> Invoked:
        """Hand in an event; the runtime has `timeout_s` to answer it."""
        invoked = Invoked(str(uuid.uuid4()), time.time() + timeout_s, leave_after=leave_after)
        self._live[invoked.id] = invoked
        self._pending.put((invoked, json.dumps(event).encode()))
        return invoked

    @contextlib.contextmanager
    def running(self) -> Iterator[Emulator]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.stopping = True
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _take(self, connection: Any) -> tuple[Invoked, bytes] | None:
        """The next event, for as long as the runtime that asked is there."""
        while not self.stopping:
            with contextlib.suppress(queue.Empty):
                return self._pending.get(timeout=0.01)
            if select.select([connection], [], [], 0)[0]:
                return None
        return None

    def _make_handler(emulator) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path != NEXT:
                    self._answer(404, {})
                    return
                emulator.polls += 1
                emulator.first_poll_s = emulator.first_poll_s or time.monotonic()
                taken = emulator._take(self.connection)
                if taken is None:
                    self.close_connection = True
                    return
                invoked, event = taken
                headers = {
                    "Lambda-Runtime-Aws-Request-Id": invoked.id,
                    "Lambda-Runtime-Deadline-Ms": str(round(invoked.deadline_s * 1000)),
                    "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:local:0:function:test",
                }
                self._answer(200, headers, event)

            def do_POST(self) -> None:
                invoked = emulator._live.get(self.path.split("/")[-2])
                if self.path == INIT_ERROR:
                    emulator.init_error = {**json.loads(self._read()), **dict(self.headers)}
                elif invoked is None:
                    self._read()
                    self._answer(400, {}, b'{"errorType": "InvalidRequestID"}')
                    return
                elif self.path.endswith("/error"):
                    invoked.error = json.loads(self._read())
                    invoked.done.set()
                else:
                    invoked.headers = {k.lower(): v for k, v in self.headers.items()}
                    if not self._take_response(invoked):
                        return
                self._answer(202, {}, b'{"status": "OK"}')

            def _take_response(self, invoked: Invoked) -> bool:
                size = 0
                while (length := int(self.rfile.readline(), 16)) > 0:
                    piece = self.rfile.read(length)
                    self.rfile.readline()
                    size += length
                    invoked.pieces.append((time.monotonic(), piece))
                    if invoked.leave_after is not None and size >= invoked.leave_after:
                        self.close_connection = True
                        self.connection.close()
                        invoked.done.set()
                        return False
                while line := self.rfile.readline().strip():
                    name, _, value = line.decode().partition(":")
                    invoked.trailers[name.lower()] = value.strip()
                invoked.done.set()
                return True

            def _read(self) -> bytes:
                return self.rfile.read(int(self.headers["Content-Length"]))

            def _answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        return Handler


def make_event(
    method: str,
    path: str,
    body: Any = None,
    key: str | None = None,
    *,
    query: str = "",
    signed: bool = False,
    **headers: str,
) -> dict[str, Any]:
    """A function URL event, payload format 2.0; JSON bodies come in base64, as they may."""
    context: dict[str, Any] = {
        "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1"},
        "domainName": "abc.lambda-url.us-east-1.on.aws",
        "stage": "$default",
    }
    if signed:
        context["authorizer"] = {"iam": {"accountId": "1", "userArn": "arn:aws:iam::1:user/a"}}
    given = {"host": "abc.lambda-url.us-east-1.on.aws", **headers}
    if key is not None:
        given["authorization"] = f"Bearer {key}"
    event: dict[str, Any] = {
        "version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": query,
        "headers": given, "requestContext": context, "isBase64Encoded": body is not None,
    }  # fmt: skip
    if body is not None:
        given["content-type"] = "application/json"
        event["body"] = base64.b64encode(json.dumps(body).encode()).decode()
    return event
