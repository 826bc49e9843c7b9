"""What a teacher's work takes, and what more of it will take."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from thrifty.compress.distill.answers import Tally
from thrifty.files import write_atomically
from thrifty.types import OnProgress, Progress

TELL_AFTER = 16
"""After so many answers, what all of them take is known."""
ASKING_SHARE = 0.7
"""Of a teacher's time, until its rates are known: writing takes longer than reading."""
LEAST_ASKING_SHARE, MOST_ASKING_SHARE = 0.1, 0.9


@dataclass
class Effort:
    """How fast a teacher wrote and predicted, over all trainings that it taught here."""

    asked_tokens: int = 0
    """Of prompts and their answers."""
    asking_s: float = 0.0
    recorded_tokens: int = 0
    recording_s: float = 0.0

    @classmethod
    def load(cls, path: Path) -> Effort:
        """What earlier trainings measured, which counts a quarter of what this one measures:
        machines are more or less busy. Nothing if there is no such file, or no readable one.
        """
        try:
            known = cls(**json.loads(path.read_bytes()))
            return cls(
                known.asked_tokens // 4, known.asking_s / 4,
                known.recorded_tokens // 4, known.recording_s / 4,
            )  # fmt: skip
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, path: Path) -> None:
        """Keep it for later trainings."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self)))

    def add_asked(self, tokens: int, seconds: float) -> None:
        """Count answers."""
        if tokens > 0:
            self.asked_tokens += tokens
            self.asking_s += seconds

    def add_recorded(self, tokens: int, seconds: float) -> None:
        """Count predictions."""
        if tokens > 0:
            self.recorded_tokens += tokens
            self.recording_s += seconds

    def s_per_token(self, answered: float) -> float:
        """How long another token takes where this share of them is answered; 0 if unknown."""
        asking_s = self.asking_s / max(1, self.asked_tokens)
        return answered * asking_s + self.recording_s / max(1, self.recorded_tokens)

    def asking_share(self, answered: float) -> float:
        """The share of the time that is spent on answers where both rates are known."""
        if not self.asked_tokens or not self.recorded_tokens:
            return ASKING_SHARE
        asking_s = answered * self.asking_s / self.asked_tokens
        share = asking_s / self.s_per_token(answered)
        return min(MOST_ASKING_SHARE, max(LEAST_ASKING_SHARE, share))


class AskingWatch:
    """Follows the answers of several parts, and tells what all of them take once that is known."""

    def __init__(
        self,
        had: Mapping[str, Tally],
        missing: float,
        until_s: float,
        on_progress: OnProgress,
        on_note: Callable[[str], None],
    ) -> None:
        """`had` are the tallies of the parts before, and `missing` the tokens that are to come."""
        self._before = {name: (tally.asked, tally.tokens) for name, tally in had.items()}
        self._now = dict(self._before)
        self._missing = missing
        self._until_s = until_s
        self._on_progress = on_progress
        self._on_note = on_note
        self._lock = threading.Lock()
        self._told = False
        self._began_s = time.monotonic()

    def begin(self) -> None:
        """The teacher is there, and is asked now."""
        self._began_s = time.monotonic()

    def take(self, part: str, tally: Tally) -> None:
        """The tally of a part after another answer; called in any thread."""
        with self._lock:
            self._now[part] = (tally.asked, tally.tokens)
            tokens, took_s = self.measure()
            asked = self._count(0)
            done = round(min(tokens, self._missing))
            total = round(self._missing)
            self._on_progress(Progress("the teacher writes", done, total, "tokens"))
            if not self._told and asked >= TELL_AFTER and tokens > 0:
                self._told = True
                self._tell(asked, tokens, took_s)

    def measure(self) -> tuple[int, float]:
        """The tokens of the answers so far, and the seconds that they took."""
        return self._count(1), time.monotonic() - self._began_s

    def _count(self, which: int) -> int:
        return sum(now[which] - self._before[name][which] for name, now in self._now.items())

    def _tell(self, asked: int, tokens: int, took_s: float) -> None:
        prompts = math.ceil(self._missing / tokens * asked)
        minutes = self._missing / tokens * took_s / 60
        given = ""
        if self._until_s < math.inf:
            given_s = max(0.0, self._until_s - self._began_s)
            given = f"; it has at most {given_s / 60:.1f} minutes"
        self._on_note(
            f"the teacher writes {tokens / took_s:.0f} tokens/s: about {prompts:,} prompts and "
            f"{minutes:.1f} minutes for {self._missing:,.0f} tokens{given}"
        )
