"""Puts our id in place of an engine's: in whole answers, and in each event of a stream.

Only the bytes of the value of the top-level key `id` change; the rest is not decoded. Servers
write that key first, so the value's place in the first event is also its place in the later ones,
and comparing their beginnings is enough. Everything else takes a slower path that is right for any
JSON: keys in any order, white space, escapes in keys, ids inside of tool calls and of content. What
is not JSON, or has no such key, passes as it came.
"""

from __future__ import annotations

import re

import msgspec

from thrifty.openai.events import split_events

_KEY = b'"id"'
_ESCAPE = b"\\u006"
"""How an `i` or a `d` in an escaped spelling of the key begins."""
_FIRST = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"id"[ \t\r\n]*:[ \t\r\n]*("[^"\\]*")')
"""An object whose first key is `id`, up to the end of a string without escapes."""
_STRING = rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)'
"""One that is cut off ends with the text, so that no quote in it is taken for a beginning."""
_TOKEN = re.compile(rb"%b|[{}\[\]:,]" % _STRING, re.DOTALL)
_NESTED_TOKEN = re.compile(rb"%b|[{}\[\]]" % _STRING, re.DOTALL)
_SPACE = b" \t\r\n"


class _TopLevel(msgspec.Struct, gc=False):
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decoder = msgspec.json.Decoder(_TopLevel)


def replace_id(body: bytes, new_id: bytes) -> bytes:
    """`body` with the string `new_id` as the value of its top-level `id`, where it has one.

    `new_id` is written as it is, so it must hold nothing that JSON escapes.
    """
    spans = _find_ids(body)
    for start, end in reversed(spans):
        body = b'%b"%b"%b' % (body[:start], new_id, body[end:])
    return body


class IdRewriter:
    """Puts `new_id` into the events of one stream, however its bytes are cut."""

    __slots__ = ("_head", "_new_head", "_new_id", "_rest", "rest_bytes")

    def __init__(self, new_id: bytes) -> None:
        self._new_id = new_id
        self._rest: list[bytes] = []
        self.rest_bytes = 0
        """Of the event that has not ended."""
        self._head = b""
        self._new_head = b""

    def feed(self, data: bytes) -> bytes:
        """Bytes of the stream; returns whole events, or nothing while none has ended."""
        if not self._rest and data.endswith(b"\n\n") and data.find(b"\n\n") == len(data) - 2:
            return self._rewrite(data)
        rest = self._rest
        if b"\n\n" not in data and not (
            rest and rest[-1].endswith(b"\n") and data.startswith(b"\n")
        ):
            # Joining the pieces of a long event each time would take quadratic time.
            if data:
                rest.append(data)
                self.rest_bytes += len(data)
            return b""
        events, unfinished = split_events(b"".join((*rest, data)) if rest else data)
        self._rest = [unfinished] if unfinished else []
        self.rest_bytes = len(unfinished)
        return b"".join([self._rewrite(event) for event in events])

    def finish(self) -> bytes:
        """The stream has ended: what is left of it, rewritten where it is a whole event."""
        rest, self._rest = b"".join(self._rest), []
        return self._rewrite(rest)

    def _rewrite(self, event: bytes) -> bytes:
        if self._head and event.startswith(self._head):
            size = len(self._head)
            # It begins like the first event, and holds no other key that might be `id`.
            if event.find(_KEY, size) < 0 and event.find(_ESCAPE, size) < 0:
                return self._new_head + event[size:]
        if event.startswith(b"data:"):
            prefix = event[:6] if event[5:6] == b" " else event[:5]
            payload = event[len(prefix) :]
            if b"\n" not in payload.rstrip(b"\n"):
                return self._rewrite_line(prefix, payload)
        return self._rewrite_lines(event)

    def _rewrite_line(self, prefix: bytes, payload: bytes) -> bytes:
        """An event of a single line, which is what servers send."""
        spans = _find_ids(payload)
        if not self._head and len(spans) == 1 and _FIRST.match(payload):
            start, end = spans[0]
            self._head = prefix + payload[:end]
            self._new_head = b'%b%b"%b"' % (prefix, payload[:start], self._new_id)
        for start, end in reversed(spans):
            payload = b'%b"%b"%b' % (payload[:start], self._new_id, payload[end:])
        return prefix + payload

    def _rewrite_lines(self, event: bytes) -> bytes:
        """An event with other fields, or with its data on several lines."""
        lines = event.split(b"\n")
        numbers = [number for number, line in enumerate(lines) if line.startswith(b"data:")]
        payload = b"\n".join(lines[number][5:].removeprefix(b" ") for number in numbers)
        changed = replace_id(payload, self._new_id)
        if changed == payload:
            return event
        # The value may have had several lines, and has one now; what is left over goes.
        pieces = [b"data: " + line for line in changed.split(b"\n")]
        for number, piece in zip(numbers, pieces, strict=False):
            lines[number] = piece
        gone = set(numbers[len(pieces) :])
        return b"\n".join(line for number, line in enumerate(lines) if number not in gone)


def _find_ids(payload: bytes) -> list[tuple[int, int]]:
    """Where the values of the top-level keys `id` begin and end in a JSON text."""
    count = payload.count(_KEY)
    if _ESCAPE not in payload:
        if not count:
            return []
        if count == 1:
            match = _FIRST.match(payload)
            return [match.span(1)] if match else _find_only_id(payload)
    return _scan(payload)


def _find_only_id(payload: bytes) -> list[tuple[int, int]]:
    """The same where `"id"` occurs once, at any depth: as a key, as a value, or within a string."""
    try:
        value = _decoder.decode(payload).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _scan(payload)  # such as NaN, which some servers write
    if value is msgspec.UNSET:
        return []
    raw = bytes(value)
    start = payload.index(_KEY) + len(_KEY)
    start = payload.index(raw, payload.index(b":", start) + 1)
    return [(start, start + len(raw))]


def _scan(payload: bytes) -> list[tuple[int, int]]:
    """The same for any JSON: token by token at the top level, by brackets and strings below it."""
    if not payload.lstrip(_SPACE).startswith(b"{"):
        return []
    spans = []
    position = payload.index(b"{") + 1
    key: bytes | None = None
    value_start = -1
    while match := _TOKEN.search(payload, position):
        token, position = match.group(), match.end()
        if token in (b"{", b"["):
            position = _skip_nested(payload, position)
        elif token == b":":
            value_start = position
        elif token in (b",", b"}", b"]"):
            if value_start >= 0 and key is not None and _is_id(key):
                spans.append(_strip_span(payload, value_start, match.start()))
            key, value_start = None, -1
            if token != b",":
                break
        elif value_start < 0:
            key = token
    return spans


def _skip_nested(payload: bytes, position: int) -> int:
    """The end of the object or array whose opening bracket ends at `position`."""
    depth = 1
    for match in _NESTED_TOKEN.finditer(payload, position):
        token = match.group()
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if not depth:
                return match.end()
    return len(payload)


def _is_id(key: bytes) -> bool:
    if b"\\" not in key:
        return key == _KEY
    try:
        return bool(msgspec.json.decode(key) == "id")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


def _strip_span(payload: bytes, start: int, end: int) -> tuple[int, int]:
    value = payload[start:end]
    start += len(value) - len(value.lstrip(_SPACE))
    return start, start + len(value.strip(_SPACE))
