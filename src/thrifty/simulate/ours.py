"""Thrifty's own autoscaler in a simulation: `control/autoscale` as the controller runs it.

What it takes goes the way that it goes in a service: a gateway counts the demand
(`gateway/state/demand`), its row is read and added up (`control/autoscale/meter`), the policy
decides.
"""

from __future__ import annotations

from thrifty.control.autoscale.meter import Meter
from thrifty.control.autoscale.policy import Autoscaler
from thrifty.control.autoscale.types import Bounds, Objective, Observation
from thrifty.db.demand import DemandRow
from thrifty.simulate.scaler import ScalingCase, Seen

WORKER = "simulated"
KEY = ("simulated", "simulated")


class Autoscaled:
    """The product's policy."""

    interval_s = 1.0
    wakes_at_once = True

    def __init__(self, case: ScalingCase, idle_after_s: float) -> None:
        objective, bounds = case.objective, case.bounds
        self._objective = Objective(objective.ttft_s, objective.tpot_s)
        self._bounds = Bounds(bounds.low, bounds.high, idle_after_s)
        self._slots = case.rates.slots
        self._meter = Meter()
        self._policy = Autoscaler()
        self._count: int | None = None
        self.reasons: list[tuple[float, int, str]] = []
        """Every change: when, to how many, and why."""

    def decide(self, seen: Seen) -> int:
        """One step of the controller."""
        figures = seen.read_demand()
        self._meter.take([DemandRow(WORKER, *KEY, figures)], seen.now_s)
        count = seen.wanted if self._count is None else self._count
        (decision,) = self._policy.step(
            seen.now_s,
            [
                Observation(
                    KEY, "1", self._bounds, count, seen.ready, seen.starting,
                    self._meter.read(KEY, 1, seen.now_s), self._objective, self._slots,
                    start_times_s=seen.start_times_s,
                )
            ],
        )  # fmt: skip
        if decision.changes:
            self.reasons.append((seen.now_s, decision.count, decision.reason))
        self._count = decision.count
        return decision.count
