"""Rows become the files that a training's process reads: checked, encoded, and some held out.

Memory holds a few numbers for each row; tokens go to files at once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.data.augmentation import AS_IT_IS, Augmentation
from thrifty.errors import TrainingError
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.examples import Example, encode_row, write_row
from thrifty.train.rows import Method, Row, SetAside, choose_held_out, read_rows
from thrifty.types import OnProgress, Progress, ignore_progress

LEARNED, HELD_OUT = "learned.jsonl", "held-out.jsonl"
"""The files of examples in a training's folder."""
SOURCES = "sources.jsonl"
"""The file of the rows as they were read, where epochs show other forms of them."""
LOSSES = "losses.json"
"""The file of the losses of held-out examples after a trial."""
HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 256
"""This share of the rows is held out, and at most so many of them."""
LEAST_ROWS = 10
FEW_ROWS = 50
"""With fewer rows than these, people are warned."""


@dataclass(frozen=True)
class RowData:
    """Where rows are, and what they are called."""

    name: str
    files: Sequence[Path]
    held_out: Sequence[Path]
    """Files to evaluate on; none where some of the rows are held out."""


@dataclass(frozen=True)
class EncodedRow:
    """What is known of a row whose tokens are in a file."""

    key: str
    line: int
    label: bool
    examples: int
    tokens: int
    longest: int
    """Tokens of its longest text."""
    texts: int
    """Texts in an example."""
    forms: int = 0
    """Other wordings of its prompt."""
    made: str = ""
    sources: tuple[str, ...] = ()
    """See `rows.Row`."""


@dataclass(frozen=True)
class Prepared:
    """What there is to learn from."""

    figures: dict[str, Any]
    """For the lineage."""
    examples: int
    tokens: int
    longest: int
    texts: int
    liked: int
    disliked: int
    keys: tuple[str, ...]
    """The key of each held-out row, in order, and how many examples it has."""
    sizes: tuple[int, ...]


def prepare_rows(
    data: RowData,
    method: Method,
    tokenizer: TextTokenizer,
    window: int,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
    on_note: Callable[[str], None] = lambda text: None,
    augmentation: Augmentation = AS_IT_IS,
) -> Prepared:
    """Write the examples to learn from and to evaluate on to `folder`, and tell what was set aside.
    Held-out rows are as they were said, whatever `augmentation` asks for, and the same ones. Raises
    `TrainingError` for rows that nothing can be learned from.
    """
    aside = SetAside()
    rows, raw = folder / "rows.jsonl", folder / "raw.jsonl"
    encoder = _Encoder(method, tokenizer, window, augmentation.made, on_progress)
    known = encoder.encode(data.files, rows, raw, aside)
    if data.held_out:
        path = folder / HELD_OUT
        judged = encoder.encode(data.held_out, path, None, SetAside())
        keys = {row.key for row in judged}
        apart = {n for n, row in enumerate(known) if not keys.isdisjoint((row.key, *row.sources))}
        for number in sorted(apart):
            aside.note("held_out", known[number].line)
    else:
        held, apart = _hold_out(known)
        judged = [known[number] for number in sorted(held)]
        for number in sorted(apart - held):
            aside.note("held_out", known[number].line)
        _split(rows, held, folder / HELD_OUT)
    others = set(range(len(known))) - apart
    _split(rows, others, folder / LEARNED)
    (folder / SOURCES).unlink(missing_ok=True)
    if augmentation.noise is not None or any(row.forms for row in known):
        _split(raw, others, folder / SOURCES)
    rows.unlink()
    raw.unlink()
    learned = [row for number, row in enumerate(known) if number not in apart]
    for sentence in aside.describe():
        on_note(sentence)
    liked = sum(row.label for row in learned)
    _check_rows(data, method, len(learned), len(judged), liked, aside)
    if len(learned) < FEW_ROWS:
        on_note(
            f"{len(learned)} rows are few: what is learned from them says little about other "
            "questions; judge the result before it serves (thrifty gate)"
        )
    examples = sum(row.examples for row in learned)
    tokens = sum(row.tokens for row in learned)
    made = Counter(row.made for row in learned if row.made)
    figures = {
        "read": len(known) + sum(aside.counts.values()) - aside.counts["held_out"],
        "learned": len(learned), "held_out": len(judged), "examples": examples, "tokens": tokens,
        "set_aside": aside.as_dict(),
    }  # fmt: skip
    if made or any(row.forms for row in learned):
        figures |= {"made": dict(made), "forms": sum(row.forms for row in learned)}
    if method is Method.KTO:
        figures |= {"liked": liked, "disliked": len(learned) - liked}
    return Prepared(
        figures, examples, tokens, max(row.longest for row in learned),
        max(row.texts for row in learned), liked, len(learned) - liked,
        tuple(row.key for row in judged), tuple(row.examples for row in judged),
    )  # fmt: skip


@dataclass(frozen=True)
class _Encoder:
    """Encodes files of rows."""

    method: Method
    tokenizer: TextTokenizer
    window: int
    made: Sequence[str]
    on_progress: OnProgress

    def encode(
        self, paths: Sequence[Path], target: Path, raw: Path | None, aside: SetAside
    ) -> list[EncodedRow]:
        """Write a line for each row that is not set aside, and the row as it was read to `raw`."""
        found = []
        with target.open("w") as file, (raw or Path(os.devnull)).open("wb") as lines:
            for row in read_rows(paths, self.method, aside, self.made):
                examples = encode_row(row, self.method, self.tokenizer, self.window)
                if isinstance(examples, str):
                    aside.note(examples, row.line)
                else:
                    write_row(file, examples)
                    lines.write(row.raw.rstrip(b"\r\n") + b"\n")
                    found.append(_describe_row(row, examples))
                self.on_progress(Progress("read", row.line, 0, "rows"))
        return found


def _describe_row(row: Row, examples: Sequence[Example]) -> EncodedRow:
    texts = [text for example in examples for text in example.texts]
    return EncodedRow(
        row.key, row.line, row.label, len(examples),
        sum(example.tokens for example in examples), max(len(text.tokens) for text in texts),
        max(len(example.texts) for example in examples), len(row.forms), row.made, row.sources,
    )  # fmt: skip


def _hold_out(known: Sequence[EncodedRow]) -> tuple[set[int], set[int]]:
    """Which rows are held out, and which are not learned: these, and what was made of them. What
    models made is never held out.
    """
    said = [number for number, row in enumerate(known) if not row.made]
    pairs = [(known[number].key, known[number].label) for number in said]
    held = {said[place] for place in choose_held_out(pairs, HELD_OUT_SHARE, MOST_HELD_OUT)}
    keys = {known[number].key for number in held}
    kin = {n for n, row in enumerate(known) if row.made and not keys.isdisjoint((row.key, *row.sources))}  # fmt: skip
    return held, held | kin


def _split(rows: Path, chosen: set[int], target: Path) -> None:
    """Write the lines with the numbers in `chosen` to `target`."""
    with rows.open("rb") as file, target.open("wb") as written:
        for number, line in enumerate(file):
            if number in chosen:
                written.write(line)


def _check_rows(
    data: RowData, method: Method, learned: int, held_out: int, liked: int, aside: SetAside
) -> None:
    if learned + held_out < LEAST_ROWS or not learned or not held_out:
        said = "; ".join(aside.describe())
        raise TrainingError(
            f"{data.name} has {learned} usable {method.value} rows to learn from and {held_out} "
            f"with other prompts to evaluate on; at least {LEAST_ROWS} are needed, with two "
            f"different prompts{'. ' + said if said else ''}"
        )
    if method is Method.KTO and liked in (0, learned):
        kind = "liked" if liked else "disliked"
        raise TrainingError(
            f"all {learned} answers of {data.name} are {kind}; KTO needs both kinds. Collect more "
            "feedback, or learn from liked answers with --method sft"
        )
