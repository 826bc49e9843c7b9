"""The engine's server beside the runtime: started, awaited, asked, stopped."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.aws_lambda.baked import fetch_ahead
from thrifty.aws_lambda.events import HttpRequest
from thrifty.engines.base import Launch, Served
from thrifty.engines.machine import detect_machine
from thrifty.engines.registry import find_engine
from thrifty.engines.server import HOST_VARIABLE, KEY_VARIABLE
from thrifty.errors import EngineError

_HOST = "127.0.0.1"
_PIECE = 65_536
_POLL_S = 0.02
_END_S = 1.0
_STOP_S = 1.5
"""Lambda gives an environment two seconds to end."""


@dataclass(frozen=True)
class EngineAnswer:
    """An answer whose head is here and whose body is arriving."""

    _connection: http.client.HTTPConnection
    _socket: socket.socket
    head: http.client.HTTPResponse

    def read(self, timeout_s: float) -> bytes:
        """What has come of the body, once something has; nothing at its end. Raises `TimeoutError`,
        `OSError` and `http.client.HTTPException`; an end before its time is one of these, too.
        """
        self._socket.settimeout(timeout_s)
        piece = self.head.read1(_PIECE)
        if not piece and self.head.length:
            raise http.client.IncompleteRead(b"", self.head.length)
        return piece

    def close(self) -> None:
        """Cut the connection; where the answer is not whole, this tells the engine to stop."""
        self.head.close()
        self._connection.close()


class EngineProcess:
    """One engine's server, on a port of loopback and with a key that only we know."""

    def __init__(self, launch: Launch, port: int, key: str) -> None:
        self._port = port
        self._key = key
        environment = {
            **os.environ, **launch.environment, HOST_VARIABLE: _HOST, KEY_VARIABLE: key,
        }  # fmt: skip
        try:
            self._process = subprocess.Popen(
                list(launch.command), env=environment, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            raise EngineError(f"the engine cannot be started: {error.strerror}") from None

    @property
    def ended(self) -> str | None:
        """How it ended; None while it runs."""
        status = self._process.poll()
        return None if status is None else f"the engine ended with status {status}"

    def find_end(self) -> str | None:
        """How it ended, once an answer of it broke: its sockets close a moment before it has ended.
        None if it goes on.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        return self.ended

    def wait_ready(self, until_s: float) -> bool:
        """Wait until it answers, at most until `time.monotonic()` is `until_s`. Raises
        `EngineError` once it has ended.
        """
        while True:
            if self.ended is not None:
                raise EngineError(f"{self.ended}; its log is above")
            if self._is_ready():
                return True
            if time.monotonic() >= until_s:
                return False
            time.sleep(_POLL_S)

    def send(self, request: HttpRequest, timeout_s: float) -> EngineAnswer:
        """Send a client's request; the answer's head has come. Raises `OSError` and
        `http.client.HTTPException`.
        """
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=timeout_s)
        headers = {**request.headers, "authorization": f"Bearer {self._key}"}
        for name in ("api-key", "x-api-key"):
            headers.pop(name, None)
        try:
            connection.putrequest(request.method, request.target, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value.encode("utf-8"))
            if request.body or request.method not in ("GET", "HEAD"):
                connection.putheader("content-length", str(len(request.body)))
            connection.endheaders(request.body or None)
            # The connection forgets its socket where the server closes it after the answer.
            sock = connection.sock
            return EngineAnswer(connection, sock, connection.getresponse())
        except BaseException:
            connection.close()
            raise

    def stop(self) -> None:
        """End it, by force if it takes too long."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=1.0)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False


def start_engine(served: Served, models: Path) -> EngineProcess:
    """Start the engine for what was baked. Raises `EngineError` kinds."""
    store, port = Store(models), _find_port()
    if served.artifact is not None:
        fetch_ahead(store.folder_of(served.artifact))
    cores = detect_machine().cores
    # Nothing can be removed from a read-only store, so that the model needs no lease.
    launch = find_engine(served.engine).launch(served, store, port, cores, 1.0)
    return EngineProcess(launch, port, secrets.token_hex(32))


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
