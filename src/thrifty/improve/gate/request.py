"""What a gate is asked to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.spec.judges import RemoteJudge

MARGIN = 0.05
ITEMS = 600
"""With 300, one equal version in six would be refused for want of evidence, where a tenth of the
answers differs; with our 504 questions, one in thirty (`benchmarks/gate_decisions.py`)."""
TOKENS = 4096
"""Tokens of each domain."""


@dataclass(frozen=True)
class GateRequest:
    """What is judged, beside what, on what."""

    candidate: str
    against: str
    data: Sequence[str] = ()
    """Sets, files and built sets: questions are asked, text and conversations are domains. Default:
    our own."""
    margin: float = MARGIN
    """How much worse is not worse: a share of answers, and of a token's probability."""
    items: int = ITEMS
    """At most so many questions of a set; our own share them."""
    tokens: int = TOKENS
    speed: bool = True
    """Whether speed and memory are measured."""
    trusted: str | None = None
    """A built set of answers that trusted users judged (`kto`), which was never learned."""
    judge: str | RemoteJudge | None = None
    """Who compares the answers: `module:function`, `deployment:NAME`, or a model elsewhere."""
