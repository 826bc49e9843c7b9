"""The plots of a simulation without drawing them: what happened over time, by policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thrifty.simulate.outcome import Moment
from thrifty.simulate.run import Simulated


@dataclass(frozen=True)
class Curve:
    """One policy's course."""

    name: str
    points: Sequence[tuple[float, float]]
    """Minutes since the trace began, and the value. The same policy has the same place in every
    panel, whatever is drawn."""


@dataclass(frozen=True)
class Panel:
    """One plot over time."""

    title: str
    unit: str
    curves: Sequence[Curve]
    steps: bool = False
    """Whether values hold until the next one."""
    bound: float | None = None
    """The objective, where there is one."""

    @property
    def x_end(self) -> float:
        """The last minute."""
        return max((x for curve in self.curves for x, _ in curve.points), default=1.0) or 1.0

    @property
    def y_end(self) -> float:
        """The highest value to be seen. Where an objective is missed by far, that it is missed is
        all that matters, and the rest is drawn at the edge.
        """
        highest = max((y for curve in self.curves for _, y in curve.points), default=1.0) or 1.0
        return highest * 1.05 if self.bound is None else min(highest * 1.05, 4 * self.bound)


def make_panels(found: Simulated) -> list[Panel]:
    """Requests, replicas, times to the first token, and cost."""
    first = next(iter(found.policies.values()), None)
    if first is None:
        return []
    arrivals = [
        (moment.at_s / 60, moment.arrived / (moment.at_s - before_s))
        for before_s, moment in zip(
            [0.0, *(moment.at_s for moment in first.timeline)], first.timeline, strict=False
        )
        if moment.at_s > before_s
    ]
    panels = [
        Panel("Requests", "a second", [Curve("arrivals", arrivals)]),
        Panel("Replicas", "", _draw(found, lambda moment: moment.replicas), steps=True),
        Panel(
            "Time to the first token, p95", "seconds",
            _draw(found, lambda moment: moment.ttft_p95_s),
            bound=found.setups[0].objective.ttft_s,
        ),
    ]  # fmt: skip
    if found.setups[0].rates.price_per_hour:
        panels.append(Panel("Cost so far", "", _draw(found, lambda moment: moment.cost)))
    return panels


def _draw(found: Simulated, read: Callable[[Moment], float | None]) -> list[Curve]:
    curves = []
    for name, outcome in found.policies.items():
        points = [(moment.at_s / 60, read(moment)) for moment in outcome.timeline]
        curves.append(Curve(name, [(x, y) for x, y in points if y is not None]))
    return curves
