"""From the files of a package to the records of a data set.

Conversations become records of `messages` (and `tools`), as in a request; texts and code become
records of `text`; questions become the items that `evaluate.tasks` describes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

Record = dict[str, Any]

PIECE_CHARS = 2000
"""The most characters in a piece of a long text: some 500 tokens."""
_HEADER = re.compile(r"\A(?:\s*(?:/\*.*?\*/|(?://|#(?=[ \n]|!/))[^\n]*\n))+\s*", re.DOTALL)
"""The comments that a source file begins with; `#include` and `#[allow()]` are none."""
_LEGAL = re.compile(r"copyright|licen[sc]e", re.IGNORECASE)
_PAIRED = (("question", "passage"), ("summary", "document"), ("question", "answer"))
"""The fields of a record that hold the texts of a pair; the first second text that a record has."""
_CONTEXT = re.compile(r"^Context \(\d+\): ", re.MULTILINE)
_OPTION = re.compile(r"^([A-Z])\.\s?", re.MULTILINE)
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}


@dataclass(frozen=True)
class Member:
    """One file of a package."""

    source: int
    """The number of the package among those of the data set."""
    name: str
    data: bytes


# Reading


def read_records(members: Sequence[Member]) -> Iterator[Record]:
    """The objects in lines of JSON, or in a JSON array. Raises `ValueError`."""
    for member in members:
        text = member.data.decode("utf-8")
        if member.name.endswith(".json"):
            yield from json.loads(text)
            continue
        for line in text.split("\n"):
            if line.strip():
                yield json.loads(line)


def read_lines(members: Sequence[Member]) -> Iterator[Record]:
    """The pieces of a text that has one article in each line, in a fixed random order."""
    lines = (line for member in members for line in member.data.decode("utf-8").split("\n"))
    yield from shuffle({"text": piece} for line in lines for piece in split_text(line))


def read_code(members: Sequence[Member]) -> Iterator[Record]:
    """The pieces of source files without their licence headers: a piece of each package in turn, in
    a fixed random order. Files that are not text are left out.
    """
    pieces: dict[tuple[int, str], list[Record]] = {}
    for member in members:
        try:
            text = member.data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        kind = (member.source, member.name.rpartition(".")[2])
        pieces.setdefault(kind, []).extend({"text": one} for one in split_text(strip_header(text)))
    turns = zip_longest(*map(shuffle, pieces.values()))
    yield from (piece for piece in chain.from_iterable(turns) if piece is not None)


def strip_header(text: str) -> str:
    """A source file without the comments at its beginning, if they are about rights."""
    found = _HEADER.match(text)
    return text[found.end() :] if found and _LEGAL.search(found.group()) else text


def split_text(text: str) -> Iterator[str]:
    """Pieces of at most `PIECE_CHARS` characters, which end at a blank line, a line or a word."""
    text = text.strip("\n")
    while text.strip():
        cut = len(text)
        if cut > PIECE_CHARS:
            ends = (text.rfind(end, PIECE_CHARS // 2, PIECE_CHARS) for end in ("\n\n", "\n", " "))
            cut = next((end for end in ends if end > 0), PIECE_CHARS)
        yield text[:cut].rstrip()
        text = text[cut:].removeprefix(" ").lstrip("\n")


# Parts of a data set


def shuffle(records: Iterable[Record]) -> list[Record]:
    """The records, each key once, in an order that their content alone decides."""
    found = {_digest(find_key(record)): record for record in records}
    return [record for _, record in sorted(found.items())]


def find_key(record: Record) -> str:
    """What makes a record the same as another one: its text, or what the user says first."""
    messages = record.get("messages")
    if messages is None:
        text: str = record["text"]
    else:
        text = next((m["content"] for m in messages if m["role"] == "user"), "")
    return " ".join(re.findall(r"\w+", text.lower()))


def is_judged(record: Record, share: int) -> bool:
    """Whether a record is among the one in `share` that models are judged by."""
    return int(_digest(find_key(record))[:8], 16) % share == 0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Converting


def convert_choices(records: Iterator[Record]) -> Iterator[Record]:
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


def split_options(text: str) -> dict[str, str]:
    """Options written as `A. one` on separate lines, by their letters."""
    parts = _OPTION.split(text.strip())[1:]
    return {letter: body.strip() for letter, body in zip(parts[::2], parts[1::2], strict=True)}


def convert_yes_no(records: Iterator[Record]) -> Iterator[Record]:
    """Questions about a passage, to be answered with yes or no."""
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


def convert_open(records: Iterator[Record]) -> Iterator[Record]:
    """Questions with short written answers, as items of a task."""
    for record in records:
        answers = [str(answer) for answer in record.get("answer") or ()]
        if answers:
            question = str(record["question"]).strip().rstrip("?")
            yield {"prompt": f"Q: {question}?\nA:", "answers": answers, "stop": ["\n"]}


def convert_passages(records: Iterator[Record]) -> Iterator[Record]:
    """Every passage once."""
    seen: set[int] = set()
    for record in records:
        text = str(record.get("passage", "")).strip()
        if text and hash(text) not in seen:
            seen.add(hash(text))
            yield {"text": text}


def convert_pairs(records: Iterator[Record]) -> Iterator[Record]:
    """Questions with what answers them, and summaries with their articles: `score` is 1. Two
    records of a kind then exchange their second texts: `score` is 0.

    In a fixed random order, the kinds in turn.
    """
    kinds: dict[str, dict[str, tuple[str, str]]] = {}
    for record in records:
        fields, *_ = [one for one in _PAIRED if one[1] in record]
        first = str(record.get(fields[0]) or "").strip()
        second = _CONTEXT.sub("", str(record.get(fields[1]) or "")).strip()
        if first and second:
            kinds.setdefault(fields[1], {})[_digest(first)] = first, second
    ordered = [[pair for _, pair in sorted(found.items())] for found in kinds.values()]
    for place in range(0, min(map(len, ordered), default=0) - 1, 2):
        for pairs in ordered:
            (one, other), (first, second) = pairs[place], pairs[place + 1]
            for texts, score in (
                ((one, other), 1), ((one, second), 0), ((first, second), 1), ((first, other), 0),
            ):  # fmt: skip
                yield {"texts": list(texts), "score": score}


def convert_questions(records: Iterator[Record]) -> Iterator[Record]:
    """Questions with short written answers, as conversations. `answers` are all that are right."""
    for record in records:
        answers = [str(answer).strip() for answer in record.get("answer") or ()]
        question = str(record["question"]).strip().rstrip("?")
        if not question or not answers or not answers[0]:
            continue
        yield {
            "messages": [
                {"role": "user", "content": f"{_capitalize(question)}?"},
                {"role": "assistant", "content": _capitalize(answers[0])},
            ],
            "answers": answers,
        }


def _capitalize(text: str) -> str:
    return text[0].upper() + text[1:]


def convert_chats(records: Iterator[Record]) -> Iterator[Record]:
    """Conversations: those with `conversations` (of which `chosen` is the end), those with
    `messages` that people did not reject, and instructions with one answer.
    """
    for record in records:
        if "instruction" in record:
            told = [record["instruction"], record.get("input") or ""]
            turns = [("user", "\n\n".join(filter(None, told))), ("assistant", record["output"])]
        elif "conversations" in record:
            end = [record["chosen"]] if "chosen" in record else []
            turns = [(one["from"], one["value"]) for one in [*record["conversations"], *end]]
        elif record.get("label", True):
            turns = [(one["role"], one["content"]) for one in record["messages"]]
        else:
            continue
        found: Record = {"messages": list(_write_messages(turns))}
        tools = json.loads(record.get("tools") or "[]")
        if tools:
            found["tools"] = [{"type": "function", "function": tool} for tool in tools]
        yield found


def _write_messages(turns: Sequence[tuple[str, str]]) -> Iterator[Record]:
    calls = 0
    for role, text in turns:
        message: Record = {"role": _ROLES[role], "content": text}
        if role == "function_call":
            calls += 1
            call = json.loads(text)
            arguments = json.dumps(call["arguments"], ensure_ascii=False)
            function = {"name": call["name"], "arguments": arguments}
            asked = {"id": _number(calls), "type": "function", "function": function}
            message |= {"content": None, "tool_calls": [asked]}
        elif role == "observation":
            message["tool_call_id"] = _number(calls)
        yield message


def _number(call: int) -> str:
    return f"call{call:05d}"
