"""Ids that are unique and cheap: a random prefix per process, and a counter.

`uuid4` asks the kernel for random bytes every time, which costs more than the rest of a cached
answer.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import string
from collections.abc import Mapping

_process = os.urandom(9).hex()
_numbers = itertools.count(1)
_CALL_ALPHABET = string.ascii_letters + string.digits
_GIVEN = re.compile(rb"[A-Za-z0-9_-]{1,64}")


def new_id() -> str:
    """28 hexadecimal digits, unique among all processes."""
    return f"{_process}{next(_numbers):010x}"


def new_call_id() -> str:
    """The id of a tool call: nine letters and digits, which every known chat template takes."""
    return "".join(secrets.choice(_CALL_ALPHABET) for _ in range(9))


def read_response_id(headers: Mapping[bytes, bytes]) -> str:
    """The response id that the caller chose in `x-request-id`, or a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _GIVEN.fullmatch(given):
        return given.decode()
    return new_id()
