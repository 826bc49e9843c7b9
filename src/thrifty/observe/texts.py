"""Recorded prompts and answers as normalized messages, the same for whole answers, streams and
cache hits.

A prompt is a JSON list of messages, `{"role", "content", ...}`; content is always text. Images and
other parts are named in brackets without their data. An answer is its plain text. If it has more
than text (tool calls, several choices, a refusal, reasoning), it is a JSON list with one message
per choice. `parse_answer` reads both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from thrifty.db.request_log import RecordedText
from thrifty.openai.fields import Endpoint
from thrifty.openai.stream_answers import assemble_stream
from thrifty.untrusted_text import sanitize_text

MAX_CHARS = 1_000_000
"""Bound on the text of a prompt and of an answer; the longest pieces are truncated."""
MAX_MESSAGES = 2000
MAX_NAME_CHARS = 256
MAX_FORMAT_CHARS = 20_000
"""Longer descriptions of a wanted format are left out."""
MAX_TOOLS_CHARS = 200_000
"""Longer declarations of tools, and arguments of the chat template, are left out, and named so."""
MAX_TOKEN_IDS = 100_000

_LIST_BEGINS = '[{"role":"assistant"'
_NAMES = ("name", "tool_call_id")
_TEXTS = ("refusal", "reasoning_content", "reasoning")
_CONTEXT = {"tools": "tools", "template": "chat_template_kwargs"}

NO_KEY = "The texts are encrypted with a key that is missing; see 'thrifty encryption status'."
Message = dict[str, Any]
Redact = Callable[[str], str]


class Texts(NamedTuple):
    """The columns `prompt`, `answer` and `facts` of one response."""

    prompt: str
    answer: str
    facts: str | None = None
    """JSON, None where there is nothing to say: `finish` (why each choice ended), and of
    the request, as JSON in a text, `format` (`response_format`), `tools` (those that the model was
    told of) and `template` (`chat_template_kwargs`). `left_out` names those that were too long."""


def make_texts(
    endpoint: Endpoint,
    request: Mapping[str, Any],
    answer: bytes | None,
    *,
    streamed: bool = False,
    redact: Redact | None = None,
) -> Texts | None:
    """The texts of one response; None if there are none to record (embeddings, tokenization).

    `request` is the request's JSON object. `answer` is what the client was sent: a whole answer, an
    event stream (`streamed`, possibly interrupted), or None. An error is not an answer. `redact`
    puts pseudonyms in the place of personal data. Never raises, whatever a client or a server
    sends.
    """
    if endpoint is Endpoint.CHAT:
        messages = _read_messages(request.get("messages"))
    elif endpoint is Endpoint.COMPLETIONS:
        messages = _read_prompts(request.get("prompt"))
    else:
        return None
    if answer is not None and streamed:
        answer = assemble_stream(answer, partial=True)
    whole = _decode_choices(answer)
    choices = [_read_choice(choice) for choice in whole]
    facts = _write_facts(request, whole, redact)
    if redact is not None:
        _redact_all(messages, redact)
        _redact_all(choices, redact)
    return Texts(_encode(_bound(messages)), _write_answer(_bound(choices)), facts)


def parse_prompt(prompt: str) -> list[Message]:
    """The messages in the column `prompt`. Raises `ValueError` if it holds anything else."""
    return msgspec.json.decode(prompt, type=list[Message])


def parse_answer(answer: str) -> list[Message]:
    """One message per choice in the column `answer`; none if there was no answer."""
    if answer.startswith(_LIST_BEGINS):
        return msgspec.json.decode(answer, type=list[Message])
    return [{"role": "assistant", "content": answer}] if answer else []


def parse_context(facts: str | None) -> dict[str, Any]:
    """What a prompt was rendered with besides its messages, under the names of the request's fields
    `tools` and `chat_template_kwargs`; of the column `facts`. Raises `ValueError` where it was too
    long to be recorded, or is in no known form.
    """
    known = msgspec.json.decode(facts, type=dict[str, Any]) if facts else {}
    if known.get("left_out"):
        raise ValueError(f"{' and '.join(known['left_out'])} were too long to be recorded")
    return {
        field: msgspec.json.decode(known[name]) for name, field in _CONTEXT.items() if name in known
    }


def describe_texts(texts: RecordedText | None) -> dict[str, Any]:
    """`prompt` and `answer` as messages, None where there are none, and `texts_fault` where they
    are recorded and cannot be read.
    """
    found: dict[str, Any] = {"prompt": None, "answer": None}
    if texts is None:
        return found
    if not texts.readable:
        return found | {"texts_fault": NO_KEY}
    try:
        return {"prompt": parse_prompt(texts.prompt), "answer": parse_answer(texts.answer)}
    except ValueError:
        return found | {"texts_fault": "The recorded texts are not in a known form."}


def show_prompt(prompt: str) -> str:
    """A recorded prompt as text: each message under its role."""
    try:
        messages = parse_prompt(prompt)
    except ValueError:
        return prompt
    return "\n\n".join(f"{one.get('role')}: {one.get('content') or ''}" for one in messages)


def show_answer(answer: str) -> str:
    """A recorded answer as text; of several choices all, one after the other."""
    try:
        choices = parse_answer(answer)
    except ValueError:
        return answer
    texts = []
    for choice in choices:
        calls = [call["function"] for call in choice.get("tool_calls", ())]
        said = str(choice.get("content") or choice.get("refusal") or "")
        texts.append("\n".join([said, *(f"{c['name']}({c['arguments']})" for c in calls)]).strip())
    return "\n\n".join(texts)


def _read_messages(messages: Any) -> list[Message]:
    if not isinstance(messages, list):
        return []
    return [_read_message(message) for message in _truncate_middle(messages)]


def _read_message(message: Any) -> Message:
    if not isinstance(message, dict):
        return {"role": "", "content": _read_content(message)}
    role = message.get("role")
    found: Message = {
        "role": sanitize_text(role, MAX_NAME_CHARS) if isinstance(role, str) else "",
        "content": _read_content(message.get("content")),
    }
    for key in _NAMES:
        value = message.get(key)
        if isinstance(value, str):
            found[key] = sanitize_text(value, MAX_NAME_CHARS)
    for key in _TEXTS:
        value = message.get(key)
        if isinstance(value, str) and value:
            found[key] = sanitize_text(value)
    calls = message.get("tool_calls")
    if not calls and isinstance(message.get("function_call"), dict):
        calls = [{"function": message["function_call"]}]  # the predecessor of 'tools'
    if isinstance(calls, list) and calls:
        found["tool_calls"] = [_read_call(call) for call in calls[:MAX_MESSAGES]]
    return found


def _read_call(call: Any) -> Message:
    call = call if isinstance(call, dict) else {}
    custom = call.get("custom")
    if isinstance(custom, dict):  # a tool that takes text
        call = {**call, "function": {"name": custom.get("name"), "arguments": custom.get("input")}}
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments")
    return {
        "id": _read_name(call.get("id")),
        "type": "function",
        "function": {
            "name": _read_name(function.get("name")),
            "arguments": sanitize_text(
                arguments if isinstance(arguments, str) else _encode(arguments)
            ),
        },
    }


def _read_content(content: Any) -> str | None:
    if content is None:
        return None
    if isinstance(content, str):
        return sanitize_text(content)
    if isinstance(content, list):
        return "".join([_read_part(part) for part in content[:MAX_MESSAGES]])
    return sanitize_text(_encode(content))


def _read_part(part: Any) -> str:
    if isinstance(part, str):
        return sanitize_text(part)
    if isinstance(part, dict):
        for key in ("text", "refusal"):
            if isinstance(part.get(key), str):
                return sanitize_text(part[key])
        return f"[{_read_name(part.get('type')) or 'part'}]"
    return "[part]"


def _read_name(value: Any) -> str:
    return sanitize_text(value, MAX_NAME_CHARS) if isinstance(value, str) else ""


def _read_prompts(prompt: Any) -> list[Message]:
    """The prompts of a completion, each as a user message."""
    if isinstance(prompt, list) and not _is_token_ids(prompt):
        return [_read_prompt(each) for each in prompt[:MAX_MESSAGES]]
    return [] if prompt is None else [_read_prompt(prompt)]


def _read_prompt(prompt: Any) -> Message:
    if isinstance(prompt, list) and _is_token_ids(prompt):
        return {"role": "user", "content": None, "token_ids": prompt[:MAX_TOKEN_IDS]}
    return {"role": "user", "content": _read_content(prompt)}


def _is_token_ids(items: list[Any]) -> bool:
    return bool(items) and all(type(item) is int and 0 <= item < 2**31 for item in items)


def _decode_choices(answer: bytes | None) -> list[Mapping[str, Any]]:
    if answer is None:
        return []
    try:
        body = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list):
        return []
    found: list[Mapping[str, Any]] = [one for one in choices if isinstance(one, dict)]
    found.sort(key=lambda choice: _order(choice.get("index")))
    return found[:MAX_MESSAGES]


def _write_facts(
    request: Mapping[str, Any], choices: list[Mapping[str, Any]], redact: Redact | None
) -> str | None:
    facts: dict[str, Any] = {}
    for name, value, most in (
        ("format", request.get("response_format"), MAX_FORMAT_CHARS),
        ("tools", _find_tools(request), MAX_TOOLS_CHARS),
        ("template", request.get("chat_template_kwargs"), MAX_TOOLS_CHARS),
    ):
        if not isinstance(value, dict | list) or not value:
            continue
        text = _encode(value)
        text = redact_json(text, redact) if redact is not None else text
        if len(text) <= most:
            facts[name] = sanitize_text(text)
        elif name in _CONTEXT:
            facts.setdefault("left_out", []).append(name)
    reasons = [choice.get("finish_reason") for choice in choices]
    if any(isinstance(one, str) for one in reasons):
        facts["finish"] = [
            sanitize_text(one, MAX_NAME_CHARS) if isinstance(one, str) else None for one in reasons
        ]
    return _encode(facts) if facts else None


def _find_tools(request: Mapping[str, Any]) -> list[Any] | None:
    """The tools that the model was told of: a choice of `none` hides all, a named one others."""
    tools, choice = request.get("tools"), request.get("tool_choice")
    if not isinstance(tools, list) or choice == "none":
        return None
    if not isinstance(choice, dict) or choice.get("type") not in ("function", "custom"):
        return tools
    kind = str(choice["type"])
    return [
        one for one in tools if isinstance(one, dict) and one.get(kind) is not None
        and _name_of(one, kind) == _name_of(choice, kind)
    ]  # fmt: skip


def _name_of(value: Mapping[str, Any], kind: str) -> Any:
    holder = value.get(kind)
    return holder.get("name") if isinstance(holder, dict) else None


def _read_choice(choice: Mapping[str, Any]) -> Message:
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": choice.get("text")}
    found = {**_read_message(message), "role": "assistant"}
    # A stream's content begins as "" even if there is none.
    found["content"] = found["content"] or None
    return found


def _order(index: Any) -> float:
    return index if isinstance(index, int | float) else 0


def _write_answer(choices: list[Message]) -> str:
    if not choices:
        return ""
    if len(choices) == 1 and choices[0].keys() == {"role", "content"}:
        text: str = choices[0]["content"] or ""
        if not text.startswith(_LIST_BEGINS):
            return text
    return _encode(choices)


def _encode(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError, OverflowError):
        return repr(value)  # for example, half of a surrogate pair


def _truncate_middle(items: list[Any]) -> list[Any]:
    """At most `MAX_MESSAGES` items, the first and the last ones."""
    if len(items) <= MAX_MESSAGES:
        return items
    half = MAX_MESSAGES // 2
    note = {"role": "system", "content": f"[{len(items) - 2 * half} messages were cut here]"}
    return [*items[:half], note, *items[-half:]]


def _bound(messages: list[Message]) -> list[Message]:
    """Truncate the longest texts until they have at most `MAX_CHARS` in total."""
    sizes = sorted(len(holder[key]) for holder, key in _walk_texts(messages))
    left, limit = MAX_CHARS, MAX_CHARS
    if sum(sizes) <= left:
        return messages
    for number, size in enumerate(sizes):
        limit = left // (len(sizes) - number)
        if size > limit:
            break
        left -= size
    for holder, key in _walk_texts(messages):
        text = holder[key]
        if len(text) > limit:
            holder[key] = f"{text[:limit]}[{len(text) - limit} characters were cut here]"
    return messages


def _redact_all(messages: list[Message], redact: Redact) -> None:
    """Redact messages in place. Texts are redacted before they are cut, so that no half of an
    address is left at the end.
    """
    for message in messages:
        # Token ids are a text that cannot be redacted.
        message.pop("token_ids", None)
        if "name" in message:
            message["name"] = redact(message["name"])
    for holder, key in _walk_texts(messages):
        redact_one = redact_json if key == "arguments" else _redact_text
        holder[key] = redact_one(holder[key], redact)


def _redact_text(text: str, redact: Redact) -> str:
    return redact(text)


def redact_json(text: str, redact: Redact) -> str:
    """JSON with its strings and numbers redacted, so that it stays JSON; other text as text."""
    try:
        value = msgspec.json.decode(text)
        return _encode(_redact_value(value, redact))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return redact(text)


def _redact_value(value: Any, redact: Redact) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [_redact_value(one, redact) for one in value]
    if isinstance(value, dict):
        return {redact(name): _redact_value(one, redact) for name, one in value.items()}
    if type(value) is int:
        written = str(value)
        redacted = redact(written)
        return value if redacted == written else redacted
    return value


def _walk_texts(messages: list[Message]) -> Iterable[tuple[Message, str]]:
    """The location of each text: the object that holds it, and the key."""
    for message in messages:
        for key in ("content", *_TEXTS):
            if isinstance(message.get(key), str):
                yield message, key
        for call in message.get("tool_calls", ()):
            yield call["function"], "arguments"
