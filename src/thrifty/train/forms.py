"""Rows in other forms, in each epoch others: with noise, and in other wordings that models made.

Which form a row has in an epoch follows from a seed, the epoch and the row's number alone. So a run
repeats exactly, and one that goes on from a checkpoint sees what it would have seen. A form that
cannot be learned (longer than the window, or refused by the chat template) is shown as it was said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from thrifty.data.augmentation import Augmentation, read_augmentation
from thrifty.data.noise import add_noise, draw_for
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.examples import Example, encode_row
from thrifty.train.prepare import SOURCES
from thrifty.train.rows import Method, Row, parse_row

KEPT = 512
"""Forms that are in memory: those of a step are asked for more than once."""
WORDING = 1 << 40
"""The first stream of draws by which wordings are chosen; those of noise are below."""


class Forms(Sequence[Example]):
    """The examples of all epochs: number n is example n % N in its form of epoch n // N, with N
    examples (`len`). Iteration gives them as they were said.
    """

    def __init__(
        self,
        said: Sequence[Sequence[Example]],
        lines: Sequence[bytes],
        augmentation: Augmentation,
        method: Method,
        tokenizer: TextTokenizer,
        window: int,
        seed: int,
    ) -> None:
        """`said` has the examples of each row, and `lines` the rows as they were read."""
        assert len(said) == len(lines)
        self._said = [example for row in said for example in row]
        self._places = [(n, place) for n, row in enumerate(said) for place in range(len(row))]
        self._counts = [len(row) for row in said]
        self._lines = lines
        self._augmentation = augmentation
        self._method, self._tokenizer, self._window = method, tokenizer, window
        self._seed = seed
        self._encode = lru_cache(KEPT)(self._encode_form)

    def __len__(self) -> int:
        return len(self._said)

    def __iter__(self) -> Iterator[Example]:
        return iter(self._said)

    @overload
    def __getitem__(self, number: int) -> Example: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Example]: ...

    def __getitem__(self, number: int | slice) -> Example | Sequence[Example]:
        """The example in the form of an epoch; a slice goes on into the next epoch."""
        if isinstance(number, slice):
            return [self[n] for n in range(number.start or 0, number.stop)]
        epoch, own = divmod(number, len(self._said))
        row, place = self._places[own]
        found = self._encode(row, epoch)
        return self._said[own] if found is None else found[place]

    def show(self, row: int, epoch: int) -> Row:
        """A row as an epoch shows it."""
        found = parse_row(self._lines[row], row + 1, self._method, self._augmentation.made)
        assert isinstance(found, Row), found
        if found.forms:
            draw = draw_for(self._seed, epoch, WORDING + row)
            chosen = int(draw.integers(1 + len(found.forms)))
            found = (found, *found.forms)[chosen]
        noise = self._augmentation.noise
        if noise is None:
            return found
        shown = add_noise({"messages": found.messages}, noise, epoch, row)
        return replace(found, messages=shown["messages"])

    def _encode_form(self, row: int, epoch: int) -> list[Example] | None:
        found = encode_row(self.show(row, epoch), self._method, self._tokenizer, self._window)
        return None if isinstance(found, str) or len(found) != self._counts[row] else found


def open_forms(
    folder: Path,
    said: Sequence[Sequence[Example]],
    augment: dict[str, Any],
    method: Method,
    tokenizer: TextTokenizer,
    window: int,
    seed: int,
) -> Forms:
    """The forms of the examples in a training's folder; memory holds the rows as they were read."""
    lines = (folder / SOURCES).read_bytes().splitlines()
    return Forms(said, lines, read_augmentation(augment), method, tokenizer, window, seed)
