"""A training for a number of minutes: how the time is divided, and what is left of it.

    prepare a little -> train a few steps -> prepare the rest -> train until the time is over

The first steps show how fast text is trained on; they are part of the training. What is prepared
after them is what fits into the time at the measured rates. Where training turns out to be faster,
on a machine that was busy and is no more, the third step and the fourth are repeated. The teacher's
work ends when its time is over, however much of it is done, and at least `TRAINING_SHARE` of all is
left to train in; text is read again then. Counted is the time that this training was worked on, the
teacher's included; not counted is what a killed run had not kept, nor what an extended training
leaves (the steps in which the learning rate fell to an end that is none any more), and reading what
earlier trainings had prepared costs nothing.
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
from thrifty.train.trunk import restore_trunk

FIRST_STEPS = 5
"""Steps after which the rate of training is known."""
FIRST_TOKENS = 2 * HELD_OUT_TOKENS
FIRST_SHARE = 0.2
FIRST_S = 40.0
"""What is prepared first takes at most this share of the time, or so long: a teacher needs that to
start, to answer a little, and to predict it."""
TRAINING_SHARE = 0.5
"""At least this share of the time is left to train in."""
FIRST_HELD_OUT_SHARE = 0.5
"""At most this share of what is prepared first is held out."""
STARTS_S = 10.0
"""Taken to start a process anew: the teacher's, or the training's."""
REGISTER_S_PER_GB = 20.0
"""Writing and checking the result."""
EVALUATED = 1.1
"""The time of steps and of the evaluations between them, relative to that of steps."""
AGAIN_SHARE = 0.1
"""More is prepared after a pass over the text if more than this share of the time is left."""
SLACK = 1.2
"""The teacher may take so much longer than its rate says."""


@dataclass
class Spent:
    """The time that a training in minutes had, apart from that of its steps."""

    minutes: float = 0.0
    """The budget of the last run."""
    preparing_s: float = 0.0
    """The teacher's work, and everything else before and between the steps."""
    tokens: int = 0
    """Prepared, held-out ones included."""
    ended: bool = False


@dataclass(frozen=True)
class Division:
    """How the time that is left is divided."""

    tokens: int
    """How many more are prepared."""
    within_s: float
    """At most so long."""


def divide(
    left_s: float,
    may_prepare_s: float,
    *,
    unread: int,
    training_s: float,
    teaching_s: float,
    starts_s: float,
) -> Division:
    """What to prepare in the time that is left, so that each token is trained on once.

    Args:
        left_s: The time for both, in seconds.
        may_prepare_s: At most so much of it is the teacher's.
        unread: Tokens that are prepared and were not trained on yet.
        training_s: How long a token is trained on.
        teaching_s: How long the teacher works for a token; 0 if nobody knows.
        starts_s: How long the teacher takes to start.
    """
    most_s = min(left_s, may_prepare_s) - starts_s
    tokens = (left_s - starts_s - unread * training_s) / (training_s + teaching_s)
    if teaching_s:
        tokens = min(tokens, most_s / teaching_s)
    # What is trained on in less time than the teacher takes to start is not worth it.
    if most_s <= 0 or tokens * training_s <= starts_s:
        return Division(0, 0.0)
    within_s = starts_s + (SLACK * tokens * teaching_s if teaching_s else most_s)
    return Division(round(tokens), min(most_s + starts_s, within_s))


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
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Prepare and train until `training.minutes` are over; returns the report.

    `run` trains until the job's limits, `began_s` is when the work began, by the clock `now`.
    Raises `CompressionError` for a budget that is too short.
    """
    assert training.minutes is not None
    budget_s = 60 * training.minutes
    spent = _open(folder, training.minutes, resume=resume, extend=extend)
    job["held_out_share"] = FIRST_HELD_OUT_SHARE
    clock = _Clock(folder, spent, began_s, now)
    ending_s = _estimate_ending_s(job)
    if not spent.tokens:
        _require_time(training.minutes, clock.used_s(), ending_s, asks=inputs.asks)
        first_s = max(FIRST_S, FIRST_SHARE * budget_s)
        spent.tokens = inputs.extend(job, folder, FIRST_TOKENS, first_s)
        if spent.tokens < 2 * job["window"]:
            raise CompressionError(
                f"{training.minutes:g} minutes are too short: in {clock.used_s():.0f} s the "
                f"teacher prepared {spent.tokens} tokens; give it {_round_up(3 * budget_s)} minutes. What "
                "was prepared is kept"
            )
    else:
        inputs.extend(job, folder, spent.tokens)
    clock.take()
    if _read_state(folder).get("step", 0) < FIRST_STEPS:
        left_s = budget_s - clock.used_s() - ending_s - STARTS_S
        if left_s <= 0:
            raise CompressionError(
                f"{training.minutes:g} minutes are too short: preparing took "
                f"{clock.used_s():.0f} s, and not one step fits into the rest; about "
                f"{_round_up(1.5 * (budget_s - left_s))} minutes would be enough. What was prepared is kept"
            )
        job["limits"] = _make_limits(left_s, budget_s, spent, now, steps=FIRST_STEPS)
        report = run()
        if report:  # The time ended before the rate was known.
            return _end(report, spent, folder)
        clock.take()
    while True:
        left_s = budget_s - clock.used_s() - ending_s - STARTS_S
        division = _divide_rest(inputs, folder, training, spent, left_s)
        if division.tokens:
            on_note(
                f"{left_s / 60:.1f} minutes are left, of which the teacher gets at most "
                f"{division.within_s / 60:.1f}, for {division.tokens:,} more tokens; "
                f"{1 / _find_rate(folder):.0f} tokens/s are trained on"
            )
            tokens = spent.tokens + division.tokens
            spent.tokens = inputs.extend(job, folder, tokens, division.within_s)
            clock.take()
        # A training that had its time is only written, under whatever name it is asked for now.
        left_s = max(0.0, budget_s - clock.used_s() - ending_s)
        # Where training turns out to be faster than it was, more is prepared once all was read.
        steps = _count_steps(folder, spent) if division.tokens else None
        again_s = max(AGAIN_SHARE * budget_s, 4 * STARTS_S)
        job["limits"] = _make_limits(
            left_s, budget_s, spent, now, steps=steps, pause_left_s=again_s
        )
        report = run()
        if report:
            return _end(report, spent, folder)
        clock.take()


def _divide_rest(
    inputs: TrainingInputs, folder: Path, training: Training, spent: Spent, left_s: float
) -> Division:
    assert training.minutes is not None
    read = _read_state(folder)["tokens"]
    return divide(
        left_s, (1 - TRAINING_SHARE) * 60 * training.minutes - spent.preparing_s,
        unread=max(0, spent.tokens - HELD_OUT_TOKENS - read), training_s=_find_rate(folder),
        teaching_s=inputs.s_per_token, starts_s=STARTS_S,
    )  # fmt: skip


def _find_rate(folder: Path) -> float:
    """How long a token is trained on, in seconds."""
    state = _read_state(folder)
    return float(EVALUATED * max(1e-9, state["stepping_s"]) / max(1, state["tokens"]))


def _count_steps(folder: Path, spent: Spent) -> int:
    """The step after which all that is prepared was read once."""
    state = _read_state(folder)
    unread = max(0, spent.tokens - HELD_OUT_TOKENS - state["tokens"])
    return int(state["step"] + math.ceil(unread * state["step"] / max(1, state["tokens"])))


def _require_time(minutes: float, used_s: float, ending_s: float, *, asks: bool) -> None:
    """Raise `CompressionError` if the time is too short for what is known to take some."""
    first_s = used_s + asks * FIRST_S
    needed_s = max(first_s + ending_s + 2 * STARTS_S, first_s / (1 - TRAINING_SHARE))
    if 60 * minutes < needed_s:
        raise CompressionError(
            f"{minutes:g} minutes are too short: starting the teacher and the training, and "
            f"writing the result, take about as long; {_round_up(1.2 * needed_s)} minutes would be enough "
            "for a few steps"
        )


def _round_up(seconds: float) -> str:
    """Minutes, with a digit after the point."""
    return f"{math.ceil(seconds / 6) / 10:g}"


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
    fell_for_s = _read_state(folder).get("falls_for_s")
    if fell_for_s is not None and fell_for_s != 60 * minutes:
        restore_trunk(folder)
    spent.minutes, spent.ended = minutes, False
    _write(folder, spent)
    return spent


class _Clock:
    """What was spent: this run's time, and that of the runs before."""

    def __init__(
        self, folder: Path, spent: Spent, began_s: float, now: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._spent = spent
        self._now = now
        self._zero_s = began_s - spent.preparing_s - self._trained_s()

    def used_s(self) -> float:
        """All that was spent until now."""
        return self._now() - self._zero_s

    def take(self) -> None:
        """Note what was spent on other things than training."""
        self._spent.preparing_s = self.used_s() - self._trained_s()
        _write(self._folder, self._spent)

    def _trained_s(self) -> float:
        return float(_read_state(self._folder).get("seconds", 0.0))


def _make_limits(
    left_s: float,
    budget_s: float,
    spent: Spent,
    now: Callable[[], float],
    steps: int | None = None,
    pause_left_s: float = 0.0,
) -> dict[str, Any]:
    now_s = now()
    return {
        "steps": steps, "started_s": now_s, "deadline_s": now_s + left_s, "budget_s": budget_s,
        "spent_s": spent.preparing_s, "pause_left_s": pause_left_s,
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
