"""The token ids of an answer, completed where llama.cpp's stream leaves some out.

llama.cpp streams text: a token that ends within a character is held back, and the event that
completes the character names only the last token. The bytes of those before it are known, which in
nearly every case leaves one possibility. Bytes that are no UTF-8 arrive as U+FFFD, and are told as the
tokens of that character.
"""

from __future__ import annotations

from thrifty.text.tokenizer import TextTokenizer
from thrifty.text.vocabulary import read_vocabulary


class TokenBytes:
    """The bytes of a model's tokens, both ways."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = read_vocabulary(tokenizer.tokenizer, tokenizer.vocabulary_size)
        self._ids: dict[bytes, int] = {}
        for index, data in enumerate(self._bytes):
            self._ids.setdefault(data, index)

    def complete(self, last: int, text: str) -> list[int]:
        """All tokens of an event that has `text` and names only the `last` of them."""
        data = text.encode()
        own = self._bytes[last] if last < len(self._bytes) else b""
        if len(data) <= len(own) or not data.endswith(own):
            return [last]  # also a control token, which has no text
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if ids and ids[-1] == last:
            return ids
        return [*(self._cut(data[: len(data) - len(own)]) or ids[:-1]), last]

    def _cut(self, data: bytes) -> list[int] | None:
        """`data` as tokens, the longest first; None where there are none. It is a part of one
        character, or of few.
        """
        if not data:
            return []
        for length in range(min(len(data), 16), 0, -1):
            first = self._ids.get(data[:length])
            if first is None:
                continue
            rest = self._cut(data[length:])
            if rest is not None:
                return [first, *rest]
        return None
