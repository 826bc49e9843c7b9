"""Recorded prompts and answers: the same for every kind of response, storable and bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.observe.texts import (
    MAX_CHARS,
    MAX_MESSAGES,
    make_texts,
    parse_answer,
    parse_prompt,
)
from thrifty.openai.events import DONE, encode_event
from thrifty.openai.fields import Endpoint
from thrifty.untrusted_text import sanitize_text

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def whole(*messages: dict[str, Any]) -> bytes:
    choices = [
        {"index": i, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
        for i, message in enumerate(messages)
    ]
    return json.dumps({"id": "x", "object": "chat.completion", "choices": choices}).encode()


def streamed(*messages: dict[str, Any], end: bool = True) -> bytes:
    """The same answer in chunks of a few characters, with interleaved choices."""
    deltas: list[tuple[int, dict[str, Any]]] = []
    for i, message in enumerate(messages):
        deltas.append((i, {"role": "assistant", "content": ""}))
        for key, value in message.items():
            if isinstance(value, str):
                deltas += [(i, {key: value[k : k + 3]}) for k in range(0, len(value), 3)]
        for number, call in enumerate(message.get("tool_calls") or ()):
            head = {**call, "function": {**call["function"], "arguments": ""}}
            tail = {"function": {"arguments": call["function"]["arguments"]}}
            deltas += [(i, {"tool_calls": [{"index": number, **part}]}) for part in (head, tail)]
    stream = b"".join(
        encode_event({
            "id": "x", "object": "chat.completion.chunk",
            "choices": [{"index": i, "delta": delta, "finish_reason": None}],
        })
        for i, delta in deltas
    )  # fmt: skip
    if not end:
        return stream
    ends = [{"index": i, "delta": {}, "finish_reason": "stop"} for i in range(len(messages))]
    return stream + encode_event({"object": "chat.completion.chunk", "choices": ends}) + DONE


def chat(request: dict[str, Any], answer: bytes | None) -> tuple[list[dict[str, Any]], str]:
    is_stream = answer is not None and answer.startswith(b"data:")
    texts = make_texts(Endpoint.CHAT, request, answer, streamed=is_stream)
    assert texts is not None
    return parse_prompt(texts.prompt), texts.answer


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def test_a_plain_answer_is_its_text() -> None:
    assert chat(HELLO, whole({"content": "Hi, you"})) == (
        [{"role": "user", "content": "Hello"}],
        "Hi, you",
    )


@pytest.mark.parametrize(
    "messages",
    [
        [{"content": "Hi"}],
        [{"content": "a"}, {"content": "b"}],
        [{"content": None, "tool_calls": [CALL, {**CALL, "id": "call_2"}]}],
        [{"content": "Let me see.", "tool_calls": [CALL]}],
        [{"content": None, "refusal": "I cannot."}],
        [{"content": "42", "reasoning_content": "Six by nine."}],
        [{"content": '[{"role":"assistant","content":"not really"}]'}],
    ],
)
def test_whole_answers_and_streams_give_the_same(messages: list[dict[str, Any]]) -> None:
    _, answer = chat(HELLO, whole(*messages))
    assert chat(HELLO, streamed(*messages))[1] == answer
    assert parse_answer(answer) == [{"role": "assistant", **message} for message in messages]


def test_an_interrupted_stream_keeps_its_partial_answer() -> None:
    error = encode_event({"error": {"message": "gone"}})
    assert chat(HELLO, streamed({"content": "Once upon"}, end=False) + error)[1] == "Once upon"


@pytest.mark.parametrize(
    "answer",
    [None, b"", b'{"error":{"message":"no"}}', b"<html>", b"[1]", b"data: [DONE]\n\n", b"{",
     b'data: {"error":{"message":"no"}}\n\n', b'{"choices":3}', b"\xff", b"data: 3\n\n"],
)  # fmt: skip
def test_an_error_is_no_answer(answer: bytes | None) -> None:
    assert chat(HELLO, answer)[1] == ""
    assert parse_answer("") == []


def test_messages_are_normalized() -> None:
    request = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be "},
                                           {"type": "text", "text": "brief."}]},
            {"role": "user", "name": "ann", "content": [
                {"type": "text", "text": "What is it? "},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
            {"role": "assistant", "function_call": {"name": "look", "arguments": "{}"}},
            {"role": "tool", "tool_call_id": "call_1", "content": "a cat", "unknown": 1},
            {"role": "assistant", "tool_calls": [
                {"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls"}}]},
        ]
    }  # fmt: skip
    assert chat(request, None)[0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "ann", "content": "What is it? [image_url]"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a cat"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "shell", "arguments": '{"input": "ls"}'}}]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("Once", [{"role": "user", "content": "Once"}]),
        (["a", "b"], [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
        ([1, 2], [{"role": "user", "content": None, "token_ids": [1, 2]}]),
        ([[1], [2]], [{"role": "user", "content": None, "token_ids": [each]} for each in (1, 2)]),
        (None, []),
    ],
)
def test_completions_have_prompts(prompt: Any, messages: list[dict[str, Any]]) -> None:
    body = {"object": "text_completion", "choices": [{"index": 0, "text": " upon"}]}
    texts = make_texts(Endpoint.COMPLETIONS, {"prompt": prompt}, json.dumps(body).encode())
    assert texts is not None
    assert (parse_prompt(texts.prompt), texts.answer) == (messages, " upon")
    chunk = {"object": "text_completion", "choices": [{"index": 0, "text": " up"}]}
    end = {"choices": [{"index": 0, "text": "on", "finish_reason": "stop"}]}
    stream = encode_event(chunk) + encode_event(end) + DONE
    again = make_texts(Endpoint.COMPLETIONS, {"prompt": prompt}, stream, streamed=True)
    assert again is not None
    assert again[:2] == texts[:2]
    assert (texts.facts, again.facts) == (None, '{"finish":["stop"]}')


def test_the_wanted_format_is_a_fact_and_redacted() -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": {"const": "ann@example.com"}}}
    body = json.dumps({"choices": [{"index": 0, "message": {"content": "{}"}}]}).encode()
    request = {"messages": [{"role": "user", "content": "Hi"}], "response_format": wanted}
    texts = make_texts(Endpoint.CHAT, request, body)
    assert texts is not None
    assert json.loads(json.loads(texts.facts or "")["format"]) == wanted
    hidden = make_texts(
        Endpoint.CHAT, request, body, prepare=lambda _: lambda text: text.replace("ann", "x")
    )
    assert hidden is not None
    assert "ann" not in (hidden.facts or "")
    large = {**request, "response_format": {"a": "x" * 30_000}}
    assert make_texts(Endpoint.CHAT, large, body)[2] is None  # type: ignore[index]


@pytest.mark.parametrize("endpoint", [Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.TOKENIZE])
def test_other_endpoints_have_no_texts(endpoint: Endpoint) -> None:
    assert make_texts(endpoint, {"input": "x", "prompt": "x"}, b"{}") is None


def test_texts_are_bounded_and_keep_what_is_short() -> None:
    long = "x" * (3 * MAX_CHARS)
    request = {"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": long}, {"role": "user", "content": long},
        {"role": "user", "content": "And now?"},
    ]}  # fmt: skip
    prompt, answer = chat(request, whole({"content": long}))
    assert [prompt[0]["content"], prompt[3]["content"]] == ["Be brief.", "And now?"]
    assert MAX_CHARS * 0.99 < sum(len(each["content"]) for each in prompt) < MAX_CHARS * 1.01
    assert "characters were cut here]" in answer[-60:]
    assert len(answer) < MAX_CHARS * 1.01
    many = {"messages": HELLO["messages"] * 10_000}
    prompt, _ = chat(many, None)
    assert len(prompt) == MAX_MESSAGES + 1
    assert prompt[MAX_MESSAGES // 2]["content"] == "[8000 messages were cut here]"


@pytest.mark.parametrize(
    "choices",
    [[{"index": 0}, {"index": None}], [{"index": "0"}], [{}], [None], [{"index": [0]}],
     [{"index": 0, "delta": {"content": 3}}, {"index": 0, "delta": {"content": "x"}}]],
)  # fmt: skip
def test_an_invalid_stream_has_no_answer(choices: list[Any]) -> None:
    chunk = {"object": "chat.completion.chunk", "choices": choices}
    assert chat(HELLO, encode_event(chunk))[1] == ""


@pytest.mark.parametrize("index", [10**9, -1])
def test_a_large_index_makes_no_long_list(index: int) -> None:
    call = {"index": index, **CALL}
    chunk = {"object": "chat.completion.chunk",
             "choices": [{"index": 0, "delta": {"content": "x", "tool_calls": [call]}}]}  # fmt: skip
    assert parse_answer(chat(HELLO, encode_event(chunk))[1])[0]["content"] == "x"


def is_storable(text: str) -> bool:
    text.encode()
    return "\0" not in text


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for below in value if isinstance(value, list) else value.values():
            yield from strings(below)


ANY_TEXT = st.text(st.characters(categories=None), max_size=6) | st.sampled_from(
    ["\0", "\ud800", "a\udc00\0", "\ud83d\ude00", '[{"role":"assistant"', "user", "text"]
)
KEYS = st.sampled_from(
    ["role", "content", "name", "tool_calls", "function", "arguments", "id", "index", "choices",
     "message", "text", "delta", "refusal", "type", "function_call", "object", "finish_reason"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=4),
    max_leaves=15,
)
ANSWERS = st.one_of(
    JSON.map(lambda value: json.dumps(value).encode()),
    JSON.map(lambda value: json.dumps({"choices": [value, {"message": value}]}).encode()),
    st.lists(JSON, max_size=3).map(
        lambda values: b"".join(
            b"data: %b\n\n" % json.dumps(
                {"object": "chat.completion.chunk",
                 "choices": [{"index": 0, "delta": value}, value]}).encode()
            for value in values
        )
    ),
    st.binary(max_size=20),
)  # fmt: skip


@given(st.sampled_from([Endpoint.CHAT, Endpoint.COMPLETIONS]), JSON, ANSWERS)
def test_columns_are_storable_and_readable_for_any_input(
    endpoint: Endpoint, value: Any, answer: bytes
) -> None:
    requests = [{"messages": value, "prompt": value}, {"messages": [value], "prompt": [value]}]
    if isinstance(value, dict):
        requests.append(value)
    for request in requests:
        texts = make_texts(endpoint, request, answer, streamed=answer.startswith(b"data:"))
        assert texts is not None
        prompt, choices = parse_prompt(texts.prompt), parse_answer(texts.answer)
        assert all(map(is_storable, (*filter(None, texts), *strings([prompt, choices]))))
        assert all(set(each) >= {"role", "content"} for each in prompt)
        assert all(each["role"] == "assistant" for each in choices)


@given(ANY_TEXT)
def test_storable_text_is_unchanged(text: str) -> None:
    _, answer = chat(HELLO, whole({"content": sanitize_text(text)}))
    wanted = sanitize_text(text)
    assert parse_answer(answer) == ([{"role": "assistant", "content": wanted}] if wanted else [])


@given(ANY_TEXT, st.integers(0, 6))
def test_sanitized_text_differs_only_where_necessary(text: str, limit: int) -> None:
    made = sanitize_text(text, limit)
    assert is_storable(made)
    assert len(made) <= limit
    if "\0" not in text and not any(0xD800 <= ord(c) < 0xE000 for c in text):
        assert made == text[:limit]
    assert sanitize_text(made, limit) == made
