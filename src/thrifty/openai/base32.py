"""Crockford's base 32 in lower case, of a fixed width: it sorts as the numbers do, and has no
letters that look like digits.

https://www.crockford.com/base32.html. Decoding is strict: a number has exactly one text.
"""

from __future__ import annotations

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
PAIRS = tuple(high + low for high in ALPHABET for low in ALPHABET)
"""The two characters of each 10-bit number."""

_PYTHON_DIGITS = str.maketrans(ALPHABET, "0123456789abcdefghijklmnopqrstuv")


def encode(number: int, width: int) -> str:
    """`width` characters for a number below 32 to the power of `width`."""
    return "".join(ALPHABET[(number >> shift) & 31] for shift in range(5 * (width - 1), -1, -5))


def decode(text: str) -> int | None:
    """The number that `encode` wrote; None where the text holds anything else."""
    if not text or text.strip(ALPHABET):
        return None
    return int(text.translate(_PYTHON_DIGITS), 32)
