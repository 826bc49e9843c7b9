"""Server-sent events, as bytes.

We write a sequence of `data: {json}` events, each ended by a blank line; the last one is
`data: [DONE]`. A stream that fails after its first byte ends with an error event instead, which
client libraries raise as an error.

We read every form that the standard allows (https://html.spec.whatwg.org/#parsing-an-event-stream):
lines that end in LF, CR or CRLF, a byte order mark, comments, any fields in any order, data on
several lines, no space after the colon. `LineEnds` makes all line ends LF, and the other functions
expect that.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from thrifty.openai.errors import WireError

DONE = b"data: [DONE]\n\n"
MAX_TOKENS = 2**31 - 1
"""Greater counts are not believed, and would not fit their columns."""
NO_USAGE = b',"usage":null'
"""In every chunk but the last of a stream with token counts, as OpenAI and our engines write it."""
_BOM = b"\xef\xbb\xbf"
TEXT_FIELDS = (
    "content", "text", "reasoning_content", "reasoning", "refusal", "arguments", "input",
)  # fmt: skip
"""What holds generated text, in messages, deltas and calls."""
_TEXT = re.compile(
    rb'"(?:%b)"[ \t\r\n]*:[ \t\r\n]*"[^"]' % b"|".join(name.encode() for name in TEXT_FIELDS)
)
_USAGE = b'"usage"'
_USAGE_KEY = re.compile(rb'"usage"[ \t\r\n]*:')


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
    usage: Any = None


_usage_decoder = msgspec.json.Decoder(_UsageChunk)


def encode_event(value: Any) -> bytes:
    """One event that holds `value` as JSON."""
    return b"data: %b\n\n" % msgspec.json.encode(value)


def encode_error_event(error: WireError) -> bytes:
    """The event that ends a stream that failed after its first byte."""
    return b"data: %b\n\n" % error.encode()


class LineEnds:
    """Gives one stream LF as its only line end, and no byte order mark, wherever it is cut."""

    __slots__ = ("_after_cr", "_begin")

    def __init__(self) -> None:
        self._begin: bytes | None = b""
        """What may be part of a byte order mark; None once the stream has begun."""
        self._after_cr = False

    def feed(self, data: bytes) -> bytes:
        """The next bytes of the stream."""
        if self._begin is not None:
            data = self._begin + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._begin = data
                return b""
            self._begin = None
            data = data.removeprefix(_BOM)
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data


def read_stream(stream: bytes) -> list[bytes]:
    """The data of each event in a whole stream. The last event may lack its blank line."""
    return [data for event in LineEnds().feed(stream).split(b"\n\n") if (data := read_data(event))]


def split_events(buffer: bytes) -> tuple[list[bytes], bytes]:
    """The complete events in `buffer` (each with its blank line), and the incomplete rest."""
    *events, rest = buffer.split(b"\n\n")
    return [event + b"\n\n" for event in events], rest


def read_data(event: bytes) -> bytes:
    """The data of one event; empty for comments and events without data."""
    lines = [
        line[5:].removeprefix(b" ")
        for line in event.split(b"\n")
        if line.startswith(b"data:") or line == b"data"
    ]
    return b"\n".join(lines)


def may_hold_usage(chunk: bytes) -> bool:
    """Whether `chunk` may hold token counts. Text in answers does not match, because JSON escapes
    quotes.
    """
    count = chunk.count(_USAGE)
    return count > chunk.count(NO_USAGE) and _USAGE_KEY.search(chunk) is not None


def holds_text(event: bytes) -> bool:
    """Whether an event holds a piece of text. Faster than decoding each event."""
    return _TEXT.search(event) is not None


def parse_usage(data: bytes) -> tuple[Usage | None, bool]:
    """The token counts in one JSON payload, and whether it holds nothing else (no choices)."""
    try:
        chunk = _usage_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, False
    return read_usage(chunk.usage), chunk.usage is not None and not chunk.choices


def read_usage(value: Any) -> Usage | None:
    """The token counts in a decoded `usage`; None if it is not valid."""
    if not isinstance(value, dict):
        return None
    # Rankings of some servers have a total alone.
    counts = [value.get("prompt_tokens", value.get("total_tokens")), value.get("completion_tokens")]
    prompt, completion = map(_read_count, counts)
    if prompt is None or completion is None or counts == [None, None]:
        return None
    details = value.get("prompt_tokens_details")
    if not isinstance(details, dict):
        return Usage(prompt, completion)
    cached = _read_count(details.get("cached_tokens")) or 0
    return Usage(prompt, completion, PromptDetails(min(cached, prompt)))


def _read_count(value: Any) -> int | None:
    """A count, which some servers write as null or as 5.0; None if it is none."""
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and 0 <= value <= MAX_TOKENS:
        return value
    return None
