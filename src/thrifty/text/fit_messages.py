"""Brings a conversation into the form that a chat template takes.

Nothing of what was said is lost: what a template has no place for goes where it has one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from thrifty.text.chat_template import Habits, Message
from thrifty.untrusted_text import replace_halves

_BETWEEN = "\n\n"
"""Between messages that become one."""
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def fit_roles(messages: Sequence[Message], habits: Habits) -> list[Message]:
    """`messages` with roles in an order that the template takes.

    Instructions that may not be a system message come before the first text of the user. Several
    messages of a role become one where roles have to alternate.
    """
    fitted = _place_system(list(messages), habits)
    begin = 1 if fitted and fitted[0]["role"] == "system" else 0
    if not habits.takes_assistant_first and fitted[begin:] and _is_said(fitted[begin], "assistant"):
        fitted.insert(begin, {"role": "user", "content": ""})
    return fitted if habits.takes_repeats else _merge_repeats(fitted)


def fit_calls(messages: Sequence[Message], habits: Habits) -> list[Message]:
    """`messages` with the calls in the form that the template writes.

    The arguments of a call come as the text that the model once wrote, which need not be JSON.
    """
    fitted = []
    for message in messages:
        changed = dict(message)
        if message.get("tool_calls"):
            changed["tool_calls"] = [_fit_call(call, habits) for call in message["tool_calls"]]
        if message["role"] == "tool" and not habits.takes_long_ids:
            changed["tool_call_id"] = shorten_id(message["tool_call_id"])
        fitted.append(changed)
    return fitted


def shorten_id(call_id: str) -> str:
    """Nine letters and digits that stand for the id of a call; always the same for an id."""
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    digest = hashlib.blake2b(call_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    number = int.from_bytes(digest)
    letters = []
    for _ in range(9):
        number, index = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[index])
    return "".join(letters)


def _fit_call(call: dict[str, Any], habits: Habits) -> dict[str, Any]:
    function = call["function"]
    arguments = _fit_arguments(function["arguments"], habits)
    call_id = call["id"] if habits.takes_long_ids else shorten_id(call["id"])
    return {**call, "id": call_id, "function": {**function, "arguments": arguments}}


def _fit_arguments(text: str, habits: Habits) -> Any:
    """An object for templates that take objects, else the text. Text that is no object goes out as
    it is where the template takes text, or as the `_raw` of an object.
    """
    try:
        # Written anew, every half of a surrogate pair stands in it as itself.
        plain = replace_halves(json.dumps(json.loads(text), ensure_ascii=False))
        value = json.loads(plain)
    except (ValueError, RecursionError):
        return text if habits.takes_text else {"_raw": text}
    if isinstance(value, dict) and habits.takes_objects:
        return value
    if habits.takes_text:
        return text
    return value if habits.encodes_values else {"_raw": text}


def _place_system(messages: list[Message], habits: Habits) -> list[Message]:
    """Move system messages to where the template takes them."""
    if habits.takes_system_anywhere and habits.takes_system:
        fitting = habits.takes_system_alone or any(_is_said(m, "user") for m in messages)
        if fitting:
            return messages
    count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    leading = _BETWEEN.join(message["content"] for message in messages[:count])
    rest = [
        {**message, "role": "user"} if message["role"] == "system" else message
        for message in messages[count:]
    ]
    if not count:
        return rest
    has_user = any(_is_said(message, "user") for message in rest)
    if habits.takes_system and (has_user or habits.takes_system_alone):
        return [{**messages[0], "content": leading}, *rest]
    if rest and _is_said(rest[0], "user"):
        return [_join({"role": "user", "content": leading}, rest[0]), *rest[1:]]
    return [{"role": "user", "content": leading}, *rest]


def _merge_repeats(messages: Sequence[Message]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        role = message["role"]
        if merged and role != "tool" and _is_said(merged[-1], role) and _is_said(message, role):
            merged[-1] = _join(merged[-1], message)
        else:
            merged.append(message)
    return merged


def _is_said(message: Message, role: str) -> bool:
    """Whether it is a text of this role, and no call."""
    return message["role"] == role and not message.get("tool_calls")


def _join(first: Message, second: Message) -> Message:
    parts = [part for part in (first["content"], second["content"]) if part]
    return {**second, **first, "content": _BETWEEN.join(parts)}
