"""The simulation: a gateway worker as it runs, over simulated replicas, event by event.

What decides is the product's own code: `gateway/state/version` keeps the replicas and leaves out
full ones, `gateway/state/concurrency` gives out slots and queues, a policy of `gateway/routing`
chooses with what `gateway/state/router` has learned. The simulation brings requests, time, and
replicas that take as long as their rates say (`simulate/replica`).

The same trace, rates, policy and seed give the same result.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from thrifty.db.demand import Figures, encode_figures
from thrifty.db.fleet import DeploymentSettings, ReplicaRow, VersionRow, VersionSettings
from thrifty.gateway.routing import make_policy
from thrifty.gateway.state.concurrency import ConcurrencyLimiter
from thrifty.gateway.state.demand import Demand
from thrifty.gateway.state.fair_queue import INTERACTIVE, QueuedRequest
from thrifty.gateway.state.policy import RoutingPolicy
from thrifty.gateway.state.routed_request import BLOCK_BYTES, MAX_BLOCKS, RoutedRequest
from thrifty.gateway.state.router import UNKNOWN, Outstanding, Router
from thrifty.gateway.state.version import Version
from thrifty.openai.errors import WireError
from thrifty.simulate.outcome import Outcome, Recorder
from thrifty.simulate.rates import ReplicaRates
from thrifty.simulate.replica import NEVER, Job, SimulatedReplica
from thrifty.simulate.scaler import Bounds, Objective, ReplicaLoad, Scaler, Seen
from thrifty.simulate.trace import TraceRequest
from thrifty.spec.scaling import IDLE_AFTER_S
from thrifty.types import OnProgress, Progress, ReplicaState, ignore_progress

READ_S = 0.2
"""Gateways read the state of replicas this often (`gateway/state/reader`)."""
BYTES_PER_TOKEN = 4
"""Of the prompts that the router sees; it learns the ratio from the answers."""
SWEEP_S = 1.0
"""The gateway forgets tenants that are inactive this often."""
START_S = 1.0
"""The clock's first reading; the gateway takes 0 for 'not yet'."""
PROGRESS_EVERY = 500
"""Requests between two reports of progress."""

_REPLICA, _ARRIVAL, _READY, _READ, _DECIDE, _TIMEOUT = range(6)


@dataclass(frozen=True)
class Setup:
    """What is simulated, beside the trace and the policy."""

    rates: ReplicaRates
    objective: Objective
    bounds: Bounds
    routing: str = "auto"
    waiting: int = 1000
    """How many requests may wait in the gateway (`limits.waiting`)."""
    wait_timeout_s: float = 30.0
    """How long (`limits.wait_timeout`)."""
    first: int | None = None
    """Replicas that are ready when the trace begins. Default: the least there may be."""
    seed: int = 0
    warm_up_s: float = 0.0
    """So long into the trace, nothing counts yet: a trace is cut out of traffic that had been going
    on, and no fleet was made for its first second."""
    bucket_s: float = 15.0
    """The length of the pieces of the timeline."""
    idle_after_s: float = IDLE_AFTER_S
    """With a least number of 0: none are wanted after so long without a request."""
    most_misses: float = math.inf
    """The simulation ends once more requests than this were not within the objective. Searches use
    it, which need no more than that."""


class _Request:
    """One request on its way. The gateway's queue sees it as what waits for a slot (`Grant`)."""

    __slots__ = ("began_s", "outstanding", "place", "queued", "refused", "trace", "world")

    def __init__(self, world: _World, trace: TraceRequest) -> None:
        self.world, self.trace = world, trace
        self.queued: QueuedRequest | None = None
        self.outstanding: Outstanding
        self.place: _Place | None = None
        self.began_s = 0.0
        self.refused: Exception | None = None

    def done(self) -> bool:
        return self.place is not None or self.refused is not None

    def cancelled(self) -> bool:
        return False

    def exception(self) -> Exception | None:
        return self.refused

    def set_result(self, result: None, /) -> None:
        self.world.granted.append(self)

    def set_exception(self, exception: Exception, /) -> None:
        self.refused = exception
        self.world.refuse(self)


class _Place:
    """A replica's process: its engine, and what the fleet knows of it."""

    __slots__ = ("engine", "id", "planned_s", "row", "started_s", "state")

    def __init__(self, row: ReplicaRow, started_s: float) -> None:
        self.id, self.row = row.id, row
        self.state = ReplicaState.STARTING
        self.started_s = started_s
        self.engine: SimulatedReplica | None = None
        self.planned_s = NEVER
        """The time of its event in the calendar that is not out of date."""


def simulate(
    requests: Iterator[TraceRequest],
    setup: Setup,
    scaler: Scaler,
    name: str,
    *,
    expected: int = 0,
    on_progress: OnProgress = ignore_progress,
) -> Outcome:
    """Run a trace to its last answer. `expected` is the number of requests, for the progress.

    Raises `SimulationError` where the trace cannot be read.
    """
    return _World(requests, setup, scaler, name, expected, on_progress).run()


class _World:
    def __init__(
        self,
        requests: Iterator[TraceRequest],
        setup: Setup,
        scaler: Scaler,
        name: str,
        expected: int,
        on_progress: OnProgress,
    ) -> None:
        self._setup, self._scaler, self._name = setup, scaler, name
        self._requests = requests
        self._expected, self._on_progress = expected, on_progress
        self.now_s = START_S
        self._calendar: list[tuple[float, int, int, Any]] = []
        self._numbers = itertools.count()
        self._names = itertools.count(1)
        self._places: dict[str, _Place] = {}
        self._policy, self._version = _make_gateway(setup, lambda: self.now_s)
        self.granted: list[_Request] = []
        """Requests that the queue gave a slot to."""
        self._open = 0
        """Requests that have arrived and are not over."""
        self._arrivals_over = False
        self._swept_s = START_S
        self._start_times_s: list[float] = []
        """Of the replicas that became ready since a policy looked last."""
        self._reads = False
        """Whether the gateway's next reading is in the calendar."""
        self._target = setup.bounds.low
        self._record = Recorder(
            name, setup.rates, setup.objective, START_S, setup.bucket_s, setup.warm_up_s
        )

    def run(self) -> Outcome:
        first = self._setup.bounds.low if self._setup.first is None else self._setup.first
        for _ in range(self._bound(first)):
            self._make_ready(self._start())
        self._target = len(self._places)
        self._record.note_target(self._target, self.now_s)
        self._read_fleet()
        self._schedule_arrival()
        self._schedule(self.now_s, _DECIDE, None)
        actions: dict[int, Callable[[Any], None]] = {
            _REPLICA: self._run_replica, _ARRIVAL: self._arrive, _READY: self._become_ready,
            _READ: self._read_fleet, _DECIDE: self._decide, _TIMEOUT: self._time_out,
        }  # fmt: skip
        calendar = self._calendar
        most = self._setup.most_misses
        while calendar and not (self._arrivals_over and not self._open):
            if self._record.misses > most:
                break
            self.now_s, _, kind, what = heapq.heappop(calendar)
            actions[kind](what)
            while self.granted:
                self._send(self.granted.pop(0))
        self._on_progress(
            Progress(
                f"{self._name}: simulate", self._record.arrived, self._record.arrived, "requests"
            )
        )
        return self._record.finish(self.now_s)

    # Requests

    def _schedule_arrival(self) -> None:
        trace = next(self._requests, None)
        if trace is None:
            self._arrivals_over = True
            return
        self._schedule(START_S + trace.at_s, _ARRIVAL, trace)

    def _arrive(self, trace: TraceRequest) -> None:
        self._schedule_arrival()
        self._record.note_arrival(trace, self.now_s)
        if self._record.arrived % PROGRESS_EVERY == 0:
            self._on_progress(
                Progress(
                    f"{self._name}: simulate", self._record.arrived, self._expected, "requests"
                )
            )
        self._open += 1
        self._version.demand.figures.arrivals += 1
        request, limiter = _Request(self, trace), self._version.concurrency
        if self.now_s >= self._swept_s + SWEEP_S:
            self._swept_s = self.now_s
            limiter.sweep()
        if limiter.enter(trace.tenant, INTERACTIVE):
            self._send(request)
            return
        try:
            request.queued = limiter.join_queue(
                trace.tenant, trace.prompt_tokens, INTERACTIVE, request, most=self._setup.waiting
            )
        except WireError as error:
            request.set_exception(error)
            return
        self._schedule(self.now_s + self._setup.wait_timeout_s, _TIMEOUT, request)
        if not self._places and self._scaler.wakes_at_once:
            self._act(self._scaler.decide(self._look()))

    def _time_out(self, request: _Request) -> None:
        if not request.done() and request.queued is not None:
            self._version.concurrency.leave_queue(request.queued)
            self.refuse(request)

    def refuse(self, request: _Request) -> None:
        """Count a request that gets a 503."""
        request.refused = request.refused or TimeoutError()
        self._open -= 1
        self._record.note_refusal(START_S + request.trace.at_s, self.now_s)

    def _send(self, request: _Request) -> None:
        version, trace = self._version, request.trace
        candidates = version.candidates(set())
        routed = UNKNOWN if len(candidates) == 1 else self._describe(trace)
        replica = version.router.choose(candidates, routed)
        request.outstanding = version.router.begin(replica, routed, self.now_s)
        version.note_begun(replica, self.now_s)
        request.place = place = self._places[replica.id]
        request.began_s = self.now_s
        job = Job(
            request, trace.prompt_tokens, trace.answer_tokens, trace.blocks, trace.block_tokens
        )
        assert place.engine is not None
        place.engine.submit(job, self.now_s)
        self._plan(place)

    def _describe(self, trace: TraceRequest) -> RoutedRequest:
        """As the router would describe the request's body."""
        router, policy = self._version.router, self._policy
        if policy.wants_affinity:
            return RoutedRequest(affinity=_hash(trace.conversation))
        if not policy.wants_prefix:
            return UNKNOWN
        return router.expect(trace.prompt_tokens * BYTES_PER_TOKEN, make_router_blocks(trace), None)

    def _run_replica(self, place: _Place) -> None:
        if place.planned_s != self.now_s or place.engine is None:
            return  # something came in between, and its event is another one
        first, ended = place.engine.run(self.now_s)
        for job in first:
            request: _Request = job.owner
            request.outstanding.first_token(self.now_s)
            self._record.note_first(START_S + request.trace.at_s, self.now_s)
        for job in ended:
            self._end(job, place)
        self._plan(place)

    def _end(self, job: Job, place: _Place) -> None:
        request: _Request = job.owner
        trace, version = request.trace, self._version
        cached = job.cached_tokens if self._setup.rates.cache_tokens else None
        request.outstanding.end(
            self.now_s, trace.prompt_tokens, trace.answer_tokens, cached, streamed=True
        )
        replica = version.replicas[place.id]
        version.note_ended(replica, request.outstanding.began_s, self.now_s)
        version.demand.note_answer(
            replica, received_s=START_S + trace.at_s, sent_s=request.began_s, first_s=job.first_s,
            last_s=self.now_s, prompt_tokens=trace.prompt_tokens, output_tokens=trace.answer_tokens,
            streamed=True,
        )  # fmt: skip
        self._open -= 1
        self._record.note_end(START_S + trace.at_s, job, self.now_s)
        version.concurrency.leave(trace.tenant, INTERACTIVE, self.now_s - request.began_s)
        if replica.state == ReplicaState.DRAINING and not replica.in_flight:
            self._remove(place)  # the gateway knows, so nothing more is sent to it

    # Replicas

    def _bound(self, count: int) -> int:
        return max(self._setup.bounds.low, min(count, self._setup.bounds.high))

    def _start(self) -> _Place:
        name = f"r-{next(self._names)}"
        cache = self._setup.rates.cache_tokens
        load = {"facts": {"kv_cache_tokens": cache}} if cache else None
        row = ReplicaRow(
            name, "simulated", "simulated", _LABEL, _LABEL, None, "http://127.0.0.1:1",
            ReplicaState.STARTING.value, pid=1, load=load,
        )  # fmt: skip
        place = self._places[name] = _Place(row, self.now_s)
        self._record.note_replicas(len(self._places), self.now_s)
        return place

    def _make_ready(self, place: _Place) -> None:
        self._set_state(place, ReplicaState.READY)
        place.engine = SimulatedReplica(self._setup.rates, self.now_s)
        if self.now_s > place.started_s:
            self._start_times_s.append(self.now_s - place.started_s)

    def _set_state(self, place: _Place, state: ReplicaState) -> None:
        place.state = state
        place.row = replace(place.row, state=state.value)
        if not self._reads:
            self._reads = True
            self._schedule(self.now_s + READ_S, _READ, None)

    def _become_ready(self, place: _Place) -> None:
        if place.id in self._places:
            self._make_ready(place)

    def _remove(self, place: _Place) -> None:
        del self._places[place.id]
        self._record.note_replicas(len(self._places), self.now_s)
        self._set_state(place, ReplicaState.STOPPED)
        self._approach()

    def _read_fleet(self, _: None = None) -> None:
        """What a gateway does when replicas have changed."""
        self._reads = False
        rows = [place.row for place in self._places.values() if place.engine is not None]
        self._version.take_replicas(rows)
        self._version.resize(1)
        for place in list(self._places.values()):
            if place.state is ReplicaState.DRAINING:
                known = self._version.replicas.get(place.id)
                if known is None or not known.in_flight:
                    self._remove(place)

    def _decide(self, _: None) -> None:
        self._act(self._scaler.decide(self._look()))
        self._schedule(self.now_s + self._scaler.interval_s, _DECIDE, None)

    def _act(self, count: int) -> None:
        self._target = self._bound(count)
        self._record.note_target(self._target, self.now_s)
        self._approach()

    def _approach(self) -> None:
        """Start or drain replicas, so that there are as many as wanted."""
        staying = [p for p in self._places.values() if p.state is not ReplicaState.DRAINING]
        missing = self._target - len(staying)
        room = self._setup.bounds.high - len(self._places)
        for _ in range(min(missing, room)):
            place = self._start()
            self._schedule(self.now_s + self._setup.rates.start_s, _READY, place)
        if missing < 0:
            for place in sorted(staying, key=_least_to_lose)[:-missing]:
                if place.engine is None:
                    del self._places[place.id]
                    self._record.note_replicas(len(self._places), self.now_s)
                else:
                    self._set_state(place, ReplicaState.DRAINING)

    def _look(self) -> Seen:
        states = [place.state for place in self._places.values()]
        loads = tuple(
            ReplicaLoad(replica.in_flight, replica.prefill_tokens)
            for replica in self._version.ready
        )
        running = sum(replica.in_flight for replica in self._version.replicas.values())
        start_times_s, self._start_times_s = tuple(self._start_times_s), []
        return self._record.look(
            self.now_s,
            ready=states.count(ReplicaState.READY),
            starting=states.count(ReplicaState.STARTING),
            draining=states.count(ReplicaState.DRAINING),
            running=running,
            queued=len(self._version.concurrency.queue),
            loads=loads,
            start_times_s=start_times_s,
            read_demand=self._read_demand,
        )

    def _read_demand(self) -> Figures:
        """The figures that the gateway writes for the autoscaler (`gateway/app/demand_report`)."""
        version = self._version
        waiting = len(version.concurrency.queue)
        held, queued = (0, waiting) if version.ready else (waiting, 0)
        work = {one.id: float(one.in_flight) for one in version.replicas.values() if one.in_flight}
        version.demand.figures.writes += 1
        figures = version.demand.read(work, held, queued)
        # A copy, as what is read from the database is.
        return msgspec.json.decode(encode_figures(figures), type=Figures)

    # The calendar

    def _schedule(self, at_s: float, kind: int, what: Any) -> None:
        heapq.heappush(self._calendar, (at_s, next(self._numbers), kind, what))

    def _plan(self, place: _Place) -> None:
        assert place.engine is not None
        next_s = place.engine.next_s
        if next_s != place.planned_s or next_s <= self.now_s:
            place.planned_s = next_s
            if next_s < NEVER:
                self._schedule(next_s, _REPLICA, place)


_LABEL = "simulated"


def _make_gateway(setup: Setup, clock: Callable[[], float]) -> tuple[RoutingPolicy, Version]:
    """A gateway worker's state for one version, without sockets."""
    policy = make_policy(setup.routing, random.Random(f"{setup.seed}/routing"))
    limits = DeploymentSettings(
        routing=setup.routing, waiting=setup.waiting, wait_timeout_s=setup.wait_timeout_s
    )
    settings = VersionSettings(slots=setup.rates.slots)
    row = VersionRow(_LABEL, _LABEL, _LABEL, _LABEL, settings=settings)
    limiter = ConcurrencyLimiter(_LABEL, clock)
    version = Version(_LABEL, row, limits, Router(policy), limiter, None, demand=Demand(clock))
    return policy, version


def _least_to_lose(place: _Place) -> tuple[int, float]:
    """Replicas that still start go first, then those with the least left to say."""
    if place.engine is None:
        return 0, -place.started_s
    return 1, place.engine.remaining_tokens()


def make_router_blocks(trace: TraceRequest) -> list[int]:
    """The prompt's blocks as the router counts them, of `BLOCK_BYTES` each. The ids of a trace
    stand for whole beginnings, so a place within one is told by the id and the place.
    """
    if not trace.blocks:
        return []
    step = BLOCK_BYTES / BYTES_PER_TOKEN / trace.block_tokens
    count = min(int(len(trace.blocks) / step), MAX_BLOCKS)
    blocks = trace.blocks
    return [
        (blocks[math.ceil((place + 1) * step - 1e-9) - 1] << 12) + place for place in range(count)
    ]


def _hash(conversation: int) -> int:
    """A place on the ring of `bounded_hash`."""
    return random.Random(conversation).getrandbits(63)
