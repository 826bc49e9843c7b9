"""The whole answer in a stream of chunks, as if it had not been streamed."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from thrifty.openai.events import DONE, read_data, split_events

MAX_TOOL_CALLS = 1024
"""Calls with a greater index are left out: the index says how long the list becomes."""


def assemble_stream(stream: bytes, *, partial: bool = False) -> bytes | None:
    """The whole answer in a finished stream, as JSON.

    None where it has not come to its end, ended with an error, or is not of a known kind. With
    `partial`, what has come of a stream that broke off is an answer, too; its choices may then have
    no `finish_reason`.
    """
    if not partial and not stream.rstrip().endswith(DONE.rstrip()) and DONE not in stream:
        return None
    events, rest = split_events(stream)
    chunks = []
    for event in (*events, rest):
        data = read_data(event)
        if not data or data == b"[DONE]":
            continue
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            chunk = msgspec.json.decode(data)
            if isinstance(chunk, dict) and "error" not in chunk:
                chunks.append(chunk)
            elif not partial:
                return None
    return assemble_answer(chunks, partial=partial)


def assemble_answer(events: list[dict[str, Any]], *, partial: bool = False) -> bytes | None:
    """The answer that a stream's decoded chunks amount to, as JSON.

    None where the chunks are not of a known kind, or a choice has not ended (unless `partial`).
    """
    if not events:
        return None
    chat = events[0].get("object") == "chat.completion.chunk"
    if not chat and events[0].get("object") != "text_completion":
        return None
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    try:
        for event in events:
            usage = event.get("usage") or usage
            for part in event.get("choices") or ():
                _merge_choice(choices, part, chat)
    except (LookupError, TypeError, AttributeError):
        return None  # not the dialect
    unfinished = any(choice["finish_reason"] is None for choice in choices.values())
    if not choices or (unfinished and not partial):
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


def _merge_choice(choices: dict[int, dict[str, Any]], part: dict[str, Any], chat: bool) -> None:
    index = part["index"]
    if not isinstance(index, int):
        raise TypeError("a choice's index is no number")
    choice = choices.setdefault(index, {"index": index, "finish_reason": None, "logprobs": None})
    choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
    (_merge_delta if chat else _merge_text)(choice, part)


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
        if not 0 <= index < MAX_TOOL_CALLS:
            continue
        kind, text = ("custom", "input") if part.get("custom") else ("function", "arguments")
        while len(calls) <= index:
            calls.append({"id": "", "type": kind, kind: {"name": "", text: ""}})
        call, given = calls[index], part.get(kind) or {}
        call["id"] = part.get("id") or call["id"]
        if kind in call:
            call[kind]["name"] += given.get("name") or ""
            call[kind][text] += given.get(text) or ""


def _merge_text(choice: dict[str, Any], part: dict[str, Any]) -> None:
    choice["text"] = choice.get("text", "") + (part.get("text") or "")
    logprobs = part.get("logprobs")
    if logprobs:
        known = choice["logprobs"] or {}
        choice["logprobs"] = {
            key: (known.get(key) or []) + value if isinstance(value, list) else value
            for key, value in logprobs.items()
        }
