"""Reasoning is parted from answers, however they come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.text import templates
from thrifty.text.reasoning import KNOWN_TAGS, ReasoningSplitter, Tags, find_tags

THINK = Tags("<think>", "</think>")


def split(*pieces: str, begun: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(THINK, begun=begun)
    reasoning = content = ""
    for index, piece in enumerate(pieces):
        more, text = splitter.feed(piece, last=index == len(pieces) - 1)
        reasoning, content = reasoning + more, content + text
    return reasoning, content


CASES = [
    ("<think>\nHm.\n</think>\n\nYes.", False, ("Hm.", "Yes.")),
    ("\n<think>Hm.</think>Yes.", False, ("Hm.", "Yes.")),
    ("Hm.\n\nWell.\n</think>\nYes.\n", True, ("Hm.\n\nWell.", "Yes.\n")),
    ("<think>\n\n</think>\n\nYes.", False, ("", "Yes.")),
    ("Yes. <think>no</think>", False, ("", "Yes. <think>no</think>")),
    (" Yes.", False, ("", " Yes.")),
    ("  ", False, ("", "  ")),
    ("", False, ("", "")),
    ("<thin", False, ("", "<thin")),
    ("<thinner>", False, ("", "<thinner>")),
    ("<think>cut off </thi", False, ("cut off </thi", "")),
    ("cut off ", True, ("cut off", "")),
    ("<think>a</think>b</think>c<think>d", False, ("a", "b</think>c<think>d")),
    ("a < b </ c </think>d", True, ("a < b </ c", "d")),
    ("<think>", False, ("", "")),
    ("</think>", True, ("", "")),
]


@pytest.mark.parametrize(("text", "begun", "expected"), CASES)
def test_whole_answers_are_split(text: str, begun: bool, expected: tuple[str, str]) -> None:
    assert split(text, begun=begun) == expected


@given(
    case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 40), max_size=8), end=st.booleans()
)
def test_streams_are_split_as_whole_answers_are(
    case: tuple[str, bool, tuple[str, str]], cuts: list[int], end: bool
) -> None:
    text, begun, expected = case
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert split(*pieces, *([""] if end else []), begun=begun) == expected


def test_text_goes_out_as_soon_as_it_is_certain() -> None:
    splitter = ReasoningSplitter(THINK, begun=False)
    assert splitter.feed("<think>Hm") == ("Hm", "")
    assert splitter.feed(" </") == ("", "")
    assert splitter.feed("b> x") == (" </b> x", "")
    assert splitter.feed("</think>") == ("", "")
    assert splitter.feed("\nYes") == ("", "Yes")
    assert splitter.feed(" <think>") == ("", " <think>")


def test_tags_are_found_in_the_template_or_the_vocabulary() -> None:
    assert find_tags(templates.HERMES, ()) == THINK
    assert find_tags(templates.CHATML, {"<think>": 1, "</think>": 2}) == THINK
    assert find_tags("{% if '</think>' in x %}", {}) is None
    assert find_tags(templates.CHATML, {"<think>": 1}) is None
    for tags in KNOWN_TAGS:
        assert find_tags("".join(tags), ()) == tags
