"""Questions with short answers, made from tables of facts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from thrifty.data.convert import Member
from thrifty.data.facts import convert_countries, convert_elements, read_documents
from thrifty.evaluate.answers import is_right
from thrifty.evaluate.questions import Question, read_questions


def read(*documents: Any) -> list[dict[str, Any]]:
    members = [Member(0, f"{n}.json", json.dumps(one).encode()) for n, one in enumerate(documents)]
    return list(read_documents(members))


PERU = {"name": "Peru", "capital": "Lima", "population": 30_000_000, "demonym": "Peruvian",
        "altSpellings": ["PE", "Republic of Peru"]}  # fmt: skip
JAPAN = {"name": "Japan", "capital": "Tokyo", "population": 127_000_000, "demonym": "Japanese"}


def test_countries_become_questions_both_ways() -> None:
    found = {item["prompt"]: item["answers"] for item in convert_countries(iter(read(PERU, JAPAN)))}
    assert found == {
        "Q: What is the capital of Peru?\nA:": ["Lima"],
        "Q: Lima is the capital of which country?\nA:": ["Peru", "Republic of Peru"],
        "Q: What are people from Peru called?\nA:": ["Peruvian", "Peruvians"],
        "Q: What is the capital of Japan?\nA:": ["Tokyo"],
        "Q: Tokyo is the capital of which country?\nA:": ["Japan"],
        "Q: What are people from Japan called?\nA:": ["Japanese"],
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"capital": "Lima Peru"},
        {"capital": ""},
        {"capital": ["Lima"]},
        {"population": 5000},
        {"population": None},
    ],
)
def test_what_is_unknown_small_or_answers_itself_is_not_asked(changes: dict[str, Any]) -> None:
    found = [item["prompt"] for item in convert_countries(iter(read({**PERU, **changes})))]
    assert not any("capital" in prompt for prompt in found)


def test_articles_are_written_as_people_write_them() -> None:
    gambia = {**PERU, "name": "The Gambia", "capital": "Banjul"}
    first, second, *_ = convert_countries(iter(read(gambia)))
    assert first["prompt"] == "Q: What is the capital of the Gambia?\nA:"
    assert second["answers"][0] == "Gambia"


def test_elements_become_questions_both_ways(tmp_path: Any) -> None:
    table = {"elements": [
        {"name": "Iron", "symbol": "Fe", "atomicNumber": 26},
        {"name": "Moscovium", "symbol": "Mc", "atomicNumber": 115},
    ]}  # fmt: skip
    items = list(convert_elements(iter(read(table))))
    path = tmp_path / "elements.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    symbol, name = read_questions(path)
    assert symbol == Question((("user", "What is the chemical symbol of iron?"),), ("Fe",))
    assert is_right(symbol, "The chemical symbol of iron is Fe.")
    assert is_right(name, "Iron is the chemical element with the symbol Fe.")
