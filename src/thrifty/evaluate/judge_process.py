"""`python -m thrifty.evaluate.judge_process MODULE:FUNCTION`: a judge's own process.

On stdin, one JSON list a line: a prompt and two answers to compare, or a prompt and one answer to
score. On stdout, one JSON object a line: `{"preference": 1 | 0 | -1}`, `{"score": 0 to 1}` or
`{"error": "..."}`. What the function prints goes to stderr.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import msgspec

MAX_ERROR_CHARS = 300


def load_function(named: str) -> Callable[..., Any]:
    """The function. Raises `ValueError` where there is none."""
    module_name, _, function_name = named.partition(":")
    function = getattr(importlib.import_module(module_name), function_name, None)
    if not callable(function):
        raise ValueError(f"{module_name} has no function {function_name}")
    loaded: Callable[..., Any] = function
    return loaded


def answer(function: Callable[..., Any], line: bytes) -> dict[str, Any]:
    """The answer to one line. Raises `ValueError` where the function returns anything else."""
    texts = msgspec.json.decode(line, type=list[str])
    found = function(*texts)
    if len(texts) == 2:
        if not isinstance(found, int | float) or not 0 <= found <= 1:
            raise ValueError(f"it returned {found!r}; it must return a score from 0 to 1")
        return {"score": float(found)}
    if found not in (1, 0, -1):
        raise ValueError(f"it returned {found!r}; it must return 1, 0 or -1")
    return {"preference": int(found)}


def main() -> int:
    """Until stdin ends."""
    # Only answers may go to stdout.
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    sys.path.insert(0, "")
    function: Callable[..., Any] | None = None
    for line in sys.stdin.buffer:
        try:
            function = function or load_function(sys.argv[1])
            found = answer(function, line)
        except Exception as error:  # whatever the function does, the controller is told
            found = {"error": f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]}
        out.write(msgspec.json.encode(found) + b"\n")
        out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
