"""llama.cpp's server as a process: started, asked, ended.

Each request has a connection of its own: the server closes idle ones when it likes. What it says
becomes token ids and numbers here; its errors become `EngineError`, or `Refused` where the request
is at fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec

from thrifty.engines.llamacpp.settings import WorkerSettings
from thrifty.errors import EngineError
from thrifty.http.client import Answer, HttpClient, TransportError
from thrifty.http.origin import Origin, parse_origin

WORKER = Path(__file__).with_name("worker.py")
ENVIRONMENT = {"GOMP_SPINCOUNT": "2000"}
"""How long threads that wait for each other spin: about 0.1 ms. By default it is far longer, for which
they keep cores from those whom they wait for as soon as anything else runs on the machine.
"""
STOP_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 300.0
MAX_LOG_LINES = 20

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Refused(EngineError):
    """llama.cpp refused a request as faulty."""


class LlamaProcess:
    """One llama.cpp server."""

    def __init__(self, python: Path, settings: WorkerSettings) -> None:
        self._python = python
        self._settings = settings
        self._key = secrets.token_urlsafe(24)
        self._headers = (
            f"authorization: Bearer {self._key}\r\ncontent-type: application/json\r\n"
            "connection: close\r\n"
        ).encode()
        self._process: asyncio.subprocess.Process | None = None
        self._client = HttpClient()
        self._origin: Origin | None = None
        self._log: deque[str] = deque(maxlen=MAX_LOG_LINES)
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it and wait until its model is loaded. Raises `EngineError`."""
        self._process = await asyncio.create_subprocess_exec(
            str(self._python), "-I", str(WORKER),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._reader = asyncio.get_running_loop().create_task(self._read_log())
        given = {**msgspec.to_builtins(self._settings), "key": self._key}
        self._process.stdin.write(json.dumps(given).encode() + b"\n")
        try:
            line = await self._process.stdout.readline()
        except BaseException:
            await self.stop()
            raise
        answer: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        if "url" not in answer:
            await self._process.wait()
            await asyncio.wait({self._reader}, timeout=STOP_TIMEOUT_S)
            raise EngineError(
                f"llama.cpp cannot load the model: {self._describe_end(answer.get('error'))}. Fetch "
                "it again, take another file of it, or another engine"
            )
        self._origin = parse_origin(answer["url"])

    async def wait_end(self) -> str:
        """Return, with the reason, when it has ended."""
        assert self._process is not None
        await self._process.wait()
        return self._describe_end(None)

    async def stop(self) -> None:
        """End it: closing its stdin tells it."""
        self._client.close()
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._reader is not None:
            await self._reader

    async def ask(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that `path` answers. Raises `Refused`, `EngineError`."""
        answer = await self._open(path, body)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                data = await answer.read()
        except (TransportError, TimeoutError) as error:
            answer.abort()
            raise EngineError(f"llama.cpp did not finish its answer: {error}") from None
        if answer.status != 200:
            raise _describe_fault(answer.status, data)
        return _decode(data)

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The events that `path` answers, as they come. Closing it ends the work there.

        Raises `Refused`, `EngineError`.
        """
        answer = await self._open(path, body)
        try:
            if answer.status != 200:
                raise _describe_fault(answer.status, await answer.read())
            events = _Events(answer)
            while (event := await events.next()) is not None:
                yield event
        except TransportError as error:
            raise EngineError(f"llama.cpp broke off its answer: {error}") from None
        finally:
            answer.abort()  # nothing, if it is complete

    async def _open(self, path: str, body: dict[str, Any]) -> Answer:
        """Send a request, once more if the connection was lost before an answer."""
        assert self._origin is not None
        data = _encode(body)
        for attempt in (1, 2):
            try:
                return await self._client.open(
                    self._origin, "POST", path, headers=self._headers, body=data
                )
            except TransportError as error:
                if attempt == 2:
                    raise EngineError(f"llama.cpp does not answer: {error}") from None
        raise AssertionError

    async def _read_log(self) -> None:
        """Pass its log on to ours, and keep the end of it."""
        assert self._process is not None
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # a line longer than the buffer
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._log.append(text)
            sys.stderr.write(text + "\n")

    def _describe_end(self, error: str | None) -> str:
        """Why it ended, by its log."""
        severe = [line for line in self._log if " E " in line]
        if severe:
            return _strip(severe[0])  # what follows are its consequences
        if error:
            return error
        status = self._process.returncode if self._process is not None else None
        return f"it ended with signal {-status}" if status and status < 0 else f"status {status}"


class _Events:
    """Cuts a stream into events."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._held = b""
        self._lines: deque[bytes] = deque()
        self._more = asyncio.Event()
        answer.done.add_done_callback(lambda _: self._more.set())
        answer.attach(self._feed)

    async def next(self) -> dict[str, Any] | None:
        """The next event; None behind the last. Raises `TransportError`, `EngineError`."""
        while True:
            while self._lines:
                event = _read_event(self._lines.popleft())
                if event is not None:
                    return event
            if self._answer.done.done():
                self._answer.done.result()
                return None
            self._more.clear()
            await self._more.wait()

    def _feed(self, data: bytes) -> None:
        *lines, self._held = (self._held + data).split(b"\n")
        self._lines.extend(lines)
        self._more.set()


def _read_event(line: bytes) -> dict[str, Any] | None:
    """The event in a line; None where there is none. Raises `EngineError` for one that says so."""
    kind, colon, text = line.partition(b": ")
    if kind not in (b"data", b"error") or not colon or text.startswith(b"[DONE]"):
        return None
    event: dict[str, Any] = _decode(text)
    if kind == b"error" or "error" in event:
        raise _describe_fault(500, text if "error" in event else _encode({"error": event}))
    return event


def _describe_fault(status: int, data: bytes) -> EngineError:
    """llama.cpp's own words."""
    try:
        error = _decode(data)["error"]
        message = str(error["message"])
        status = int(error.get("code", status))
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        message = data[:200].decode(errors="replace")
    kind = Refused if status == 400 else EngineError
    return kind(f"llama.cpp answers {status}: {message}")


def _strip(line: str) -> str:
    """A line of its log without the time and the level."""
    head, _, rest = line.partition(" E ")
    return " ".join((rest or head).split())[:300]
