"""Judges for tests: longer answers are better, up to ten letters."""

from __future__ import annotations


def score(prompt: str, answer: str) -> float:
    return min(1.0, len(answer) / 10)


def wrong(prompt: str, answer: str) -> str:
    return "good"
