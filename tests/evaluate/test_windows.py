"""Held-out text as windows of tokens."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.engines.echo.backend import make_tokenizer
from thrifty.errors import EvaluationError
from thrifty.evaluate import windows
from thrifty.evaluate.windows import MIN_TOKENS, digest_file, read_windows

TOKENIZER = make_tokenizer()


def test_windows_are_the_text_one_behind_the_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefghij" * 25)
    found = list(read_windows(path, TOKENIZER, 100))
    assert [len(tokens) for tokens in found] == [100, 100, 50]
    assert bytes(np.concatenate(found).tolist()) == path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 700), length=st.integers(2, 120), limit=st.none() | st.integers(1, 800))
def test_no_token_is_read_twice_and_few_are_left_out(
    tmp_path_factory: pytest.TempPathFactory, size: int, length: int, limit: int | None
) -> None:
    path = tmp_path_factory.mktemp("w") / "a.txt"
    text = bytes(97 + i % 26 for i in range(size))
    path.write_bytes(text)
    found = []
    with contextlib.suppress(EvaluationError):
        found = list(read_windows(path, TOKENIZER, length, limit))
    if not found:
        assert min(size, limit or size) < max(MIN_TOKENS, length)
        return
    joined = bytes(np.concatenate(found).tolist())
    assert text.startswith(joined)
    most = min(size, limit or size)
    assert most - max(MIN_TOKENS, 0) < len(joined) <= most
    assert all(len(tokens) <= length for tokens in found)


def test_long_text_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "PIECE_CHARS", 64)
    path = tmp_path / "a.txt"
    lines = [f"line number {i} of the text" for i in range(200)]
    path.write_text("\n".join(lines))
    assert len(list(windows.read_texts(path))) > 50
    found = np.concatenate(list(read_windows(path, TOKENIZER, 100)))
    assert path.read_bytes().startswith(bytes(found.tolist()))
    assert len(found) > path.stat().st_size - MIN_TOKENS


def test_lines_of_json_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [{"text": "one " * 20}, {"passage": "two " * 20}, {"content": "three " * 20}]
    path.write_text("".join(json.dumps(record) + "\n\n" for record in records))
    text = bytes(np.concatenate(list(read_windows(path, TOKENIZER, 1000))).tolist()).decode()
    assert text == "".join("".join(record.values()) + "\n\n" for record in records)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"too short", "has 9 tokens; at least 32"),
        ("a.txt", b"", "has 0 tokens"),
        ("a.txt", b"\xff\xfe" * 100, "not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{nonsense\n', "line 2: not a line of JSON"),
        ("a.jsonl", b'{"body": "a"}\n', "line 1: no text in any of the fields text"),
        ("a.jsonl", b"[" * 100_000, "line 1: not a line of JSON"),
        ("a.jsonl", b"17\n", "no text"),
        ("a.jsonl", b'{"text": "a\\ud800"}\n', "line 1: half of a surrogate pair"),
    ],
)
def test_text_that_cannot_be_used_is_told_of(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EvaluationError, match=message):
        list(read_windows(tmp_path / name, TOKENIZER, 100))


def test_text_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    for read in (lambda p: list(read_windows(p, TOKENIZER, 100)), digest_file):
        with pytest.raises(EvaluationError, match=r"none\.txt cannot be read: No such file"):
            read(tmp_path / "none.txt")
