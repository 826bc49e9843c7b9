"""The messages of a conversation, checked, and in one form whoever wrote them.

Any history that a client of OpenAI's has is taken, because a conversation that is refused once is
refused for good: refusals, calls whose arguments were cut off, results without an id, the
predecessor of `tool_calls`, and the content parts of other endpoints.

In the form that the rest works with, content is one string, `role` is one of `system`, `user`,
`assistant` and `tool`, the arguments of a call are the text that the model wrote, and every call and
every result has an id. Other keys go to the chat template as they are.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from thrifty.openai.errors import WireError, bad_request
from thrifty.openai.fields import show_value

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_SAME_AS = {"developer": "system", "function": "tool"}
_TEXT_PARTS = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal",
}  # fmt: skip
"""Kinds of parts that are text, and where each holds it."""
_REASONING_PARTS = {
    "reasoning": "reasoning", "reasoning_text": "text", "thinking": "thinking",
    "redacted_thinking": "thinking",
}  # fmt: skip
"""Kinds of parts that are an earlier answer's reasoning, and where each holds it, if it does."""
_REASONING = ("reasoning_content", "reasoning")
"""What servers call the reasoning of an earlier answer."""
_SPENT = ("refusal", "function_call", "annotations", *_REASONING)
"""Keys that are turned into others, or are no part of what was said."""

Message = dict[str, Any]


def check_messages(messages: Sequence[Any]) -> list[Message]:
    """The messages of a request. Raises a 400 that names the fault."""
    checked = [_check_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    _match_results(checked)
    return checked


def _check_message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise _invalid(f"'{where}' must be an object.")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _invalid(
            f"'{where}.role' must be one of {', '.join(sorted(ROLES))}, not {show_value(role)}."
        )
    kept = {k: v for k, v in message.items() if v is not None and k not in _SPENT}
    kept["role"] = _SAME_AS.get(role, role)
    kept["content"], in_parts = _check_content(message, role, where)
    told = [r for k in _REASONING if isinstance(r := message.get(k), str)]
    reasoning = next(filter(None, [*told, in_parts]), None)
    if reasoning is not None:
        kept |= dict.fromkeys(_REASONING, reasoning)
    calls = _read_calls(message, where)
    kept.pop("tool_calls", None)
    if calls:
        kept["tool_calls"] = calls
    if "audio" in kept:
        raise bad_request(
            f"'{where}.audio' refers to a spoken answer; this model takes text alone.",
            "messages",
            "unsupported_content",
        )
    return kept


def _check_content(message: Message, role: str, where: str) -> tuple[str, str]:
    """The text of a message, and the reasoning among the parts of its content."""
    content = message.get("content")
    if content is None and role in ("system", "developer", "user"):
        what = "is null" if "content" in message else "is missing"
        raise _invalid(f"'{where}.content' {what}; it must be a string or an array of parts.")
    text, reasoning = _join_content(content, where)
    refusal = message.get("refusal")
    if refusal is None:
        return text, reasoning
    if not isinstance(refusal, str):
        raise _invalid(f"'{where}.refusal' must be a string, not {show_value(refusal)}.")
    return "\n".join(part for part in (text, refusal) if part), reasoning


def _join_content(content: Any, where: str) -> tuple[str, str]:
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise _invalid(f"'{where}.content' must be a string or an array of parts.")
    texts, reasoning = [], []
    for index, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in _REASONING_PARTS:
            reasoning.append(_read_reasoning(part.get(_REASONING_PARTS[kind])))
            continue
        key = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
        if key is None or not isinstance(part.get(key), str):
            raise bad_request(
                f"'{where}.content[{index}]' is of type {show_value(kind)}; this model takes text alone.",
                "messages",
                "unsupported_content",
            )
        texts.append(part[key])
    return "".join(texts), "".join(reasoning)


def _read_reasoning(value: Any) -> str:
    """The text of a part's reasoning, which some servers give in parts of their own."""
    if isinstance(value, list):
        return "".join(_read_reasoning(p.get("text")) for p in value if isinstance(p, dict))
    return value if isinstance(value, str) else ""


def _read_calls(message: Message, where: str) -> list[dict[str, Any]]:
    calls = message.get("tool_calls")
    if calls is None:
        function = message.get("function_call")
        if function is None:
            return []
        return [_check_call({"function": function}, f"{where}.function_call")]
    if not isinstance(calls, list):
        raise _invalid(f"'{where}.tool_calls' must be an array.")
    return [_check_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]


def _check_call(call: Any, where: str) -> dict[str, Any]:
    call = call if isinstance(call, dict) else {}
    function = call.get("function")
    custom = call.get("custom")
    if function is None and isinstance(custom, dict):
        # A call of a custom tool has free text for its arguments.
        function = {"name": custom.get("name"), "arguments": {"input": custom.get("input")}}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _invalid(f"'{where}' must hold a function with a name.")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    call_id = call.get("id")
    return {
        "id": call_id if isinstance(call_id, str) else "",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments.strip() or "{}"},
    }


def _match_results(messages: Sequence[Message]) -> None:
    """Give an id to every call and result that has none: results belong to calls in their order."""
    unanswered: OrderedDict[str, None] = OrderedDict()
    for number, message in enumerate(messages):
        for index, call in enumerate(message.get("tool_calls", ())):
            call["id"] = call["id"] or f"call{number % 1000:03d}{index % 100:02d}"
            unanswered[call["id"]] = None
        if message["role"] != "tool":
            continue
        given = message.get("tool_call_id")
        if not isinstance(given, str) or not given:
            given = next(iter(unanswered), "call00000")
        message["tool_call_id"] = given
        unanswered.pop(given, None)


def _invalid(text: str) -> WireError:
    return bad_request(text, "messages", "invalid_value")
