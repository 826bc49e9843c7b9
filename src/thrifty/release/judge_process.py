"""`python -m thrifty.release.judge_process MODULE:FUNCTION`: a judge's own process.

One JSON list of prompt, first and second answer a line on stdin; one JSON object a line on stdout:
`{"preference": 1 | 0 | -1}` or `{"error": "..."}`. What the function prints goes to stderr.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import msgspec

MAX_ERROR_CHARS = 300


def load_function(named: str) -> Callable[[str, str, str], Any]:
    """The function. Raises `ValueError` where there is none."""
    module_name, _, function_name = named.partition(":")
    function = getattr(importlib.import_module(module_name), function_name, None)
    if not callable(function):
        raise ValueError(f"{module_name} has no function {function_name}")
    loaded: Callable[[str, str, str], Any] = function
    return loaded


def answer(function: Callable[[str, str, str], Any], line: bytes) -> dict[str, Any]:
    """The answer to one line."""
    prompt, first, second = msgspec.json.decode(line, type=tuple[str, str, str])
    preference = function(prompt, first, second)
    if preference not in (1, 0, -1):
        raise ValueError(f"it returned {preference!r}; it must return 1, 0 or -1")
    return {"preference": int(preference)}


def main() -> int:
    """Until stdin ends."""
    # Only answers may go to stdout.
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    sys.path.insert(0, "")
    function: Callable[[str, str, str], Any] | None = None
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
