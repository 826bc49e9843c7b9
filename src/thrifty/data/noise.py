"""Noise on what users say: slips of the keyboard, of case, of spacing, and of speech.

It is drawn anew for each row of each epoch from the seed, the epoch and the row's number alone, so
that every epoch shows other forms, a run repeats exactly, and one that goes on from a checkpoint
sees what it would have seen. Only the text of users changes: what the model learns to say stays,
and so do system messages, calls and tools. Code, addresses and numbers stay, too, because a slip in
them makes another question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from thrifty.data.built import TRAIN, BuiltSet, Row
from thrifty.errors import DataError

KINDS = ("typing", "case", "spacing", "speech")
_NEIGHBOURS = {
    "a": "qsz", "b": "vgn", "c": "xdv", "d": "sfe", "e": "wrd", "f": "dgr", "g": "fht", "h": "gjy",
    "i": "uok", "j": "hku", "k": "jli", "l": "kop", "m": "nk", "n": "bmh", "o": "ipl", "p": "ol",
    "q": "wa", "r": "etf", "s": "adw", "t": "ryg", "u": "yij", "v": "cbf", "w": "qes", "x": "zcs",
    "y": "tuh", "z": "xa",
}  # fmt: skip
"""Keys beside a key, on a keyboard with QWERTY."""
_FILLERS = ("um", "uh", "so", "well", "like", "okay so", "hey")
_SPOKEN = {
    "do not": "don't", "does not": "doesn't", "cannot": "can't", "can not": "can't", "is not": "isn't",
    "going to": "gonna", "want to": "wanna", "you are": "you're", "i am": "i'm", "it is": "it's",
    "what is": "what's", "because": "cause",
}  # fmt: skip
KEPT = re.compile(r"```.*?```|`[^`\n]*`|https?://\S+|\S+@\S+|<[A-Z]+_[a-z]+>|\S*\d\S*", re.DOTALL)
"""What a slip would make something else: code, addresses, pseudonyms, and whatever holds a
digit."""
_WORD = re.compile(r"[^\W\d_]{4,}")
_BLANK = re.compile(r"(?<=\S) (?=\S)")
_MARK = re.compile(r"(?<=[^\W\d_])([,.?!]) ")
_MARKS = re.compile(r"[,;:.!?\"()]+(?=\s|$)|(?<!\S)[\"(]+")
FILLER_SHARE, UPPER_SHARE, LINE_SHARE, CONTRACTION_SHARE = 0.3, 0.1, 0.15, 0.5
Generator = np.random.Generator


@dataclass(frozen=True)
class Noise:
    """How much of it: shares of rows, and within a row of words. Raises `DataError`."""

    rows: float = 0.5
    """The share of rows that get any."""
    words: float = 0.05
    """The share of words of such a row that get a slip of the keyboard."""
    kinds: tuple[str, ...] = KINDS
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse shares and kinds that are none."""
        if not (0 <= self.rows <= 1 and 0 <= self.words <= 1):
            raise DataError(f"noise has shares from 0 to 1, not {self.rows:g} and {self.words:g}")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise DataError(f"kinds of noise are {', '.join(KINDS)}, not {list(self.kinds)}")


@dataclass(frozen=True)
class Epoch:
    """The rows of one epoch: in an order of its own, with noise of its own."""

    built: BuiltSet
    epoch: int
    noise: Noise | None = None
    split: str = TRAIN
    seed: int = 0
    shuffled: bool = True

    def read(self, start: int = 0) -> Iterator[Row]:
        """The rows from a place in the epoch on. Each that was changed says so in its provenance.

        Raises `DataError`.
        """
        index = self.built.index(self.split)
        try:
            numbers = order_epoch(len(index), self.seed, self.epoch, shuffled=self.shuffled)
            for number in numbers[start:]:
                row = index[int(number)]
                yield (
                    row
                    if self.noise is None
                    else add_noise(row, self.noise, self.epoch, int(number))
                )
        finally:
            index.close()


def order_epoch(
    count: int, seed: int, epoch: int, *, shuffled: bool = True
) -> np.ndarray[Any, Any]:
    """The numbers of an epoch's rows in their order: [count]."""
    if not shuffled:
        return np.arange(count)
    # Stream 0; those of rows begin with 1.
    return np.argsort(draw_for(seed, epoch, 0).random(count), kind="stable")


def add_noise(row: Row, noise: Noise, epoch: int, number: int) -> Row:
    """The row of a number as an epoch shows it: a copy where it changes. Text rows stay as they
    are: what they say is what is learned.
    """
    draw = draw_for(noise.seed, epoch, number + 1)
    if draw.random() >= noise.rows:
        return row
    changed: dict[str, Any] = {
        part: [_change_message(one, noise, draw) for one in row[part]]
        for part in ("messages", "prompt")
        if part in row
    }
    if all(row[part] == messages for part, messages in changed.items()):
        return row
    provenance = {
        **row.get("provenance", {}),
        "noise": {"seed": noise.seed, "epoch": epoch, "row": number},
    }
    return {**row, **changed, "provenance": provenance}


def draw_for(seed: int, epoch: int, stream: int) -> Generator:
    """Random numbers that the seed, the epoch and the stream decide alone."""
    # Named, because what `default_rng` is may change.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, stream])))


def _change_message(message: dict[str, Any], noise: Noise, draw: Generator) -> dict[str, Any]:
    if message.get("role") != "user" or not isinstance(message.get("content"), str):
        return message
    kind = noise.kinds[int(draw.integers(len(noise.kinds)))]
    return {**message, "content": change_text(message["content"], kind, noise.words, draw)}


def change_text(text: str, kind: str, share: float, draw: Generator) -> str:
    """A text with one kind of noise. Code, addresses and what holds a digit stay."""
    change = _CHANGES[kind](share, draw)
    parts, position = [], 0
    for kept in KEPT.finditer(text):
        parts += [change(text[position : kept.start()]), kept[0]]
        position = kept.end()
    changed = "".join([*parts, change(text[position:])])
    if kind == "speech" and draw.random() < FILLER_SHARE:
        changed = f"{_FILLERS[int(draw.integers(len(_FILLERS)))]} {changed.lstrip()}"
    return changed if changed.strip() else text


Change = Callable[[str], str]


def _type(share: float, draw: Generator) -> Change:
    """Neighbouring keys, letters twice, left out, or in the other order, in words of four letters
    and more; the first letter stays.
    """

    def slip(match: re.Match[str]) -> str:
        if draw.random() >= share:
            return match[0]
        word = match[0]
        at = 1 + int(draw.integers(len(word) - 2))
        way = int(draw.integers(4))
        if way == 0:
            near = _NEIGHBOURS.get(word[at].lower(), word[at])
            return word[:at] + near[int(draw.integers(len(near)))] + word[at + 1 :]
        if way == 1:
            return word[:at] + word[at] + word[at:]
        if way == 2:
            return word[:at] + word[at + 1 :]
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return lambda text: _WORD.sub(slip, text)


def _change_case(share: float, draw: Generator) -> Change:
    """Small letters throughout, or now and then large ones."""
    return str.upper if draw.random() < UPPER_SHARE else str.lower


def _change_spacing(share: float, draw: Generator) -> Change:
    """Blanks twice or as an end of a line, and none behind a mark."""

    def slip(match: re.Match[str]) -> str:
        if draw.random() >= share:
            return match[0]
        return "\n" if draw.random() < LINE_SHARE else "  "

    def join(match: re.Match[str]) -> str:
        return match[1] if draw.random() < share else match[0]

    return lambda text: _MARK.sub(join, _BLANK.sub(slip, text))


def _speak(share: float, draw: Generator) -> Change:
    """As a recognizer of speech writes it: no marks, no capitals, contractions."""

    def change(text: str) -> str:
        said = _MARKS.sub("", text.lower())
        for written, short in _SPOKEN.items():
            if written in said and draw.random() < CONTRACTION_SHARE:
                said = re.sub(rf"\b{written}\b", short, said)
        return said

    return change


_CHANGES: dict[str, Callable[[float, Generator], Change]] = {
    "typing": _type, "case": _change_case, "spacing": _change_spacing, "speech": _speak,
}  # fmt: skip
