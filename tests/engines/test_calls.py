"""Calls in answers: whatever form a model writes them in, whole or as they come."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.engines.server.calls import (
    CallBegin,
    CallInput,
    CallReader,
    Event,
    TextPart,
    read_answer,
)
from thrifty.engines.server.tools import CLOSE, OPEN, ToolPlan, render_history

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
SHELL = {"type": "function", "function": {"name": "shell"}}
AUTO = ToolPlan([WEATHER, CLOCK], "auto")
REQUIRED = ToolPlan([WEATHER, CLOCK, SHELL], "required", custom=frozenset({"shell"}))
CALL = '{"name": "weather", "arguments": {"city": "Köln"}}'


def found(text: str, plan: ToolPlan = AUTO) -> tuple[str, list[tuple[str, Any]]]:
    """The plain text of an answer, and its calls as names and arguments."""
    plain, calls, _ = read_answer(text, plan)
    assert len({call["id"] for call in calls}) == len(calls)
    assert all(call["type"] == "function" for call in calls)
    return plain, [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls
    ]


def test_history_that_was_rendered_is_read_back_as_the_same_calls() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Köln\n</b>"}}}
    (message,) = render_history([{"role": "assistant", "content": "Hm.", "tool_calls": [call]}])
    assert found(message["content"]) == ("Hm.", [("weather", {"city": "Köln\n</b>"})])


# what the answers come to

GOOD = [
    (f"{OPEN}\n{CALL}\n{CLOSE}", "", 1),
    (f"{OPEN}{CALL}{CLOSE}", "", 1),
    (f"{OPEN}\n{CALL}", "", 1),
    (f"Let me see. {OPEN}\n{CALL}\n{CLOSE}", "Let me see.", 1),
    (f"\n\nLet me see.\n{OPEN}\n{CALL}\n{CLOSE}\n", "\n\nLet me see.", 1),
    (f"{OPEN}\n{CALL}\n{CLOSE}\n{OPEN}\n{CALL}\n{CLOSE}", "", 2),
    (f"A {OPEN}{CALL}{CLOSE} B {OPEN}{CALL}{CLOSE} C", "A  B  C", 2),
    (f"{OPEN}[{CALL}, {CALL}]{CLOSE}", "", 2),
    (CALL, "", 1),
    (f"  {CALL}\n", "", 1),
    (f"[{CALL}, {CALL}]", "", 2),
]


@pytest.mark.parametrize(("text", "plain", "count"), GOOD)
def test_calls_are_read(text: str, plain: str, count: int) -> None:
    assert found(text) == (plain, [("weather", {"city": "Köln"})] * count)


def test_only_the_first_call_counts_where_one_is_asked_for() -> None:
    plan = ToolPlan([WEATHER], "auto", parallel=False)
    assert found(f"{OPEN}{CALL}{CLOSE}{OPEN}{CALL}{CLOSE}", plan)[1] == [
        ("weather", {"city": "Köln"})
    ]


@pytest.mark.parametrize(
    ("inner", "arguments"),
    [
        ('{"name": "clock", "arguments": {}}', {}),
        ('{"name": "clock", "parameters": {"zone": 1}}', {"zone": 1}),
        ('{"name": "clock"}', {}),
        ('{"name": "clock", "arguments": null}', {}),
        ('{"name": "clock", "arguments": "{\\"zone\\": 1}"}', {"zone": 1}),
        (
            r'{"arguments": {"a": "\ud83d", "\udc00": "\ud83d\ude00"}, "name": "clock"}',
            {"a": "\ufffd", "\ufffd": "\U0001f600"},
        ),
        (r'{"name": "clock", "arguments": "{\"a\": \"\ud83d\"}"}', {"a": "\ufffd"}),
    ],
)
def test_arguments_come_in_several_forms(inner: str, arguments: Any) -> None:
    assert found(f"{OPEN}{inner}{CLOSE}") == ("", [("clock", arguments)])


BAD = [
    "",
    "plain text",
    "{ not json",
    "[]",
    "{}",
    "7",
    "null",
    '{"name": "unknown", "arguments": {}}',
    '{"name": ["weather"], "arguments": {}}',
    '{"name": {"weather": 1}}',
    '{"name": null}',
    f"[{CALL}, 7]",
    f'[{CALL}, {{"name": "unknown"}}]',
    f"{OPEN}{CLOSE}",
    f"{OPEN}{{ not json {CLOSE}",
    f"{OPEN} {OPEN} {CLOSE}",
    f"{CLOSE}{CALL}",
    '{"arguments": {"a": NaN}, "name": "clock"}',
    '{"arguments": {"a": 1e400}, "name": "clock"}',
    "[" * 100_000,
    f"{OPEN}{'[' * 100_000}{CLOSE}",
    '{"a":' * 50_000,
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_no_call_stays_text(text: str) -> None:
    assert found(text) == (text, [])


def test_bad_call_beside_a_good_one_stays_text() -> None:
    assert found(f"{OPEN}{{}}{CLOSE} and {OPEN}{CALL}{CLOSE}") == (
        f"{OPEN}{{}}{CLOSE} and",
        [("weather", {"city": "Köln"})],
    )


@given(st.text(alphabet=f'{OPEN}{CLOSE}{{}}[]":, weathrnmgus\n', max_size=80))
def test_any_answer_is_read_without_a_fault(text: str) -> None:
    plain, calls = read_answer(text, AUTO)[:2]
    assert calls or plain == text


@pytest.mark.parametrize("text", [OPEN + " " * 200_000, (OPEN + "\n") * 20_000, OPEN * 20_000])
def test_hostile_answers_are_read_in_no_time(text: str) -> None:
    began_s = time.perf_counter()
    read_answer(text, AUTO)
    assert time.perf_counter() - began_s < 5


# as they come


def feed(text: str, sizes: list[int], plan: ToolPlan) -> tuple[list[list[Event]], CallReader]:
    """What is told after each piece of an answer, and at its end."""
    reader = CallReader(plan)
    told = []
    place = turn = 0
    while place < len(text):
        size = sizes[turn % len(sizes)]
        told.append(reader.feed(text[place : place + size]))
        place, turn = place + size, turn + 1
    return [*told, reader.end()], reader


def join(told: list[list[Event]]) -> tuple[str, list[str]]:
    """The text, and each call's name with its input."""
    text, calls = "", []
    for event in [event for events in told for event in events]:
        if isinstance(event, TextPart):
            text += event.text
        elif isinstance(event, CallBegin):
            calls.append(f"{event.name}:")
        else:
            calls[event.index] += event.text
    return text, calls


PIECES = st.lists(
    st.sampled_from(
        [OPEN, CLOSE, CALL, '{"name": "clock", "arguments": {}}', "\n", " ", "text", "<tool", "{", "é",
         '{"name": "shell", "arguments": {"input": "a\\n\\"\\ud83d\\ude00"}}', '{"name": "no"}']
    ),
    max_size=6,
).map("".join)  # fmt: skip
SIZES = st.lists(st.sampled_from([1, 2, 3, 7, 50]), min_size=1, max_size=3)
PLANS = st.sampled_from(
    [AUTO, REQUIRED, ToolPlan([WEATHER, SHELL], "auto", parallel=False, custom=frozenset({"shell"})),
     ToolPlan([WEATHER], "auto", bare=False)]
)  # fmt: skip


@given(text=PIECES, sizes=SIZES, plan=PLANS)
def test_pieces_come_to_the_whole(text: str, sizes: list[int], plan: ToolPlan) -> None:
    told, _ = feed(text, sizes, plan)
    assert join(told) == join(feed(text, [10_000], plan)[0])


@pytest.mark.parametrize(("text", "plan"), [(f"{OPEN}\n{CALL}\n{CLOSE}", AUTO), (CALL, REQUIRED)])
def test_arguments_are_told_as_they_come(text: str, plan: ToolPlan) -> None:
    told, reader = feed(text, [1], plan)
    begun = next(
        i for i, events in enumerate(told) if any(isinstance(e, CallBegin) for e in events)
    )
    # As soon as the arguments begin, and from then on with every character of them.
    assert text[: begun + 1].endswith('"arguments": {')
    inputs = [e for events in told for e in events if isinstance(e, CallInput)]
    assert "".join(e.text for e in inputs) == '{"city": "Köln"}'
    assert len(inputs) == len('{"city": "Köln"}')
    assert reader.whole


def test_input_of_a_custom_tool_is_told_decoded() -> None:
    text = '{"name": "shell", "arguments": {"input": "a\\n\\"\\u00e9\\ud83d\\ude00"}}'
    told, reader = feed(text, [1], REQUIRED)
    assert join(told) == ("", ['shell:a\n"é\U0001f600'])
    assert sum(isinstance(e, CallInput) for events in told for e in events) == 5
    _, (call,), whole = read_answer(text, REQUIRED)
    assert call["type"] == "custom"
    assert call["custom"] == {"name": "shell", "input": 'a\n"é\U0001f600'}
    assert whole
    assert reader.whole


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"a\ud83d", "a\ufffd"), (r"a\udc00b", "a\ufffdb"), (r"\ud83d\n", "\ufffd\n"), ("a\nb\x00", "a\nb\0"),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"), (r"\ud83d\u0041", "\ufffdA"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 5, 100])
def test_any_input_of_a_custom_tool_can_be_told(written: str, read: str, size: int) -> None:
    text = f'{{"name": "shell", "arguments": {{"input": "{written}"}}}}'
    told, _ = feed(text, [size], REQUIRED)
    assert join(told) == ("", [f"shell:{read}"])


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        (f"{OPEN}\n{CALL[:-3]}", "weather", '{"city": "Köln'),
        (f"{OPEN}\n{CALL[:-2]}", "weather", '{"city": "Köln"'),
        (f"Hm. {OPEN}{CALL[:40]}", "weather", '{"city"'),
    ],
)  # fmt: skip
def test_call_that_is_cut_off_keeps_what_came(text: str, name: str, arguments: str) -> None:
    _, (call,), whole = read_answer(text, AUTO)
    assert (call["function"]["name"], call["function"]["arguments"]) == (name, arguments)
    assert not whole


@pytest.mark.parametrize("length", [5, 15, 30])
def test_call_that_is_cut_before_its_arguments_is_text(length: int) -> None:
    text = CALL[:length]
    assert read_answer(text, REQUIRED) == (text, [], True)
    assert read_answer(f"{OPEN}{text}", AUTO) == (f"{OPEN}{text}", [], True)


def test_answer_that_a_schema_binds_is_no_call_although_it_looks_like_one() -> None:
    plan = ToolPlan([WEATHER], "auto", bare=False)
    assert read_answer(CALL, plan) == (CALL, [], True)
    told, _ = feed(CALL, [1], plan)
    assert len(told[0]) == 1
    assert found(f"{OPEN}\n{CALL}\n{CLOSE}", plan)[1] == [("weather", {"city": "Köln"})]
