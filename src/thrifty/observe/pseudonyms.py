"""Pseudonyms of personal data, and how much is looked at to find them."""

from __future__ import annotations

import string
from enum import StrEnum
from hashlib import blake2b

from thrifty.observe.number_kinds import make_plain

_LETTERS = string.ascii_lowercase
HASH_LETTERS = 8


class Kind(StrEnum):
    """The kinds of what is replaced."""

    EMAIL = "EMAIL"
    PHONE = "PHONE"
    CARD = "CARD"
    IBAN = "IBAN"
    ID = "ID"
    IP = "IP"
    SECRET = "SECRET"  # noqa: S105
    NAME = "NAME"
    ADDRESS = "ADDRESS"


MAX_LOOKS = 50_000
"""So many times numbers of texts that belong together are looked at, for 0.3 s; further ones are
replaced unseen."""


class Looks:
    """How often numbers may still be looked at."""

    def __init__(self) -> None:
        self.left = MAX_LOOKS


class Replace:
    """Gives the pseudonym of a value, in the form that is the same however it is written."""

    def __init__(self, state: blake2b, looks: Looks) -> None:
        self._state = state
        self._looks = looks

    def __call__(self, kind: Kind, value: str) -> str:
        """`value`'s pseudonym."""
        own = self._state.copy()
        own.update(f"{kind}\0{value}".encode("utf-8", "surrogatepass"))
        return f"<{kind}_{''.join(_LETTERS[byte % 26] for byte in own.digest())}>"

    def may_look(self) -> bool:
        """Whether one more number may be looked at."""
        self._looks.left -= 1
        return self._looks.left >= 0

    def replace_unseen(self, numbers: str) -> str:
        """The pseudonym of numbers that nobody looks at."""
        return self(Kind.ID, "".join(filter(str.isdigit, make_plain(numbers))))
