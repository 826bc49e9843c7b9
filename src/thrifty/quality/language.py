"""Which language a text is in, cheaply: its script, and for Latin letters its commonest words.

Seven languages in Latin letters are told apart, by words that are in most sentences of one and in few
of the others; Cyrillic, Arabic and the other scripts count as a language each. A text that is too
short, or in between, has none: a detector of mismatches must be silent rather than wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

LEAST_LETTERS = 20
LEAST_WORDS = 3
"""Common words of the likeliest language; it must have twice as many as the next one."""
MAX_CHARS = 2000
SCRIPT_SHARE = 0.7
LATIN = "LATIN"
_WORD = re.compile(r"[^\W\d_]+")
_COMMON = {
    "en": "the and of to is in that it you for are with this was have not what how can be on as",
    "de": "der die das und ist nicht ein eine zu mit sich auf auch wie ich sie was wird von den dem",
    "fr": "le les et est des une dans que pour pas qui vous sur avec ce au du il je sont cette",
    "es": "el los y es una que las por con para se como qué del más lo su está no pero",
    "it": "il che di è per una sono con non della gli come anche più si nel del questo ho",
    "pt": "o os e é uma que não para com do da em como mais se você por um são na",
    "nl": "het een van en is dat niet te de op zijn met voor ik je ook wat hoe maar",
}  # fmt: skip
_LANGUAGES: dict[str, set[str]] = {}
for _name, _words in _COMMON.items():
    for _one in _words.split():
        _LANGUAGES.setdefault(_one, set()).add(_name)
_SCRIPTS = {"HIRAGANA": "JAPANESE", "KATAKANA": "JAPANESE", "CJK": "HAN"}
NAMES = re.compile(
    r"\b(?:translat\w*|übersetz\w*|tradu\w*|vertaal\w*|language|english|german|french|spanish|italian|"
    r"portuguese|dutch|russian|chinese|japanese|korean|arabic|hebrew|greek|hindi|turkish|polish|"
    r"deutsch|englisch|französisch|français|anglais|español|inglés|italiano|inglese)\b",
    re.IGNORECASE,
)
"""Words by which a request may ask for another language than its own."""


def find_language(text: str) -> str | None:
    """The language (ISO 639-1) or the script of a text; None where that is not plain."""
    part = text[:MAX_CHARS]
    scripts: Counter[str] = Counter()
    for letter in part:
        if letter.isalpha():
            if letter.isascii():
                scripts[LATIN] += 1
            else:
                name = unicodedata.name(letter, "").partition(" ")[0]
                scripts[_SCRIPTS.get(name, name)] += 1
    letters = sum(scripts.values())
    # One sign of Chinese says what several letters do.
    weight = letters + 4 * (scripts["HAN"] + scripts["JAPANESE"])
    if weight < LEAST_LETTERS:
        return None
    if scripts["JAPANESE"]:
        scripts["JAPANESE"] += scripts.pop("HAN", 0)
    script, count = scripts.most_common(1)[0]
    if count < SCRIPT_SHARE * letters:
        return None
    return _find_latin(part) if script == LATIN else script


def _find_latin(text: str) -> str | None:
    votes: Counter[str] = Counter()
    for word in _WORD.findall(text.lower()):
        for language in _LANGUAGES.get(word, ()):
            votes[language] += 1
    (first, most), (_, next_most) = [*votes.most_common(2), ("", 0), ("", 0)][:2]
    return first if most >= LEAST_WORDS and most >= 2 * next_most else None


def differs(asked: str, answer: str) -> bool | None:
    """Whether an answer is in another language than what was asked; None where that is not plain, or
    the request speaks of languages.
    """
    if NAMES.search(asked):
        return None
    first, second = find_language(asked), find_language(answer)
    return None if first is None or second is None else first != second
