"""What a user did next, told from the messages of two requests of one conversation.

Clients send the whole conversation with each request, so a request shows what became of the answer
before it: it was asked for again, the question was put in other words, the answer was corrected, or
the conversation went on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.evaluate.answer_faults import find_stems

REGENERATED, REPHRASED, CORRECTED, CONTINUED = (
    "regenerated", "rephrased", "corrected", "continued",
)  # fmt: skip
KINDS = {
    REGENERATED: "the same was asked again",
    REPHRASED: "it was asked again in other words",
    CORRECTED: "the user said that it is wrong, or changed the answer",
    CONTINUED: "the conversation went on",
}
ALIKE = 0.6
"""The share of telling words in common (Jaccard) from which on one question is another one in other
words. "The capital of Spain" shares only half of its words with "the capital of France"."""
LEAST_WORDS = 2
"""Telling words of each question: shorter ones are only alike where they are the same."""
_CORRECTION = re.compile(
    r"\A\W*(?:no[,.! ]+(?:that|it|this|you|i (?:said|meant|asked))|nope\b|"
    r"(?:that|this|it)(?:'s| is| was) (?:not (?:right|correct|true|what)|wrong|incorrect|false)|"
    r"(?:you|your (?:answer|code|reply|response)) (?:(?:is|are) (?:wrong|incorrect|mistaken)|"
    r"misunderstood|made (?:a|an) (?:mistake|error)|got (?:it|that) wrong)|"
    r"(?:wrong|incorrect)\b|not what i (?:asked|meant|wanted|said)|i (?:said|meant|asked for)\b|"
    r"(?:actually|sorry),? (?:it|that|this)(?:'s| is)|"
    r"(?:nein|falsch|das (?:ist|stimmt) (?:falsch|nicht))\b|non[,.!]|c'est faux\b|"
    r"(?:no es|eso no|incorrecto)\b)",
    re.IGNORECASE,
)
"""How users begin who correct an answer; most are English."""

Message = Mapping[str, Any]


def compare_requests(
    before: Sequence[Message], answer: Sequence[Message], now: Sequence[Message]
) -> str | None:
    """One of `KINDS`; None where the second request does not follow the first.

    Args:
        before: The messages of the earlier request.
        answer: Its answer, one message for each choice.
        now: The messages of the later request.
    """
    old, new = [_read(one) for one in before], [_read(one) for one in now]
    if not old or not new:
        return None
    if old == new:
        return REGENERATED
    if len(new) > len(old) and new[: len(old)] == old:
        return _compare_continued(old, answer, new[len(old) :])
    if len(new) == len(old) and new[:-1] == old[:-1] and new[-1][0] == old[-1][0] == "user":
        # The question was edited, and the answer with it is gone.
        return REPHRASED
    return None


def is_correction(text: str) -> bool:
    """Whether a message begins as one that says that the answer before is wrong."""
    return _CORRECTION.match(text.replace("\u2019", "'")) is not None


def are_alike(first: str, second: str) -> bool:
    """Whether two questions are one in other words, or in the same."""
    one, other = find_stems(first), find_stems(second)
    if min(len(one), len(other)) < LEAST_WORDS:
        return first.strip().lower() == second.strip().lower()
    return len(one & other) >= ALIKE * len(one | other)


def _compare_continued(
    old: Sequence[tuple[str, str]], answer: Sequence[Message], rest: Sequence[tuple[str, str]]
) -> str | None:
    if rest[0][0] != "assistant":
        return None
    said = {_read(one)[1].strip() for one in answer}
    if rest[0][1].strip() not in said and len(said) == 1 and rest[0][1].strip() and "" not in said:
        return CORRECTED
    asked = [text for role, text in rest if role == "user"]
    if not asked:
        return CONTINUED
    if is_correction(asked[0]):
        return CORRECTED
    earlier = [text for role, text in old if role == "user"]
    return REPHRASED if earlier and are_alike(earlier[-1], asked[0]) else CONTINUED


def _read(message: Message) -> tuple[str, str]:
    calls = "".join(
        f"{call['function'].get('name')}{call['function'].get('arguments')}"
        for call in message.get("tool_calls") or ()
    )
    return str(message.get("role") or ""), str(message.get("content") or "") + calls
