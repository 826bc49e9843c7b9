"""Lengths of rows in tokens of the model that is trained, as its server would count them.

A conversation is rendered by the model's own chat template, with its tools. Of pairs and judged
answers, the longer of the renderings counts.
"""

from __future__ import annotations

import hashlib
from typing import Any

from thrifty.text.tokenizer import TextTokenizer


def identify(tokenizer: TextTokenizer) -> str:
    """A checksum of all that decides on a row's tokens: the tokenizer and its chat templates."""
    state = hashlib.sha256(tokenizer.tokenizer.to_str().encode())
    state.update(tokenizer.templates_sha256.encode())
    return state.hexdigest()


def list_conversations(row: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The conversations that a row makes: one, or of a pair two, each with its answer."""
    if "messages" in row:
        return [row["messages"]]
    ends = [row[name] for name in ("chosen", "rejected", "completion") if name in row]
    return [[*row["prompt"], *end] for end in ends]
