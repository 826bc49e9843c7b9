"""One streamed request, with the time of every chunk."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from thrifty.bench.workload import PlannedRequest
from thrifty.errors import BenchError
from thrifty.http.client import Answer, HttpClient, TransportError
from thrifty.http.origin import Origin
from thrifty.openai.base_urls import find_api
from thrifty.openai.events import (
    LineEnds,
    holds_text,
    may_hold_usage,
    parse_usage,
    read_data,
    split_events,
)

_encode = msgspec.json.Encoder().encode


@dataclass
class RequestResult:
    """The timing of one request, in seconds on the clock of `time.perf_counter`."""

    started_s: float
    ended_s: float = 0.0
    chunk_times_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        """Time to the first chunk with text."""
        return self.chunk_times_s[0] - self.started_s

    @property
    def e2e_s(self) -> float:
        """Time to the last byte."""
        return self.ended_s - self.started_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None if there is only one."""
        if self.output_tokens < 2:
            return None
        return (self.chunk_times_s[-1] - self.chunk_times_s[0]) / (self.output_tokens - 1)


MEASUREMENT_LINE = b"cache-control: no-store\r\nx-thrifty-origin: measurement\r\n"
"""Tells a gateway that Thrifty itself asks, and wants no stored answer. Gateways believe operators
and, without keys, this machine."""


@dataclass(frozen=True)
class Target:
    """The server, the model and the options of requests."""

    origin: Origin
    model: str
    key: str | None = None
    chat: bool = True
    ignore_eos: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 600.0
    is_measurement: bool = False
    """Whether Thrifty asks for itself: a gateway keeps such requests out of users' statistics."""

    @property
    def path(self) -> str:
        """The endpoint's path, below the origin's base."""
        base = find_api(self.origin.base_path).removeprefix(self.origin.base_path)
        return f"{base}/chat/completions" if self.chat else f"{base}/completions"

    def encode(self, request: PlannedRequest) -> bytes:
        """The request's body."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            **self.extra,
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.chat:
            body["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            body["prompt"] = request.prompt
        return _encode(body)

    @property
    def headers(self) -> bytes:
        """The headers of every request."""
        lines = b"content-type: application/json\r\n"
        if self.is_measurement:
            lines += MEASUREMENT_LINE
        if self.key is not None:
            lines += f"authorization: Bearer {self.key}\r\n".encode()
        return lines


async def send_request(
    client: HttpClient, target: Target, request: PlannedRequest
) -> RequestResult:
    """Send one request and read its stream to the end. The result contains any failure."""
    sample = RequestResult(time.perf_counter())
    reader = _StreamReader(sample)
    answer: Answer | None = None
    try:
        async with asyncio.timeout(target.timeout_s):
            answer = await client.open(
                target.origin,
                "POST",
                target.path,
                headers=target.headers,
                body=target.encode(request),
            )
            if answer.status != 200:
                body = await answer.read()
                sample.error = f"{answer.status}: {body[:300].decode('utf-8', 'replace')}"
            else:
                answer.attach(reader.take)
                await answer.done
                reader.finish()
    except TransportError as error:
        sample.error = str(error)
    except TimeoutError:
        sample.error = f"no answer within {target.timeout_s:g} s"
    finally:
        if answer is not None and not answer.done.done():
            answer.abort()
    sample.ended_s = time.perf_counter()
    if sample.error is None and not sample.chunk_times_s:
        sample.error = "the stream contained no text"
    if sample.output_tokens == 0:
        sample.output_tokens = len(sample.chunk_times_s)
    return sample


class _StreamReader:
    def __init__(self, sample: RequestResult) -> None:
        self._sample = sample
        self._line_ends = LineEnds()
        self._rest = b""

    def take(self, data: bytes) -> None:
        events, self._rest = split_events(self._rest + self._line_ends.feed(data))
        self._note(events)

    def finish(self) -> None:
        """The stream has ended; its last event may lack the blank line."""
        self._note([self._rest])

    def _note(self, events: list[bytes]) -> None:
        now_s = time.perf_counter()
        for event in events:
            if may_hold_usage(event):
                self._note_usage(event)
            if b'"error"' in event and b'"choices"' not in event:
                self._sample.error = read_data(event)[:300].decode("utf-8", "replace")
            if holds_text(event):
                self._sample.chunk_times_s.append(now_s)

    def _note_usage(self, event: bytes) -> None:
        usage, _ = parse_usage(read_data(event))
        if usage is not None:
            self._sample.prompt_tokens = usage.prompt_tokens
            self._sample.output_tokens = usage.completion_tokens
            self._sample.cached_tokens = usage.cached_tokens


async def require_working(
    client: HttpClient, target: Target, request: PlannedRequest
) -> RequestResult:
    """Send one request that must succeed. Raises `BenchError` with advice if it does not."""
    sample = await send_request(client, target, request)
    if sample.error is None:
        return sample
    hint = ""
    if "ignore_eos" in sample.error:
        hint = "; the server does not know ignore_eos: add --stop-early"
    elif sample.error.startswith("401"):
        hint = "; give the key with --key or THRIFTY_KEY"
    elif sample.error.startswith("404"):
        hint = "; check --model and --url"
    raise BenchError(f"a first request to {target.origin.url} failed: {sample.error}{hint}")
