"""What `stream_options` adds to the events of a stream: token counts, and padding."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.openai.errors import bad_request

NAMES = frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"})
PADDED_BYTES = 64
"""The lengths of a stream's padded events differ by multiples of this."""
_FIELD = b',"obfuscation":"%b"}\n\n'


@dataclass(frozen=True)
class StreamOptions:
    """The options of one stream."""

    usage: bool = False
    """A last chunk has the token counts, and all others `"usage": null`."""
    continuous: bool = False
    """Every chunk has the token counts so far."""
    obfuscate: bool = False
    """Chunks are padded, so that their sizes tell less of their text."""

    @property
    def shareable(self) -> bool:
        """Whether the stream has the chunks of any other, but for the counts at its end."""
        return not (self.continuous or self.obfuscate)


PLAIN = StreamOptions()


def parse_stream_options(body: Mapping[str, Any]) -> StreamOptions:
    """The options in a request. Raises a 400 where it is not streamed."""
    given = body.get("stream_options")
    if given is None:
        return PLAIN
    if not body.get("stream"):
        raise bad_request(
            "'stream_options' may only be given with 'stream': true.",
            "stream_options",
            "invalid_value",
        )
    return read_stream_options(given)


def read_stream_options(given: Mapping[str, Any] | None) -> StreamOptions:
    """The options in the value of the field, which was checked."""
    if not given:
        return PLAIN
    return StreamOptions(
        usage=bool(given.get("include_usage")),
        continuous=bool(given.get("continuous_usage_stats")),
        obfuscate=bool(given.get("include_obfuscation")),
    )


def is_stream_options(value: Any) -> bool:
    """Whether `value` holds such options and nothing else."""
    return (
        isinstance(value, dict)
        and set(value) <= NAMES
        and all(isinstance(item, bool) for item in value.values())
    )


def pad_events(events: bytes) -> bytes:
    """Whole events; each that holds a part of an answer, with random characters in `obfuscation`."""
    return b"".join(_pad(event) for event in events.split(b"\n\n") if event)


def _pad(event: bytes) -> bytes:
    if not event.endswith(b"}") or b'"choices":[]' in event:
        return event + b"\n\n"
    bare = event.removesuffix(b"}")
    length = -(len(bare) + len(_FIELD) - len(b"%b")) % PADDED_BYTES
    return bare + _FIELD % secrets.token_urlsafe(PADDED_BYTES)[:length].encode()
