"""Recorded prompts and answers as normalized messages, the same for whole answers, streams and
cache hits.

A prompt is a JSON list of messages, `{"role", "content", ...}`; content is always text. Images and
other parts are named in brackets without their data. An answer is its plain text. If it has more
than text (tool calls, several choices, a refusal, reasoning), it is a JSON list with one message
per choice. `parse_answer` reads both. What else a prompt was made of, such as declared tools, is in
the facts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from thrifty.db.request_log import RecordedText
from thrifty.observe.redact import Prepare, Redact, redact_together
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
"""Longer declarations of tools, and arguments of chat templates, are left out, and the facts say
so.
"""
MAX_TOKEN_IDS = 100_000

FIELDS = {
    "format": "response_format",
    "tools": "tools",
    "tool_choice": "tool_choice",
    "chat_template_kwargs": "chat_template_kwargs",
}
"""Facts that are fields of the request."""
_LIST_BEGINS = '[{"role":"assistant"'
_NAMES = ("name", "tool_call_id")
_TEXTS = ("refusal", "reasoning_content", "reasoning")

NO_KEY = "The texts are encrypted with a key that is missing; see 'thrifty encryption status'."
Message = dict[str, Any]


class Texts(NamedTuple):
    """The columns `prompt`, `answer` and `facts` of one response."""

    prompt: str
    answer: str
    facts: str | None = None
    """JSON with `format`, `tools`, `tool_choice` and `chat_template_kwargs` (the request's fields
    of these names, each as JSON in a text; `format` is its `response_format`), `finish` (why each
    choice ended), and `unlike` (why a prompt cannot be made again from the rest); None where there
    is none of them.
    """


def make_texts(
    endpoint: Endpoint,
    request: Mapping[str, Any],
    answer: bytes | None,
    *,
    streamed: bool = False,
    prepare: Prepare | None = None,
) -> Texts | None:
    """The texts of one response; None if there are none to record (embeddings, rankings,
    tokenization).

    `request` is the request's JSON object. `answer` is what the client was sent: a whole answer, an
    event stream (`streamed`, possibly interrupted), or None. An error is not an answer. `prepare`
    gives what puts pseudonyms in the place of personal data. Never raises, whatever a client or a
    server sends, but a `RedactionError` where texts cannot be redacted.
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
    facts = _read_facts(request, whole)
    if prepare is not None:

        def redact_all(redact: Redact) -> None:
            _redact_all(messages, redact)
            _redact_all(choices, redact)

        redact_together(redact_all, prepare)
        # Applications write these, and names in them are rather those of fields.
        _redact_facts(facts, prepare([]))
        _redact_ids([*messages, *choices], prepare([]))
    if sum(len(holder[key]) for holder, key in _walk_texts(messages)) > MAX_CHARS:
        facts["unlike"] = "cut"
    return Texts(_encode(_bound(messages)), _write_answer(_bound(choices)), _write_facts(facts))


def parse_prompt(prompt: str) -> list[Message]:
    """The messages in the column `prompt`. Raises `ValueError` if it holds anything else."""
    return msgspec.json.decode(prompt, type=list[Message])


def parse_answer(answer: str) -> list[Message]:
    """One message per choice in the column `answer`; none if there was no answer."""
    if answer.startswith(_LIST_BEGINS):
        return msgspec.json.decode(answer, type=list[Message])
    return [{"role": "assistant", "content": answer}] if answer else []


def parse_facts(facts: str | None) -> dict[str, Any]:
    """The facts in the column `facts`, those of the request decoded. Raises `ValueError` if it
    holds anything else.
    """
    found = msgspec.json.decode(facts, type=dict[str, Any]) if facts else {}
    return found | {name: msgspec.json.decode(found[name]) for name in FIELDS if name in found}


def describe_texts(texts: RecordedText | None) -> dict[str, Any]:
    """`prompt` and `answer` as messages, `tools` as they were declared, None where there are none,
    and `texts_fault` where they are recorded and cannot be read.
    """
    found: dict[str, Any] = {"prompt": None, "answer": None, "tools": None}
    if texts is None:
        return found
    if not texts.readable:
        return found | {"texts_fault": NO_KEY}
    try:
        return {
            "prompt": parse_prompt(texts.prompt), "answer": parse_answer(texts.answer),
            "tools": parse_facts(texts.facts).get("tools"),
        }  # fmt: skip
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
    if isinstance(custom, dict):  # a tool that takes text; models are told of one with `input`
        given = {"input": custom.get("input")}
        call = {**call, "function": {"name": custom.get("name"), "arguments": given}}
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments")
    return {
        "id": _read_name(call.get("id")),
        "type": "function",
        "function": {
            "name": _read_name(function.get("name")),
            "arguments": sanitize_text(
                arguments if isinstance(arguments, str) else _write_arguments(arguments)
            ),
        },
    }


def _write_arguments(arguments: Any) -> str:
    """Arguments that are no text, as a server writes them for a chat template."""
    try:
        return json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    except (RecursionError, TypeError, ValueError):
        return _encode(arguments)


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


def _read_facts(request: Mapping[str, Any], choices: list[Mapping[str, Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        name: _encode(request[key])
        for name, key in FIELDS.items()
        if isinstance(request.get(key), dict | list | str) and request[key]
    }
    if request.get("continue_final_message") or request.get("add_generation_prompt") is False:
        facts["unlike"] = "continued"
    elif request.get("truncate_prompt_tokens") is not None:
        facts["unlike"] = "truncated"
    elif _holds_more(request.get("messages")):
        facts["unlike"] = "parts"
    reasons = [choice.get("finish_reason") for choice in choices]
    if any(isinstance(one, str) for one in reasons):
        facts["finish"] = [
            sanitize_text(one, MAX_NAME_CHARS) if isinstance(one, str) else None for one in reasons
        ]
    return facts


def _holds_more(messages: Any) -> bool:
    """Whether messages hold more than is kept of them: images and the like, or too many."""
    if not isinstance(messages, list):
        return False
    contents = [one.get("content") for one in messages if isinstance(one, dict)]
    parts = [part for one in contents if isinstance(one, list) for part in one]
    return (
        len(messages) > MAX_MESSAGES
        or len(parts) > MAX_MESSAGES
        or any(not isinstance(one, dict) or "text" not in one for one in parts)
    )


def _redact_facts(facts: dict[str, Any], redact: Redact) -> None:
    """Redact facts in place."""
    for name in FIELDS:
        if name in facts:
            facts[name] = redact_json(facts[name], redact)


def _write_facts(facts: dict[str, Any]) -> str | None:
    for name in FIELDS:
        if name not in facts:
            continue
        if len(facts[name]) > (MAX_FORMAT_CHARS if name == "format" else MAX_TOOLS_CHARS):
            del facts[name]
            if name != "format":
                facts["unlike"] = f"{name} too long"
        else:
            facts[name] = sanitize_text(facts[name])
    return _encode(facts) if facts else None


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


def _redact_ids(messages: list[Message], redact: Redact) -> None:
    """Redact the ids of tool calls in place. A call and its result still have the same."""
    for message in messages:
        if "tool_call_id" in message:
            message["tool_call_id"] = redact(message["tool_call_id"])
        for call in message.get("tool_calls", ()):
            call["id"] = redact(call["id"])


def _redact_text(text: str, redact: Redact) -> str:
    return redact(text)


def redact_json(text: str, redact: Redact) -> str:
    """JSON with its strings and numbers redacted, so that it stays JSON; other text as text. Where
    nothing is found it stays as it is written, because chat templates write it so.
    """
    try:
        value = msgspec.json.decode(text)
        redacted = _redact_value(value, redact)
        return text if redacted == value else _encode(redacted)
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
