"""The text that a model learns from: a mix of sources with weights, read as windows of tokens.

A source is plain text, conversations (`messages`), or prompts. Conversations are rendered by the
model's own chat template. Each source is read as a stream, in the order of its file: the windows
are the same in every run, and memory holds only a piece of the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.artifacts import Artifact, Store
from thrifty.data import SETS
from thrifty.engines.server.prompt import build_prompt
from thrifty.engines.server.tools import parse_tools
from thrifty.errors import CompressionError, EvaluationError
from thrifty.evaluate import conversations
from thrifty.evaluate.answers import is_chat_model
from thrifty.evaluate.conversations import render_conversation
from thrifty.evaluate.suite import describe_missing, find_data
from thrifty.evaluate.windows import (
    TEXT_FIELDS,
    TokenArray,
    TokenWindow,
    count_all,
    digest_file,
    read_windows,
)
from thrifty.openai.errors import WireError
from thrifty.spec.compress import parse_source
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress, ignore_progress

Record = dict[str, Any]

PROMPT_FIELDS = ("prompt", "instruction", "question")
"""A record with one of these fields is what a user says."""
CONVERSATIONS, PROMPTS, TEXT = "conversations", "prompts", "text"
PASSAGES = "passages"
DEFAULT_TEXT = (PASSAGES,)
CHAT_TEXT = (
    "chat-learn=0.35", "questions-learn=0.2", "passages=0.2", "web-learn=0.1", "code-learn=0.15",
)  # fmt: skip
"""What chat models learn from by default: over half of it are conversations. In the model that
motivated it, two thirds of what was learned were answers (see docs/compression.md)."""


@dataclass(frozen=True)
class Source:
    """One part of a mix."""

    name: str
    """The domain's name in reports."""
    path: Path
    sha256: str
    weight: float = 1.0
    """Its share of the tokens, relative to the other sources."""
    left_out: frozenset[int] = frozenset()
    """The lines that are not read, because models are judged by them."""

    def read(self) -> Iterator[tuple[Record, str]]:
        """The records of a `.jsonl` file that are not left out, and where each stands."""
        for record, where in read_records(self.path):
            if not self.left_out or find_line(where) not in self.left_out:
                yield record, where

    @property
    def kind(self) -> str:
        """`conversations`, `prompts` or `text`, by the first record."""
        if self.path.suffix != ".jsonl":
            return TEXT
        record = next(read_records(self.path), ({}, ""))[0]
        if "messages" in record:
            return CONVERSATIONS
        if any(isinstance(record.get(name), str) for name in TEXT_FIELDS):
            return TEXT
        if any(isinstance(record.get(name), str) for name in PROMPT_FIELDS):
            return PROMPTS
        return TEXT


@dataclass(frozen=True)
class Mix:
    """Sources with weights."""

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        """Raise `CompressionError` for no source, a name that is there twice, or a bad weight."""
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names):
            raise CompressionError(
                f"the text must name at least one source, and each once; it names {names}"
            )
        for source in self.sources:
            if not 0 < source.weight < float("inf"):
                raise CompressionError(
                    f"the weight of {source.name} must be above 0, not {source.weight:g}"
                )

    @property
    def name(self) -> str:
        """Its name in reports."""
        return ", ".join(source.name for source in self.sources)

    @property
    def sha256(self) -> str:
        """A checksum of all texts and weights; that of the file for a single source."""
        if len(self.sources) == 1:
            return self.sources[0].sha256
        facts = [[one.name, one.sha256, round(self.share(one), 9)] for one in self.sources]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def share(self, source: Source) -> float:
        """The part of all tokens that comes from a source, 0 to 1."""
        return source.weight / sum(one.weight for one in self.sources)


Text = Path | Mix
"""What a stage learns from: a file, or a mix."""


def as_mix(text: Text) -> Mix:
    """A mix of one file, or the mix itself. Raises `EvaluationError` if the file cannot be read."""
    if isinstance(text, Mix):
        return text
    return Mix((Source(text.stem, text, digest_file(text)),))


def describe_missing_text(named: str) -> str | None:
    """What is wrong with one source as it is named; None if it can be learned from."""
    name, weight = parse_source(named)
    if not 0 < weight < float("inf"):
        return f"has the weight {weight:g}; it must be above 0"
    if missing := describe_missing(name):
        return missing
    if name in SETS and SETS[name].kind in ("questions", "pairs"):
        return f"holds {SETS[name].kind}, not text"
    return None


def find_mix(
    named: Sequence[str], data: Path, store: Store, on_progress: OnProgress = ignore_progress
) -> Mix:
    """The mix of sets and files as they are named, fetched to `data` if they are not there. Blocks.

    Raises `CompressionError`, `EvaluationError` and `SourceError`.
    """
    sources = []
    for one in named:
        if problem := describe_missing_text(one):
            raise CompressionError(f"{one!r} {problem}")
        name, weight = parse_source(one)
        found = find_data(name, data, store, on_progress)
        sources.append(Source(found.name, found.path, found.sha256, weight))
    return Mix(tuple(sources))


def choose_text(store: Store, artifact: Artifact) -> tuple[str, ...]:
    """What a model learns from by default: a mix for chat models, else passages."""
    return CHAT_TEXT if is_chat_model(store, artifact) else DEFAULT_TEXT


def read_mix(
    text: Text, tokenizer: TextTokenizer, length: int, limit: int
) -> Iterator[tuple[str, TokenWindow]]:
    """Yield windows of at most `length` tokens with their domains, at most `limit` tokens in total.

    The source that is furthest behind its share comes next; one that ends leaves its share to the
    others. Raises `EvaluationError` for a record that cannot be read or rendered.
    """
    mix = as_mix(text)
    streams = {one.name: read_source(one, tokenizer, length, limit) for one in mix.sources}
    shares = {one.name: mix.share(one) for one in mix.sources}
    taken = dict.fromkeys(streams, 0)
    room = limit
    while streams:
        name = min(streams, key=lambda one: taken[one] / shares[one])
        window = next(streams[name], None)
        if window is None or len(window.tokens) > room:
            del streams[name]
            continue
        taken[name] += len(window.tokens)
        room -= len(window.tokens)
        yield name, window


def read_tokens(
    text: Text, tokenizer: TextTokenizer, length: int, limit: int
) -> Iterator[TokenArray]:
    """The tokens of `read_mix`. Raises `CompressionError` if there are none."""
    found = False
    for _, window in read_mix(text, tokenizer, length, limit):
        found = True
        yield window.tokens
    if not found:
        raise CompressionError(f"{as_mix(text).name} holds no text within {limit} tokens")


def read_source(
    source: Source, tokenizer: TextTokenizer, length: int, limit: int | None = None
) -> Iterator[TokenWindow]:
    """Yield the windows of one source, of at most `length` tokens.

    Conversations and prompts have a window each. `limit` bounds the tokens of plain text. Raises
    `EvaluationError` for a record that cannot be read, and `CompressionError` for one that the
    model's template does not take.
    """
    if source.kind == TEXT:
        yield from map(count_all, read_windows(source.path, tokenizer, length, limit))
        return
    for record, where in source.read():
        try:
            window = _render(record, tokenizer, length)
        except WireError as error:
            raise CompressionError(f"{where}: {error.message}") from None
        if window is not None:
            yield window


def _render(record: Record, tokenizer: TextTokenizer, length: int) -> TokenWindow | None:
    if "messages" in record:
        return render_conversation(record, tokenizer, length)
    messages = read_prompt(record)
    if messages is None:
        return None
    ids = build_prompt({"messages": messages}, tokenizer, parse_tools({})).ids[:length]
    return TokenWindow(np.array(ids, np.int64), np.zeros(len(ids) - 1, np.bool_))


def read_prompt(record: Record) -> list[Record] | None:
    """What the user of a record says, as messages up to the first answer; None if nothing."""
    messages = record.get("messages")
    if messages is None:
        said = next((record[f] for f in PROMPT_FIELDS if isinstance(record.get(f), str)), "")
        return [{"role": "user", "content": said}] if said.strip() else None
    first = next((n for n, one in enumerate(messages) if one.get("role") == "assistant"), None)
    asked: list[Record] = messages[:first]
    return asked if any(one.get("role") == "user" for one in asked) else None


def find_line(where: str) -> int:
    """The number of a line, of where it stands."""
    return int(where.rpartition(" ")[2])


def read_records(path: Path) -> Iterator[tuple[Record, str]]:
    """The objects of a `.jsonl` file, and where each stands. Raises `CompressionError`."""
    try:
        for record, where in conversations.read_records(path):
            messages = record.get("messages", [])
            if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
                raise CompressionError(f"{where}: 'messages' must be a list of messages")
            yield record, where
    except EvaluationError as error:
        raise CompressionError(str(error)) from None
