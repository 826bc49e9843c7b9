"""A judge compares answers, blind, in both orders, and once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.curate.teaching import serving
from thrifty.cli.gate_run import read_judge
from thrifty.errors import EvaluationError
from thrifty.evaluate.judges import SILENT, open_judge
from thrifty.evaluate.questions import Question
from thrifty.improve.gate.items import PREFERRED, Item
from thrifty.improve.gate.judge import NOT_WORSE, WORSE, compare_items, decide
from thrifty.improve.gate.preferred import grade_preferred, name_judge, prefer_answers
from thrifty.spec.judges import RemoteJudge

QUESTIONS = [f"What is {number}?" for number in range(40)]
OLD = [f"It is {number}." for number in range(40)]
NEW = ["Aye." if number % 2 else old for number, old in enumerate(OLD)]


def prefer(
    judge: str | RemoteJudge, folder: Path, new: list[str] = NEW, notes: list[str] | None = None
) -> list[int]:
    told = notes if notes is not None else []
    return prefer_answers(
        lambda: open_judge(judge, None), judge, QUESTIONS, new, OLD, folder, lambda _: None,
        told.append,
    )  # fmt: skip


def test_a_function_judges_and_equal_answers_tie(tmp_path: Path) -> None:
    found = prefer("tests.improve.gate.judges:prefer_aye", tmp_path)
    assert found == [number % 2 for number in range(40)]
    assert not list(tmp_path.iterdir()), "nothing is kept once all are judged"


def test_a_judge_that_fails_is_asked_for_the_rest(tmp_path: Path) -> None:
    fails = True

    def answer(said: str, body: dict[str, Any]) -> Any:
        if fails and "What is 21?" in said:
            return 400, {"error": {"message": "away"}}
        return "A" if "Answer A:\nAye." in said else "B"

    with serving(answer) as server:
        judge = RemoteJudge(url=server.url, model="judge")
        with pytest.raises(EvaluationError, match=r"21 of 40 questions are judged and kept"):
            prefer(judge, tmp_path)
        asked = len(server.asked)
        assert asked == 2 * 10 + 1, "each pair in both orders, equal ones never"
        fails = False
        assert prefer(judge, tmp_path) == [number % 2 for number in range(40)]
        assert len(server.asked) == asked + 20
        assert name_judge(judge) == f"judge at {server.url}"


def test_a_judge_that_says_nothing_refuses_to_judge_and_is_asked_again(tmp_path: Path) -> None:
    """One that prefers a place, whatever stands there, and one whose replies are empty."""
    for reply in ("A", "", "Both are good."):
        with serving(lambda said, body, reply=reply: reply) as server:
            judge = RemoteJudge(url=server.url, model="judge")
            for _ in range(2):
                server.asked.clear()
                with pytest.raises(EvaluationError, match=r"said nothing usable of 20 of 20 pairs"):
                    prefer(judge, tmp_path)
                assert len(server.asked) >= 20, "what says nothing is not kept"


def test_what_a_judge_says_nothing_of_is_left_out_and_told(tmp_path: Path) -> None:
    def answer(said: str, body: dict[str, Any]) -> str:
        if "What is 21?" in said:
            return "A"
        return "A" if "Answer A:\nAye." in said else "B"

    notes: list[str] = []
    with serving(answer) as server:
        judge = RemoteJudge(url=server.url, model="judge")
        found = prefer(judge, tmp_path, notes=notes)
    assert [found[number] for number in (20, 21, 23)] == [0, SILENT, 1]
    assert notes == [
        "1 of 40 questions are not compared: the judge said nothing usable of their answers"
    ]
    new, old = grade_preferred(found)
    assert (new[21], old[21]) == (None, None)
    assert (new[23], old[23]) == (True, False)


def test_outcomes_are_a_metric_that_must_be_shown_not_to_be_worse() -> None:
    items = [Item(Question((("user", str(n)),)), {"set": "s", "topic": "ab"[n % 2]}) for n in range(400)]  # fmt: skip

    def decide_on(outcomes: list[int]) -> dict[str, Any]:
        answers = [str(number) for number in range(400)]
        new = {PREFERRED: [one >= 0 for one in outcomes]}
        old = {PREFERRED: [one <= 0 for one in outcomes]}
        found = compare_items(items, (new, answers), (old, answers), {}, 0.05)
        return {one.label: one for one in decide(found, 0.05)}

    even = decide_on([0] * 380 + [1, -1] * 10)["preferred: all"]
    assert (even.outcome, even.difference, even.base) == (NOT_WORSE, 0, None)
    found = decide_on([-1 if number % 2 and number < 100 else 0 for number in range(400)])
    assert found["preferred: all"].failed
    assert found["preferred: topic=b"].outcome == WORSE
    assert found["preferred: topic=b"].examples
    assert "preferred: topic=a" in found
    assert not found["preferred: topic=a"].failed


def test_options_name_a_judge() -> None:
    assert read_judge(None, None, None) is None
    assert read_judge("deployment:big", None, None) == "deployment:big"
    remote = read_judge("http://127.0.0.1:9/v1", "big", "KEY")
    assert remote == RemoteJudge(url="http://127.0.0.1:9/v1", model="big", key_env="KEY")
    for given, said in (
        (("big", None, None), "is neither module:function, deployment:NAME, nor a URL"),
        (("http://127.0.0.1:9", None, None), "needs --judge-model"),
        (("deployment:big", "x", None), "go with a URL"),
    ):
        with pytest.raises(EvaluationError, match=said):
            read_judge(*given)
