"""Conversations as windows: what counts is what a server would generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engines.test_prompt import find_tokenizer
from tests.text import templates
from thrifty.engines.server.prompt import build_prompt
from thrifty.engines.server.tools import parse_tools
from thrifty.errors import EvaluationError
from thrifty.evaluate.conversations import holds_conversations, read_conversations
from thrifty.evaluate.windows import TokenWindow

SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    ],
}
RESULT = {"role": "tool", "content": "Rain.", "tool_call_id": "call00001"}
DROPPING = (
    "{% set last = (messages | selectattr('role', 'equalto', 'user') | list | last) %}"
    "{% set ns = namespace(at=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.at = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.at %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes the reasoning of the last answer, and not that of earlier ones."""
REFUSING = (
    "{% if messages | length > 1 %}{{ raise_exception('too long') }}{% endif %}{{ messages }}"
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def talk(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def read(path: Path, template: str, length: int = 2000, **more: Any) -> list[TokenWindow]:
    return list(read_conversations(path, find_tokenizer(template), length, **more))


def find_counted(window: TokenWindow, template: str) -> list[str]:
    """The runs of tokens whose predictions count, as text."""
    runs: list[list[int]] = []
    before = False
    for token, counts in zip(window.tokens[1:].tolist(), window.counted.tolist(), strict=True):
        if counts and not before:
            runs.append([])
        if counts:
            runs[-1].append(token)
        before = counts
    decode = find_tokenizer(template).decode
    return [decode(run, skip_special_tokens=False) for run in runs]


def generated(template: str, record: Any) -> list[tuple[list[int], list[int]]]:
    """For each turn of the assistant: the prompt of a server, and what follows it in the whole."""
    tokenizer, plan = find_tokenizer(template), parse_tools(record)
    messages = record["messages"]
    whole = build_prompt({"messages": messages, "add_generation_prompt": False}, tokenizer, plan)
    found = []
    for index, message in enumerate(messages):
        if index and message["role"] == "assistant":
            prompt = build_prompt({"messages": messages[:index]}, tokenizer, plan).ids
            assert whole.ids[: len(prompt)] == prompt
            found.append((prompt, whole.ids[len(prompt) :]))
    return found


TURNS = talk(
    SYSTEM, user("How is Paris?"), assistant("Grey."), user("And Rome?"), assistant("Sunny.")
)


@pytest.mark.parametrize(
    ("template", "turns"),
    [
        (templates.CHATML, ["Grey.<|im_end|>", "Sunny.<|im_end|>"]),
        (templates.HERMES, ["Grey.<|im_end|>", "Sunny.<|im_end|>"]),
        (templates.NINE, [" Grey.</s>", " Sunny.</s>"]),
        # No system role: the message is put before the user's.
        (templates.ALTERNATING, [" Grey.</s>", " Sunny.</s>"]),
    ],
)
def test_each_turn_counts_from_the_prompt_to_the_token_that_ends_it(
    tmp_path: Path, template: str, turns: list[str]
) -> None:
    (window,) = read(write(tmp_path / "a.jsonl", TURNS), template)
    assert find_counted(window, template) == turns
    ends = find_tokenizer(template).find_turn_ends()
    for (prompt, rest), turn in zip(generated(template, TURNS), turns, strict=True):
        count = len(find_tokenizer(template).encode(turn))
        assert window.tokens[len(prompt) :].tolist()[:count] == rest[:count]
        assert window.counted[len(prompt) - 1 : len(prompt) - 1 + count].all()
        assert rest[count - 1] in ends
    assert "Be brief." in find_tokenizer(template).decode(window.tokens.tolist())


@pytest.mark.parametrize("template", [templates.HERMES, templates.NINE])
def test_calls_count_and_tools_and_their_results_do_not(tmp_path: Path, template: str) -> None:
    record = talk(user("How is Paris?"), CALL, RESULT, assistant("It rains."), tools=[TOOL])
    (window,) = read(write(tmp_path / "a.jsonl", record), template)
    call, answer = find_counted(window, template)
    assert '"name": "weather"' in call
    assert answer.strip().startswith("It rains.")
    assert "Rain." not in call + answer.replace("It rains.", "")
    text = find_tokenizer(template).decode(window.tokens.tolist())
    assert text.count("weather") == 2
    assert "Rain." in text


def test_a_template_without_tools_gets_them_in_words(tmp_path: Path) -> None:
    record = talk(user("How is Paris?"), CALL, RESULT, assistant("It rains."), tools=[TOOL])
    (window,) = read(write(tmp_path / "a.jsonl", record), templates.CHATML)
    call, answer = find_counted(window, templates.CHATML)
    assert call.startswith("<tool_call>")
    assert call.endswith("</tool_call><|im_end|>")
    assert answer == "It rains.<|im_end|>"


def test_a_turn_that_the_template_writes_in_another_form_does_not_count(tmp_path: Path) -> None:
    record = talk(
        user("How is Paris?"), assistant("Grey.", reasoning_content="A city."), user("And Rome?"),
        assistant("Sunny.", reasoning_content="Another."),
    )  # fmt: skip
    (window,) = read(write(tmp_path / "a.jsonl", record), DROPPING)
    assert "A city." not in find_tokenizer(DROPPING).decode(window.tokens.tolist())
    (turn,) = find_counted(window, DROPPING)
    assert turn == "<think>\nAnother.\n</think>\n\nSunny.<|im_end|>"


def test_control_tokens_that_someone_spells_end_no_turn(tmp_path: Path) -> None:
    record = talk(user("Say <|im_end|>."), assistant("It is <|im_end|>, really."))
    (window,) = read(write(tmp_path / "a.jsonl", record), templates.CHATML)
    assert find_counted(window, templates.CHATML) == ["It is <|im_end|>, really.<|im_end|>"]
    (end,) = find_tokenizer(templates.CHATML).find_turn_ends()
    assert window.tokens.tolist().count(end) == 2


def test_a_long_conversation_is_cut_at_the_window_and_left_out_if_nothing_counts(
    tmp_path: Path,
) -> None:
    long = talk(user("x" * 300), assistant("y" * 100))
    path = write(tmp_path / "a.jsonl", long, TURNS, long)
    assert [len(window.tokens) for window in read(path, templates.CHATML, 200)] == [
        len(generated(templates.CHATML, TURNS)[-1][0]) + len("Sunny.") + 2
    ]
    cut = [window for window in read(path, templates.CHATML, 400) if len(window.tokens) == 400]
    assert len(cut) == 2
    (turn,) = find_counted(cut[0], templates.CHATML)
    assert set(turn) == {"y"}
    with pytest.raises(EvaluationError, match=r"no conversation .* within the first 50 tokens"):
        read(path, templates.CHATML, 50)


def test_at_most_the_limit_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[TURNS] * 20)
    size = len(read(path, templates.CHATML)[0].tokens)
    found = read(path, templates.CHATML, limit=2 * size + 70)
    assert [len(window.tokens) for window in found] == [size, size, 70]
    found = read(path, templates.CHATML, limit=2 * size + 5)
    assert [len(window.tokens) for window in found] == [size, size]


def test_what_is_no_conversation_for_the_template_is_told_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", talk(user("Hi.")), talk(user("Hi."), assistant("Ho.")))
    with pytest.raises(EvaluationError, match=r"a\.jsonl, line 2: .* rejects these messages: too"):
        read(path, REFUSING)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\x00\x00\x00", "line 2: not a line of JSON"),
        (b'{"messages": [', "line 2: not a line of JSON"),
        (b"[" * 100_000, "line 2: not a line of JSON"),
        (b"17", "line 2: not a JSON object"),
        (b'{"text": "a"}', "line 2: 'messages' must be a list with a message"),
        (b'{"messages": []}', "line 2: 'messages' must be a list with a message"),
        (b'{"messages": "hello"}', "line 2: 'messages' must be a list with a message"),
        (b'{"messages": [17]}', r"line 2: 'messages\[0\]' must be an object"),
        (b'{"messages": [{"role": "cat", "content": "a"}]}', r"'messages\[0\].role' must be"),
        (b'{"messages": [{"role": "user", "content": "a"}], "tools": 3}', "'tools' must be a list"),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "tools": [3]}',
            r"line 2: .*tools\[0\]",
        ),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "line 2: half of a surrogate"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_lines_that_cannot_be_used_are_told(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", TURNS)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(EvaluationError, match=message):
        read(path, templates.CHATML)


def test_a_file_without_anything_that_counts_is_told(tmp_path: Path) -> None:
    for record in (talk(user("Hi.")), talk(assistant("Hi."))):
        path = write(tmp_path / "a.jsonl", record)
        with pytest.raises(EvaluationError, match="no conversation in which the assistant says"):
            read(path, templates.CHATML)


def test_conversations_are_told_from_texts(tmp_path: Path) -> None:
    assert holds_conversations(write(tmp_path / "a.jsonl", TURNS))
    assert not holds_conversations(write(tmp_path / "b.jsonl", {"text": "a"}))
    assert not holds_conversations(write(tmp_path / "empty.jsonl"))
    plain = tmp_path / "c.txt"
    plain.write_text('{"messages": []}')
    assert not holds_conversations(plain)
    with pytest.raises(EvaluationError, match="cannot be read"):
        holds_conversations(tmp_path / "none.jsonl")
