"""Faults that tell a broken model without understanding it: nothing, a loop, an answer to nothing.

They are cheap and made to be silent on good text: lists, tables, code, verse and numbers repeat
themselves too. `benchmarks/answer_faults.py` measures how often they err.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

EMPTY, LOOP, IGNORED = "empty", "loop", "ignored"

TAIL_CHARACTERS, TAIL_TIMES = 40, 3
"""A text that ends with a piece so many times in a row, over so many characters, is a loop."""
REPEATED_WORDS, REPEATED_SHARE = 32, 0.5
"""So is a text of that many words if this share of its sequences of four words came before in it:
`seq-rep-4` of Welleck et al. 2020."""
LONG_ANSWER = 8
"""Words of an answer that says enough to have something in common with its question."""
COPIED_SHARE = 0.6
"""An answer that is this share of a message, word for word, only repeats it."""
SAME_ANSWERS = 5
"""So many questions with the same long answer are not answered."""

_RULES = frozenset("-=_*~#+|:.·• \n")
"""Characters that lines and tables are drawn with."""
_COUNTER = re.compile(r"^[ \t]*(?:[-*•+]|\(?\d{1,4}[.):])[ \t]+", re.MULTILINE)
"""What begins an item of a list."""
_WORD = re.compile(r"[^\W_]+")
_STEM = 4
"""Letters by which two forms of a word are taken for the same."""
_COMMON_WORDS = """
about above after again all also always and another answer any are ask because been before being
below best between both but came can cannot come comes could did does doing done down each
either else even ever every example explain few find first following for from gave get gets give
given goes going good got great had has have having help her here hers him himself his how
however into its itself just keep kind know known let like list made main make makes making many
may might more most much must name need needs never new next none nor not now off often old once
one only other others our ours out over own part people per please provide put question really
said same say second see sentence set several shall she short should show since some something
still such sure take takes tell than that the their them then there these they thing things this
those three through time times today too two under until upon use used useful using very want
was way ways well went were what when where whether which while who why will with within without
word words work would write year years yes yet you your yours
"""
_COMMON = frozenset(_COMMON_WORDS.split())
"""Words that any question and any answer may share."""


def find_faults(
    answer: str, *, asked: Sequence[str], accepted: Sequence[str] = (), other: str = ""
) -> list[str]:
    """The faults of one answer.

    Args:
        answer: The answer.
        asked: The texts of the conversation that it answers.
        accepted: The right answers, if they are known.
        other: Another model's answer to the same, which may be in words that the question lacks.
    """
    if is_empty(answer):
        return [EMPTY]
    faults = [LOOP] if is_loop(answer) else []
    if ignores(answer, asked, [*accepted, other]):
        faults.append(IGNORED)
    return faults


def is_empty(answer: str) -> bool:
    """Whether it has no letter, digit or picture in any script, besides the numbers of a list."""
    said = _COUNTER.sub("", answer)
    return not any(
        one != "\ufffd" and unicodedata.category(one) in _SAYING for one in said
    )  # fmt: skip


_SAYING = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "So"})


def is_loop(answer: str) -> bool:
    """Whether it ends in a loop, or mostly repeats itself."""
    plain = " ".join(_COUNTER.sub("", answer).split())
    return _ends_in_loop(plain) or _measure_repetition(plain) >= REPEATED_SHARE


def _ends_in_loop(text: str) -> bool:
    """Whether the end is one piece several times; the last time may be cut off."""
    # The prefix function (Knuth, Morris and Pratt 1977) of the reversed text: the first `length`
    # characters have the period `length - border[length - 1]`.
    back = text[::-1]
    border = [0] * len(back)
    for at in range(1, len(back)):
        longest = border[at - 1]
        while longest and back[at] != back[longest]:
            longest = border[longest - 1]
        border[at] = longest + (back[at] == back[longest])
        length, period = at + 1, at + 1 - border[at]
        if length >= max(TAIL_CHARACTERS, TAIL_TIMES * period) and not _RULES.issuperset(
            back[:period]
        ):
            return True
    return False


def _measure_repetition(text: str) -> float:
    """The share of sequences of four words that came before; 0 for few words."""
    words = _WORD.findall(text.lower())
    if len(words) < REPEATED_WORDS:
        return 0.0
    found = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    return 1 - len(set(found)) / len(found)


def ignores(answer: str, asked: Sequence[str], others: Sequence[str]) -> bool:
    """Whether a long answer repeats what was asked, or has no telling word in common with it and
    with what others answered.
    """
    words = _WORD.findall(_fold(answer))
    if len(words) < LONG_ANSWER:
        return False
    said = " ".join(words)
    for text in asked:
        message = " ".join(_WORD.findall(_fold(text)))
        if said in message and len(said) >= COPIED_SHARE * len(message):
            return True
    known = {stem for text in (*asked, *others) for stem in find_stems(text)}
    return bool(known) and not known & find_stems(answer)


def find_same(answers: Sequence[str]) -> set[int]:
    """The numbers of the long answers that several of the questions got, word for word."""
    plain = [" ".join(_WORD.findall(_fold(answer))) for answer in answers]
    times = Counter(text for text in plain if text.count(" ") + 1 >= LONG_ANSWER)
    return {at for at, text in enumerate(plain) if times[text] >= SAME_ANSWERS}


def find_stems(text: str) -> set[str]:
    """The beginnings of a text's telling words, and its numbers."""
    return {
        word[:_STEM]
        for word in _WORD.findall(_fold(text))
        if (len(word) > 2 or not word.isascii() or word.isdigit()) and word not in _COMMON
    }


def _fold(text: str) -> str:
    """Lower case, without accents."""
    parts = unicodedata.normalize("NFKD", text.lower())
    return "".join(one for one in parts if not unicodedata.combining(one))
