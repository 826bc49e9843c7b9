"""The demo's own measures: the judge's accuracy, paired intervals, and what counts as a wrong version."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from demo.acts import compare
from demo.crowd import Answer, count_wrong
from demo.people import ACCURACY, chance_of_like, prefer, rate


def test_the_judge_is_as_right_as_it_says_and_sees_no_order() -> None:
    rng = random.Random(1)
    right = 0
    for number in range(2000):
        question = f"What is {number}?"
        first, second = (" ".join(["word"] * rng.randint(12, 60)) + "." for _ in range(2))
        said = prefer(f"user: {question}", first, second)
        assert said == -prefer(f"user: {question}", second, first)
        better = rate(question, first) - rate(question, second)
        right += said * better > 0 or better == said == 0
    assert right / 2000 == pytest.approx(ACCURACY, abs=0.03)


def test_users_like_what_is_short_and_ends() -> None:
    question = "Who wrote Faust?"
    assert chance_of_like(question, "Goethe wrote it.") > 0.9
    assert chance_of_like(question, "word " * 60) < 0.1
    assert chance_of_like(question, "") < 0.1


def test_the_interval_of_paired_differences() -> None:
    before = [0.1, 0.4, 0.5, 0.2, 0.3, 0.6]
    gain, (low, high) = compare(before, [one + 0.1 for one in before])
    assert gain == pytest.approx(0.1)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)
    # Student's t with 5 degrees of freedom: 2.571.
    after = [0.3, 0.3, 0.7, 0.1, 0.6, 0.5]
    gain, (low, high) = compare(before, after)
    differences = [new - old for old, new in zip(before, after, strict=True)]
    spread = (sum((one - gain) ** 2 for one in differences) / 5 / 6) ** 0.5
    assert (high - low) / 2 / spread == pytest.approx(2.571, rel=0.05)


def test_a_wrong_version_is_counted() -> None:
    def answer(conversation: str, at_s: float, version: str) -> Answer:
        return Answer(conversation, at_s, version, "?", "!", "r", True, "u")

    seen = [answer("a", 1, "v1"), answer("a", 2, "v1"), answer("b", 1, "v1"), answer("b", 3, "v2")]
    assert count_wrong(seen, []) == 1
    assert count_wrong([answer("a", 1, "v2"), answer("a", 9, "v1")], [("v2", 5.0)]) == 0
    assert count_wrong([answer("a", 5.5, "v2"), answer("b", 6.5, "v2")], [("v2", 5.0)]) == 1
