"""Judges for tests, which run in a process of their own."""

from __future__ import annotations

from pathlib import Path


def prefer_longer(prompt: str, first: str, second: str) -> int:
    """The longer answer is better."""
    print("what a judge prints disturbs nothing")
    return (len(first) > len(second)) - (len(first) < len(second))


def prefer_first(prompt: str, first: str, second: str) -> int:
    """The first place is better, whatever is there."""
    return 1


def prefer_when_there(prompt: str, first: str, second: str) -> int:
    """As above, unless the file that the prompt names exists."""
    if Path(prompt.partition(": ")[2]).exists():
        raise ConnectionError("away")
    return prefer_longer(prompt, first, second)


def rate_when_there(prompt: str, answer: str) -> float:
    """Good answers say so; unless the file that the prompt names exists."""
    if Path(prompt.partition(": ")[2]).exists():
        raise ConnectionError("away")
    return 0.9 if "good" in answer else 0.3
