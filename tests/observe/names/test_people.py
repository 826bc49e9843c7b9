"""What of a passage is a name, and where names are that no model found."""

from __future__ import annotations

import pytest

from thrifty.observe.names.people import (
    clean_name,
    find_introduced,
    find_recipients,
    find_siblings,
    list_forms,
)

COMMON = frozenset(
    (
        "will",
        "may",
        "and",
        "i",
        "the",
        "a",
        "my",
        "you",
        "who",
        "not",
        "on",
        "is",
        "it",
        "here",
        "to",
        "from",
        "in",
        "of",
    )
)


def is_common(word: str) -> bool:
    return word in COMMON


@pytest.mark.parametrize(
    ("passage", "name"),
    [
        ("Ann Lee", "Ann Lee"),
        ("Mr. Jean-Luc O'Neil", "Jean-Luc O'Neil"),
        ("Chris Singh - chrissingh@example.com", "Chris Singh"),
        ("Ann's", "Ann"),
        ("J. R. Tolkien\u2019s", "J. R. Tolkien"),
        ("Hi Ann", "Ann"),
        ("Jörg\nMüller", "Jörg"),
        ("Will", None),
        ("42", None),
        ("Dr.", None),
    ],
)
def test_a_name_is_cut_out_of_a_passage(passage: str, name: str | None) -> None:
    assert clean_name(passage, is_common) == name


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("my name is ann lee and i like it", ["ann lee"]),
        ("My name's Xochitl", ["Xochitl"]),
        ("just call me Bo, please", ["Bo"]),
        ("Dear Ms. Garcia, ask Dr. Who. You know", ["Garcia", "Who"]),
        ("Mr. James Williams. Who are you?", ["James Williams"]),
        ("My name is not on the list. Dear customer, Dear Sir", []),
        ("name: Ann went", ["Ann"]),
    ],
)
def test_words_that_introduce_a_name(text: str, names: list[str]) -> None:
    assert sorted(set(find_introduced(text, is_common))) == sorted(names)


def test_lines_above_an_address() -> None:
    text = "Bill to: Ann Lee\n> Cy Poe\n> 1 Elm Road\n\nSmith and Sons\n2 Oak Lane\n\nsee below\n3 Oak Lane"
    spans = [
        (text.index(one), text.index(one) + 9) for one in ("1 Elm Road", "2 Oak Lane", "3 Oak Lane")
    ]
    assert list(find_recipients(text, spans)) == ["Cy Poe", "Ann Lee"]


def test_names_beside_names() -> None:
    text = "We met Ann, Bo Lee and Cy.\nPrague, Ann or Oslo\nTim: hello\nUma: hi\nNote: none"
    people = [(text.index(one), text.index(one) + len(one)) for one in ("Ann", "Cy", "Tim", "Uma")]
    assert list(find_siblings(text, people)) == ["Bo Lee", "Note"]


def test_parts_of_names_are_looked_for_unless_they_are_words() -> None:
    assert list_forms(["Ann van Dyke", "Will Smith", "J. Bo"], is_common) == [
        "Ann van Dyke", "Will Smith", "J. Bo", "Smith", "Dyke", "Ann",
    ]  # fmt: skip
