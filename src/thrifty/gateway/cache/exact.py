"""The exact response cache: whole answers, bounded in bytes and in age.

An answer is kept as the JSON of one that was not streamed, however it was asked for, and can be
given either way. Its id is cut out, so that each hit gets an id of its own.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from thrifty.wire.ids import new_id
from thrifty.wire.sse import DONE, Usage, encode_event

ENTRY_BYTES = 600
"""What an entry takes beside its answer: keys, objects, the place in the order."""


class Entry:
    """One stored answer."""

    __slots__ = ("_chunks", "_parts", "body", "expires_s", "prefix", "replica", "usage", "version")

    def __init__(self, body: bytes, *, replica: str, version: str, usage: Usage | None) -> None:
        self.body = body
        self.replica = replica
        self.version = version
        self.usage = usage
        self.expires_s = 0.0
        self._parts: list[bytes] | None = None
        self._chunks: tuple[list[bytes], list[bytes]] | None = None
        self.prefix = b""

    @property
    def size_bytes(self) -> int:
        """What it counts for."""
        return ENTRY_BYTES + 2 * len(self.body)

    def as_body(self) -> bytes:
        """The answer whole, under a new id."""
        if self._parts is None:
            self.prefix, self._parts = _cut_id(self.body)
        return self._new_id().join(self._parts)

    def as_stream(self, include_usage: bool) -> bytes:
        """The answer as a stream, under a new id."""
        if self._chunks is None:
            plain, usage = _make_chunks(msgspec.json.decode(self.body))
            self._chunks = (plain, usage)
        answer_id = self._new_id()
        plain, usage = self._chunks
        parts = [answer_id.join(part.split(_ID_MARK)) for part in plain]
        if include_usage:
            parts += [answer_id.join(part.split(_ID_MARK)) for part in usage]
        return b"".join(parts) + DONE

    def _new_id(self) -> bytes:
        if self._parts is None:
            self.prefix, self._parts = _cut_id(self.body)
        return b"%b-%b" % (self.prefix, new_id().encode()) if self.prefix else b""


_ID_MARK = b"\x00id\x00"


class ExactCache:
    """Answers by key, the least recently used given up first."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Entry | None:
        """The answer for `key`, unless it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_s < self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: Entry, ttl_s: float) -> None:
        """Keep an answer. One that is larger than a quarter of the cache is not kept."""
        if entry.size_bytes > self._max_bytes // 4:
            return
        if key in self._entries:
            self._drop(key)
        entry.expires_s = self._clock() + ttl_s
        self._entries[key] = entry
        self.size_bytes += entry.size_bytes
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def clear(self) -> int:
        """Forget everything; returns how many answers that were."""
        count = len(self._entries)
        self._entries.clear()
        self.size_bytes = 0
        return count

    def _drop(self, key: bytes) -> None:
        self.size_bytes -= self._entries.pop(key).size_bytes


def assemble_answer(events: list[dict[str, Any]]) -> bytes | None:
    """The answer that a stream's chunks amount to, as if it had not been streamed.

    None where the chunks are not of a kind that is known, or a choice has not ended.
    """
    if not events:
        return None
    chat = events[0].get("object") == "chat.completion.chunk"
    if not chat and events[0].get("object") != "text_completion":
        return None
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for event in events:
        usage = event.get("usage") or usage
        for part in event.get("choices") or ():
            choice = choices.setdefault(
                part["index"],
                {"index": part["index"], "finish_reason": None, "logprobs": None},
            )
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
            merge = _merge_delta if chat else _merge_text
            merge(choice, part)
    if not choices or any(choice["finish_reason"] is None for choice in choices.values()):
        return None
    answer = {
        "id": events[0].get("id", ""),
        "object": "chat.completion" if chat else "text_completion",
        "created": events[0].get("created", 0),
        "model": events[0].get("model", ""),
        "choices": [choices[index] for index in sorted(choices)],
    }
    if usage is not None:
        answer["usage"] = usage
    return msgspec.json.encode(answer)


def _merge_delta(choice: dict[str, Any], part: dict[str, Any]) -> None:
    message = choice.setdefault("message", {"role": "assistant", "content": None, "refusal": None})
    delta = part.get("delta") or {}
    for key, value in delta.items():
        if value is None or key == "role":
            continue
        if key == "tool_calls":
            _merge_tool_calls(message.setdefault("tool_calls", []), value)
        elif isinstance(value, str):
            message[key] = (message.get(key) or "") + value
        else:
            message[key] = value
    logprobs = part.get("logprobs")
    if logprobs:
        known = choice["logprobs"] or {"content": [], "refusal": None}
        known["content"] = known["content"] + (logprobs.get("content") or [])
        choice["logprobs"] = known


def _merge_tool_calls(calls: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    for part in parts:
        index = part.get("index", len(calls))
        while len(calls) <= index:
            calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[index], part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def _merge_text(choice: dict[str, Any], part: dict[str, Any]) -> None:
    choice["text"] = choice.get("text", "") + (part.get("text") or "")
    logprobs = part.get("logprobs")
    if logprobs:
        known = choice["logprobs"] or {}
        choice["logprobs"] = {
            key: (known.get(key) or []) + value if isinstance(value, list) else value
            for key, value in logprobs.items()
        }


def _cut_id(body: bytes) -> tuple[bytes, list[bytes]]:
    """The kind of id, and the body in pieces around it."""
    try:
        answer_id = msgspec.json.decode(body, type=_HasId).id
    except msgspec.MsgspecError:
        answer_id = ""
    if not answer_id:
        return b"", [body]
    return answer_id.partition("-")[0].encode(), body.split(answer_id.encode(), 1)


class _HasId(msgspec.Struct):
    id: str = ""


def _make_chunks(answer: dict[str, Any]) -> tuple[list[bytes], list[bytes]]:
    """The chunks of an answer with a mark in place of its id, and the chunk with its usage."""
    chat = answer.get("object") == "chat.completion"
    base = {
        "id": "MARK",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": answer.get("created", 0),
        "model": answer.get("model", ""),
    }

    def chunk(**fields: Any) -> bytes:
        return encode_event({**base, **fields}).replace(b'"id":"MARK"', b'"id":"%b"' % _ID_MARK, 1)

    def choice_chunk(choice: dict[str, Any], **fields: Any) -> bytes:
        entry = {"index": choice["index"], "logprobs": None, "finish_reason": None, **fields}
        return chunk(choices=[entry])

    chunks = []
    for choice in answer.get("choices") or ():
        reason = choice.get("finish_reason")
        if not chat:
            chunks.append(
                choice_chunk(
                    choice, text=choice.get("text", ""), logprobs=choice.get("logprobs"),
                    finish_reason=reason,
                )
            )  # fmt: skip
            continue
        message = choice.get("message") or {}
        chunks.append(choice_chunk(choice, delta={"role": "assistant", "content": ""}))
        delta = {k: v for k, v in message.items() if k not in ("role", "tool_calls") and v}
        if delta:
            chunks.append(choice_chunk(choice, delta=delta, logprobs=choice.get("logprobs")))
        for index, call in enumerate(message.get("tool_calls") or ()):
            chunks.append(choice_chunk(choice, delta={"tool_calls": [{"index": index, **call}]}))
        chunks.append(choice_chunk(choice, delta={}, finish_reason=reason))
    usage = [chunk(choices=[], usage=answer["usage"])] if answer.get("usage") else []
    return chunks, usage
