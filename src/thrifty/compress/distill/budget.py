"""A training for a number of minutes: how the time is divided, and what is left of it.

    prepare a little -> train a few steps -> prepare the rest -> train until the time is over

The first steps show how fast text is trained on; they are part of the training. What is prepared
after them is what fits into the time at the measured rates. Counted is the time that this training
was worked on, the teacher's included; not counted is what a killed run had not kept, and reading
what earlier trainings had prepared costs nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thrifty.compress.distill.settings import Training
from thrifty.compress.distill.training_inputs import HELD_OUT_TOKENS, TrainingInputs
from thrifty.errors import CompressionError
from thrifty.files import write_atomically

FIRST_STEPS = 5
"""Steps after which the rate of training is known."""
FIRST_TOKENS = 2 * HELD_OUT_TOKENS
FIRST_SHARE = 0.25
"""The teacher writes what is prepared first for at most this share of the time."""
FIRST_HELD_OUT_SHARE = 0.5
"""At most this share of what is prepared first is held out."""
STARTS_S = 10.0
"""Taken to start a process anew, until it is measured."""
REGISTER_S_PER_GB = 8.0
"""Writing and checking the result."""


@dataclass
class Spent:
    """The time that a training in minutes had, apart from that of its steps."""

    minutes: float = 0.0
    """The budget of the last run."""
    preparing_s: float = 0.0
    """The teacher's work, and everything else before and between the steps."""
    s_per_token: float = 0.0
    """The teacher's work for another token."""
    tokens: int = 0
    """Prepared, held-out ones included."""
    ended: bool = False


def train_for_minutes(
    inputs: TrainingInputs,
    job: dict[str, Any],
    folder: Path,
    training: Training,
    run: Callable[[], dict[str, Any]],
    *,
    resume: bool,
    extend: bool,
    began_s: float,
    on_note: Callable[[str], None],
) -> dict[str, Any]:
    """Prepare and train until `training.minutes` are over; returns the report.

    `run` trains until the job's limits, `began_s` is when the work began. Raises `CompressionError`
    for a budget that is too short, and for one that an earlier run has used up.
    """
    assert training.minutes is not None
    budget_s = 60 * training.minutes
    spent = _open(folder, training.minutes, resume=resume, extend=extend)
    job["held_out_share"] = FIRST_HELD_OUT_SHARE
    clock = _Clock(folder, spent, began_s)
    if not spent.tokens:
        inputs.extend(job, folder, FIRST_TOKENS, FIRST_SHARE * budget_s)
        spent.tokens = FIRST_TOKENS
        spent.s_per_token = inputs.effort.s_per_token
    else:
        inputs.extend(job, folder, spent.tokens)
    clock.take()
    ending_s = _estimate_ending_s(job)
    state = _read_state(folder)
    if state.get("step", 0) < FIRST_STEPS:
        left_s = budget_s - clock.used_s(state) - ending_s - STARTS_S
        if left_s <= 0:
            enough = math.ceil((budget_s - left_s) * 1.5 / 6) / 10
            raise CompressionError(
                f"{training.minutes:g} minutes are too short: preparing took "
                f"{spent.preparing_s:.0f} s, and not one step fits into the rest; about {enough:g} "
                "minutes would be enough. What was prepared is kept"
            )
        job["limits"] = _make_limits(left_s, budget_s, spent, steps=FIRST_STEPS)
        report = run()
        state = _read_state(folder)
        clock.skip()
        if report:  # The time ended before the rate was known.
            return _end(report, spent, folder)
    s_per_token = state["seconds"] / max(1, state["tokens"])
    left_s = budget_s - clock.used_s(state) - ending_s
    per_token_s = s_per_token + spent.s_per_token
    # Text that is prepared and was not read yet costs its training alone.
    unread = max(0, spent.tokens - HELD_OUT_TOKENS - state["tokens"])
    more = round((left_s - STARTS_S - unread * s_per_token) / per_token_s)
    if more > 0:
        on_note(
            f"{left_s / 60:.1f} minutes are left: {more + unread:,} tokens to train on at "
            f"{1 / s_per_token:.0f} tokens/s; the teacher takes about "
            f"{more * spent.s_per_token / 60:.1f} minutes of it"
        )
        spent.tokens += more
        inputs.extend(job, folder, spent.tokens, STARTS_S + 1.2 * more * spent.s_per_token)
        if inputs.effort.s_per_token:
            spent.s_per_token = inputs.effort.s_per_token
        clock.take()
    left_s = budget_s - clock.used_s(state) - ending_s
    if left_s <= 0:
        raise CompressionError(
            f"the training has had {clock.used_s(state) / 60:.1f} of {training.minutes:g} minutes; "
            "give it more (--resume --minutes)"
        )
    job["limits"] = _make_limits(left_s, budget_s, spent)
    report = run()
    return _end(report, spent, folder)


def _open(folder: Path, minutes: float, *, resume: bool, extend: bool) -> Spent:
    """What a training had. One that has ended with other minutes is extended on demand only."""
    path = folder / "spent.json"
    spent = Spent(**json.loads(path.read_text())) if path.exists() else Spent()
    if resume and not spent.tokens:
        raise CompressionError(
            "there is no training to extend with this student, teacher, text and settings; leave "
            "out --resume"
        )
    if resume and minutes <= spent.minutes and spent.ended:
        raise CompressionError(
            f"the training had {spent.minutes:g} minutes; --minutes counts them, so name more"
        )
    extended = resume or (extend and minutes > spent.minutes)
    if not extended and spent.ended and minutes != spent.minutes:
        for old in folder.iterdir():
            if old.name != "lock":
                old.unlink()
        spent = Spent()
    spent.minutes, spent.ended = minutes, False
    _write(folder, spent)
    return spent


class _Clock:
    """Adds the time of preparations to what was spent."""

    def __init__(self, folder: Path, spent: Spent, began_s: float) -> None:
        self._folder = folder
        self._spent = spent
        self._last_s = began_s

    def take(self) -> None:
        """Count the time since the last call."""
        now_s = time.monotonic()
        self._spent.preparing_s += now_s - self._last_s
        self._last_s = now_s
        _write(self._folder, self._spent)

    def skip(self) -> None:
        """Leave out the time since the last call: the training counts it itself."""
        self._last_s = time.monotonic()

    def used_s(self, state: dict[str, Any]) -> float:
        """All that was spent until now."""
        waiting_s = time.monotonic() - self._last_s
        return self._spent.preparing_s + waiting_s + float(state.get("seconds", 0.0))


def _make_limits(
    left_s: float, budget_s: float, spent: Spent, steps: int | None = None
) -> dict[str, Any]:
    now_s = time.monotonic()
    return {
        "steps": steps, "started_s": now_s, "deadline_s": now_s + left_s, "budget_s": budget_s,
        "spent_s": spent.preparing_s,
    }  # fmt: skip


def _estimate_ending_s(job: dict[str, Any]) -> float:
    """How long it takes to write and register what was trained."""
    size = sum(path.stat().st_size for path in Path(job["student"]).glob("*.safetensors"))
    return 0.5 + REGISTER_S_PER_GB * size / 1e9


def _end(report: dict[str, Any], spent: Spent, folder: Path) -> dict[str, Any]:
    spent.ended = True
    _write(folder, spent)
    budget = {"minutes": spent.minutes, "preparing_s": round(spent.preparing_s, 1)}
    return {**report, "budget": budget}


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _write(folder: Path, spent: Spent) -> None:
    write_atomically(folder / "spent.json", json.dumps(asdict(spent)))
