"""The whole answer in a stream of chunks, as if it had not been streamed."""

from __future__ import annotations

from typing import Any

import msgspec

from thrifty.openai.events import read_stream

MAX_TOOL_CALLS = 1024
"""A call with a greater index is not taken: it says how long the list becomes."""


def assemble_stream(stream: bytes, *, partial: bool = False) -> bytes | None:
    """The whole answer in a finished stream, as JSON.

    None where a choice has not come to its end, where an event is an error or cannot be understood,
    or where the stream is not of a known kind. With `partial`, what can be understood of a stream
    that broke off is an answer, too; its choices may then have no `finish_reason`.
    """
    chunks = []
    for data in read_stream(stream):
        if data == b"[DONE]":
            break
        try:
            chunk = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            chunk = None
        # Some servers write `"error": null` into every chunk.
        if isinstance(chunk, dict) and chunk.get("error") is None:
            chunks.append(chunk)
        elif not partial:
            return None
    return assemble_answer(chunks, partial=partial)


def assemble_answer(events: list[dict[str, Any]], *, partial: bool = False) -> bytes | None:
    """The answer that a stream's decoded chunks amount to, as JSON.

    None where the chunks are not of a known kind, or a choice has not ended (unless `partial`).
    """
    # Azure's first chunk has no choices, and is of no kind.
    first = next((event for event in events if event.get("choices")), {})
    chat = first.get("object") == "chat.completion.chunk"
    if not chat and first.get("object") != "text_completion":
        return None
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    try:
        for event in events:
            usage = event.get("usage") or usage
            for part in event.get("choices") or ():
                _merge_choice(choices, part, chat, partial=partial)
        choices = {index: _join(choice) for index, choice in choices.items()}
    except (LookupError, TypeError, AttributeError):
        return None  # not the dialect
    unfinished = any(choice["finish_reason"] is None for choice in choices.values())
    if not choices or (unfinished and not partial):
        return None
    for choice in choices.values() if chat else ():
        _settle_content(choice["message"])
    answer = {
        "id": first.get("id", ""),
        "object": "chat.completion" if chat else "text_completion",
        "created": first.get("created", 0),
        "model": first.get("model", ""),
        "choices": [choices[index] for index in sorted(choices)],
    }
    if usage is not None:
        answer["usage"] = usage
    return msgspec.json.encode(answer)


class _Pieces(list[str]):
    """A text in pieces. Adding each piece to a string would take quadratic time."""


def _add(holder: dict[str, Any], key: str, value: Any, *, partial: bool) -> None:
    """Add a piece to what `holder` has: texts and lists go on, objects do so key by key."""
    known = holder.get(key)
    if isinstance(value, dict) and (known is None or isinstance(known, dict)):
        inner = holder.setdefault(key, {})
        for name, piece in value.items():
            if piece is not None:
                _add(inner, name, piece, partial=partial)
    elif known is None:
        holder[key] = _Pieces((value,)) if isinstance(value, str) else value
    elif isinstance(value, str) and isinstance(known, _Pieces):
        known.append(value)
    elif isinstance(value, list) and type(known) is list:
        known.extend(value)
    elif partial and type(known) is type(value):
        holder[key] = value
    elif known != value:
        raise TypeError(f"{key!r} has two values that do not make one")


def _join(value: Any) -> Any:
    """The value with its texts in one piece."""
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, dict):
        return {
            key: [_join(item) for item in inner] if key == "tool_calls" else _join(inner)
            for key, inner in value.items()
        }
    return value


def _merge_choice(
    choices: dict[int, dict[str, Any]], part: dict[str, Any], chat: bool, *, partial: bool
) -> None:
    index = part["index"]
    if not isinstance(index, int):
        raise TypeError("a choice's index is no number")
    choice = choices.setdefault(index, {"index": index, "finish_reason": None, "logprobs": None})
    choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
    if part.get("error") is not None:
        choice["error"] = part["error"]
    if chat:
        _merge_delta(choice, part, partial=partial)
    else:
        _merge_text(choice, part)


def _merge_delta(choice: dict[str, Any], part: dict[str, Any], *, partial: bool) -> None:
    message = choice.setdefault("message", {"role": "assistant", "content": None, "refusal": None})
    delta = part.get("delta") or {}
    for key, value in delta.items():
        if value is None or key == "role":
            continue
        if key == "tool_calls":
            _merge_tool_calls(message.setdefault("tool_calls", []), value, partial=partial)
        else:
            _add(message, key, value, partial=partial)
    logprobs = part.get("logprobs")
    if logprobs:
        known = choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
        known["content"].extend(logprobs.get("content") or [])


def _settle_content(message: dict[str, Any]) -> None:
    """Streams begin with empty content. A whole answer has none beside calls or reasoning."""
    beside = any(
        message.get(key) for key in ("tool_calls", "function_call", "reasoning_content", "refusal")
    )
    message["content"] = message["content"] or (None if beside else "")


def _merge_tool_calls(
    calls: list[dict[str, Any]], parts: list[dict[str, Any]], *, partial: bool
) -> None:
    for part in parts:
        index = part.get("index")
        if index is None:
            # Some servers number no calls: one that has a name begins.
            begins = any((part.get(kind) or {}).get("name") for kind in ("function", "custom"))
            index = len(calls) if begins or not calls else len(calls) - 1
        if not 0 <= index < MAX_TOOL_CALLS:
            if partial:
                continue
            raise LookupError(f"a tool call has the index {index}")
        if index > len(calls) and not partial:
            raise LookupError("a tool call is missing")
        while len(calls) <= index:
            calls.append({"id": "", "type": "function"})
        call = calls[index]
        if not partial and call["id"] and part.get("id") not in (None, "", call["id"]):
            raise LookupError("two tool calls have one index")
        for key in ("id", "type"):
            call[key] = part.get(key) or call[key]
        for kind, written in (("function", "arguments"), ("custom", "input")):
            if (piece := part.get(kind)) is not None:
                whole = call.setdefault(kind, {"name": _Pieces(), written: _Pieces()})
                for key, pieces in whole.items():
                    if not isinstance(text := piece.get(key) or "", str):
                        raise TypeError(f"a tool call's {key} is no text")
                    pieces.append(text)


def _merge_text(choice: dict[str, Any], part: dict[str, Any]) -> None:
    if not isinstance(text := part.get("text") or "", str):
        raise TypeError("a choice's text is no text")
    choice.setdefault("text", _Pieces()).append(text)
    logprobs = part.get("logprobs")
    if logprobs:
        known = choice["logprobs"] = choice["logprobs"] or {}
        for key, value in logprobs.items():
            if isinstance(value, list) and isinstance(known.get(key), list):
                known[key].extend(value)
            else:
                known[key] = value
