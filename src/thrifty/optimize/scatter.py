"""The points of a search's plots, without drawing them: the worst drop against speed, memory, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from thrifty.compare.scatter import round_up
from thrifty.optimize.intervals import Interval
from thrifty.optimize.run import Optimized
from thrifty.optimize.standing import Standing, Status

MOST_DROP = 4.0
"""Times the bound: the end of the drop's axis, where larger drops are drawn."""


@dataclass(frozen=True)
class Point:
    """One candidate in a plot."""

    id: str
    says: str
    status: Status
    x: Interval
    drop: Interval


@dataclass(frozen=True)
class Scatter:
    """One plot. Lower is better, and further `better` is."""

    title: str
    x_label: str
    better: str
    points: list[Point]
    bound: float

    @property
    def x_end(self) -> float:
        """The end of the x axis, which starts at 0: a round number beyond the last point."""
        return round_up(max(point.x.value for point in self.points) * 1.15)

    @property
    def y_end(self) -> float:
        """The end of the y axis, which starts at 0."""
        largest = max(max(point.drop.value for point in self.points), self.bound) * 1.15
        return min(round_up(largest), MOST_DROP * self.bound)

    @property
    def front(self) -> list[Point]:
        """The points that no other one beats in both, by their estimates (Pareto), in order of x."""
        sign = 1 if self.better == "left" else -1
        found: list[Point] = []
        for point in sorted(self.points, key=lambda p: (sign * p.x.value, p.drop.value)):
            if not found or point.drop.value < found[-1].drop.value:
                found.append(point)
        return found


def make_scatters(found: Optimized) -> list[Scatter]:
    """The plots that have points."""
    standings, bound = found.outcome.standings, found.request.max_drop
    unit = "relative to 1 an hour" if found.relative else f"at {found.price.per_hour:g} an hour"
    objective = " within the objective" if found.request.slo else ""
    plots = [
        Scatter(title, label, better, _collect(standings, pick), bound)
        for title, label, better, pick in (
            ("Drop against throughput", f"tokens per second{objective}, {found.load}", "right",
             lambda one: one.speed),
            ("Drop against memory", "resident memory of all replicas, GB", "left", _memory),
            ("Drop against cost", f"cost of a million tokens, {unit}", "left",
             lambda one: one.cost),
        )
    ]  # fmt: skip
    return [plot for plot in plots if plot.points]


def _memory(one: Standing) -> Interval | None:
    value = one.measured.get("memory_bytes")
    return None if not value else Interval(value / 1e9, value / 1e9, value / 1e9)


def _collect(
    standings: Iterable[Standing], pick: Callable[[Standing], Interval | None]
) -> list[Point]:
    points = []
    for one in standings:
        worst, x = one.worst, pick(one)
        if worst is not None and x is not None and 0 < x.value < math.inf:
            points.append(
                Point(one.candidate.id, str(one.candidate), one.status, x, worst[1])
            )  # fmt: skip
    return points
