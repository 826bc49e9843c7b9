"""How others scale, written anew from their documents, with their default constants.

Each rule needs a target that its documents leave to the user. All get it from the same profile, the
load that one replica can take within the objective (`simulate/sizing`), as a careful operator would
set it. Fleets, start times, victims of scaling down and drains are the same for everyone, so rules
are compared and nothing else.

Sources, read in November 2026:

    HPA       kubernetes.io, 'Horizontal Pod Autoscaling'; pkg/apis/autoscaling/v2/defaults.go
    KPA       knative.dev, 'Autoscaling'; knative/serving, config/core/configmaps/autoscaler.yaml
    SkyServe  docs.skypilot.co, 'Autoscaling'; sky/serve/constants.py and autoscalers.py, 0.14
    Dynamo    docs.nvidia.com/dynamo, 'Planner Design', 1.x
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.simulate.scaler import Objective, Seen


@dataclass(frozen=True)
class Capacity:
    """What one replica can take within the objective."""

    requests_per_s: float
    concurrency: float
    """Requests that are there at once at that rate, as a mean."""


class _Window:
    """Amounts over the last seconds."""

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._samples: deque[tuple[float, float, float]] = deque()

    def add(self, now_s: float, passed_s: float, amount: float) -> None:
        """An amount that came within the `passed_s` before now."""
        self._samples.append((now_s, passed_s, amount))
        while self._samples[0][0] <= now_s - self._length_s + 1e-9:
            self._samples.popleft()

    def total(self) -> float:
        """Their sum."""
        return sum(amount for _, _, amount in self._samples)

    def covered_s(self) -> float:
        """The seconds in which they came."""
        return sum(passed_s for _, passed_s, _ in self._samples)


class Hpa:
    """Kubernetes' HorizontalPodAutoscaler on an external metric: the requests that are there.

    Its target for the metric is the profiled concurrency times the default of CPU targets, 80%.
    """

    interval_s = 15.0
    wakes_at_once = False
    tolerance = 0.1
    target_share = 0.8
    down_window_s = 300.0
    up_pods, up_factor = 4, 2.0
    """Per 15 s, whichever allows more."""

    def __init__(self, capacity: Capacity) -> None:
        self._target = self.target_share * capacity.concurrency
        self._recommended: deque[tuple[float, int]] = deque()

    def decide(self, seen: Seen) -> int:
        """Every `interval_s`."""
        current = seen.wanted
        desired = math.ceil(seen.concurrency / self._target)
        if current and abs(1 - seen.concurrency / (self._target * current)) <= self.tolerance:
            desired = current
        self._recommended.append((seen.now_s, desired))
        while self._recommended[0][0] < seen.now_s - self.down_window_s:
            self._recommended.popleft()
        if desired < current:
            return min(current, max(count for _, count in self._recommended))
        most = max(self.up_factor * current, current + self.up_pods)
        return min(desired, int(most))


class Kpa:
    """Knative's autoscaler on concurrency, its default."""

    interval_s = 2.0
    wakes_at_once = True
    target_share = 0.7
    stable_s, panic_s = 60.0, 6.0
    panic_threshold = 2.0
    max_up, max_down = 1000.0, 2.0
    grace_s = 30.0

    def __init__(self, capacity: Capacity) -> None:
        self._target = self.target_share * capacity.concurrency
        self._stable, self._panic = _Window(self.stable_s), _Window(self.panic_s)
        self._panicked_s: float | None = None
        self._most_in_panic = 0
        self._idle_since_s: float | None = None

    def decide(self, seen: Seen) -> int:
        """Every `interval_s`."""
        if not seen.passed_s:
            return seen.wanted
        for window in (self._stable, self._panic):
            window.add(seen.now_s, seen.passed_s, seen.concurrency * seen.passed_s)
        ready = max(1, seen.ready)
        stable = self._stable.total() / self._stable.covered_s()
        panic = self._panic.total() / self._panic.covered_s()
        low, high = math.floor(seen.ready / self.max_down), math.ceil(self.max_up * ready)
        desired = max(low, min(high, math.ceil(stable / self._target)))
        in_panic = max(low, min(high, math.ceil(panic / self._target)))
        if math.ceil(panic / self._target) / ready >= self.panic_threshold:
            if self._panicked_s is None:
                self._most_in_panic = 0
            self._panicked_s = seen.now_s
        elif self._panicked_s is not None and seen.now_s > self._panicked_s + self.stable_s:
            self._panicked_s = None
        if self._panicked_s is not None:
            # In panic it never goes down.
            self._most_in_panic = max(self._most_in_panic, desired, in_panic, seen.wanted)
            desired = self._most_in_panic
        return self._keep_last(seen, desired, stable)

    def _keep_last(self, seen: Seen, desired: int, stable: float) -> int:
        """The last replica goes after a window without requests, and a time of grace."""
        if stable > 0:
            self._idle_since_s = None
            return max(1, desired)
        if self._idle_since_s is None:
            self._idle_since_s = seen.now_s
        return desired if seen.now_s >= self._idle_since_s + self.grace_s else max(1, desired)


class SkyServe:
    """SkyServe's autoscaler on request rate; its target is the profiled rate of one replica."""

    interval_s = 20.0
    wakes_at_once = False
    window_s = 60.0
    up_delay_s, down_delay_s = 300.0, 1200.0

    def __init__(self, capacity: Capacity) -> None:
        self._rate = capacity.requests_per_s
        self._window = _Window(self.window_s)
        self._target: int | None = None
        self._up = self._down = 0

    def decide(self, seen: Seen) -> int:
        """Every `interval_s`."""
        if self._target is None:
            self._target = seen.wanted
        self._window.add(seen.now_s, seen.passed_s, seen.arrived)
        desired = math.ceil(self._window.total() / self.window_s / self._rate)
        if self._target == 0 and desired:
            self._target = desired
        if desired > self._target:
            self._up, self._down = self._up + 1, 0
        elif desired < self._target:
            self._up, self._down = 0, self._down + 1
        else:
            self._up = self._down = 0
        if self._up >= self.up_delay_s / self.interval_s or (
            self._down >= self.down_delay_s / self.interval_s
        ):
            self._target = desired
            self._up = self._down = 0
        return self._target


class Dynamo:
    """Dynamo's planner for aggregated workers, both rules together: throughput sets the floor, load
    moves above it. The load of the next interval is predicted to be that of the last, which is what
    its predictors fall back to without history.
    """

    interval_s = 5.0
    wakes_at_once = False
    throughput_interval_s = 180.0
    down_sensitivity = 0.8
    least_workers = 1
    least_observations = 5
    observations = 50

    def __init__(self, capacity: Capacity, objective: Objective) -> None:
        self._rate = capacity.requests_per_s
        self._objective = objective
        self._arrived = 0
        self._counted_s = 0.0
        self._floor: int | None = None
        self._prompt_tokens = 0.0
        self._ttft = _Line(self.observations)
        self._tpot = _Line(self.observations)

    def decide(self, seen: Seen) -> int:
        """Every `interval_s`."""
        if self._floor is None:
            self._floor = max(self.least_workers, seen.wanted)
        self._arrived += seen.arrived
        self._counted_s += seen.passed_s
        if self._counted_s >= self.throughput_interval_s:
            rate = self._arrived / self._counted_s
            self._floor = max(self.least_workers, math.ceil(rate / self._rate))
            self._arrived, self._counted_s = 0, 0.0
        current = seen.wanted
        if current < self._floor:
            return self._floor
        if seen.starting or seen.draining or not seen.ready:
            return current  # a change under way blocks the next one
        return max(self._floor, current + self._follow_load(seen))

    def _follow_load(self, seen: Seen) -> int:
        """One worker more or fewer, by the load of all of them."""
        if seen.arrived:
            self._prompt_tokens = seen.prompt_tokens / seen.arrived
        prefill = [load.prefill_tokens + self._prompt_tokens for load in seen.loads]
        decode = [float(load.running) for load in seen.loads]
        if seen.ttft_s:
            self._ttft.add(_mean(prefill), _mean(seen.ttft_s))
        if seen.tpot_s:
            self._tpot.add(_mean(decode), _mean(seen.tpot_s))
        signals = [
            self._signal(self._ttft, self._objective.ttft_s, prefill),
            self._signal(self._tpot, self._objective.tpot_s, decode),
        ]
        known = [signal for signal in signals if signal is not None]
        if any(signal > 0 for signal in known):
            return 1
        return -1 if known and all(signal < 0 for signal in known) else 0

    def _signal(self, line: _Line, bound_s: float | None, loads: list[float]) -> int | None:
        """1: all workers are above the load that the bound allows; -1: all are well below."""
        target = None if bound_s is None else line.solve(bound_s, self.least_observations)
        if target is None:
            return None
        if all(load > target for load in loads):
            return 1
        count = len(loads)
        below = target * (count - 1) / count * self.down_sensitivity
        return -1 if all(load < below for load in loads) else 0


class _Line:
    """A least-squares line through the last observations."""

    def __init__(self, length: int) -> None:
        self._points: deque[tuple[float, float]] = deque(maxlen=length)

    def add(self, x: float, y: float) -> None:
        self._points.append((x, y))

    def solve(self, y: float, least: int) -> float | None:
        """Where the line reaches `y`; None if it is not known or does not rise."""
        count = len(self._points)
        if count < least:
            return None
        mean_x = sum(x for x, _ in self._points) / count
        mean_y = sum(value for _, value in self._points) / count
        spread = sum((x - mean_x) ** 2 for x, _ in self._points)
        if spread <= 1e-12:
            return None
        slope = sum((x - mean_x) * (value - mean_y) for x, value in self._points) / spread
        return mean_x + (y - mean_y) / slope if slope > 1e-12 else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
