"""Keeps text that clients send from becoming control tokens.

A tokenizer takes `<|im_end|>` for the end of a turn wherever it stands, so that a quoted web page
could end the user's turn and give instructions as the system. Every such spelling in what a client
sent is cut by a mark before the template is rendered; the prompt is tokenized in the pieces between
the marks, in none of which the spelling is whole. The text stays the same, and a conversation
without such spellings is tokenized as a whole.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Any

MARK_DIGITS = 24


class ControlTokens:
    """The spellings of a tokenizer's control tokens."""

    def __init__(self, spellings: Iterable[str]) -> None:
        # A cut is behind the first character, so a spelling of one cannot be cut.
        wanted = sorted({spelling for spelling in spellings if len(spelling) > 1})
        # Spellings may overlap: each match is only the character that one begins with.
        self._pattern = re.compile(f"(?={_join(wanted)}).", re.DOTALL) if wanted else None

    def occur_in(self, value: Any) -> bool:
        """Whether a string in `value` (of JSON) holds one."""
        pattern = self._pattern
        if pattern is None:
            return False
        if isinstance(value, str):
            return pattern.search(value) is not None
        if isinstance(value, dict):
            return any(self.occur_in(k) or self.occur_in(v) for k, v in value.items())
        return isinstance(value, list) and any(map(self.occur_in, value))

    def cut(self, value: Any, mark: str) -> Any:
        """`value` with `mark` within each spelling."""
        pattern = self._pattern
        if pattern is None:
            return value
        if isinstance(value, str):
            return pattern.sub(lambda found: found[0] + mark, value)
        if isinstance(value, dict):
            return {self.cut(k, mark): self.cut(v, mark) for k, v in value.items()}
        return [self.cut(item, mark) for item in value] if isinstance(value, list) else value


def make_mark() -> str:
    """Text that no client can foresee. Digits, because templates change no digits."""
    return f"{secrets.randbelow(10**MARK_DIGITS):0{MARK_DIGITS}d}"


def _join(spellings: list[str]) -> str:
    """A pattern that finds any of these sorted texts, the longest first, in one pass. It branches
    by characters, so that many tokens cost no more than one.
    """
    branches: dict[str, list[str]] = {}
    for text in spellings:
        branches.setdefault(text[:1], []).append(text[1:])
    optional = bool(branches.pop("", None))
    parts = [re.escape(first) + _join(rests) for first, rests in branches.items()]
    if not parts:
        return ""
    joined = parts[0] if len(parts) == 1 and not optional else f"(?:{'|'.join(parts)})"
    return f"{joined}?" if optional else joined
