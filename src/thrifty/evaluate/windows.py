"""Held-out text as windows of tokens, read as a stream: memory holds only a piece of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thrifty.errors import EvaluationError
from thrifty.text.tokenizer import TextTokenizer

TokenArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PIECE_CHARS = 1 << 18
"""Plain text is split at the first line end after this many characters."""
TEXT_FIELDS = ("text", "content", "passage")
"""The fields of JSON lines that may contain the text; the first that exists is used."""
MIN_TOKENS = 32
"""A remainder shorter than this is dropped."""


@dataclass(frozen=True)
class TokenWindow:
    """Tokens that a model reads at once, and which of its predictions count."""

    tokens: TokenArray
    """[T]."""
    counted: BoolArray
    """[T - 1]: whether the prediction of the token that follows counts."""


def count_all(tokens: TokenArray) -> TokenWindow:
    """A window of which every prediction counts."""
    return TokenWindow(tokens, np.ones(len(tokens) - 1, np.bool_))


def read_texts(path: Path) -> Iterator[str]:
    """The pieces of a text file, or the texts of a `.jsonl` file. Raises `EvaluationError`."""
    try:
        with path.open(encoding="utf-8", errors="strict", newline="") as file:
            if path.suffix == ".jsonl":
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _read_record(line, f"{path}, line {number}") + "\n\n"
                return
            while piece := file.read(PIECE_CHARS):
                yield piece + file.readline()
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from None


def _read_record(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise EvaluationError(f"{where}: not a line of JSON") from None
    if isinstance(record, dict):
        for name in TEXT_FIELDS:
            if isinstance(record.get(name), str):
                text: str = record[name]
                if "\\u" in line and text.encode(errors="replace").decode() != text:
                    raise EvaluationError(f"{where}: half of a surrogate pair is not a character")
                return text
    raise EvaluationError(f"{where}: no text in any of the fields {', '.join(TEXT_FIELDS)}")


def read_windows(
    path: Path, tokenizer: TextTokenizer, length: int, limit: int | None = None
) -> Iterator[TokenArray]:
    """Yield consecutive windows of `length` tokens, at most `limit` tokens in total.

    If the tokenizer begins every text with a special token, each window begins with it. The last
    window may be shorter. Raises `EvaluationError` if the text does not fill one window.
    """
    start = tokenizer.encode("")[:1]
    step = length - len(start)
    rest: list[int] = []
    taken = 0
    for text in read_texts(path):
        rest += tokenizer.encode(text, add_special_tokens=False)
        while len(rest) >= step:
            size = step if limit is None else min(step, limit - taken)
            if size >= MIN_TOKENS or (size == step and size > 1):
                yield np.array(start + rest[:size], dtype=np.int64)
                taken += size
            if limit is not None and taken + MIN_TOKENS > limit:
                return
            rest = rest[step:]
    if limit is not None:
        rest = rest[: limit - taken]
    if len(rest) >= MIN_TOKENS:
        yield np.array(start + rest, dtype=np.int64)
    elif not taken:
        raise EvaluationError(
            f"{path} has {len(rest)} tokens; at least {MIN_TOKENS} are needed for one window"
        )


def digest_file(path: Path) -> str:
    """The SHA-256 of a file. Raises `EvaluationError` if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()
