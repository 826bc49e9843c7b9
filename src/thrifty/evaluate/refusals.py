"""Whether an answer begins with a refusal, by the phrases of `refusals.yaml` in each language."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import Any

import yaml

BEGINNING = 160
"""A refusal is said at the beginning; further on, the words may be a quotation."""
_UNSPACED = ("ja", "ko", "zh")
"""Languages whose words end without a space, or carry endings."""
_GAP = r"[^.,;:!?\n。、\uff0c\uff1b\uff1a\uff01\uff1f]{0,40}?"
"""A part of a clause."""
_PART = re.compile(r"\.\.\.|\{help\}|[()|]|\s+")


def is_refusal(answer: str) -> bool:
    """Whether an answer begins with a refusal in one of `list_languages`."""
    return _compile().search(answer.replace("\u2019", "'")[:BEGINNING].lower()) is not None


@functools.cache
def list_languages() -> tuple[str, ...]:
    """The languages (ISO 639-1) in which refusals are recognised."""
    return tuple(_read())


def _read() -> dict[str, Any]:
    text = files("thrifty.evaluate").joinpath("refusals.yaml").read_text("utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@functools.cache
def _compile() -> re.Pattern[str]:
    """One pattern for all phrases."""
    spaced: list[str] = []
    unspaced: list[str] = []
    for language, entry in _read().items():
        words = "|".join(map(re.escape, entry["help"].split()))
        edge, found = ("", unspaced) if language in _UNSPACED else (r"\b", spaced)
        found += [_translate(phrase, words, edge) for phrase in entry["phrases"]]
    return re.compile(rf"(?<!\w)(?:{'|'.join(spaced)})(?!\w)|{'|'.join(unspaced)}")


def _translate(phrase: str, words: str, edge: str) -> str:
    """The regular expression of a phrase; `edge` is what stands at both ends of a gap."""
    replaced = {"...": edge + _GAP + edge, "{help}": f"{edge}(?:{words}){edge}", "(": "(?:"}
    replaced |= {")": ")", "|": "|"}
    found, end = "", 0
    for part in _PART.finditer(phrase):
        found += re.escape(phrase[end : part.start()]) + replaced.get(part[0], r"\s*")
        end = part.end()
    return found + re.escape(phrase[end:])
