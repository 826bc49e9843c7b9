"""What came of a simulation: figures over the whole trace, and its course over time."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from thrifty.db.demand import Figures
from thrifty.simulate.rates import ReplicaRates
from thrifty.simulate.replica import Job
from thrifty.simulate.scaler import Objective, ReplicaLoad, Seen
from thrifty.simulate.trace import TraceRequest


@dataclass(frozen=True)
class Moment:
    """One piece of the timeline."""

    at_s: float
    """Its end, in seconds since the trace began."""
    arrived: int
    running: int
    """Requests that have arrived and are not over, at its end."""
    replicas: float
    """Replicas that existed, as a mean."""
    ttft_p95_s: float | None
    """Of the first tokens that came; None if none did."""
    cost: float
    """Since the beginning."""


@dataclass(frozen=True)
class Outcome:
    """One policy with one kind of replica on one trace. Times are in seconds."""

    name: str
    rates: str
    """The name of the kind of replica."""
    requests: int
    answered: int
    refused: int
    """Requests that got a 503: the queue was full, or they waited for too long."""
    slo_attainment: float
    """The share of the requests that count which were answered within the objective."""
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    tpot_mean_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    answer_tokens_mean: float
    output_tokens_per_s: float
    cached_share: float
    """The part of prompt tokens that prefix caches had."""
    replica_hours: float
    """Replicas that start and drain included."""
    cost: float
    changes_of_direction_per_hour: float
    """How often the wanted number of replicas went up after it had gone down, or the reverse."""
    max_replicas: int
    min_replicas: int
    duration_s: float
    """From the end of the warm-up to the last answer."""
    timeline: tuple[Moment, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Recorder:
    """Counts while a simulation runs. It keeps 16 bytes for each request."""

    def __init__(
        self,
        name: str,
        rates: ReplicaRates,
        objective: Objective,
        began_s: float,
        bucket_s: float,
        warm_up_s: float = 0.0,
    ) -> None:
        self._name, self._rates, self._objective = name, rates, objective
        self._began_s, self._bucket_s = began_s, bucket_s
        self._counts_s = began_s + warm_up_s
        """From when on requests, replicas and changes count."""
        self.arrived = 0
        """Requests that have arrived, the warm-up's included."""
        self._requests = 0
        self._refused = self._answered = self._good = 0
        self._ttft, self._tpot = array("d"), array("d")
        self._answer_tokens = self._prompt_tokens = self._cached_tokens = 0
        self._replicas = self._most = 0
        self._least: int | None = None
        self._changed_s = began_s
        self._replica_s = 0.0
        self._target: int | None = None
        self._direction = self._turns = 0
        self._timeline: list[Moment] = []
        self._bucket_ends_s = began_s + bucket_s
        self._bucket_arrived = 0
        self._bucket_ttft: list[float] = []
        self._bucket_replica_s = 0.0
        self._looked_s = began_s
        self._look_arrived = self._look_prompt = self._look_ended = self._look_answer = 0
        self._look_ttft: list[float] = []
        self._look_tpot: list[float] = []
        self._open = 0
        self._open_since_s = began_s
        self._open_s = 0.0

    @property
    def misses(self) -> int:
        """Requests that are over and were not within the objective."""
        return self._answered + self._refused - self._good

    def note_arrival(self, trace: TraceRequest, now_s: float) -> None:
        """A request arrived."""
        self._pass(now_s)
        self.arrived += 1
        self._requests += now_s >= self._counts_s
        self._bucket_arrived += 1
        self._look_arrived += 1
        self._look_prompt += trace.prompt_tokens
        self._change_open(1, now_s)

    def note_refusal(self, arrived_s: float, now_s: float) -> None:
        """A request got a 503."""
        self._refused += arrived_s >= self._counts_s
        self._change_open(-1, now_s)

    def note_first(self, arrived_s: float, now_s: float) -> None:
        """A first token came."""
        self._pass(now_s)
        ttft_s = now_s - arrived_s
        if arrived_s >= self._counts_s:
            self._ttft.append(ttft_s)
        self._bucket_ttft.append(ttft_s)
        self._look_ttft.append(ttft_s)

    def note_end(self, arrived_s: float, job: Job, now_s: float) -> None:
        """An answer ended."""
        tpot_s = 0.0
        if job.answer_tokens > 1:
            tpot_s = (now_s - job.first_s) / (job.answer_tokens - 1)
            self._look_tpot.append(tpot_s)
        if arrived_s >= self._counts_s:
            self._answered += 1
            if job.answer_tokens > 1:
                self._tpot.append(tpot_s)
            self._good += self._objective.is_met_by(job.first_s - arrived_s, tpot_s)
            self._answer_tokens += job.answer_tokens
            self._prompt_tokens += job.prompt_tokens
            self._cached_tokens += job.cached_tokens
        self._look_ended += 1
        self._look_answer += job.answer_tokens
        self._change_open(-1, now_s)

    def note_replicas(self, count: int, now_s: float) -> None:
        """There are as many replicas from now on."""
        self._pass(now_s)
        self._count_replicas(now_s)
        self._replicas = count
        self._most = count if now_s < self._counts_s else max(self._most, count)

    def note_target(self, wanted: int, now_s: float) -> None:
        """So many replicas are wanted from now on."""
        if self._least is None or self._target is None or now_s < self._counts_s:
            self._least = wanted
        self._least = min(self._least, wanted)
        if self._target is not None and wanted != self._target:
            direction = 1 if wanted > self._target else -1
            self._turns += now_s >= self._counts_s and self._direction == -direction
            self._direction = direction
        self._target = wanted

    def look(
        self,
        now_s: float,
        *,
        ready: int,
        starting: int,
        draining: int,
        running: int,
        queued: int,
        loads: Sequence[ReplicaLoad],
        start_times_s: tuple[float, ...],
        read_demand: Callable[[], Figures],
    ) -> Seen:
        """What a policy sees, and begin the next interval."""
        self._change_open(0, now_s)
        passed_s = now_s - self._looked_s
        seen = Seen(
            now_s, passed_s, ready, starting, draining, running, queued,
            self._open_s / passed_s if passed_s else float(self._open),
            self._look_arrived, self._look_prompt, self._look_ended, self._look_answer,
            tuple(self._look_ttft), tuple(self._look_tpot), tuple(loads), start_times_s, read_demand,
        )  # fmt: skip
        self._looked_s, self._open_s = now_s, 0.0
        self._look_arrived = self._look_prompt = self._look_ended = self._look_answer = 0
        self._look_ttft, self._look_tpot = [], []
        return seen

    def finish(self, now_s: float) -> Outcome:
        """The figures."""
        self._pass(now_s)
        self._count_replicas(now_s)
        if self._bucket_arrived or self._bucket_ttft:
            self._end_bucket(now_s)
        duration_s = max(now_s - self._counts_s, 1e-9)
        ttft, tpot = sorted(self._ttft), sorted(self._tpot)
        hours = self._replica_s / 3600
        return Outcome(
            name=self._name,
            rates=self._rates.name,
            requests=self._requests,
            answered=self._answered,
            refused=self._refused,
            slo_attainment=self._good / max(1, self._requests),
            ttft_mean_s=sum(ttft) / max(1, len(ttft)),
            ttft_p50_s=pick(ttft, 0.5),
            ttft_p95_s=pick(ttft, 0.95),
            ttft_p99_s=pick(ttft, 0.99),
            tpot_mean_s=sum(tpot) / max(1, len(tpot)),
            tpot_p50_s=pick(tpot, 0.5),
            tpot_p95_s=pick(tpot, 0.95),
            answer_tokens_mean=self._answer_tokens / max(1, self._answered),
            output_tokens_per_s=self._answer_tokens / duration_s,
            cached_share=self._cached_tokens / max(1, self._prompt_tokens),
            replica_hours=hours,
            cost=hours * self._rates.price_per_hour,
            changes_of_direction_per_hour=self._turns / (duration_s / 3600),
            max_replicas=self._most,
            min_replicas=self._least or 0,
            duration_s=duration_s,
            timeline=tuple(self._timeline),
        )

    def _change_open(self, by: int, now_s: float) -> None:
        self._open_s += self._open * (now_s - self._open_since_s)
        self._open_since_s = now_s
        self._open += by

    def _count_replicas(self, now_s: float) -> None:
        self._bucket_replica_s += self._replicas * (now_s - self._changed_s)
        since_s = max(self._changed_s, self._counts_s)
        self._replica_s += self._replicas * max(0.0, now_s - since_s)
        self._changed_s = now_s

    def _pass(self, now_s: float) -> None:
        """End the pieces of the timeline that are over."""
        while now_s >= self._bucket_ends_s:
            self._end_bucket(self._bucket_ends_s)
            self._bucket_ends_s += self._bucket_s

    def _end_bucket(self, ends_s: float) -> None:
        self._count_replicas(ends_s)
        length_s = ends_s - (self._bucket_ends_s - self._bucket_s)
        self._bucket_ttft.sort()
        self._timeline.append(
            Moment(
                at_s=ends_s - self._began_s,
                arrived=self._bucket_arrived,
                running=self._open,
                replicas=self._bucket_replica_s / max(length_s, 1e-9),
                ttft_p95_s=pick(self._bucket_ttft, 0.95) if self._bucket_ttft else None,
                cost=self._replica_s / 3600 * self._rates.price_per_hour,
            )
        )
        self._bucket_arrived, self._bucket_ttft, self._bucket_replica_s = 0, [], 0.0


def pick(ordered: Sequence[float], share: float) -> float:
    """The quantile of sorted values, interpolated; 0 of none."""
    if not ordered:
        return 0.0
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
