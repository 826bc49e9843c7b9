"""Grammars as llama.cpp reads them, from the EBNF that the server writes.

llama.cpp's notation (GBNF) has no look-ahead, which only helps other engines to compile, fewer
escapes in classes, and no free text before a trigger: for that it has grammars that begin to hold
when the trigger has been generated.

https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import json
import re
from typing import Any

from thrifty.engines.server.backend import Grammar

_AHEAD = re.compile(r" \(=r\d+\)$", re.MULTILINE)
_DISPATCH = re.compile(
    r'^(r\d+) ::= TagDispatch\(\(("[^"]*"), (r\d+)\), loop_after_dispatch=(true|false)\)$',
    re.MULTILINE,
)
_ESCAPES = {r"\-": r"\x2D", r"\^": r"\x5E"}
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
WORD = 1
"""llama.cpp's number of the triggers that are words."""


def translate(grammar: Grammar) -> dict[str, Any]:
    """What a request to llama.cpp says of a grammar."""
    text = _AHEAD.sub("", grammar.text)
    text = _ESCAPE.sub(lambda found: _ESCAPES.get(found[0], found[0]), text)
    found = _DISPATCH.search(text)
    if found is None:
        return {"grammar": text}
    name, trigger, rule, repeats = found.groups()
    # Behind the first trigger only further ones may come, with at most two spaces between them.
    again = f" ([\\n ]? [\\n ]? {trigger} {rule})*" if repeats == "true" else ""
    text = _DISPATCH.sub(lambda _: f"{name} ::= {trigger} {rule}{again}", text)
    word = json.loads(trigger)
    return {
        "grammar": text,
        "grammar_lazy": True,
        "grammar_triggers": [{"type": WORD, "value": word}],
        "preserved_tokens": [word],
    }
