"""Answers from one form into the other: whole ones from streams, and streams from whole ones."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from thrifty.openai.events import DONE, encode_event, read_data, split_events

ID_MARK = b"\x00id\x00"
"""Where an answer's id goes; no JSON holds these bytes."""


def assemble_stream(stream: bytes) -> bytes | None:
    """The whole answer in a finished stream."""
    if not stream.rstrip().endswith(DONE.rstrip()) and DONE not in stream:
        return None
    events, _ = split_events(stream)
    chunks = []
    for event in events:
        data = read_data(event)
        if not data or data == b"[DONE]":
            continue
        with contextlib.suppress(msgspec.DecodeError):
            chunk = msgspec.json.decode(data)
            if "error" in chunk:
                return None
            chunks.append(chunk)
    return assemble_answer(chunks)


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


def cut_id(body: bytes) -> tuple[bytes, list[bytes]]:
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


def make_chunks(answer: dict[str, Any]) -> tuple[list[bytes], list[bytes]]:
    """The chunks of an answer with a mark in place of its id, and the chunk with its usage."""
    chat = answer.get("object") == "chat.completion"
    base = {
        "id": "MARK",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": answer.get("created", 0),
        "model": answer.get("model", ""),
    }

    def chunk(**fields: Any) -> bytes:
        return encode_event({**base, **fields}).replace(b'"id":"MARK"', b'"id":"%b"' % ID_MARK, 1)

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
