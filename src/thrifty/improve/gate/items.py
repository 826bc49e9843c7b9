"""What versions are asked, and whether what they answer is right, whole, and in its form.

A line of a file is a question (`evaluate.questions`) that may also have

    "tags": {"topic": "billing", "language": "en"}    the slices that it counts in
    "format": "json"                                   the answer must be JSON

`domain`, `language` and `topic` may stand on their own, too. Every item counts in the slice of its
set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thrifty.errors import EvaluationError
from thrifty.evaluate.answer_faults import IGNORED, find_faults, find_same
from thrifty.evaluate.answer_forms import is_json
from thrifty.evaluate.answers import is_right
from thrifty.evaluate.questions import Question, parse_question
from thrifty.evaluate.refusals import is_refusal

SET = "set"
"""The tag that names an item's set."""
OWN_TAGS = ("domain", "language", "topic")
MOST_TAGS = 8
RIGHT, INTACT, VALID, WILLING = "right", "intact", "valid", "willing"
PREFERRED = "preferred"
"""The metric of a judge: answers that are not worse than the other version's to the same
question."""
METRICS = {
    RIGHT: "right answers",
    INTACT: "answers that are not empty, a loop, or the same to many questions",
    VALID: "answers in the form that was asked for",
    WILLING: "answers that do not refuse",
}
"""What is judged of answers, each a share of the items that it applies to."""


@dataclass(frozen=True)
class Item:
    """One question with the slices that it counts in."""

    question: Question
    tags: dict[str, str] = field(default_factory=dict)
    json: bool = False
    responses: list[int] = field(default_factory=list)
    """The responses that it came from, by their numbers in the request log."""


def read_items(path: Path, name: str) -> list[Item]:
    """The items of a file, each question once. Raises `EvaluationError` with the line at fault."""
    found: dict[Question, Item] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            question = parse_question(line, where)
            record = json.loads(line)
            item = Item(
                question,
                read_tags(record, name, where),
                _wants_json(record, where),
                find_responses(record),
            )
            found.setdefault(question, item)
    if not found:
        raise EvaluationError(f"{path} contains no questions")
    return list(found.values())


def find_responses(record: dict[str, Any]) -> list[int]:
    """The numbers of the responses that a row came from, by its provenance."""
    given = record.get("provenance")
    found: set[Any] = set()
    for one in given if isinstance(given, list) else [given]:
        if isinstance(one, dict):
            found |= {one.get("response"), *(one.get("responses") or ())}
    return sorted(number for number in found if isinstance(number, int))


def read_tags(record: dict[str, Any], name: str, where: str) -> dict[str, str]:
    """The slices that a record of the set `name` counts in. Raises `EvaluationError`."""
    given = record.get("tags", {})
    if not isinstance(given, dict):
        raise EvaluationError(f"{where}: 'tags' must be an object of names and texts")
    own = {tag: record[tag] for tag in OWN_TAGS if tag in record}
    tags = {**given, **own}
    if len(tags) > MOST_TAGS or not all(
        isinstance(one, str) and one.strip() for pair in tags.items() for one in pair
    ):
        raise EvaluationError(f"{where}: tags are at most {MOST_TAGS} pairs of texts")
    return {SET: name, **tags}


def _wants_json(record: dict[str, Any], where: str) -> bool:
    form = record.get("format")
    if form not in (None, "text", "json"):
        raise EvaluationError(f"{where}: 'format' must be text or json, not {form!r}")
    if form == "json" and record.get("answers"):
        raise EvaluationError(f"{where}: an item has 'answers' or the format json, not both")
    return form == "json"


def grade(items: Sequence[Item], answers: Sequence[str]) -> dict[str, list[bool | None]]:
    """For each of `METRICS`, whether each answer has it; None where it does not apply."""
    same = find_same(answers)
    found: dict[str, list[bool | None]] = {metric: [] for metric in METRICS}
    for number, (item, answer) in enumerate(zip(items, answers, strict=True)):
        question = item.question
        faults = find_faults(
            answer, asked=[text for _, text in question.messages], accepted=question.answers
        )
        # Alone, a good translation shares no word with its question either.
        broken = number in same or any(one != IGNORED for one in faults)
        found[RIGHT].append(is_right(question, answer) if question.answers else None)
        found[INTACT].append(not broken)
        found[VALID].append(is_json(answer) if item.json else None)
        found[WILLING].append(not is_refusal(answer))
    return found
