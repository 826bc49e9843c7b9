"""Records of many shapes as rows of a set's kind, with the checks of their form.

    messages   {"messages": [{"role", "content"}]}, "tools"?, "chat_template_kwargs"?
    sharegpt   {"conversations": [{"from", "value"}]}
    alpaca     {"instruction", "input"?, "output"}
    prompt     {"prompt" | "question", "completion" | "answer" | "response"}
    pair       {"prompt" | "messages", "chosen", "rejected"}
    judged     {"prompt" | "messages", "completion"?, "label"}
    texts      {"query" | "anchor", "positive", "negatives"? | "negative"?}, {"texts": [A, B]}
    text       {"text" | "content" | "passage"}

A record that makes no row says why, by a key of `REASONS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.curate.recipe import Fields

Record = Mapping[str, Any]
Message = dict[str, Any]
Row = dict[str, Any]

REASONS = {
    "other_shape": "has none of the fields of a row",
    "not_text": "holds parts that are not text",
    "no_pair": "is no pair of a chosen and a rejected answer",
    "no_label": "has no label",
    "bad_label": "has a label other than true and false, 1 and 0",
    "no_answer": "does not end with an answer",
    "no_question": "holds nothing that a user says",
    "not_liked": "is labelled as disliked",
    "role": "has a role other than system, developer, user, assistant and tool",
    "system_place": "has a system message behind others",
    "roles_alternate": "has roles that do not take turns",
    "empty_message": "has a message without content",
    "bad_tools": "has tools that are none",
    "bad_template": "has chat_template_kwargs that are no object",
    "bad_call": "has a call whose arguments are not a JSON object",
    "unknown_tool": "calls a tool that it does not define",
    "no_tools": "calls tools and defines none",
    "no_call": "has a tool's answer without its call",
    "same_answers": "has a chosen answer that equals the rejected one",
    "same_texts": "has two texts that are equal",
}
_ROLES = {
    "system": "system", "developer": "developer", "human": "user", "user": "user", "gpt": "assistant",
    "assistant": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "function_call": "assistant", "tool": "tool", "observation": "tool", "function": "tool",
    "tool_response": "tool",
}  # fmt: skip
_LABELS = {
    "true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False,
}  # fmt: skip
_PROMPTS = ("prompt", "question", "query")
_ANSWERS = ("completion", "response", "answer", "output")
_TEXTS = ("text", "content", "passage")


class Misshapen(Exception):
    """A record that makes no row; its argument is a key of `REASONS`."""


def make_row(record: Record, kind: str, shape: str, fields: Fields) -> Row:
    """The row of a kind that a record holds, checked. Raises `Misshapen`."""
    if kind == "text":
        return {"text": _find_text(record, fields)}
    if kind == "contrastive":
        return _make_texts(record)
    shape = shape if shape != "auto" else find_shape(record, fields)
    if kind == "dpo":
        if shape != "pair":
            raise Misshapen("no_pair")
        row = _make_pair(record, fields)
    elif kind == "kto":
        liked = read_label(record.get("label"))
        messages = _make_messages(record, shape, fields)
        _require_answer(messages)
        row = {"prompt": messages[:-1], "completion": messages[-1:], "label": liked}
    else:
        if shape == "judged" and not read_label(record.get("label")):
            raise Misshapen("not_liked")
        row = {"messages": _make_messages(record, shape, fields)}
        _require_answer(row["messages"])
    tools = _read_tools(record.get("tools"))
    if tools:
        row["tools"] = tools
    extra = record.get("chat_template_kwargs")
    if extra is not None and not isinstance(extra, Mapping):
        raise Misshapen("bad_template")
    if extra:
        row["chat_template_kwargs"] = dict(extra)
    for messages in _list_conversations(row):
        _check_conversation(messages, tools)
    return row


def read_label(value: Any) -> bool:
    """Whether an answer was liked: true or false, 1 or 0, also as a float, as Parquet may have
    them, or as text, as CSV has them. Raises `Misshapen`.
    """
    if value is None or value == "" or value != value:
        raise Misshapen("no_label")
    found = _LABELS.get(value.strip().lower() if isinstance(value, str) else str(value).lower())
    if found is None:
        raise Misshapen("bad_label")
    return found


def _make_texts(record: Record) -> Row:
    """A query with a text that belongs to it, and texts that do not."""
    pair = record.get("texts")
    if isinstance(pair, list) and len(pair) == 2:
        record = {"query": pair[0], "positive": pair[1]}
    others = [record["negative"]] if _given(record, "negative") else record.get("negatives") or []
    texts = [_find(record, None, ("query", "anchor")), record.get("positive")]
    if any(one is None for one in texts) or not isinstance(others, list):
        raise Misshapen("other_shape")
    texts += others
    if not all(isinstance(one, str) for one in texts):
        raise Misshapen("not_text")
    if not all(one.strip() for one in texts):
        raise Misshapen("empty_message")
    if len(set(texts)) < len(texts):
        raise Misshapen("same_texts")
    row: Row = {"query": texts[0], "positive": texts[1]}
    return {**row, "negatives": texts[2:]} if others else row


def find_shape(record: Record, fields: Fields) -> str:
    """The shape of a record, by its fields. Raises `Misshapen`."""
    if _given(record, "chosen") and _given(record, "rejected"):
        return "pair"
    if _given(record, fields.messages or "messages"):
        return "judged" if "label" in record else "messages"
    if _given(record, "conversations"):
        return "sharegpt"
    if _given(record, "instruction") and _given(record, "output"):
        return "alpaca"
    if _find(record, fields.prompt, _PROMPTS) is not None:
        return "judged" if "label" in record else "prompt"
    raise Misshapen("other_shape")


def _given(record: Record, key: str) -> bool:
    return record.get(key) is not None


def _find(record: Record, named: str | None, usual: Sequence[str]) -> Any:
    for key in (named,) if named is not None else usual:
        if record.get(key) is not None:
            return record[key]
    return None


def _find_text(record: Record, fields: Fields) -> str:
    text = _find(record, fields.text, _TEXTS)
    if not isinstance(text, str):
        raise Misshapen("other_shape" if text is None else "not_text")
    return text


def _make_messages(record: Record, shape: str, fields: Fields) -> list[Message]:
    if shape == "pair":
        pair = _make_pair(record, fields)
        return [*pair["prompt"], *pair["chosen"]]
    if shape == "sharegpt":
        return _read_turns(record.get("conversations"), record.get("system"))
    if shape == "alpaca":
        told = [record.get("instruction"), record.get("input")]
        if not all(isinstance(one, str | None) for one in [*told, record.get("output")]):
            raise Misshapen("not_text")
        turns = [] if not record.get("system") else [_say("system", record["system"])]
        asked = "\n\n".join(filter(None, told))
        return [*turns, _say("user", asked), _say("assistant", record.get("output") or "")]
    given = record.get(fields.messages or "messages")
    if shape in ("messages", "judged") and given is not None:
        end = record.get("completion")
        return [*_read_turns(given), *(_read_answer(end) if end is not None else [])]
    prompt = _find(record, fields.prompt, _PROMPTS)
    answer = _find(record, fields.answer, _ANSWERS)
    if prompt is None or answer is None:
        raise Misshapen("other_shape")
    return [*_read_prompt(prompt, record.get("system")), *_read_answer(answer)]


def _make_pair(record: Record, fields: Fields) -> Row:
    chosen, rejected = record.get("chosen"), record.get("rejected")
    before = next(
        (
            record[key]
            for key in (fields.messages or "messages", "conversations")
            if _given(record, key)
        ),
        _find(record, fields.prompt, _PROMPTS),
    )
    better, worse = _read_answer(chosen), _read_answer(rejected)
    if before is None:  # both hold the whole conversation
        same = 0
        while same < min(len(better), len(worse)) - 1 and better[same] == worse[same]:
            same += 1
        prompt, better, worse = better[:same], better[same:], worse[same:]
    else:
        prompt = _continue_prompt(
            _read_prompt(before, record.get("system")), better[:-1], worse[:-1]
        )
        better, worse = better[-1:], worse[-1:]
    if len(better) != 1 or len(worse) != 1 or not prompt:
        raise Misshapen("no_pair")
    if better == worse:
        raise Misshapen("same_answers")
    return {"prompt": prompt, "chosen": better, "rejected": worse}


def _continue_prompt(
    prompt: list[Message], better: list[Message], worse: list[Message]
) -> list[Message]:
    """The prompt of a pair whose answers repeat the conversation, or go on with it: some data sets
    name only the first question. Raises `Misshapen` where answers belong to other prompts.
    """
    if better != worse:
        raise Misshapen("no_pair")
    if prompt[len(prompt) - len(better) :] == better:
        return prompt
    systems = [one for one in prompt if one["role"] in ("system", "developer")]
    asked = prompt[len(systems) :]
    if better[: len(prompt)] == prompt:
        return better
    if better[: len(asked)] == asked:
        return [*systems, *better]
    raise Misshapen("no_pair")


def _read_prompt(value: Any, system: Any = None) -> list[Message]:
    if isinstance(value, str):
        return [*([_say("system", system)] if system else []), _say("user", value)]
    return _read_turns(value, system)


def _read_answer(value: Any) -> list[Message]:
    """An answer as text, as a message, or as messages."""
    if isinstance(value, str):
        return [_say("assistant", value)]
    if isinstance(value, Mapping):
        return _read_turns([value])
    return _read_turns(value)


def _say(role: str, text: Any) -> Message:
    if not isinstance(text, str):
        raise Misshapen("not_text")
    return {"role": role, "content": text}


def _read_turns(turns: Any, system: Any = None) -> list[Message]:
    if not isinstance(turns, list | tuple) or not turns:
        raise Misshapen("other_shape")
    found: list[Message] = [_say("system", system)] if system else []
    calls = 0
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise Misshapen("other_shape")
        named = turn.get("role", turn.get("from"))
        role = _ROLES.get(named) if isinstance(named, str) else None
        if role is None:
            raise Misshapen("role")
        text = turn.get("content", turn.get("value"))
        message: Message = {"role": role, "content": _read_content(text)}
        if named == "function_call":
            calls += 1
            message |= {"content": None, "tool_calls": [_call_of(text, calls)]}
        elif turn.get("tool_calls"):
            message["tool_calls"] = [_read_call(one) for one in _as_list(turn["tool_calls"])]
        if role == "tool":
            message["tool_call_id"] = turn.get("tool_call_id") or _number(calls)
        for key in ("name", "reasoning_content"):
            if isinstance(turn.get(key), str):
                message[key] = turn[key]
        if turn.get("weight") == 0:
            message["weight"] = 0  # said, and not learned
        found.append(message)
    return found


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Misshapen("bad_call")
    return value


def _number(call: int) -> str:
    return f"call{call:05d}"


def _read_content(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [one.get("text") if isinstance(one, Mapping) else one for one in value]
        texts = [one for one in parts if isinstance(one, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    raise Misshapen("not_text")


def _call_of(text: Any, number: int) -> Message:
    """A call that is written as text, as LLaMA-Factory's data have it."""
    try:
        call = json.loads(text)
        return _read_call({"id": _number(number), "function": call})
    except (TypeError, ValueError):
        raise Misshapen("bad_call") from None


def _read_call(call: Any) -> Message:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise Misshapen("bad_call")
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    try:
        if not isinstance(json.loads(arguments), dict):
            raise Misshapen("bad_call")
    except ValueError:
        raise Misshapen("bad_call") from None
    found: Message = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": call["id"], **found} if isinstance(call.get("id"), str) else found


def _read_tools(value: Any) -> list[Message]:
    if isinstance(value, str):
        try:
            value = json.loads(value or "[]")
        except ValueError:
            raise Misshapen("bad_tools") from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise Misshapen("bad_tools")
    tools = []
    for one in value:
        if not isinstance(one, Mapping):
            raise Misshapen("bad_tools")
        function = one.get("function", one)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Misshapen("bad_tools")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise Misshapen("bad_tools")
        # One that is whole stays as it is: a chat template may write it in the order of its keys.
        whole = function is not one and one.get("type") == "function"
        tools.append(dict(one) if whole else {"type": "function", "function": dict(function)})
    return tools


# Checks


def _list_conversations(row: Row) -> list[list[Message]]:
    if "messages" in row:
        return [row["messages"]]
    ends = [row[key] for key in ("chosen", "rejected", "completion") if key in row]
    return [[*row["prompt"], *end] for end in ends]


def _require_answer(messages: list[Message]) -> None:
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise Misshapen("no_answer")


def _check_conversation(messages: list[Message], tools: list[Message]) -> None:
    _require_answer(messages)
    if not any(one["role"] == "user" for one in messages):
        raise Misshapen("no_question")
    known = {tool["function"]["name"] for tool in tools}
    called: set[str] = set()
    before = ""
    for number, message in enumerate(messages):
        role, calls = message["role"], message.get("tool_calls") or []
        if not message["content"] and not calls and role != "tool":
            raise Misshapen("empty_message")
        if role in ("system", "developer"):
            if number and before not in ("system", "developer"):
                raise Misshapen("system_place")
            before = "system"
            continue
        _check_turn(before, role)
        if calls and (role != "assistant"):
            raise Misshapen("bad_call")
        if calls and not known:
            # A server tells the model of the tools that it may call; no model sees such a prompt.
            raise Misshapen("no_tools")
        if any(call["function"]["name"] not in known for call in calls):
            raise Misshapen("unknown_tool")
        if role == "tool" and not called:
            raise Misshapen("no_call")
        called |= {call.get("id", "") for call in calls}
        before = "calls" if calls else role


_TURNS = {
    "": ("user", "assistant"), "system": ("user", "assistant"), "user": ("assistant",),
    "assistant": ("user",), "calls": ("tool", "user"), "tool": ("tool", "assistant"),
}  # fmt: skip
"""Who may speak after whom; a call that nobody answers may be followed by the user."""


def _check_turn(before: str, role: str) -> None:
    if role not in _TURNS[before]:
        raise Misshapen("no_call" if role == "tool" else "roles_alternate")
