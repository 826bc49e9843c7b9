"""Steps of a search, their journal and the budget: what is measured, what it costs, what is left.

Every finished step is a line in the home, with its result or its fault. The same search after a kill
finds the results there and goes on with the minutes that were left; another search of the same model
uses what it shares. A fault counts for the run that met it, because its cause may pass; only a step
that twice ended the whole process fails for good. Nothing is started that is predicted not to fit, and what takes longer all the same is
stopped when the time is up. Its own files let it resume.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from thrifty.errors import ThriftyError
from thrifty.files import write_atomically
from thrifty.optimize.candidate import Candidate

log = logging.getLogger(__name__)

Clock = Callable[[], float]
"""Seconds that pass."""

MAKE, JUDGE, ASK, TRIAL, LOAD = "make", "judge", "ask", "trial", "load"
MOST_STARTS = 2
"""A step that was started so often, and neither ended nor was stopped, is not started again."""


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
        """The result, as JSON. Raises `ThriftyError`, or what an engine in this process raises, where
        this candidate cannot do it, and `OutOfTime` where `left_s` fell below 0 meanwhile.
        """
        ...

    def learn(self, step: Step, seconds: float) -> None:
        """Take note of what a step took."""
        ...


class Journal:
    """The started and the finished steps of all searches in a home: lines of JSON, each synced. The
    caller holds a lock. A line that a killed process left incomplete is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._results: dict[str, Result] = {}
        self._index()
        with path.open("ab") as file:
            file.truncate(sum(len(line) + 1 for line in lines))

    def find(self, key: str) -> Result | None:
        """The result of a step that has ended, or its fault in this run; None if it has not."""
        return self._results.get(key)

    def start(self, key: str, search: str) -> None:
        """Record that a step begins, which may end the process."""
        self._append({"key": key, "search": search, "started": time.time()})

    def count_starts(self, key: str) -> int:
        """How often a step was started since it last ended or was stopped."""
        count = 0
        for line in self.lines:
            if line["key"] == key:
                count = count + 1 if "started" in line else 0
        return count

    def add(self, key: str, search: str, result: Result, seconds: float) -> None:
        """Record a result, and how long it took in which search. A stopped step has none."""
        self._append({
            "key": key, "search": search, "values": result.values, "fault": result.fault,
            "stopped": result.stopped, "seconds": seconds, "ended": time.time(),
        })  # fmt: skip
        if not result.stopped:
            self._results[key] = result

    def _append(self, line: dict[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)

    def spent_s(self, search: str) -> float:
        """The seconds that the finished steps of a search took."""
        own = (line for line in self.lines if line["search"] == search)
        return float(sum(line.get("seconds", 0.0) for line in own))

    def forget(self, search: str, keys: Container[str]) -> None:
        """Drop the steps of a search, and these of others, so that it measures anew."""
        self.lines = [
            line for line in self.lines if line["search"] != search and line["key"] not in keys
        ]
        self._index()
        text = b"".join(json.dumps(line).encode() + b"\n" for line in self.lines)
        write_atomically(self._path, text)

    def _index(self) -> None:
        self._results = {
            line["key"]: Result(line["values"]) for line in self.lines
            if "started" not in line and not line.get("stopped") and line["fault"] is None
        }  # fmt: skip


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
        known, key = self.find(step), self._key(step)
        if known is not None:
            return known
        if self._journal.count_starts(key) >= MOST_STARTS:
            fault = (
                f"the search itself ended during this step {MOST_STARTS} times; --again tries it"
            )
            return Result(fault=fault)
        self._on_step(step, self.left_s)
        self._journal.start(key, self._search)
        started_s = self._clock()
        result = Result(stopped=True)
        try:
            result = self._try(step)
        finally:
            # Also where a signal ends the search: only what nobody can catch leaves a start alone.
            took_s = self._clock() - started_s
            self._journal.add(key, self._search, result, took_s)
        if result.fault is None and not result.stopped:
            self.lab.learn(step, took_s)
        return result

    def _try(self, step: Step) -> Result:
        try:
            # As it will be read back.
            values = self.lab.run(step, lambda: self.left_s)
            return Result(json.loads(json.dumps(values)))
        except OutOfTime:
            return Result(stopped=True)
        except ThriftyError as error:
            return Result(fault=str(error))
        except MemoryError:
            return Result(fault="out of memory")
        except (RuntimeError, OSError) as error:
            # OpenVINO and PyTorch report every failure this way, including lack of memory.
            log.exception("%s of %s failed", step.kind, step.candidate)
            return Result(fault=str(error).partition("\n")[0][:300] or type(error).__name__)

    def forget(self, steps: Iterable[Step]) -> None:
        """Drop what this search did, and what any search knows of these steps."""
        self._journal.forget(self._search, {self._key(step) for step in steps})
        self._before_s = 0.0

    def _key(self, step: Step) -> str:
        text = json.dumps(self.lab.describe(step), sort_keys=True)
        return f"{step.key} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
