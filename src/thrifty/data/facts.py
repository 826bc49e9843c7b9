"""Questions with short answers, made from tables of facts.

They judge models; nothing is learned from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from thrifty.data.convert import Member, Record

PEOPLE = 1_000_000
"""Smaller countries are left out: few models know anything of them."""
LAST_ELEMENT = 92
"""The heavier ones are made by people."""


def read_documents(members: Sequence[Member]) -> Iterator[Record]:
    """Each file as one record. Raises `ValueError`."""
    for member in members:
        yield json.loads(member.data.decode("utf-8"))


def convert_countries(records: Iterator[Record]) -> Iterator[Record]:
    """Capitals, both ways, and what the people are called."""
    for one in records:
        capital, demonym = one.get("capital"), str(one.get("demonym") or "")
        if not isinstance(capital, str) or (one.get("population") or 0) < PEOPLE:
            continue
        bare = re.sub("^The ", "", one["name"])
        name = re.sub("^The ", "the ", one["name"])
        aliases = [alias for alias in one.get("altSpellings", ()) if len(alias) > 3]
        # Where one name holds the other, the question answers itself.
        if capital and not {*bare.lower().split()} & {*capital.lower().split()}:
            yield _make_item(f"What is the capital of {name}?", capital)
            yield _make_item(f"{capital} is the capital of which country?", bare, *aliases)
        if demonym.isalpha() and demonym != bare:
            plural = () if demonym.endswith(("ese", "sh", "ch", "ss", "s")) else (f"{demonym}s",)
            yield _make_item(f"What are people from {name} called?", demonym, *plural)


def convert_elements(records: Iterator[Record]) -> Iterator[Record]:
    """The symbols of the chemical elements, both ways."""
    for document in records:
        for one in document["elements"]:
            if one["atomicNumber"] <= LAST_ELEMENT:
                name, symbol = one["name"], one["symbol"]
                yield _make_item(f"What is the chemical symbol of {name.lower()}?", symbol)
                yield _make_item(f"Which chemical element has the symbol {symbol}?", name)


def _make_item(question: str, *answers: str) -> Record:
    """An item for `evaluate.tasks`."""
    return {
        "prompt": f"Q: {question}\nA:", "answers": list(dict.fromkeys(answers)), "stop": ["\n"],
    }  # fmt: skip
