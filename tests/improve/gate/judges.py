"""A judge for tests, which runs in a process of its own."""

from __future__ import annotations


def prefer_aye(prompt: str, first: str, second: str) -> int:
    """An answer that says aye is better."""
    return first.startswith("Aye") - second.startswith("Aye")
