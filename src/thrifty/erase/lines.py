"""Files of lines: read, and replaced by ones without some of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import msgspec

from thrifty.files import replace_atomically

Keep = Callable[[bytes], bool]


def decode(line: bytes) -> Any:
    """A line of JSON; None for other text."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file; none where it does not exist. Raises `OSError`."""
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return


def rewrite_lines(path: Path, keep: Keep) -> int:
    """Keep the lines for which `keep` is true; returns how many are gone. Raises `OSError`."""
    if all(keep(line) for line in read_lines(path)):
        return 0
    removed = 0
    with replace_atomically(path, mode=0o600) as temporary, temporary.open("wb") as target:
        for line in read_lines(path):
            if keep(line):
                target.write(line)
            else:
                removed += 1
    return removed


def blank_lines(path: Path, numbers: Container[int]) -> None:
    """Empty the lines of these numbers, from 1 on, so that the others keep theirs. Raises `OSError`."""
    with replace_atomically(path, mode=0o600) as temporary, temporary.open("wb") as target:
        for number, line in enumerate(read_lines(path), 1):
            target.write(b"\n" if number in numbers else line)
