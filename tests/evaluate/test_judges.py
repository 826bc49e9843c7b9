"""What is read in a judge's replies, and when it has said nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.curate.teaching import serving
from thrifty.evaluate.judges import (
    MAX_TOKENS,
    REASONING_TOKENS,
    SILENT,
    UNUSABLE,
    compare,
    is_mute,
    open_judge,
    read_preference,
    read_score,
)
from thrifty.spec.judges import RemoteJudge


@pytest.mark.parametrize(
    ("reply", "preference"),
    [
        ("A", 1), ("b", -1), ("**T**", 0), ("Tie", 0), (" A. It is right.", 1), ("Answer B", -1),
        ("The answer is A", 1), ("", SILENT), ("Both answers are good", SILENT),
        ("Their facts differ", SILENT), ("<think>A is short.</think>\n\nB", -1),
        ("so B it is </think> A", 1), ("<think>A is", SILENT),
    ],
)  # fmt: skip
def test_a_preference_is_the_letter_that_a_reply_begins_with(reply: str, preference: int) -> None:
    assert read_preference(reply) == preference


@pytest.mark.parametrize(
    ("reply", "score"),
    [("4", 0.75), ("**5**", 1), ("2/5", 0.25), ("<think>1?</think>3", 0.5), ("Score: 1", 0),
     ("10", UNUSABLE), ("six", UNUSABLE), ("", UNUSABLE)],
)  # fmt: skip
def test_a_score_is_the_digit_that_a_reply_begins_with(reply: str, score: float) -> None:
    assert read_score(reply) == score


class Says:
    """A judge that replies in turn."""

    def __init__(self, *replies: int) -> None:
        self._replies = iter(replies)

    def prefer(self, prompt: str, first: str, second: str) -> int:
        return next(self._replies)

    def rate(self, prompt: str, answer: str) -> float:
        raise AssertionError

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("replies", "outcome"),
    [((1, -1), 1), ((-1, 1), -1), ((0, 0), 0), ((1, 1), SILENT), ((-1, -1), SILENT),
     ((1, 0), SILENT), ((0, -1), SILENT), ((SILENT,), SILENT), ((0, SILENT), SILENT)],
)  # fmt: skip
def test_a_judge_must_say_the_same_in_both_orders(replies: tuple[int, ...], outcome: int) -> None:
    assert compare(Says(*replies), "What?", "one", "two") == outcome
    assert compare(Says(), "What?", "one", "one") == 0


def test_a_judge_that_says_no_more_than_a_coin_is_mute() -> None:
    assert is_mute(20, 20)
    assert is_mute(50, 100)
    assert not is_mute(19, 19), "it is not known yet"
    assert not is_mute(49, 100)


def test_a_model_that_reasons_first_is_given_the_tokens_for_it() -> None:
    limits: list[int] = []

    def answer(said: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        limits.append(body["max_tokens"])
        cut = body["max_tokens"] < 100
        content = "" if cut else ("A" if "Answer A:\ngood" in said else "B")
        choice = {"finish_reason": "length" if cut else "stop", "message": {"content": content}}
        return 200, {"choices": [choice]}

    with serving(answer) as server:
        judge = open_judge(RemoteJudge(url=server.url, model="judge"), None)
        try:
            assert compare(judge, "What?", "good", "bad") == 1
        finally:
            judge.close()
    assert limits == [MAX_TOKENS, REASONING_TOKENS, REASONING_TOKENS]
