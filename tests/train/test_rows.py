"""Rows are checked; bad ones are set aside and counted, never learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thrifty.errors import TrainingError
from thrifty.train.rows import Method, Row, SetAside, choose_held_out, read_rows
from thrifty.train.settings import balance_weights

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Ho"}
CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "content": "1", "tool_call_id": "c"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def read(folder: Path, method: Method, *records: Any) -> tuple[list[Row], SetAside]:
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in records]
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    aside = SetAside()
    return list(read_rows([path], method, aside)), aside


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER, ANSWER], None),
        ([SYSTEM, SYSTEM, USER, USER, ANSWER, USER, ANSWER], None),
        ([USER, CALL, RESULT, ANSWER], "tools"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "Ho"}]}], None),
        ([ANSWER], "role_order"),
        ([SYSTEM, ANSWER], "role_order"),
        ([USER, ANSWER, ANSWER], "role_order"),
        ([USER, ANSWER, USER], "role_order"),
        ([USER, SYSTEM, ANSWER], "role_order"),
        ([USER, RESULT, ANSWER], "role_order"),
        ([USER, {"role": "poet", "content": "x"}, ANSWER], "role_order"),
        ([USER, {"role": "assistant", "content": " \n"}], "empty"),
        ([USER, {"role": "assistant"}], "empty"),
        ([USER, {**ANSWER, "weight": 0}], "empty"),
        ([USER], "fields"),
        ([], "fields"),
        ("Hi", "fields"),
    ],
)
def test_conversations_are_checked(tmp_path: Path, messages: Any, reason: str | None) -> None:
    rows, aside = read(tmp_path, Method.SFT, {"messages": messages})
    assert len(rows) == (reason is None)
    assert aside.as_dict() == ({reason: {"rows": 1, "lines": [1]}} if reason else {})


def test_tools_that_are_called_are_declared(tmp_path: Path) -> None:
    talks = [[USER, CALL, RESULT, RESULT, ANSWER], [USER, CALL]]
    rows, _ = read(tmp_path, Method.SFT, *({"messages": t, "tools": TOOLS} for t in talks))
    assert [row.tools for row in rows] == [TOOLS, TOOLS]
    judged = {"messages": [USER], "completion": [CALL], "label": True}
    assert len(read(tmp_path, Method.KTO, {**judged, "tools": TOOLS})[0]) == 1
    assert list(read(tmp_path, Method.KTO, judged)[1].counts) == ["tools"]


@pytest.mark.parametrize(
    ("method", "record", "reason"),
    [
        (Method.DPO, {"messages": [USER], "chosen": "a", "rejected": "b"}, None),
        (Method.DPO, {"prompt": [USER], "chosen": [ANSWER], "rejected": {"content": "b"}}, None),
        (Method.DPO, {"prompt": "Hi", "chosen": "a", "rejected": "b"}, None),
        (Method.DPO, {"messages": [USER], "chosen": "a", "rejected": "a"}, "same"),
        (Method.DPO, {"messages": [USER], "chosen": "a", "rejected": ""}, "empty"),
        (Method.DPO, {"messages": [USER], "chosen": "a"}, "fields"),
        (Method.DPO, {"messages": [USER, ANSWER], "chosen": "a", "rejected": "b"}, "role_order"),
        (Method.DPO, {"messages": [USER], "chosen": [ANSWER, USER], "rejected": "b"}, "fields"),
        (Method.DPO, {"messages": [USER], "chosen": USER, "rejected": "b"}, "role_order"),
        (Method.KTO, {"messages": [USER], "completion": "a", "label": False}, None),
        (Method.KTO, {"prompt": [USER], "completion": [ANSWER], "label": 1}, None),
        (Method.KTO, {"messages": [USER], "completion": "a"}, "fields"),
        (Method.KTO, {"messages": [USER], "completion": "a", "label": "good"}, "fields"),
        (Method.KTO, {"messages": [USER], "completion": "a", "label": 0.5}, "fields"),
        (Method.KTO, b"{", "not_json"),
        (Method.KTO, b"[1]", "not_json"),
        (Method.KTO, b'{"messages": "\\ud800"}', "not_json"),
        (Method.KTO, b"\xff", "not_json"),
        (Method.KTO, {"messages": [USER], "completion": "a", "label": True, "tools": 3}, "fields"),
    ],
)
def test_judged_answers_are_checked(
    tmp_path: Path, method: Method, record: Any, reason: str | None
) -> None:
    rows, aside = read(tmp_path, method, record)
    assert len(rows) == (reason is None)
    assert list(aside.counts) == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("record", "texts", "reason"),
    [
        ({"query": "a", "positive": "b"}, 2, None),
        ({"query": "a", "positive": "b", "negatives": ["c", "d"]}, 4, None),
        ({"anchor": "a", "positive": "b", "negative": "c"}, 3, None),
        ({"texts": ["a", "b"]}, 2, None),
        ({"query": "a"}, 0, "fields"),
        ({"texts": ["a", "b", "c"]}, 0, "fields"),
        ({"query": "a", "positive": 3}, 0, "fields"),
        ({"query": "a", "positive": "b", "negatives": ["c"] * 99}, 0, "fields"),
        ({"query": "a", "positive": " "}, 0, "empty"),
        ({"query": "a", "positive": "b", "negatives": ["b"]}, 0, "same"),
    ],
)
def test_texts_for_encoders_are_checked(
    tmp_path: Path, record: Any, texts: int, reason: str | None
) -> None:
    rows, aside = read(tmp_path, Method.CONTRASTIVE, record)
    assert list(aside.counts) == ([reason] if reason else [])
    assert [len(row.messages) + len(row.answers) for row in rows] == ([texts] if texts else [])


def test_turns_that_nobody_judged_are_context(tmp_path: Path) -> None:
    talk = [USER, ANSWER, USER, ANSWER]
    feedback = {"messages": talk, "provenance": {"source": "liked", "feedback": ["fb-1"]}}
    weighed = {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]}
    rows, _ = read(tmp_path, Method.SFT, {"messages": talk}, feedback, weighed)
    assert [sorted(row.learned) for row in rows] == [[1, 3], [3], [3]]
    assert rows[2].messages == talk, "weights are no part of what was said"


def test_what_is_set_aside_is_said_with_its_lines(tmp_path: Path) -> None:
    bad = [{"messages": [ANSWER]}] * 7
    _, aside = read(tmp_path, Method.SFT, *bad, b"{", {"messages": [USER, ANSWER]})
    assert aside.describe() == [
        "set aside: 7 rows whose roles are out of order (lines 1, 2, 3, 4, 5, ...)",
        "set aside: 1 row not an object of JSON (line 8)",
    ]
    with pytest.raises(TrainingError, match="cannot be read"):
        list(read_rows([tmp_path / "none.jsonl"], Method.SFT, aside))


def test_a_prompt_is_held_out_with_all_of_its_rows() -> None:
    def row(number: int, prompt: int) -> tuple[str, bool]:
        return Row(number, [{"role": "user", "content": f"q{prompt}"}], [ANSWER]).key, True

    rows = [row(number, number // 3) for number in range(300)]
    apart = choose_held_out(rows, 0.1, 256)
    assert 27 <= len(apart) <= 30
    assert {rows[n] for n in apart}.isdisjoint(rows[n] for n in range(300) if n not in apart)
    assert apart == choose_held_out(rows, 0.1, 256)
    assert len(choose_held_out(rows, 0.5, 12)) == 12
    assert choose_held_out([row(n, 0) for n in range(20)], 0.1, 256) == set(), "one prompt alone"


@pytest.mark.parametrize(
    ("liked", "disliked", "expected"),
    [(100, 100, (1, 1)), (120, 100, (1, 1)), (50, 100, (2, 1)), (400, 100, (1, 3))],
)
def test_kinds_of_feedback_are_balanced(
    liked: int, disliked: int, expected: tuple[float, float]
) -> None:
    weights = balance_weights(liked, disliked)
    assert weights == pytest.approx(expected)
    assert 1 <= weights[0] * liked / (weights[1] * disliked) <= 4 / 3 + 1e-9


def test_both_kinds_of_answers_are_held_out() -> None:
    rows = [(f"{number}", number > 3) for number in range(40)]
    apart = choose_held_out(rows, 0.05, 256)
    assert {rows[number][1] for number in apart} == {True, False}
    assert len(apart) == 2
