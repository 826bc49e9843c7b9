"""Cheap detectors: what is wrong with one answer, without a model and without understanding it.

Each detector says whether it found its fault, or that it does not apply (None): the share of a fault
is among the answers that its detector applies to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.evaluate.answer_faults import is_empty, is_loop
from thrifty.evaluate.answer_forms import fits_schema
from thrifty.evaluate.refusals import is_refusal
from thrifty.quality.language import differs

EMPTY, LOOP, REFUSAL, TRUNCATED, FORMAT, SCHEMA, LANGUAGE, SHORT, LONG = (
    "empty", "loop", "refusal", "truncated", "format", "schema", "language", "short", "long",
)  # fmt: skip
FAULTS = {
    EMPTY: "it says nothing",
    LOOP: "it repeats itself",
    REFUSAL: "it begins with a refusal",
    TRUNCATED: "it ended at its limit of tokens",
    FORMAT: "JSON was asked for, or a tool called, and it is none",
    SCHEMA: "it is JSON, and does not fit the schema that was asked for",
    LANGUAGE: "it is in another language than the question",
    SHORT: "it is shorter than 99 of 100 answers of the days before",
    LONG: "it is longer than 99 of 100 answers of the days before",
}
"""What is looked for. The order is that of the bits in `answer_checks`; new ones come last."""
WITHOUT_TEXTS = (EMPTY, TRUNCATED, SHORT, LONG)
"""What the request log alone tells."""
MAX_LOOP_CHARS = 8000
"""Of the end of an answer: a loop is there, and the search takes time."""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """An answer as the detectors see it. Texts are None where they are not kept."""

    completion_tokens: int | None
    max_tokens: int | None
    asked: str | None = None
    """The last message of the user."""
    choices: Sequence[Message] | None = None
    wanted: Any = None
    """The request's `response_format`."""
    finish: Sequence[str | None] = ()
    usual: tuple[float, float] | None = None
    """The tokens that 1 and 99 of 100 answers of the days before had at most."""


def detect(seen: Seen) -> dict[str, bool | None]:
    """For each of `FAULTS`, whether the answer has it; None where that cannot be said."""
    found: dict[str, bool | None] = dict.fromkeys(FAULTS)
    found[TRUNCATED] = _is_truncated(seen)
    tokens = seen.completion_tokens
    if tokens is not None:
        found[EMPTY] = tokens == 0
        if seen.usual is not None:
            found[SHORT], found[LONG] = tokens < seen.usual[0], tokens > seen.usual[1]
    if seen.choices is not None:
        found |= _detect_in_text(seen, seen.choices)
    return found


def encode_faults(found: Mapping[str, bool | None]) -> int:
    """The faults that were found, as bits."""
    return sum(1 << place for place, name in enumerate(FAULTS) if found.get(name))


def decode_faults(bits: int) -> list[str]:
    """The names of the faults in bits."""
    return [name for place, name in enumerate(FAULTS) if bits >> place & 1]


def _is_truncated(seen: Seen) -> bool | None:
    if any(one is not None for one in seen.finish):
        return "length" in seen.finish
    if seen.completion_tokens is None or seen.max_tokens is None:
        return None
    return seen.completion_tokens >= seen.max_tokens


def _detect_in_text(seen: Seen, choices: Sequence[Message]) -> dict[str, bool | None]:
    said = [str(one.get("content") or "") for one in choices]
    calls = [call for one in choices for call in one.get("tool_calls") or ()]
    refused = any(one.get("refusal") for one in choices)
    text = "\n".join(said)
    found: dict[str, bool | None] = {
        EMPTY: not calls and not refused and is_empty(text),
        REFUSAL: refused or is_refusal(text),
    }
    found |= dict(zip((FORMAT, SCHEMA), _check_form(seen.wanted, said, calls), strict=True))
    if text.strip():
        found[LOOP] = any(is_loop(one[-MAX_LOOP_CHARS:]) for one in said)
        if seen.asked is not None and found[FORMAT] is None:
            found[LANGUAGE] = differs(seen.asked, text)
    return found


def _check_form(
    wanted: Any, said: Sequence[str], calls: Sequence[Message]
) -> tuple[bool | None, bool | None]:
    """Whether what should be JSON is none, and whether it does not fit its schema."""
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    texts = [str(call.get("function", {}).get("arguments") or "{}") for call in calls]
    schema = None
    if kind in ("json_object", "json_schema") and not calls:
        texts = list(said)
        given = wanted.get("json_schema")
        schema = given.get("schema") if isinstance(given, dict) else None
    if not texts:
        return None, None
    try:
        values = [json.loads(text) for text in texts]
    except (ValueError, RecursionError):
        return True, None
    if schema is None:
        return False, None
    fits = [fits_schema(value, schema) for value in values]
    return False, None if None in fits else not all(fits)
