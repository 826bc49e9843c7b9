"""Items are graded, slices judged, and failures say which slice and with which examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thrifty.errors import EvaluationError
from thrifty.evaluate.questions import Question
from thrifty.improve.gate.items import (
    INTACT,
    RIGHT,
    VALID,
    WILLING,
    Item,
    grade,
    is_json,
    read_items,
)
from thrifty.improve.gate.judge import (
    NOT_WORSE,
    TEXT,
    UNDECIDED,
    WORSE,
    Slice,
    compare_items,
    compare_text,
    decide,
)


def ask(number: int, topic: str = "a", **more: Any) -> Item:
    question = Question((("user", f"What is {number}?"),), (str(number),))
    return Item(question, {"set": "s", "topic": topic}, **more)


def judge(
    items: list[Item], old: list[str], new: list[str], base: list[str] | None = None
) -> dict[str, Slice]:
    known = None if base is None else grade(items, base)
    found = compare_items(items, (grade(items, new), new), (grade(items, old), old), known, 0.05)
    return {one.label: one for one in decide(found, 0.05)}


def test_items_are_read_with_their_slices(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    lines = [
        {"question": "Who?", "answers": ["I"], "topic": "x", "language": "en"},
        {"messages": [{"role": "user", "content": "JSON?"}], "format": "json", "tags": {"a": "b"}},
        {"question": "Who?", "answers": ["I"]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    first, second = read_items(path, "own")
    assert first.tags == {"set": "own", "topic": "x", "language": "en"}
    assert second.json
    assert second.tags == {"set": "own", "a": "b"}
    for wrong, said in (
        ({"format": "xml"}, "must be text or json"), ({"tags": [1]}, "must be an object"),
        ({"tags": {"a": ""}}, "pairs of texts"),
        ({"format": "json", "answers": ["I"]}, "not both"),
    ):  # fmt: skip
        path.write_text(json.dumps({"question": "Who?", **wrong}))
        with pytest.raises(EvaluationError, match=said):
            read_items(path, "own")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"a": 1}', True), (" [1, 2]\n", True), ('```json\n{"a": 1}\n```', True), ("```\n[]\n```", True),
        ("{'a': 1}", False), ("42", False), ('Here: {"a": 1}', False), ("", False),
        ("[" * 100_000, False),
    ],
)  # fmt: skip
def test_json_is_told_from_other_text(answer: str, expected: bool) -> None:
    assert is_json(answer) is expected


def test_answers_are_graded() -> None:
    items = [ask(1), ask(2), Item(Question((("user", "As JSON?"),)), {"set": "s"}, json=True)]
    found = grade(items, ["1", "", '{"a": 2}'])
    assert found[RIGHT] == [True, False, None]
    assert found[INTACT] == [True, False, True]
    assert found[VALID] == [None, None, True]
    assert found[WILLING] == [True, True, True]


def test_an_equal_version_passes_and_a_small_slice_is_left_undecided() -> None:
    items = [ask(n, "rare" if n < 8 else "a") for n in range(300)]
    answers = [str(n) if n % 3 else "wrong" for n in range(300)]
    found = judge(items, answers, list(answers), answers)
    assert found["right: all"].outcome == NOT_WORSE
    assert found["right: all"].base == pytest.approx(200 / 300)
    assert not any(one.failed for one in found.values())
    assert found["right: topic=rare"].outcome == UNDECIDED
    assert "right: set=s" not in found, "it holds every item"


def test_a_slice_that_is_broken_fails_with_examples_though_the_whole_hardly_changes() -> None:
    items = [ask(n, "billing" if n < 20 else "a") for n in range(1000)]
    old = [str(n) for n in range(1000)]
    new = ["wrong" if n < 16 else str(n) for n in range(1000)]
    found = judge(items, old, new)
    assert found["right: all"].outcome == NOT_WORSE
    failed = [one for one in found.values() if one.failed]
    assert [one.label for one in failed] == ["right: topic=billing"]
    assert failed[0].outcome == WORSE
    assert failed[0].examples[0] == {
        "question": "What is 0?", "against": "0", "candidate": "wrong"
    }  # fmt: skip
    assert len(failed[0].examples) == 3


def test_examples_name_the_responses_that_their_questions_came_from(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {n}?", "answers": [str(n)], "provenance": [{"response": n}, {}]}
        for n in range(1, 9)
    ]
    rows[0]["provenance"] = {"responses": [20, 21], "subjects": ["u-1"]}
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read_items(path, "asked")
    old = [str(n) for n in range(1, 9)]
    found = judge(items, old, ["wrong", "wrong", *old[2:]])["right: all"]
    assert [one["responses"] for one in found.examples] == [[20, 21], [2]]


def test_too_few_items_are_not_enough_to_pass() -> None:
    items = [ask(n) for n in range(12)]
    old = [str(n) for n in range(12)]
    new = ["wrong", *old[1:]]
    one = judge(items, old, new)["right: all"]
    assert (one.outcome, one.failed) == (UNDECIDED, True)
    assert one.needed is not None
    assert one.needed > 100


def test_many_slices_raise_no_false_alarms() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(30):
        items = [ask(n, str(n % 12)) for n in range(360)]
        old, new = (
            [str(n) if rng.random() < 0.7 else "wrong" for n in range(360)] for _ in range(2)
        )
        found = judge(items, old, new)
        alarms += any(one.outcome == WORSE for one in found.values())
    assert alarms <= 4


def test_text_is_judged_by_the_probability_of_its_tokens() -> None:
    def compare(ratio: float, stderr: float) -> Slice:
        values = {
            "perplexity_ratio": ratio, "perplexity_ratio_stderr": stderr, "tokens": 4096,
            "windows": 8, "perplexity": 10 * ratio, "reference_perplexity": 10.0,
        }  # fmt: skip
        (one,) = decide([compare_text("web", values, 9.0, 0.05)], 0.05)
        assert one.metric == TEXT
        return one

    assert compare(1.01, 0.005).outcome == NOT_WORSE
    assert compare(1.01, 0.005).difference == pytest.approx(1 / 1.01 - 1)
    assert compare(0.8, 0.005).outcome == NOT_WORSE
    worse = compare(1.3, 0.02)
    assert (worse.outcome, worse.failed, worse.base) == (WORSE, True, 9.0)
    unsure = compare(1.02, 0.05)
    assert (unsure.outcome, unsure.failed) == (UNDECIDED, True)
    assert unsure.needed is not None
    assert unsure.needed > 4096
    assert compare(1.0, 0.0).outcome == NOT_WORSE, "the same model"
