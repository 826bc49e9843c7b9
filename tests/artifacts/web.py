"""A web server in a thread: files with byte ranges, and many kinds of misbehaviour."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Page:
    """The response of a path, and its faults."""

    body: bytes
    ranges: bool = True
    """Whether the server honours `Range`."""
    break_after: list[int] = field(default_factory=list)
    """For each request in turn, the number of body bytes after which the connection breaks."""
    statuses: list[int] = field(default_factory=list)
    """For each request in turn, an error status; 0 for none."""
    pause_after: int | None = None
    """The number of bytes after which the server waits for `go_on`."""
    shift: int = 0
    """How many bytes before the requested offset a range starts."""
    chunked: bool = False
    """Whether the body is sent without a length."""
    headers: dict[str, str] = field(default_factory=dict)
    go_on: threading.Event = field(default_factory=threading.Event)
    paused: threading.Event = field(default_factory=threading.Event)
    requests: list[str | None] = field(default_factory=list)
    """The `Range` header of each GET."""
    sent: int = 0
    """The number of body bytes sent."""


class WebServer:
    """Pages by path. `fallback` answers other paths: (method, path, headers) to a response."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.fallback: Callable[[str, str], tuple[int, dict[str, str], bytes]] | None = None
        self.url = ""

    def add(self, path: str, body: bytes, **settings: Any) -> Page:
        """Serve `body` at `path`."""
        page = self.pages[path] = Page(body, **settings)
        return page


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self._answer(head=False)

    def do_PUT(self) -> None:
        self.do_POST()

    def _answer(self, *, head: bool) -> None:
        web = self.server.web
        path = self.path.partition("?")[0]
        web.log.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        page = web.pages.get(path)
        if page is None:
            status, headers, body = 404, {}, b"nothing here"
            if web.fallback is not None:
                status, headers, body = web.fallback(self.command, path)
            self._send(status, headers, body, head=head)
        elif head:
            self._send(200, page.headers, page.body, head=True)
        else:
            self._send_page(page)

    def _send(self, status: int, headers: dict[str, str], body: bytes, *, head: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def _send_page(self, page: Page) -> None:
        asked = self.headers.get("range")
        page.requests.append(asked)
        status = page.statuses.pop(0) if page.statuses else 0
        if status:
            self._send(status, {}, b"no", head=False)
            return
        begin = 0
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if match and page.ranges:
            begin = int(match.group(1))
            if begin >= len(page.body):
                self._send(416, {"content-range": f"bytes */{len(page.body)}"}, b"", head=False)
                return
            begin = max(0, begin - page.shift)
        self.send_response(206 if match and page.ranges else 200)
        if match and page.ranges:
            self.send_header(
                "content-range", f"bytes {begin}-{len(page.body) - 1}/{len(page.body)}"
            )
        for name, value in page.headers.items():
            self.send_header(name, value)
        body = page.body[begin:]
        if page.chunked:
            self.send_header("transfer-encoding", "chunked")
        else:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        limit = page.break_after.pop(0) if page.break_after else len(body)
        with contextlib.suppress(OSError):
            self._send_body(page, body[:limit])
        if limit < len(body):
            self.close_connection = True
        elif page.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _send_body(self, page: Page, body: bytes) -> None:
        for start in range(0, len(body), 4096):
            part = body[start : start + 4096]
            if page.pause_after is not None and start + len(part) > page.pause_after:
                self.wfile.flush()
                page.paused.set()
                page.go_on.wait(60)
            # Counted before it is sent, so that the receiver finds it counted.
            page.sent += len(part)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if page.chunked else part)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    web: WebServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests may disconnect."""


@contextlib.contextmanager
def running_web() -> Iterator[WebServer]:
    """A server on a free port."""
    web = WebServer()
    server = _Server(("127.0.0.1", 0), _Handler)
    server.web = web
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        for page in web.pages.values():
            page.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
