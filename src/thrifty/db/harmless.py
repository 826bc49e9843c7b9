"""Makes text from outside fit to be stored, whatever it holds.

NUL cannot be stored in PostgreSQL and ends strings in SQLite's functions; half of a surrogate pair
cannot be encoded. Both become U+FFFD. What is longer than its column is cut.
"""

from __future__ import annotations

REPLACEMENT = "\ufffd"
MAX_TEXT_CHARS = 2_000_000
"""The bound of columns that declare none."""


def make_harmless(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """`text` without what no database stores, cut to `max_chars` characters."""
    if len(text) > max_chars:
        text = text[:max_chars]
    if text.isascii():
        return text.replace("\0", REPLACEMENT) if "\0" in text else text
    try:
        text.encode()
    except UnicodeEncodeError:
        # Two halves that belong together become their character.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", REPLACEMENT)
