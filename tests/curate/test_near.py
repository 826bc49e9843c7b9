"""Near-duplicates of rows that teach something: what is asked last, and each answer, count by
themselves.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.curate.made import edit, jaccard, talk, write_lines, write_sentence, write_text
from thrifty.curate.build import build_data, describe_outcome
from thrifty.home import Home


def count_removed(tmp_path: Path, kind: str, rows: list[dict[str, Any]]) -> int:
    path = write_lines(tmp_path / "rows.jsonl", rows)
    recipe = {"kind": kind, "sources": [{"path": str(path)}], "split": 0}
    built = build_data(recipe, "made", home=Home(tmp_path / "home"))
    removed = describe_outcome(built)["removed"]
    assert removed.keys() <= {"near"}
    return int(removed.get("near", 0))


def test_answers_the_other_way_round_are_no_duplicates(tmp_path: Path) -> None:
    rng = random.Random(0)
    asked, first, second = write_text(rng, 40), write_text(rng, 120), write_text(rng, 120)
    pair = {"prompt": asked, "chosen": first, "rejected": second}
    swapped = {"prompt": asked, "chosen": second, "rejected": first}
    assert jaccard(f"{asked} {first} {second}", f"{asked} {second} {first}") > 0.9
    edited = {**pair, "rejected": edit(rng, second, 0.85)}
    assert count_removed(tmp_path, "dpo", [pair, swapped, edited]) == 1


@pytest.mark.parametrize("between", ["\n\nQuestion: ", " ", "\n"])
@pytest.mark.parametrize("answers", [("Yes.", "Yes."), ("In the north of it.", "Nobody knows it.")])
def test_questions_on_one_passage_are_no_duplicates(
    tmp_path: Path, between: str, answers: tuple[str, str]
) -> None:
    rng = random.Random(1)
    passage = write_text(rng, 150)
    asked = [f"{passage}{between}{write_sentence(rng, 9)[:-1]}?" for _ in range(2)]
    assert jaccard(*asked) > 0.8
    rows = [talk(*one) for one in zip(asked, answers, strict=True)]
    # The same question on a passage with another word in it is a near-duplicate.
    words = asked[0].split(" ")
    words[20] = "another"
    rows.append(talk(" ".join(words), answers[0]))
    assert count_removed(tmp_path, "sft", rows) == 1


def test_many_questions_on_one_passage_all_stay(tmp_path: Path) -> None:
    rng = random.Random(2)
    passage = write_text(rng, 300)
    rows = [talk(f"{passage}\n{write_sentence(rng, 9)}", "Yes.") for _ in range(60)]
    again = [talk(f"And. {row['messages'][0]['content']}", "Yes.") for row in rows]
    assert count_removed(tmp_path, "sft", rows + again) == 60


def test_turns_of_one_conversation_are_no_duplicates(tmp_path: Path) -> None:
    rng = random.Random(3)
    turns: list[dict[str, str]] = []
    for _ in range(7):
        turns += talk(write_sentence(rng, 10), write_text(rng, 30))["messages"]
    rows = [
        {"messages": turns[:count], "provenance": {"feedback": [f"fb-{count}"], "response": str(count)}}
        for count in (12, 14)
    ]  # fmt: skip
    texts = [" ".join(one["content"] for one in row["messages"]) for row in rows]  # type: ignore[index]
    assert jaccard(*texts) > 0.8
    assert count_removed(tmp_path, "sft", rows) == 0


def test_queries_and_negatives_of_one_text_are_no_duplicates(tmp_path: Path) -> None:
    rng = random.Random(4)
    text, query = write_text(rng, 150), write_sentence(rng, 9)
    negatives = [write_text(rng, 30) for _ in range(3)]
    rows = [
        {"query": query, "positive": text, "negatives": negatives[:2]},
        {"query": write_sentence(rng, 9), "positive": text, "negatives": negatives[:2]},
        {"query": query, "positive": text, "negatives": negatives[2:]},
        {"query": query, "positive": edit(rng, text, 0.85), "negatives": negatives[:2]},
    ]
    assert count_removed(tmp_path, "contrastive", rows) == 1
