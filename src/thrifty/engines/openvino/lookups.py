"""Whether looking up guesses in the prompt pays: what was guessed right, and when to stop guessing.

In each step the engine computes the tokens that followed the same words before, beside the next one,
and keeps those that it would have chosen itself. That costs time in each step, whether anything is
found or not, and the engine cannot leave it for a single request or step. So it is left for good, by
loading the model anew without it, once it has not paid for a while: where steps give too few tokens,
or more answers run at once than it was measured with.
"""

from __future__ import annotations

from collections import deque

WINDOW = 512
"""Steps of answers that are judged together."""


class Lookups:
    """Counts what look-ups give: plain state, no engine."""

    def __init__(self, guesses: int, least: float | None, streams: int | None) -> None:
        """`guesses` is how many tokens each step looks up; `least`, how many tokens it must give to
        pay, with the one that it gives anyway; `streams`, up to how many answers at once it pays.
        None: always.
        """
        self._guesses = guesses
        self._least = least
        self._streams = streams
        self._given: deque[int] = deque(maxlen=WINDOW)
        self._together: deque[int] = deque(maxlen=WINDOW)
        self._total = 0

    def note(self, tokens: int, together: int) -> None:
        """One answer got so many tokens in a step that computed so many answers."""
        self._total += tokens - (self._given[0] if len(self._given) == WINDOW else 0)
        self._given.append(tokens)
        self._together.append(together)

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step gave an answer of late; 0 where none was computed."""
        return self._total / len(self._given) if self._given else 0.0

    @property
    def acceptance(self) -> float:
        """The share of the guesses of late that were right."""
        return max(0.0, self.tokens_per_step - 1) / self._guesses

    @property
    def pays(self) -> bool:
        """Whether it does, as far as can be told: until the window is full, it does."""
        if len(self._given) < WINDOW:
            return True
        if self._least is not None and self.tokens_per_step < self._least:
            return False
        mean = sum(self._together) / len(self._together)
        return self._streams is None or mean <= 1.5 * self._streams
