"""What a training loop is given and keeps: its objective, its limits and its progress."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limits:
    """When one run of a training stops."""

    steps: int | None = None
    """Pause after so many steps of the training; nothing is evaluated then."""
    started_s: float | None = None
    """When the run's process was started, by `time.monotonic`."""
    deadline_s: float | None = None
    """When it must have ended."""
    pause_left_s: float = 0.0
    """It pauses after `steps` only if at least so much time is left."""
    budget_s: float | None = None
    """The whole training's time, for reports."""
    spent_s: float = 0.0
    """What of it was spent on other things than training."""


class Objective(ABC):
    """What is learned, and how far a model is from it."""

    unit: str
    """The unit of `measure`."""
    examples: int
    """How many there are to learn from, without the held-out ones."""
    example_tokens: int
    """Tokens of the longest example."""
    held_out_tokens: int
    """Tokens that one evaluation takes."""
    domains: list[str]
    """What `measure` tells apart."""
    notes: Sequence[tuple[float, float]] = ()
    """What the last `measure` found of each held-out example of this rank's share, as `describe`
    takes it; none for most objectives."""
    is_divergence: bool = False
    """Whether `measure` tells how far the model is from another, in nats per token: 0 where both
    say the same."""
    few_tokens: int = 0
    """Tokens that `measure_few` takes; 0 if there is no such thing."""
    steps_made: int = 0
    """How many steps were made; the loop sets it before each."""
    concurrent: bool = False
    """Whether several threads may call `loss` at once, after `prepare`."""

    def describe(self, notes: Sequence[tuple[float, float]]) -> dict[str, float]:
        """Other figures of what was measured, by name, of the notes of all ranks."""
        return {}

    def prepare(self, model: Any, numbers: Sequence[int], device: Any) -> None:  # noqa: B027
        """Find what `loss` needs to know of some examples and does not depend on the weights that
        are trained. Most need nothing.
        """

    @abstractmethod
    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        """The mean loss over some examples, and how many tokens they have."""

    @abstractmethod
    def weigh(self, numbers: Sequence[int]) -> float:
        """The weight of some examples in the mean over a step, such as their number."""

    @abstractmethod
    def measure(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        """For each domain: the sum over this rank's share of the held-out examples, and over how
        many predictions.
        """

    def measure_few(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        """The same over few of the held-out examples, always the same ones of every domain."""
        raise NotImplementedError


@dataclass
class State:
    """The progress of a training, without weights."""

    step: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    """The loss of every step."""
    held_out: list[tuple[int, float]] = field(default_factory=list)
    """Steps, and the held-out loss after them: the mean over the domains."""
    best_step: int = 0
    seconds: float = 0.0
    """Spent on training, over all runs."""
    stepping_s: float = 0.0
    """Spent on steps alone, without starts, evaluations and checkpoints."""
    evaluation_s: float = 0.0
    """How long the last evaluation took."""
    saving_s: float = 0.0
    """How long the last checkpoint took to write."""
    falls_from: int | None = None
    """The step from which the rate falls, near the end of the time; None: not yet."""
    falls_for_s: float | None = None
    """The budget whose end that is, in seconds."""
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """For each domain: tokens, and the held-out loss after them."""
    few: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """The same over few of the held-out examples, which early forecasts rest on."""
    forecasts: list[dict[str, Any]] = field(default_factory=list)
    """What was predicted: the seconds of training, and for each domain the end and its error."""
    details: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """Steps, and the objective's other figures after them."""
    phases: list[tuple[int, int]] = field(default_factory=list)
    """After how many read examples there were how many to learn from."""

    @property
    def best(self) -> float:
        """The lowest held-out loss so far."""
        return min((value for _, value in self.held_out), default=math.inf)
