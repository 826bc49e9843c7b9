"""Questions with short answers, made from tables of facts. They judge models; nothing is learned from
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]

PEOPLE = 300_000
"""Smaller countries are left out: few models know anything of them."""


def convert_countries(records: Iterator[Record]) -> Iterator[Record]:
    """Capitals, both ways, and what the people are called."""
    for one in records:
        if not isinstance(one.get("capital"), str) or (one.get("population") or 0) < PEOPLE:
            continue
        bare = re.sub("^The ", "", one["name"])
        name = re.sub("^The ", "the ", one["name"])
        capital, demonym = one["capital"], str(one.get("demonym") or "")
        aliases = [alias for alias in one.get("altSpellings", ()) if len(alias) > 3]
        yield _make_item(f"What is the capital of {name}?", capital)
        if capital.lower() not in bare.lower() and bare.lower() not in capital.lower():
            yield _make_item(f"{capital} is the capital of which country?", bare, *aliases)
        if demonym.isalpha() and demonym != bare:
            yield _make_item(f"What are people from {name} called?", demonym, f"{demonym}s")


def convert_elements(records: Iterator[Record]) -> Iterator[Record]:
    """The symbols of the chemical elements, both ways, and their numbers."""
    for document in records:
        for one in document["elements"]:
            name, symbol, number = one["name"], one["symbol"], str(one["atomicNumber"])
            yield _make_item(f"What is the chemical symbol of {name.lower()}?", symbol)
            yield _make_item(f"Which chemical element has the symbol {symbol}?", name)
            yield _make_item(f"What is the atomic number of {name.lower()}?", number)


def _make_item(question: str, *answers: str) -> Record:
    """An item for `evaluate.tasks`."""
    return {
        "prompt": f"Q: {question}\nA:", "answers": list(dict.fromkeys(answers)), "stop": ["\n"],
    }  # fmt: skip
