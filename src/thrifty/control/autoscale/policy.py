"""The decision for each version: as many replicas as its objective needs, and no more.

Up at once, to what the present demand needs by the time that a new replica would be ready. Down
slowly, to what the busiest of the last minutes would have needed with a margin. What is not known
changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from thrifty.control.autoscale.arrivals import Arrivals
from thrifty.control.autoscale.fit import Answers, Histogram, SpeedFit
from thrifty.control.autoscale.model import Fleet
from thrifty.control.autoscale.settings import Settings
from thrifty.control.autoscale.sharing import Claim, share_out
from thrifty.control.autoscale.types import (
    UNBOUNDED,
    Decision,
    Demand,
    Direction,
    Key,
    Objective,
    Observation,
    Prediction,
    Resources,
)

MOST_SEARCHED = 1 << 16
START_WEIGHT = 0.3
"""The weight of the newest start in the expected time of the next one."""


class Autoscaler:
    """The state of all versions. Use it from one thread."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._versions: dict[Key, _Version] = {}
        self._last_s: float | None = None
        self._clock_s = 0.0

    def step(
        self, now_s: float, observations: Sequence[Observation], capacity: Resources = UNBOUNDED
    ) -> list[Decision]:
        """Decide for all versions, in the order of `observations`; each key occurs once.

        `now_s` comes from any clock that counts seconds; one that jumps changes nothing but that the
        time of the jump is left out. `capacity` is what all replicas together may take. Versions that
        are not observed are forgotten.
        """
        jumped = self._advance(now_s)
        kept: dict[Key, _Version] = {}
        findings: list[_Finding] = []
        for seen in observations:
            version = self._versions.get(seen.key)
            if version is None or version.revision != seen.revision:
                direction = version.direction if version is not None else Direction()
                version = _Version(seen.revision, self.settings, self._clock_s, direction)
            kept[seen.key] = version
            findings.append(version.find(seen, self._clock_s, jumped=jumped))
        self._versions = kept
        shares = share_out([one.claim for one in findings], capacity)
        return [
            kept[one.seen.key].settle(one, *shares[one.seen.key], self._clock_s) for one in findings
        ]

    def restore(self, key: Key, revision: str, last: int, turned_up_ago_s: float | None) -> None:
        """Continue for a version after a restart: which way its number went last (1, -1 or 0), and
        how long ago it turned from down to up, if it did.
        """
        turned_s = -math.inf if turned_up_ago_s is None else self._clock_s - turned_up_ago_s
        version = _Version(revision, self.settings, self._clock_s, Direction(last, turned_s))
        self._versions[key] = version

    def _advance(self, now_s: float) -> bool:
        """Move the policy's own clock, which never jumps; says whether `now_s` did."""
        last_s, self._last_s = self._last_s, now_s
        if last_s is None:
            return False
        step_s = now_s - last_s
        if not 0.0 <= step_s <= self.settings.longest_step_s:
            return True
        self._clock_s += step_s
        return False


@dataclass(frozen=True)
class _Finding:
    """What one version needs, before others are looked at."""

    seen: Observation
    claim: Claim
    reason: str
    needed: int
    """Before bounds and capacity."""
    unreachable: str | None = None
    fleet: Fleet | None = None
    rate_per_s: float = 0.0
    start_s: float = 0.0


@dataclass
class _Version:
    """What is known of one version."""

    revision: str
    settings: Settings
    began_s: float
    direction: Direction
    demand: Demand | None = None
    load: float = 0.0
    """Requests at each replica, over about as long as one stays there."""
    start_s: float | None = None
    busy_s: float | None = None
    """When there was a request last."""
    shrunk_s: float = -math.inf
    seen_s: float = 0.0
    """When fresh figures came last."""
    fit: SpeedFit = field(init=False)
    arrivals: Arrivals = field(init=False)
    ttft_times: Histogram = field(default_factory=Histogram)

    def __post_init__(self) -> None:
        self.fit, self.arrivals = SpeedFit(self.settings), Arrivals(self.settings)

    # What was seen

    def _take(self, seen: Observation, now_s: float, *, jumped: bool) -> float:
        """Learn from what has happened since the last step; returns how many requests arrived."""
        for took_s in seen.start_times_s:
            known_s = self.start_s
            self.start_s = (
                took_s if known_s is None else known_s + START_WEIGHT * (took_s - known_s)
            )
        demand, last = seen.demand, self.demand
        if demand is None:
            return 0.0
        self.demand = demand
        if last is None or jumped:
            self.seen_s = now_s
            return 0.0
        length_s = _measure(last, demand, now_s - self.seen_s)
        self.seen_s = now_s
        arrived = max(0.0, demand.arrivals - last.arrivals)
        if length_s > 0.0:
            self.arrivals.add(now_s, length_s, arrived)
            self._learn(seen, last, demand, length_s)
            times = _subtract_buckets(demand.ttft_buckets, last.ttft_buckets)
            self.ttft_times.add(times, 0.5 ** (length_s / self.settings.level_s))
        return arrived

    def _learn(self, seen: Observation, last: Demand, demand: Demand, length_s: float) -> None:
        new = _subtract(demand, last)
        busy = max(0.0, demand.busy_s - last.busy_s) / length_s / max(1, seen.ready)
        stay_s = new.held_s / new.answered if new.answered > 0 else 2.0
        self.load += (busy - self.load) * (1.0 - math.exp(-length_s / max(1.0, stay_s)))
        self.fit.learn(self.load, new)

    # What follows from it

    def find(self, seen: Observation, now_s: float, *, jumped: bool) -> _Finding:
        """How many replicas this version needs."""
        arrived = self._take(seen, now_s, jumped=jumped)
        start_s = seen.start_hint_s if self.start_s is None else self.start_s
        before = max(seen.bounds.fewest, min(seen.bounds.most, seen.count))
        demand = seen.demand
        if demand is None or jumped:
            why = "the clock jumped" if jumped else "there are no fresh figures from the gateways"
            count, reason = before, f"as before: {why}"
            if before == 0 and seen.held:
                count, reason = 1, f"requests have arrived ({seen.held} held), and {why}"
                self.busy_s = now_s
            claim = replace(_claim(seen, count, lambda _: 1.0), fewest=before)
            return _Finding(seen, claim, reason, count, start_s=start_s)
        is_busy = arrived > 0 or demand.waiting > 0 or demand.in_flight > 0
        if is_busy:
            self.busy_s = now_s
        quiet_s = now_s - (self.began_s if self.busy_s is None else self.busy_s)
        fleet = self._make_fleet(seen)
        goal, unreachable = self._make_goal(seen, fleet)
        if seen.bounds.fewest == 0 and not is_busy and quiet_s >= seen.bounds.idle_after_s:
            self.arrivals = Arrivals(self.settings)
            reason = f"no request for {seen.bounds.idle_after_s:g} s"
            claim = _claim(seen, 0, lambda _: 0.0)
            return _Finding(seen, claim, reason, 0, unreachable, fleet, 0.0, start_s)
        rate = self.arrivals.estimate(start_s + self.settings.reaction_s)
        peak = self.arrivals.note_peak(now_s, rate)
        up = self._need_up(seen, demand, fleet, goal, rate, start_s)
        count, reason = before, "enough for the demand" if is_busy else "no requests"
        if up > before and is_busy:
            count, reason = up, self._say_up(demand, fleet, goal, rate, before)
        elif up < before and self._may_shrink(seen, now_s):
            count, reason = self._shrink(seen, fleet, goal, peak, up, before, reason)

        def missed(replicas: int) -> float:
            if fleet is None:
                return 1.0
            miss = self._misses(fleet, goal, fleet.predict(replicas, rate))
            return rate * max(0.0, min(1.0, miss))

        claim = _claim(seen, count, missed)
        return _Finding(seen, claim, reason, count, unreachable, fleet, rate, start_s)

    def _shrink(
        self,
        seen: Observation,
        fleet: Fleet | None,
        goal: Objective,
        peak: float,
        up: int,
        before: int,
        reason: str,
    ) -> tuple[int, str]:
        """The smaller number that is enough, and why; `before` where there is none."""
        if fleet is not None:
            enough = self._search(
                seen, fleet, goal, peak, self.settings.down_margin, self.settings.down_utilisation
            )
        elif peak > 0.0:
            # Requests come, and how fast they are answered is not known.
            return before, reason
        else:
            enough = 1
        count = max(up, enough, 1, seen.bounds.fewest, math.ceil(before / 2))
        if count >= before:
            return before, reason
        minutes = self.settings.down_window_s / 60.0
        why = f"enough for the most of the last {minutes:g} minutes, {peak:.3g} requests/s"
        return count, why

    def _may_shrink(self, seen: Observation, now_s: float) -> bool:
        """Whether enough is known, and nothing has changed too lately, to become smaller."""
        settings = self.settings
        return (
            seen.starting == 0
            and now_s - self.began_s >= settings.down_window_s
            and now_s - self.shrunk_s >= settings.down_step_s
            and now_s - self.direction.turned_up_s >= settings.turn_s
        )

    def _make_fleet(self, seen: Observation) -> Fleet | None:
        speed = self.fit.solve()
        return None if speed is None else Fleet(speed, seen.slots, seen.concurrency)

    def _make_goal(self, seen: Observation, fleet: Fleet | None) -> tuple[Objective, str | None]:
        """The objective as far as it can be reached, and why not all of it can."""
        goal = seen.objective
        if fleet is None or not goal.is_set:
            return goal, None
        best = fleet.best()
        ttft_s, ttft_fault = self._reach("ttft_p95", goal.ttft_p95_s, best.ttft_p95_s)
        tpot_s, tpot_fault = self._reach("tpot_p95", goal.tpot_p95_s, best.tpot_p95_s)
        faults = [fault for fault in (ttft_fault, tpot_fault) if fault]
        return Objective(ttft_s, tpot_s), "; ".join(faults) or None

    def _reach(
        self, name: str, wanted_s: float | None, best_s: float | None
    ) -> tuple[float | None, str | None]:
        """The nearest time to `wanted_s` that can be held, and why that is another one."""
        if wanted_s is None or best_s is None or best_s <= wanted_s:
            return wanted_s, None
        return best_s * self.settings.unreachable_margin, (
            f"{name} of {wanted_s:.3g} s cannot be reached: a replica without other requests takes "
            f"{best_s:.3g} s"
        )

    def _need_up(
        self,
        seen: Observation,
        demand: Demand,
        fleet: Fleet | None,
        goal: Objective,
        rate: float,
        start_s: float,
    ) -> int:
        """How many replicas the demand needs once a new one would be ready; at least one."""
        if fleet is None:
            places = seen.slots or seen.concurrency
            return max(1, math.ceil((demand.in_flight + demand.waiting) / max(1, places)))
        # What the replicas that run or start will have cleared by then needs no others.
        supply = max(1, seen.ready + seen.starting)
        ahead_s = start_s + self.settings.reaction_s
        backlog = demand.waiting - max(0.0, (supply * fleet.rate_per_s - rate) * ahead_s)
        if backlog > 0:
            clear_s = max(self.settings.clear_backlog_s, goal.ttft_p95_s or 0.0)
            for_backlog = math.ceil((rate + backlog / clear_s) / fleet.rate_per_s)
            return max(for_backlog, self._search(seen, fleet, goal, rate))
        return self._search(seen, fleet, goal, rate)

    def _search(
        self,
        seen: Observation,
        fleet: Fleet,
        goal: Objective,
        rate: float,
        margin: float = 1.0,
        most: float | None = None,
    ) -> int:
        """The smallest number that is predicted to be enough, or whose double would hardly be
        better: where latency does not come from load, no number of replicas cures it.
        """

        def missed(count: int) -> float:
            return self._misses(fleet, goal, fleet.predict(count, rate), margin, most)

        def enough(count: int) -> bool:
            here = missed(count)
            return here <= 0.0 or here - missed(2 * count) < self.settings.least_gain

        low, high = 0, max(1, seen.count)
        while not enough(high) and high < MOST_SEARCHED:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def _misses(
        self,
        fleet: Fleet,
        goal: Objective,
        found: Prediction,
        margin: float = 1.0,
        most: float | None = None,
    ) -> float:
        """By which share a prediction misses what it should be; 0 and less: it does not."""
        settings = self.settings
        allowed = settings.plain_utilisation
        if goal.is_set:
            slots = found.replicas * fleet.places
            allowed = max(settings.most_utilisation, 1.0 - 1.0 / math.sqrt(max(1, slots)))
            allowed = min(allowed, settings.highest_utilisation)
        if most is not None:
            allowed = min(allowed * margin, most)
        worst = found.utilisation / allowed
        if goal.ttft_p95_s is not None and found.ttft_p95_s is not None:
            worst = max(worst, found.ttft_p95_s / (goal.ttft_p95_s * margin))
        if goal.tpot_p95_s is not None and found.tpot_p95_s is not None:
            worst = max(worst, found.tpot_p95_s / (goal.tpot_p95_s * margin))
        return worst - 1.0

    def _say_up(
        self, demand: Demand, fleet: Fleet | None, goal: Objective, rate: float, before: int
    ) -> str:
        """Why `before` replicas are too few."""
        waits = f"{demand.waiting} wait, {demand.in_flight} run" if demand.waiting else ""
        if before == 0:
            return f"requests have arrived ({demand.held} held)"
        if fleet is None:
            return waits or "more requests than slots"
        found = fleet.predict(before, rate)
        faults = [f"utilisation {found.utilisation:.0%}"]
        if goal.ttft_p95_s is not None and found.ttft_p95_s is not None:
            faults.append(f"TTFT p95 {found.ttft_p95_s:.3g} s")
        if goal.tpot_p95_s is not None and found.tpot_p95_s is not None:
            faults.append(f"TPOT p95 {found.tpot_p95_s:.3g} s")
        expected = f"{before} would have {', '.join(faults)} at {rate:.3g} requests/s"
        return f"{waits}; {expected}" if waits else expected

    # What is decided

    def settle(self, finding: _Finding, count: int, limit: str | None, now_s: float) -> Decision:
        """The decision, once it is known how much this version gets."""
        seen, needed = finding.seen, finding.needed
        reason = finding.reason
        if limit is not None:
            reason = f"{needed} needed, and there is no room for more than {count} ({limit})"
        elif needed > count:
            limit = "max"
            reason = f"{needed} needed, and at most {count} may run; {reason}"
        if count != seen.count:
            self._note_move(seen.count, count, now_s)
        prediction = None
        if finding.fleet is not None:
            prediction = finding.fleet.predict(count, finding.rate_per_s)
        return Decision(
            seen.key, count, seen.count, reason, needed, limit, finding.unreachable, prediction,
            self.ttft_times.quantile_s(), finding.rate_per_s, finding.start_s,
        )  # fmt: skip

    def _note_move(self, before: int, count: int, now_s: float) -> None:
        """Note which way the number goes. From and to 0 it goes by requests alone, as the spec says:
        a wake is no turn.
        """
        if count < before:
            self.shrunk_s = now_s
            self.direction.last = -1 if count else 0
            return
        if self.direction.last < 0:
            self.direction.turned_up_s = now_s
        self.direction.last = 1


def _claim(seen: Observation, needed: int, missed: Callable[[int], float]) -> Claim:
    """What a version may claim, within its bounds."""
    bounds = seen.bounds
    wanted = max(bounds.fewest, min(bounds.most, needed))
    return Claim(seen.key, bounds.fewest, wanted, seen.count, seen.priority, seen.need, missed)


def _measure(last: Demand, demand: Demand, step_s: float) -> float:
    """How much time passed between two figures."""
    if last.elapsed_s is None or demand.elapsed_s is None:
        return step_s
    return max(0.0, demand.elapsed_s - last.elapsed_s)


def _subtract(demand: Demand, last: Demand) -> Answers:
    """What was answered between two figures. A total that has shrunk counts as unchanged."""
    names = ("answered", "output_tokens", "held_s", "streamed", "begin_s", "timed", "token_s")
    new = {name: max(0.0, getattr(demand, name) - getattr(last, name)) for name in names}
    return Answers(
        **new,
        begin_buckets=_subtract_buckets(demand.begin_buckets, last.begin_buckets),
        token_buckets=_subtract_buckets(demand.token_buckets, last.token_buckets),
    )


def _subtract_buckets(now: tuple[float, ...], last: tuple[float, ...]) -> tuple[float, ...]:
    if len(now) != len(last):
        return now
    return tuple(max(0.0, new - old) for new, old in zip(now, last, strict=True))
