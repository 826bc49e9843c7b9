"""How requests arrive.

In a closed loop a fixed number of clients each wait for their answer before they ask again: it
finds what a service can do. Open arrivals come on their own, as users do, at a rate with random
gaps (Poisson) or as a trace says: they find what a service does under a load that does not wait.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from thrifty.bench.client import Sample, Target, ask_once, require_working
from thrifty.bench.workload import PlannedRequest, Workload
from thrifty.http.client import HttpClient

MAX_OPEN_REQUESTS = 4096
"""Open arrivals beyond this many unanswered ones are not sent but counted as failed: the service
is far past what it can do, and this machine must not go down with it."""

OnTick = Callable[[float, int], None]
"""Called with seconds since the start and requests ended."""


@dataclass(frozen=True)
class LoadPlan:
    """One level of load. Exactly one of `concurrency`, `rate` and `trace` is set."""

    duration_s: float
    warm_up_s: float = 2.0
    concurrency: int | None = None
    rate: float | None = None
    trace: Sequence[PlannedRequest] | None = None
    seed: int = 0

    @property
    def label(self) -> str:
        """The level, for people."""
        if self.concurrency is not None:
            return f"{self.concurrency} streams"
        return f"{self.rate:g} requests/s" if self.rate is not None else "trace"


@dataclass(frozen=True)
class LoadResult:
    """What one level saw: every request, and the window in which it counts."""

    plan: LoadPlan
    samples: list[Sample]
    window_start_s: float
    window_end_s: float


async def run_load(
    target: Target, workload: Workload, plan: LoadPlan, on_tick: OnTick | None = None
) -> LoadResult:
    """Run one level. Requests that began inside the window are let end; tokens count only inside
    it, so that neither the start nor the end distorts the throughput. Raises `BenchError`.
    """
    client = HttpClient()
    samples: list[Sample] = []
    try:
        await require_working(client, target, next(workload.asks("first")))
        start_s = time.perf_counter() + plan.warm_up_s
        end_s = start_s + plan.duration_s
        if plan.trace is not None:
            end_s = start_s + plan.trace[-1].at_s
        ticker = asyncio.ensure_future(_tick(start_s - plan.warm_up_s, samples, on_tick))
        try:
            if plan.concurrency is not None:
                await _run_closed(client, target, workload, plan.concurrency, end_s, samples)
            else:
                arrivals = _arrivals(workload, plan, start_s, end_s)
                await _run_open(client, target, arrivals, samples)
        finally:
            ticker.cancel()
        if plan.trace is not None:
            end_s = max([end_s, *(sample.ended_s for sample in samples)])
    finally:
        client.close()
    return LoadResult(plan, samples, start_s, end_s)


async def _tick(start_s: float, samples: list[Sample], on_tick: OnTick | None) -> None:
    while on_tick is not None:
        await asyncio.sleep(0.2)
        on_tick(time.perf_counter() - start_s, len(samples))


async def _run_closed(
    client: HttpClient,
    target: Target,
    workload: Workload,
    concurrency: int,
    end_s: float,
    samples: list[Sample],
) -> None:
    # All clients draw from one row of requests, so that repeats are of anybody's questions.
    asks = workload.asks(f"{concurrency} streams")

    async def one_client() -> None:
        while time.perf_counter() < end_s:
            samples.append(await ask_once(client, target, next(asks)))

    await asyncio.gather(*(one_client() for _ in range(concurrency)))


def _arrivals(
    workload: Workload, plan: LoadPlan, start_s: float, end_s: float
) -> Iterator[tuple[float, PlannedRequest]]:
    if plan.trace is not None:
        for ask in plan.trace:
            yield start_s + ask.at_s, ask
        return
    assert plan.rate is not None
    rng = random.Random(f"{plan.seed}/arrivals")
    at_s = start_s - plan.warm_up_s
    for ask in workload.asks(plan.label):
        at_s += rng.expovariate(plan.rate)
        if at_s >= end_s:
            return
        yield at_s, ask


async def _run_open(
    client: HttpClient,
    target: Target,
    arrivals: Iterator[tuple[float, PlannedRequest]],
    samples: list[Sample],
) -> None:
    running: set[asyncio.Task[None]] = set()

    async def one(ask: PlannedRequest, due_s: float) -> None:
        sample = await ask_once(client, target, ask)
        # The user began to wait when the request was due, not when we got round to sending it.
        sample.started_s = due_s
        samples.append(sample)

    for due_s, ask in arrivals:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        if len(running) >= MAX_OPEN_REQUESTS:
            samples.append(Sample(due_s, time.perf_counter(), error="too many requests unanswered"))
            continue
        task = asyncio.ensure_future(one(ask, due_s))
        running.add(task)
        task.add_done_callback(running.discard)
    if running:
        await asyncio.gather(*running)
