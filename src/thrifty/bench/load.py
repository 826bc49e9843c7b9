"""The arrival of requests, in a closed or an open loop.

In a closed loop, a fixed number of clients wait for each response before they send the next
request: this measures a service's capacity. In an open loop, requests arrive independently of
responses, as users do: at a rate with random gaps (Poisson), or as a trace says. This measures a
service's behaviour under a given load.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from thrifty.bench.client import RequestResult, Target, require_working, send_request
from thrifty.bench.workload import PlannedRequest, Workload
from thrifty.http.client import HttpClient

MAX_OPEN_REQUESTS = 4096
"""In an open loop, requests beyond this many unanswered ones are not sent but counted as failed:
the service is far beyond its capacity, and this machine must not fail with it.
"""

OnTick = Callable[[float, int], None]
"""Called with the seconds since the start and the number of completed requests."""


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
        """The level in words."""
        if self.concurrency is not None:
            return f"{self.concurrency} streams"
        return f"{self.rate:g} requests/s" if self.rate is not None else "trace"


@dataclass(frozen=True)
class LoadResult:
    """The results of one level: every request, and the measurement window."""

    plan: LoadPlan
    samples: list[RequestResult]
    window_start_s: float
    window_end_s: float


async def run_load(
    target: Target, workload: Workload, plan: LoadPlan, on_tick: OnTick | None = None
) -> LoadResult:
    """Run one level of load. Raises `BenchError`.

    Requests that started in the window run to their end, but only tokens inside the window count,
    so that neither the start nor the end distorts the throughput.
    """
    client = HttpClient()
    samples: list[RequestResult] = []
    try:
        await require_working(client, target, next(workload.requests("first")))
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


async def _tick(start_s: float, samples: list[RequestResult], on_tick: OnTick | None) -> None:
    while on_tick is not None:
        await asyncio.sleep(0.2)
        on_tick(time.perf_counter() - start_s, len(samples))


async def _run_closed(
    client: HttpClient,
    target: Target,
    workload: Workload,
    concurrency: int,
    end_s: float,
    samples: list[RequestResult],
) -> None:
    # All clients share one sequence of requests, so that they repeat each other's requests.
    requests = workload.requests(f"{concurrency} streams")

    async def one_client() -> None:
        while time.perf_counter() < end_s:
            samples.append(await send_request(client, target, next(requests)))

    await asyncio.gather(*(one_client() for _ in range(concurrency)))


def _arrivals(
    workload: Workload, plan: LoadPlan, start_s: float, end_s: float
) -> Iterator[tuple[float, PlannedRequest]]:
    if plan.trace is not None:
        for request in plan.trace:
            yield start_s + request.at_s, request
        return
    assert plan.rate is not None
    rng = random.Random(f"{plan.seed}/arrivals")
    at_s = start_s - plan.warm_up_s
    for request in workload.requests(plan.label):
        at_s += rng.expovariate(plan.rate)
        if at_s >= end_s:
            return
        yield at_s, request


async def _run_open(
    client: HttpClient,
    target: Target,
    arrivals: Iterator[tuple[float, PlannedRequest]],
    samples: list[RequestResult],
) -> None:
    running: set[asyncio.Task[None]] = set()

    async def one(request: PlannedRequest, due_s: float) -> None:
        sample = await send_request(client, target, request)
        # The user starts to wait when the request is due, not when it is sent.
        sample.started_s = due_s
        samples.append(sample)

    for due_s, request in arrivals:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        if len(running) >= MAX_OPEN_REQUESTS:
            samples.append(
                RequestResult(due_s, time.perf_counter(), error="too many requests unanswered")
            )
            continue
        task = asyncio.ensure_future(one(request, due_s))
        running.add(task)
        task.add_done_callback(running.discard)
    if running:
        await asyncio.gather(*running)
