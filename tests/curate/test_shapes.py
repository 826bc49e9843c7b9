"""Records of many shapes as rows, and why others make none."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.curate.made import talk
from thrifty.curate.history import read_name, read_time
from thrifty.curate.recipe import Fields
from thrifty.curate.shapes import REASONS, Misshapen, make_row

Q, A, B = (
    {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
    {"role": "assistant", "content": "b"},
)  # fmt: skip
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}


def shape(record: dict[str, Any], kind: str = "sft", **fields: str) -> dict[str, Any]:
    return make_row(record, kind, "auto", Fields(**fields))


@pytest.mark.parametrize(
    ("record", "kind", "row"),
    [
        ({"messages": [Q, A]}, "sft", {"messages": [Q, A]}),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sft", {"messages": [Q, A]}),
        ({"instruction": "do", "input": "it", "output": "a"}, "sft", {"messages": [{"role": "user", "content": "do\n\nit"}, A]}),
        ({"question": "q", "answer": "a"}, "sft", {"messages": [Q, A]}),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "sft", {"messages": [Q, A]}),
        ({"prompt": [Q], "completion": [A], "label": True}, "sft", {"messages": [Q, A]}),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "dpo", {"prompt": [Q], "chosen": [A], "rejected": [B]}),
        ({"prompt": [Q], "chosen": [A], "rejected": [B]}, "dpo", {"prompt": [Q], "chosen": [A], "rejected": [B]}),
        ({"chosen": [Q, A], "rejected": [Q, B]}, "dpo", {"prompt": [Q], "chosen": [A], "rejected": [B]}),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}, "dpo", {"prompt": [Q], "chosen": [A], "rejected": [B]}),
        ({"messages": [Q, A], "label": False}, "kto", {"prompt": [Q], "completion": [A], "label": False}),
        ({"prompt": [Q], "completion": [A], "label": True}, "kto", {"prompt": [Q], "completion": [A], "label": True}),
        ({"content": "words"}, "text", {"text": "words"}),
    ],
)  # fmt: skip
def test_shapes_are_told_by_their_fields(
    record: dict[str, Any], kind: str, row: dict[str, Any]
) -> None:
    assert shape(record, kind) == row


@pytest.mark.parametrize(
    ("label", "liked"),
    [("0", False), ("1", True), (" True", True), ("FALSE", False), (1.0, True), (0.0, False), (0, False)],
)  # fmt: skip
def test_labels_of_csv_and_parquet_are_read(label: Any, liked: bool) -> None:
    assert shape({"prompt": "q", "completion": "a", "label": label}, "kto")["label"] is liked


LATER = {"role": "user", "content": "and?"}
SYSTEM = {"role": "system", "content": "be kind"}
PAIR_PROMPTS: list[tuple[Any, list[Any], list[Any]]] = [
    ("q", [Q], [Q]),
    ("q", [Q, A, LATER], [Q, A, LATER]),
    ([Q, A, LATER], [LATER], [Q, A, LATER]),
    ([SYSTEM, Q], [Q, A, LATER], [SYSTEM, Q, A, LATER]),
    ([SYSTEM, Q], [SYSTEM, Q], [SYSTEM, Q]),
]


@pytest.mark.parametrize(("prompt", "repeated", "expected"), PAIR_PROMPTS)
def test_answers_of_a_pair_may_go_on_with_the_prompt(
    prompt: Any, repeated: list[Any], expected: list[Any]
) -> None:
    row = shape({"prompt": prompt, "chosen": [*repeated, A], "rejected": [*repeated, B]}, "dpo")
    assert row == {"prompt": expected, "chosen": [A], "rejected": [B]}


def test_answers_to_other_prompts_are_no_pair() -> None:
    for one, two in (([LATER], [LATER]), ([Q], [LATER]), ([Q], [])):
        with pytest.raises(Misshapen, match="no_pair"):
            shape({"prompt": "q", "chosen": [*one, A], "rejected": [*two, B]}, "dpo")


def test_fields_that_are_null_count_as_left_out() -> None:
    pair = {"messages": None, "prompt": "q", "chosen": "a", "rejected": "b"}
    assert shape(pair, "dpo")["prompt"] == [Q]
    texts = {"query": None, "anchor": "q", "positive": "a", "negative": None}
    assert shape(texts, "contrastive") == {"query": "q", "positive": "a"}


def test_a_judged_row_without_a_label_says_so() -> None:
    with pytest.raises(Misshapen, match="no_label"):
        make_row({"prompt": "q", "completion": "a"}, "sft", "judged", Fields())


def test_times_and_names_are_read_as_files_have_them() -> None:
    for given in (1700000000, 1.7e9, "1700000000", "1.7e9", "2023-11-14T22:13:20+00:00"):
        assert read_time(given) == 1.7e9
    for wrong in ("soon", "nan", "", True, None, math.inf, [1]):
        assert math.isnan(read_time(wrong))
    assert [read_name(one) for one in ("17", 17, 17.0)] == ["17"] * 3
    assert [read_name(one) for one in ("", None, True, 1.5, math.nan, ["a"])] == [None] * 6


def test_fields_may_have_other_names() -> None:
    assert shape({"body": "words"}, "text", text="body") == {"text": "words"}
    assert shape({"frage": "q", "antwort": "a"}, prompt="frage", answer="antwort") == {
        "messages": [Q, A]
    }


def test_tools_in_their_several_forms() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    told = {"role": "tool", "content": "2", "tool_call_id": "c1"}
    row = shape({"messages": [Q, calls, told, A], "tools": [TOOL]})
    assert row == {"messages": [Q, calls, told, A], "tools": [TOOL]}
    written = shape({
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "2"}, {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([TOOL["function"]]),
    })  # fmt: skip
    assert written["tools"] == [TOOL]
    assert written["messages"][1]["tool_calls"][0]["function"] == CALL["function"]
    assert written["messages"][2]["tool_call_id"] == written["messages"][1]["tool_calls"][0]["id"]
    # What a call says of nothing, it says.
    empty = {"name": "add", "arguments": {"x": 1, "y": None}}
    sparse = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "function": empty}]}
    row = shape({"messages": [Q, sparse, told, A], "tools": [TOOL]})
    assert json.loads(row["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {
        "x": 1,
        "y": None,
    }


def call(arguments: Any, name: str = "add") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "function": function}],
    }


@pytest.mark.parametrize(
    ("record", "kind", "reason"),
    [
        ({}, "sft", "other_shape"),
        ({"text": 5}, "text", "not_text"),
        ({"messages": [Q, {"role": "assistant", "content": [{"type": "image_url"}]}]}, "sft", "not_text"),
        ({"messages": [Q, A]}, "dpo", "no_pair"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "dpo", "same_answers"),
        ({"messages": [Q, A]}, "kto", "no_label"),
        ({"messages": [Q, A], "label": False}, "sft", "not_liked"),
        ({"messages": [Q]}, "sft", "no_answer"),
        ({"messages": [A, A]}, "sft", "no_question"),
        ({"messages": [{"role": "narrator", "content": "x"}, A]}, "sft", "role"),
        ({"messages": [Q, {"role": "system", "content": "x"}, A]}, "sft", "system_place"),
        ({"messages": [Q, Q, A]}, "sft", "roles_alternate"),
        (talk("", "a"), "sft", "empty_message"),
        ({"messages": [Q, A], "tools": [{"type": "function"}]}, "sft", "bad_tools"),
        ({"messages": [Q, A], "tools": "[{"}, "sft", "bad_tools"),
        ({"messages": [Q, call("{"), A]}, "sft", "bad_call"),
        ({"messages": [Q, call("[1]")]}, "sft", "bad_call"),
        ({"messages": [Q, call("{}", "sub")], "tools": [TOOL]}, "sft", "unknown_tool"),
        ({"messages": [Q, call("{}")]}, "sft", "no_tools"),
        ({"messages": [Q, A], "label": "0"}, "sft", "not_liked"),
        ({"messages": [Q, A], "label": None}, "sft", "no_label"),
        ({"messages": [Q, A], "label": "sports"}, "sft", "bad_label"),
        ({"messages": [Q, A], "label": -1}, "kto", "bad_label"),
        ({"messages": [Q, A], "label": 0.5}, "kto", "bad_label"),
        ({"messages": [Q, A], "label": float("nan")}, "kto", "no_label"),
        ({"messages": [Q, A], "label": [1]}, "kto", "bad_label"),
        ({"messages": [Q, {"role": "tool", "content": "2"}, A]}, "sft", "no_call"),
    ],
)  # fmt: skip
def test_what_makes_no_row_says_why(record: dict[str, Any], kind: str, reason: str) -> None:
    with pytest.raises(Misshapen) as caught:
        shape(record, kind)
    assert str(caught.value) == reason
    assert reason in REASONS
