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
COPIED_SHARE = 0.8
"""The share of a message that an answer repeats without saying anything else."""
SAME_ANSWERS = 3
"""So many questions with the same long answer are not answered."""

_RULES = frozenset("-=_*~#+|:.·• \n")
"""Characters that lines and tables are drawn with."""
_COUNTER = re.compile(r"^[ \t]*(?:[-*•+]|\(?\d{1,4}[.):])[ \t]+", re.MULTILINE)
"""What begins an item of a list."""
_WORD = re.compile(r"[^\W_]+")
_STEM = 5
"""Letters by which two forms of a word are taken for the same."""
_COMMON = frozenset(
    ["about", "above", "after", "again", "also", "always", "another", "answer", "because", "been", "before", "being", "below", "best", "between", "both", "came", "cannot", "come", "comes", "could", "does", "doing", "done", "down", "each", "either", "else", "even", "ever", "every", "example", "explain", "find", "first", "following", "from", "gave", "get", "gets", "give", "given", "goes", "going", "good", "great", "have", "having", "help", "here", "hers", "himself", "his", "however", "into", "itself", "just", "keep", "kind", "know", "known", "like", "list", "made", "main", "make", "makes", "making", "many", "might", "more", "most", "much", "must", "name", "need", "needs", "never", "next", "none", "often", "once", "only", "other", "others", "ours", "over", "part", "people", "please", "provide", "question", "really", "said", "same", "second", "sentence", "several", "shall", "short", "should", "show", "since", "some", "something", "still", "such", "sure", "take", "takes", "tell", "than", "that", "their", "them", "then", "there", "these", "they", "thing", "things", "this", "those", "three", "through", "time", "times", "today", "too", "under", "until", "upon", "used", "useful", "using", "very", "want", "ways", "well", "went", "were", "what", "when", "where", "whether", "which", "while", "will", "with", "within", "without", "word", "words", "work", "would", "write", "year", "years", "your", "yours"]
)  # fmt: skip
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
    """Whether it has no letter, digit or picture in any script."""
    return not any(
        one != "\ufffd" and unicodedata.category(one)[:2] in _SAYING for one in answer
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
    """Whether a long answer repeats what was asked, or has no telling word in common with it or with
    what others answered.
    """
    words = _WORD.findall(_fold(answer))
    if len(words) < LONG_ANSWER:
        return False
    said = " ".join(words)
    for text in asked:
        message = " ".join(_WORD.findall(_fold(text)))
        if said in message and len(said) >= COPIED_SHARE * len(message):
            return True
    known = {stem for text in (*asked, *others) for stem in _find_stems(text)}
    return bool(known) and not known & _find_stems(answer)


def find_same(answers: Sequence[str]) -> set[int]:
    """The numbers of the long answers that several of the questions got, word for word."""
    plain = [" ".join(_WORD.findall(_fold(answer))) for answer in answers]
    times = Counter(text for text in plain if text.count(" ") + 1 >= LONG_ANSWER)
    return {at for at, text in enumerate(plain) if times[text] >= SAME_ANSWERS}


def _find_stems(text: str) -> set[str]:
    """The beginnings of a text's telling words, and its numbers."""
    return {
        word[:_STEM]
        for word in _WORD.findall(_fold(text))
        if (len(word) > 3 or not word.isascii() or word.isdigit()) and word not in _COMMON
    }


def _fold(text: str) -> str:
    """Lower case, without accents."""
    parts = unicodedata.normalize("NFKD", text.lower())
    return "".join(one for one in parts if not unicodedata.combining(one))
