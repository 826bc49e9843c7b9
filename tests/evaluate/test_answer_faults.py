"""Broken answers are found, and good text of many forms is left alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from thrifty.evaluate.answer_faults import find_faults, find_same, ignores, is_empty, is_loop

ROOT = Path(__file__).parents[2]

LISTS = {
    "numbers": ", ".join(str(number) for number in range(1, 60)),
    "times table": "\n".join(f"7 x {n} = {7 * n}" for n in range(1, 21)),
    "times table in words": "\n".join(f"3 multiplied by {n} equals {3 * n}" for n in range(1, 21)),
    "parallel items": "\n".join(
        f"{n}. Drink a glass of {what} before you go to bed"
        for n, what in enumerate(("water", "milk", "tea", "warm juice", "broth", "cocoa"), 1)
    ),
    "yes and no": "| name | a | b | c |\n| --- | --- | --- | --- |\n"
    + "\n".join(
        f"| {name} | yes | no | yes |"
        for name in ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")
    ),
    "a rule": "Title\n" + "=" * 70,
    "an empty table": "| a | b |\n" + "| --- | --- |\n" * 1 + "|  |  |\n" * 12,
    "code": "x = []\n" + "\n".join(f"x.append({n} * {n + 1})" for n in range(12)),
    "prints": 'print("a")\nprint("b")\nprint()\nprint("c")\nprint()\nprint()\n',
    "a fraction": "1 / 3 = 0.333333333333333333 and 2 / 3 = 0.666666666666666667",
}
VERSE = {
    "tyger": (
        "Tyger Tyger, burning bright,\nIn the forests of the night;\nWhat immortal hand or eye,\n"
        "Could frame thy fearful symmetry?\n\nIn what distant deeps or skies,\nBurnt the fire of "
        "thine eyes?\nOn what wings dare he aspire?\nWhat the hand, dare seize the fire?\n\n"
        "What the hammer? what the chain,\nIn what furnace was thy brain?\nWhat the anvil? what "
        "dread grasp,\nDare its deadly terrors clasp!\n\nTyger Tyger burning bright,\nIn the forests "
        "of the night:\nWhat immortal hand or eye,\nDare frame thy fearful symmetry?"
    ),
    "row": (
        "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\n"
        "Life is but a dream."
    ),
    "a refrain": (
        "London Bridge is falling down,\nFalling down, falling down,\nLondon Bridge is falling down,"
        "\nMy fair lady.\n\nBuild it up with wood and clay,\nWood and clay, wood and clay,\nBuild it "
        "up with wood and clay,\nMy fair lady.\n\nWood and clay will wash away,\nWash away, wash "
        "away,\nWood and clay will wash away,\nMy fair lady."
    ),
}
LOOPS = {
    "one word": "the the the the the the the the the the the the",
    "a sentence": "It is a good idea to eat. " * 4,
    "cut off": "Sure. " + "I am happy to help you with that. " * 5 + "I am happy to",
    "a numbered list of one thing": "\n".join(f"{n}. The sky is blue and clear" for n in range(1, 9)),
    "characters": "Well" + "!" * 60,
    "without spaces": "東京は日本の首都です。" * 6,
    "two sentences in turn": "He said that he was there. She said that she was not. " * 4,
    "mostly repeated": " ".join(
        f"The model answers the question of the user with a long answer to {what}."
        for what in ("one", "the", "two", "the", "one", "two", "the", "one", "one", "two")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*LISTS, *VERSE])
def test_lists_tables_code_and_verse_are_no_loops(name: str) -> None:
    assert not is_loop({**LISTS, **VERSE}[name])


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_found(name: str) -> None:
    assert is_loop(LOOPS[name])


def pieces_of(texts: list[str], lines: int) -> list[str]:
    found = []
    for text in texts:
        rows = text.splitlines()
        found += ["\n".join(rows[at : at + lines]) for at in range(0, len(rows), lines)]
    return found


def test_code_prose_and_tables_of_this_project_raise_next_to_no_alarm() -> None:
    code = pieces_of([p.read_text() for p in sorted((ROOT / "src").rglob("*.py"))], 25)
    prose = pieces_of([p.read_text() for p in sorted((ROOT / "docs").glob("*.md"))], 15)
    tables = [
        table
        for page in sorted((ROOT / "docs").glob("*.md"))
        for table in re.findall(r"(?:^\|.*\n){4,}", page.read_text(), re.MULTILINE)
    ]
    for texts, least in ((code, 1000), (prose, 250), (tables, 30)):
        assert len(texts) >= least
        wrong = [text for text in texts if is_loop(text)]
        assert len(wrong) <= 0.002 * len(texts), wrong


@pytest.mark.parametrize(
    "text", ["", "  \n", "...", "| --- |", "\ufffd\ufffd", "\u200b", "- \n- \n-", "1. - - - - -"]
)
def test_nothing_is_empty(text: str) -> None:
    assert is_empty(text)
    assert find_faults(text, asked=["Who?"]) == ["empty"]


@pytest.mark.parametrize("text", ["7", "Paris", "はい", "\U0001f600", "½", "x"])
def test_short_answers_are_not_empty(text: str) -> None:
    assert not is_empty(text)
    assert find_faults(text, asked=["Who?"]) == []


QUESTION = "What is the capital of France?"


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (QUESTION, "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        (QUESTION, "In 2019 I began to write about my garden and the flowers that grow there"),
        (
            "Rewrite this politely: send me the report by friday or else we have a problem",
            "Send me the report by Friday, or else we have a problem.",
        ),
    ],
)
def test_answers_to_nothing_are_found(asked: str, answer: str) -> None:
    assert find_faults(answer, asked=[asked]) == ["ignored"]


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (QUESTION, "Paris"),
        (QUESTION, "I am not sure, but I think that the capital is Paris"),
        (QUESTION, "La capitale de la France est Paris, une ville au bord de la Seine"),
        ("Which word is the verb: the dog has eaten my homework", "has eaten"),
        ("Summarize: " + "a very long text about a museum with many maps " * 5, "A museum with maps."),
        ("日本の首都はどこですか", "The city that you want to know about is Tokyo, in Honshu"),
    ],
)  # fmt: skip
def test_answers_that_have_to_do_with_the_question_are_not(asked: str, answer: str) -> None:
    other = "Tokyo" if "日本" in asked else ""
    assert find_faults(answer, asked=[asked], other=other) == []


def test_words_of_the_other_model_count() -> None:
    poem = "Grey drops drum softly on the roofs, and umbrellas bloom along every crowded lane"
    asked = ["Write a short poem about rain in the city."]
    assert ignores(poem, asked, [])
    assert not ignores(poem, asked, ["Umbrellas open, puddles shine"])


def test_the_same_long_answer_to_many_questions_answers_none() -> None:
    parrot = "I am a helpful assistant and I am glad to help you."
    answers = [parrot, "Africa", "Africa", parrot.upper(), "Africa", parrot, "Africa", "Africa"]
    assert find_same([*answers, parrot, parrot]) == {0, 3, 5, 8, 9}
    assert find_same(answers) == set()
