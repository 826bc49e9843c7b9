"""Ids that are unique and cheap: random once for the process, then counted.

`uuid4` asks the kernel for random bytes every time, which costs more than the rest of a cached
answer.
"""

from __future__ import annotations

import itertools
import os

_process = os.urandom(9).hex()
_numbers = itertools.count(1)


def new_id() -> str:
    """28 hexadecimal digits, unique among all processes."""
    return f"{_process}{next(_numbers):010x}"
