"""Questions for chat models: those that people read the answers of, and those with a known answer.

A file of questions has lines of JSON:

    {"question": "Who wrote Faust?", "answers": ["Goethe", "Johann Wolfgang von Goethe"]}
    {"messages": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}]}

`answers` may be left out. Items of tasks with a `prompt` and `answers` are questions as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.errors import EvaluationError

SHORT_TOKENS, LONG_TOKENS = 24, 160
"""The most tokens of an answer: where the right one is known, and elsewhere."""
SHORT_REQUEST = "Answer with the name alone."
"""Said after each question with a known answer."""
ROLES = ("system", "user", "assistant")
_ITEM = re.compile(r"Q: (.+)\nA:\s*", re.DOTALL)
"""The prompts of the tasks that Thrifty fetches."""


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a user's message, and its accepted answers, if known."""

    messages: tuple[tuple[str, str], ...]
    """Roles and texts."""
    answers: tuple[str, ...] = ()

    @property
    def max_tokens(self) -> int:
        """The most tokens of an answer."""
        return SHORT_TOKENS if self.answers else LONG_TOKENS

    @property
    def text(self) -> str:
        """What is asked; of a conversation, all messages with their roles."""
        if len(self.messages) == 1:
            return self.messages[0][1]
        return "\n".join(f"{role}: {text}" for role, text in self.messages)

    @property
    def request(self) -> dict[str, Any]:
        """The fields of the request: greedy decoding, and a bounded answer."""
        messages = [{"role": role, "content": text} for role, text in self.messages]
        if self.answers:
            messages[-1]["content"] += f" {SHORT_REQUEST}"
        return {"messages": messages, "temperature": 0, "max_tokens": self.max_tokens}


def _ask(*texts: str, system: str | None = None) -> Question:
    """A question; with several texts, the turns of a conversation."""
    turns = [(ROLES[1 + number % 2], text) for number, text in enumerate(texts)]
    return Question((*([("system", system)] if system else []), *turns))


TWENTY = (
    _ask("Why is the sky blue?"),
    _ask("What is the largest planet in our solar system, and what is it made of?"),
    _ask("Who was Marie Curie?"),
    _ask("Explain to a ten-year-old how a vaccine works."),
    _ask("What is the difference between weather and climate?"),
    _ask("How does a refrigerator keep food cold?"),
    _ask("List five foods that are rich in protein."),
    _ask("Give me three tips for falling asleep faster."),
    _ask("Write a recipe for pancakes, with numbered steps."),
    _ask("Write a Python function that returns the larger of two numbers."),
    _ask("Write an SQL query that counts the rows of the table orders."),
    _ask("What is 17 plus 25?"),
    _ask("A train travels 60 kilometers in one hour. How far does it travel in three hours?"),
    _ask(
        "Rewrite this sentence in a polite and formal way: "
        "send me the report by friday or else we have a problem"
    ),
    _ask(
        "Summarize in one sentence: The museum opened in 1912 in a former railway station. It "
        "burned down in 1954 and was rebuilt within three years. Today half a million people visit "
        "its collection of maps and ships every year."
    ),
    _ask("Translate into French: Good morning, how are you?"),
    _ask("Write a short poem about rain in the city."),
    _ask("Write an email to my landlord about a broken heater."),
    _ask(
        "What is the tallest mountain in the world?",
        "Mount Everest is the tallest mountain in the world. It stands in the Himalayas.",
        "Who climbed it first?",
    ),
    _ask(
        "How do I boil an egg?",
        system="You are a cook. Answer in at most two sentences.",
    ),
)  # fmt: skip
"""The questions whose answers every report shows."""


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The questions of a file, each once. Raises `EvaluationError` with the line at fault."""
    found: dict[Question, None] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            found[parse_question(line, f"{path}, line {number}")] = None
            if limit is not None and len(found) >= limit:
                break
    if not found:
        raise EvaluationError(f"{path} contains no questions")
    return list(found)


def parse_question(line: str, where: str) -> Question:
    """The question in a line of JSON; `where` begins errors. Raises `EvaluationError`."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise EvaluationError(f"{where}: not a line of JSON") from None
    if not isinstance(record, dict):
        raise EvaluationError(f"{where}: not a JSON object")
    answers = record.get("answers", [])
    if not isinstance(answers, list) or not all(isinstance(a, str) and a.strip() for a in answers):
        raise EvaluationError(f"{where}: 'answers' must be a list of strings that are not empty")
    messages = record.get("messages")
    if messages is None:
        asked = record.get("question", record.get("prompt"))
        if not isinstance(asked, str) or not asked.strip():
            raise EvaluationError(f"{where}: a question has 'question' or 'messages'")
        item = _ITEM.fullmatch(asked)
        return Question((("user", item[1] if item else asked),), tuple(answers))
    return Question(_read_messages(messages, where), tuple(answers))


def _read_messages(messages: Any, where: str) -> tuple[tuple[str, str], ...]:
    found = []
    for message in messages if isinstance(messages, list) else []:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES or not isinstance(message.get("content"), str):
            raise EvaluationError(
                f"{where}: a message has a 'role' ({', '.join(ROLES)}) and a 'content' of text"
            )
        found.append((role, message["content"]))
    if not found or found[-1][0] != "user":
        raise EvaluationError(f"{where}: 'messages' must be a list that ends with one of the user")
    return tuple(found)


def digest_questions(questions: Sequence[Question]) -> str:
    """A checksum of the questions as they are asked, and of their accepted answers."""
    asked = [[question.request, *question.answers] for question in questions]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
