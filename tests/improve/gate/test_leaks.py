"""Questions that a version learned from are found in every form of row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thrifty.errors import EvaluationError
from thrifty.evaluate.questions import Question
from thrifty.improve.gate.items import Item
from thrifty.improve.gate.leaks import check_domain, find_leaked

LONG = "Which river flows through the old town of Bern and then turns north?"


def ask(text: str) -> Item:
    return Item(Question((("user", text),)))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user(LONG), {"role": "assistant", "content": "The Aare."}]},
        {"messages": [user(LONG.lower().replace("?", " ..."))], "chosen": "a", "rejected": "b"},
        {"prompt": [user(f"Tell me. {LONG} Thanks!")], "completion": "a", "label": True},
        {"prompt": LONG.replace("river", "water"), "chosen": "a", "rejected": "b"},
        {"messages": [user("x")], "chosen": [{"role": "assistant", "content": LONG}]},
    ],
)
def test_a_question_is_found_as_it_is_and_nearly_as_it_is(tmp_path: Path, row: Any) -> None:
    data = write(tmp_path / "rows.jsonl", "no json", {"messages": [user("Hello there")]}, row)
    items = [ask("What is the capital of Peru?"), ask(LONG), ask("Why?")]
    assert find_leaked(items, [data]) == {1}
    assert find_leaked(items, []) == set()


def test_questions_that_share_a_phrase_are_no_leak(tmp_path: Path) -> None:
    data = write(
        tmp_path / "rows.jsonl",
        *({"messages": [user(text)]} for text in ("What is the capital of Chile?", "Hi there", "Why not?",
                                                    "Oslo is the capital of which country?")),
    )  # fmt: skip
    items = [ask("What is the capital of Peru?"), ask("Why?"), ask("Hi there"),
             ask("Lima is the capital of which country?")]  # fmt: skip
    assert find_leaked(items, [data]) == {2}


def test_a_domain_that_was_learned_is_an_error(tmp_path: Path) -> None:
    text = " ".join(f"word{n}" for n in range(60))
    domain = write(tmp_path / "domain.jsonl", {"text": text})
    learned = write(tmp_path / "rows.jsonl", {"messages": [user("x"), user(f"Look: {text}")]})
    apart = write(tmp_path / "apart.jsonl", {"messages": [user("nothing of it")]})
    check_domain(domain, [apart])
    with pytest.raises(EvaluationError, match="which the model was trained on"):
        check_domain(domain, [apart, learned])
