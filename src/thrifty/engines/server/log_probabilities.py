"""Log-probabilities as the OpenAI dialect tells of them: a list of objects in chats, four lists in
completions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from thrifty.engines.server.backend import Ranked, Scores
from thrifty.text.tokenizer import IncrementalText, TextTokenizer


@dataclass(slots=True)
class TokenDetail:
    """One token with its log-probability, and where it begins in the text."""

    token_id: int
    logprob: float | None
    """None for the first token of a prompt, which nothing predicts."""
    top: Ranked
    """The likeliest tokens in its place."""
    offset: int
    """In characters. A part of a character is where the character begins."""


def detail_prompt(
    prompt: Sequence[int], scores: Scores, tokenizer: TextTokenizer
) -> list[TokenDetail]:
    """A prompt's tokens; `scores` are those behind its first one."""
    text = IncrementalText(tokenizer, ())
    details = []
    logprobs: list[float | None] = [None, *scores.logprobs]
    for token_id, logprob, top in zip(prompt, logprobs, [[], *scores.top], strict=True):
        details.append(TokenDetail(token_id, logprob, top, text.length))
        text.feed(token_id)
    return details


def move_details(details: Sequence[TokenDetail], by: int) -> list[TokenDetail]:
    """The tokens of a text that stands `by` characters further on."""
    return [replace(detail, offset=detail.offset + by) for detail in details]


def describe_for_chat(
    details: Iterable[TokenDetail], tokenizer: TextTokenizer
) -> list[dict[str, Any]]:
    """As in a chat's `logprobs.content`."""

    def describe(token_id: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": tokenizer.token_text(token_id),
            "logprob": logprob,
            "bytes": list(tokenizer.token_bytes(token_id)),
        }

    return [
        {
            **describe(detail.token_id, detail.logprob),
            "top_logprobs": [describe(*one) for one in detail.top],
        }
        for detail in details
    ]


def describe_for_completion(
    details: Sequence[TokenDetail], tokenizer: TextTokenizer, top: int, length: int
) -> dict[str, Any]:
    """As in a completion's `logprobs`, for a text of `length` characters. `top` is how many of the
    likeliest tokens were asked for; the chosen one is among them in any case.
    """
    return {
        "tokens": [name_token(detail.token_id, tokenizer) for detail in details],
        "token_logprobs": [detail.logprob for detail in details],
        "top_logprobs": [_rank(detail, tokenizer) for detail in details] if top else None,
        "text_offset": [min(detail.offset, length) for detail in details],
    }


def _rank(detail: TokenDetail, tokenizer: TextTokenizer) -> dict[str, float] | None:
    if detail.logprob is None:
        return None
    found: dict[str, float] = {}
    for token_id, logprob in (*detail.top, (detail.token_id, detail.logprob)):
        # Of tokens that are written alike, the likeliest counts.
        found.setdefault(name_token(token_id, tokenizer), logprob)
    return found


def name_token(token_id: int, tokenizer: TextTokenizer) -> str:
    """What a completion's `logprobs` call a token: its text; for a part of a character its bytes,
    which keeps such tokens apart.
    """
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
