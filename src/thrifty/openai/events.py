"""Server-sent events, as bytes.

A stream is a sequence of `data: {json}` events, each ended by a blank line; the last one is
`data: [DONE]`. A stream that fails after its first byte ends with an error event instead, which
client libraries raise as an error.
"""

from __future__ import annotations

from typing import Any

import msgspec

from thrifty.openai.errors import WireError

DONE = b"data: [DONE]\n\n"
_USAGE_KEY = b'"usage":'
NO_USAGE = b',"usage":null'
"""In every chunk but the last of a stream with token counts, as OpenAI and our engines write it."""


class Usage(msgspec.Struct, gc=False):
    """Token counts, as in the last chunk of a stream or in a complete answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """How many prompt tokens the engine's prefix cache had."""
        return self.prompt_tokens_details.cached_tokens or 0 if self.prompt_tokens_details else 0


class PromptDetails(msgspec.Struct, gc=False):
    """The part of usage about the prefix cache."""

    cached_tokens: int | None = 0


class _UsageChunk(msgspec.Struct, gc=False):
    choices: list[msgspec.Raw] | None = None
    usage: Usage | None = None


_usage_decoder = msgspec.json.Decoder(_UsageChunk)


def encode_event(value: Any) -> bytes:
    """One event that holds `value` as JSON."""
    return b"data: %b\n\n" % msgspec.json.encode(value)


def encode_error_event(error: WireError) -> bytes:
    """The event that ends a stream that failed after its first byte."""
    return b"data: %b\n\n" % error.encode()


def split_events(buffer: bytes) -> tuple[list[bytes], bytes]:
    """The complete events in `buffer` (each with its blank line), and the incomplete rest."""
    if b"\r" in buffer:
        buffer = buffer.replace(b"\r\n", b"\n")
    *events, rest = buffer.split(b"\n\n")
    return [event + b"\n\n" for event in events], rest


def read_data(event: bytes) -> bytes:
    """The data of one event; empty for comments and events without data."""
    lines = [
        line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")
    ]
    return b"\n".join(lines)


def may_hold_usage(chunk: bytes) -> bool:
    """Whether `chunk` may hold token counts. Text in answers does not match, because JSON escapes
    quotes.
    """
    return _USAGE_KEY in chunk and chunk.count(_USAGE_KEY) > chunk.count(NO_USAGE)


def parse_usage(data: bytes) -> tuple[Usage | None, bool]:
    """The token counts in one JSON payload, and whether it holds nothing else (no choices)."""
    try:
        chunk = _usage_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, False
    return chunk.usage, chunk.usage is not None and not chunk.choices
