"""Rows become the files that a training's process reads: checked, encoded, and some held out.

Memory holds a few numbers for each row; tokens go to files at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.errors import TrainingError
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.examples import encode_row, write_row
from thrifty.train.rows import Method, SetAside, choose_held_out, read_rows
from thrifty.types import OnProgress, Progress, ignore_progress

LEARNED, HELD_OUT = "learned.jsonl", "held-out.jsonl"
"""The files of examples in a training's folder."""
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


def prepare_rows(
    data: RowData,
    method: Method,
    tokenizer: TextTokenizer,
    window: int,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
    on_note: Callable[[str], None] = lambda text: None,
) -> Prepared:
    """Write the examples to learn from and to evaluate on to `folder`, and tell what was set aside.
    Raises `TrainingError` for rows that nothing can be learned from.
    """
    aside = SetAside()
    rows = folder / "rows.jsonl"
    known = _encode(data.files, method, tokenizer, window, rows, aside, on_progress)
    if data.held_out:
        path = folder / HELD_OUT
        judged = _encode(data.held_out, method, tokenizer, window, path, SetAside(), on_progress)
        keys = {row.key for row in judged}
        apart = {number for number, row in enumerate(known) if row.key in keys}
        for number in sorted(apart):
            aside.note("held_out", known[number].line)
        _split(rows, apart, folder / LEARNED, None)
    else:
        apart = choose_held_out(
            [(row.key, row.label) for row in known], HELD_OUT_SHARE, MOST_HELD_OUT
        )
        judged = [known[number] for number in sorted(apart)]
        _split(rows, apart, folder / LEARNED, folder / HELD_OUT)
    rows.unlink()
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
    figures = {
        "read": len(known) + sum(aside.counts.values()) - aside.counts["held_out"],
        "learned": len(learned), "held_out": len(judged), "examples": examples, "tokens": tokens,
        "set_aside": aside.as_dict(),
    }  # fmt: skip
    if method is Method.KTO:
        figures |= {"liked": liked, "disliked": len(learned) - liked}
    return Prepared(
        figures, examples, tokens, max(row.longest for row in learned),
        max(row.texts for row in learned), liked, len(learned) - liked,
    )  # fmt: skip


def _encode(
    paths: Sequence[Path],
    method: Method,
    tokenizer: TextTokenizer,
    window: int,
    target: Path,
    aside: SetAside,
    on_progress: OnProgress,
) -> list[EncodedRow]:
    """Write a line for each row that is not set aside."""
    found = []
    with target.open("w") as file:
        for row in read_rows(paths, method, aside):
            examples = encode_row(row, method, tokenizer, window)
            if isinstance(examples, str):
                aside.note(examples, row.line)
            else:
                write_row(file, examples)
                texts = [text for example in examples for text in example.texts]
                found.append(
                    EncodedRow(
                        row.key, row.line, row.label, len(examples),
                        sum(example.tokens for example in examples),
                        max(len(text.tokens) for text in texts),
                        max(len(example.texts) for example in examples),
                    )
                )  # fmt: skip
            on_progress(Progress("read", row.line, 0, "rows"))
    return found


def _split(rows: Path, apart: set[int], kept: Path, others: Path | None) -> None:
    """Write the rows with the numbers in `apart` to `others`, and the rest to `kept`."""
    with rows.open("rb") as file, kept.open("wb") as first:
        second = None if others is None else others.open("wb")
        try:
            for number, line in enumerate(file):
                target = second if number in apart else first
                if target is not None:
                    target.write(line)
        finally:
            if second is not None:
                second.close()


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
