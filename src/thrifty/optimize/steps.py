"""Steps of a search, their journal and the budget: what is measured, what it costs, what is left.

Every finished step is a line in the home, with its result or its fault. The same search after a kill
finds them there and goes on with the minutes that were left; another search of the same model uses
what it shares. Nothing is started that is predicted not to fit, and what takes longer all the same is
stopped when the time is up. Its own files let it resume.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from thrifty.errors import ThriftyError
from thrifty.files import write_atomically
from thrifty.optimize.candidate import Candidate

Clock = Callable[[], float]
"""Seconds that pass."""

MAKE, JUDGE, ASK, TRIAL, LOAD = "make", "judge", "ask", "trial", "load"


@dataclass(frozen=True)
class Step:
    """One thing to make or to measure."""

    kind: str
    """`make` a model, `judge` it on domains, `ask` it questions, a short `trial` of its speed, or
    the whole `load`."""
    candidate: Candidate
    """Narrowed to what the result depends on, so that candidates share steps."""
    amount: int = 0
    """Tokens of each domain, questions, or seconds."""

    @property
    def key(self) -> str:
        """The step's name in the journal."""
        return f"{self.kind} {self.candidate.id} {self.amount}"


@dataclass(frozen=True)
class Result:
    """What came of a step: values, or why there are none."""

    values: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None
    stopped: bool = False
    """The budget ended before the step did."""


class OutOfTime(Exception):
    """Stops a step when the budget is spent."""


class Lab(Protocol):
    """Where steps are run, and what they take."""

    def predict_s(self, step: Step) -> float:
        """How many seconds the step will take, by the rates measured so far."""
        ...

    def describe(self, step: Step) -> dict[str, Any]:
        """What the result depends on beside the step, as JSON."""
        ...

    def run(self, step: Step, left_s: Callable[[], float]) -> dict[str, Any]:
        """The result, as JSON. Raises `ThriftyError` where this candidate cannot do it, and
        `OutOfTime` where `left_s` fell below 0 meanwhile.
        """
        ...

    def learn(self, step: Step, seconds: float) -> None:
        """Take note of what a step took."""
        ...


class Journal:
    """The finished steps of all searches in a home: lines of JSON, each synced. The caller holds a
    lock. A line that a killed process left incomplete is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._by_key = {line["key"]: line for line in self.lines}
        with path.open("ab") as file:
            file.truncate(sum(len(line) + 1 for line in lines))

    def find(self, key: str) -> Result | None:
        """The result of a step that has ended; None if it has not."""
        line = self._by_key.get(key)
        return None if line is None else Result(line["values"], line["fault"])

    def add(self, key: str, search: str, result: Result, seconds: float) -> None:
        """Record a result, and how long it took in which search."""
        line = {
            "key": key, "search": search, "values": result.values, "fault": result.fault,
            "seconds": seconds, "ended": time.time(),
        }  # fmt: skip
        with self._path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)
        self._by_key[key] = line

    def spent_s(self, search: str) -> float:
        """The seconds that the finished steps of a search took."""
        return float(sum(line["seconds"] for line in self.lines if line["search"] == search))

    def forget(self, search: str) -> None:
        """Drop the steps of a search, so that it measures anew."""
        self.lines = [line for line in self.lines if line["search"] != search]
        self._by_key = {line["key"]: line for line in self.lines}
        text = b"".join(json.dumps(line).encode() + b"\n" for line in self.lines)
        write_atomically(self._path, text)


class Session:
    """Runs the steps of one search within its budget. `clock` is seconds that pass."""

    def __init__(
        self,
        lab: Lab,
        journal: Journal,
        search: str,
        budget_s: float,
        *,
        clock: Clock = time.monotonic,
        on_step: Callable[[Step, float], None] = lambda step, left_s: None,
    ) -> None:
        """`search` names it in the journal; `on_step` is told of each step that is run, with the
        seconds left.
        """
        self.lab = lab
        self.budget_s = budget_s
        self._journal = journal
        self._search = search
        self._clock = clock
        self._on_step = on_step
        self._before_s = journal.spent_s(search)
        self._started_s = clock()

    @property
    def spent_s(self) -> float:
        """The seconds spent, also before it was killed."""
        return self._before_s + self._clock() - self._started_s

    @property
    def left_s(self) -> float:
        """The seconds left."""
        return self.budget_s - self.spent_s

    def predict_s(self, steps: Iterable[Step]) -> float:
        """What those of the steps will take that have not ended."""
        missing = {step.key: step for step in steps if self.find(step) is None}
        return sum(self.lab.predict_s(step) for step in missing.values())

    def fits(self, steps: Sequence[Step], keep_s: float = 0.0) -> bool:
        """Whether the steps fit in the time left, of which `keep_s` are kept for others. Steps that
        have ended always do.
        """
        needed_s = self.predict_s(steps)
        return needed_s == 0 or needed_s + keep_s <= self.left_s

    def find(self, step: Step) -> Result | None:
        """The result of a step that has ended."""
        return self._journal.find(self._key(step))

    def run(self, step: Step) -> Result:
        """The result of a step, which is run unless it was before. A fault of its candidate is a
        result; whatever else is raised ends the search.
        """
        known = self.find(step)
        if known is not None:
            return known
        self._on_step(step, self.left_s)
        started_s = self._clock()
        try:
            # As it will be read back.
            values = self.lab.run(step, lambda: self.left_s)
            result = Result(json.loads(json.dumps(values)))
        except OutOfTime:
            took_s = self._clock() - started_s
            self._journal.add(f"stopped {time.time():.3f}", self._search, Result(), took_s)
            return Result(stopped=True)
        except ThriftyError as error:
            result = Result(fault=str(error))
        took_s = self._clock() - started_s
        if result.fault is None:
            self.lab.learn(step, took_s)
        self._journal.add(self._key(step), self._search, result, took_s)
        return result

    def _key(self, step: Step) -> str:
        text = json.dumps(self.lab.describe(step), sort_keys=True)
        return f"{step.key} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
