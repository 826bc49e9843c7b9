"""Reasoning comes apart from content, streamed and whole alike."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.engines.test_answers import CALL, CITY, END, FACTS, TOOL, cut, parse
from tests.text import templates
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.engines.server.answers import ChunkWriter, build_answer
from thrifty.engines.server.backend import Output
from thrifty.engines.server.choice import Choice
from thrifty.engines.server.request import parse_chat, parse_completion
from thrifty.gateway.cache.replay import make_chunks
from thrifty.openai.stream_answers import assemble_answer
from thrifty.openai.stream_options import StreamOptions
from thrifty.text.tokenizer import TextTokenizer

THINKS = TextTokenizer(make_tokenizer().tokenizer, templates.HERMES)
BEGINS = TextTokenizer(make_tokenizer().tokenizer, templates.HERMES + "<think>\n")
"""Its template writes the first tag into the prompt."""
PLAIN = make_tokenizer()
HI = [{"role": "user", "content": "hi"}]


def make_hidden() -> TextTokenizer:
    """Its tags are control tokens, which decoding leaves out."""
    inner = Tokenizer.from_str(make_tokenizer().tokenizer.to_str())
    inner.add_special_tokens(["[THINK]", "[/THINK]"])
    return TextTokenizer(inner, templates.CHATML)


def run(tokenizer: TextTokenizer, outputs: list[Output], **fields: Any) -> tuple[list[Any], Any]:
    """The events of a stream, and the whole answer."""
    request = parse_chat({"messages": HI, **fields}, tokenizer, FACTS)
    choice = Choice(0, request, tokenizer)
    writer = ChunkWriter(request, choice, "id-1", 17)
    stream = b"".join(writer.write(*choice.feed(output)) for output in outputs)
    return parse(stream), json.loads(build_answer(request, [choice], "chatcmpl-1"))


def join(events: list[Any]) -> dict[str, str]:
    """What a client makes of a stream."""
    joined = {"reasoning_content": "", "content": ""}
    for event in events:
        delta = event["choices"][0]["delta"]
        for key in joined:
            joined[key] += delta.get(key) or ""
        assert "reasoning_content" not in delta or "content" not in delta
    return joined


def view(answer: Any) -> dict[str, str]:
    message = answer["choices"][0]["message"]
    return {key: message.get(key) or "" for key in ("reasoning_content", "content")}


@pytest.mark.parametrize(
    ("tokenizer", "text", "finish", "expected"),
    [
        (THINKS, "<think>\nHm.\n</think>\n\nParis.", "stop", ("Hm.", "Paris.")),
        (BEGINS, "Hm.\n</think>\n\nParis.", "stop", ("Hm.", "Paris.")),
        (THINKS, "<think>\nHm", "length", ("Hm", None)),
        (THINKS, "Paris.", "stop", (None, "Paris.")),
        (PLAIN, "<think>\nHm.\n</think>\nParis.", "stop",
         (None, "<think>\nHm.\n</think>\nParis.")),
    ],
    ids=range(5),
)  # fmt: skip
def test_reasoning_is_apart(tokenizer: Any, text: str, finish: str, expected: Any) -> None:
    events, answer = run(tokenizer, cut(text, [3], finish))
    message = answer["choices"][0]["message"]
    assert (message.get("reasoning_content"), message["content"]) == expected
    assert ("reasoning_content" in message) == (expected[0] is not None)
    assert join(events) == view(answer)
    assert answer["choices"][0]["finish_reason"] == finish
    assert answer["usage"]["completion_tokens"] == len(text) + (finish == "stop")


@given(
    text=st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", "<", "é"]),
                  max_size=9).map("".join),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    begins=st.booleans(), tools=st.booleans(),
)  # fmt: skip
def test_streams_say_what_whole_answers_say(
    text: str, sizes: list[int], begins: bool, tools: bool
) -> None:
    fields = {"tools": [TOOL]} if tools else {}
    events, answer = run(BEGINS if begins else THINKS, cut(text, sizes), logprobs=True, **fields)
    assert join(events) == view(answer)
    details = [
        detail
        for event in events
        for detail in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert details == answer["choices"][0]["logprobs"]["content"]
    assert len(details) == len(text.encode())


def test_reasoning_can_stay_in_the_content() -> None:
    text = "<think>\nHm.\n</think>\n\nParis."
    events, answer = run(THINKS, cut(text, [3]), separate_reasoning=False)
    assert view(answer) == join(events) == {"reasoning_content": "", "content": text}


def test_call_comes_after_the_reasoning() -> None:
    events, answer = run(THINKS, cut(f"<think>Hm.</think>\n{CALL}", [5]), tools=[TOOL])
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", None)
    assert message["tool_calls"][0]["function"]["name"] == "weather"
    assert join(events)["reasoning_content"] == "Hm."
    assert any("tool_calls" in event["choices"][0]["delta"] for event in events)


def test_answer_that_a_schema_binds_has_no_reasoning() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
    _, answer = run(BEGINS, cut('{"city": "Rom"}', [4]), response_format=schema)
    assert view(answer) == {"reasoning_content": "", "content": '{"city": "Rom"}'}


def test_tags_that_are_control_tokens_are_seen() -> None:
    tokenizer = make_hidden()
    begin, end = (tokenizer.tokenizer.token_to_id(tag) for tag in ("[THINK]", "[/THINK]"))
    ids = [begin, *b"Hm.", end, *b"Paris.", END]
    outputs = [Output(1, [i], None, "stop" if i == END else "") for i in ids]
    events, answer = run(tokenizer, outputs)
    assert view(answer) == join(events) == {"reasoning_content": "Hm.", "content": "Paris."}


def test_completions_are_left_as_they_are() -> None:
    request = parse_completion({"prompt": "x"}, THINKS, FACTS)
    choice = Choice(0, request, THINKS)
    choice.feed(cut("<think>Hm.</think>", [99])[0])
    assert choice.text == "<think>Hm.</think>"


def test_gateway_keeps_reasoning_from_streams_and_replays_it() -> None:
    """The exact cache turns streams into whole answers, and these into streams."""
    for text in ("<think>\nHm.\n</think>", "<think>\nHm.\n</think>\n\nParis."):
        events, answer = run(THINKS, cut(text, [3]))
        assembled = assemble_answer(events)
        assert assembled is not None
        messages = [one["choices"][0]["message"] for one in (json.loads(assembled), answer)]
        assert messages[0] == messages[1]
    chunks = make_chunks(answer, StreamOptions())
    replayed = parse(b"".join(chunk.replace(b"\0", b"") for chunk in chunks))
    deltas = [event["choices"][0]["delta"] for event in replayed]
    assert {"reasoning_content": "Hm.", "content": "Paris."} in deltas
