"""The texts within a row: walked over, replaced, and put together to be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]
Change = Callable[[str], str]
PARTS = ("messages", "prompt", "chosen", "rejected", "completion")
"""The fields of a row that hold messages, in their order."""
TEXTS = ("text", "query", "positive")
"""The fields of a row that are texts; `negatives` is a list of them."""
COMPARED = ("user", "assistant")
"""Who is compared: system messages and tools are the same in many conversations."""
LEARNED = 3
"""The parts of a row that are compared one by one: what is asked last, and two answers."""
LINE_CHARS = 240
"""A longer line of a question is a passage that is asked about."""
_ASKS = re.compile(r"[^.!?\u2026\u3002\uff01\uff1f\u061f]*[?\uff1f\u061f]")
"""A sentence with a question mark."""


def list_messages(row: Row) -> Iterator[dict[str, Any]]:
    """All messages of a row."""
    for part in PARTS:
        yield from row.get(part, ())


def change_texts(row: Row, change: Change) -> int:
    """Replace every text of a row in place; returns how many are others now. Arguments of calls,
    which are JSON, are left as they are.
    """
    changed = 0
    for holder, key in _find_texts(row):
        before = holder[key]
        after = change(before)
        if after != before:
            holder[key] = after
            changed += 1
    return changed


def change_all_texts(row: Row, change: Change) -> int:
    """As `change_texts`, with the names of who speaks and the arguments of calls."""
    changed = change_texts(row, change)
    for message in list_messages(row):
        if "name" in message:
            after = change(message["name"])
            changed += after != message["name"]
            message["name"] = after
        for call in message.get("tool_calls") or ():
            function = call["function"]
            after = change(function["arguments"])
            changed += after != function["arguments"]
            function["arguments"] = after
    return changed


def _find_texts(row: Row) -> Iterator[tuple[Any, Any]]:
    for key in TEXTS:
        if key in row:
            yield row, key
    negatives = row.get("negatives", ())
    for place in range(len(negatives)):
        yield negatives, place
    for message in list_messages(row):
        for key in ("content", "reasoning_content"):
            if isinstance(message.get(key), str):
                yield message, key


def join_compared(row: Row) -> str:
    """What users and assistants say in a row, by which rows are compared."""
    if "text" in row:
        return str(row["text"])
    if "query" in row:
        return f"{row['query']}\n{row['positive']}"
    said = [_join(one) for one in list_messages(row) if one["role"] in COMPARED]
    return "\n".join(said)


def join_all(row: Row) -> str:
    """Everything in a row that makes it another one: texts, calls, roles, what the prompt is
    rendered with besides, and the label.
    """
    if "text" in row:
        return str(row["text"])
    if "query" in row:
        return "\n".join([row["query"], row["positive"], *row.get("negatives", ())])
    said = [f"{one['role']} {_join(one)}" for one in list_messages(row)]
    tools = [tool["function"]["name"] for tool in row.get("tools", ())]
    extra = row.get("chat_template_kwargs")
    given = [json.dumps(extra, sort_keys=True)] if extra else []
    return "\n".join([*said, *tools, *given, *([str(row["label"])] if "label" in row else [])])


def join_shown(row: Row) -> str:
    """Everything that a model sees of a row, in which leaks are looked for: `join_compared` and
    what it leaves out, behind it.
    """
    said = [_join(one) for one in list_messages(row) if one["role"] not in COMPARED]
    tools = [json.dumps(tool, ensure_ascii=False) for tool in row.get("tools", ())]
    return "\n".join([join_compared(row), *row.get("negatives", ()), *said, *tools])


def join_answers(row: Row) -> str:
    """What the row teaches to say: the text, or what the assistant says; of texts for encoders,
    the one that belongs to the query.
    """
    if "text" in row:
        return str(row["text"])
    if "query" in row:
        return str(row["positive"])
    said = [one for one in list_messages(row) if one["role"] == "assistant"]
    return "\n".join(_join(one) for one in said)


def list_learned(row: Row) -> tuple[str, str, str]:
    """What is asked last, the answer or the chosen one, and the rejected one; of texts for encoders
    the query, what belongs to it and what does not. Of plain text, which is compared whole,
    nothing.
    """
    if "text" in row:
        return "", "", ""
    if "query" in row:
        return row["query"], row["positive"], "\n".join(row.get("negatives", ()))
    asked = row["messages"][:-1] if "messages" in row else row["prompt"]
    question = next((one for one in reversed(asked) if one["role"] == "user"), None)
    answers = [row[key][-1] for key in ("messages", "chosen", "completion") if key in row]
    answers += row.get("rejected", ())
    first, second = [*map(_join, answers), ""][:2]
    return _join(question) if question else "", first, second


def find_asked(question: str) -> str:
    """What a question asks, without the passages that it asks about: its short lines, and of long
    ones the sentences with a question mark.
    """
    found: list[str] = []
    for line in question.splitlines():
        found += [line] if len(line) <= LINE_CHARS else _ASKS.findall(line)
    return "\n".join(found)


def find_question(row: Row) -> str:
    """What the user says first, or the query; of a text, nothing."""
    if "query" in row:
        return str(row["query"])
    found = (one for one in list_messages(row) if one["role"] == "user")
    return next((one["content"] or "" for one in found), "")


def _join(message: dict[str, Any]) -> str:
    calls = message.get("tool_calls") or ()
    written = [f"{one['function']['name']} {one['function']['arguments']}" for one in calls]
    texts = (message.get("reasoning_content"), message["content"])
    return "\n".join([*filter(None, texts), *written])
