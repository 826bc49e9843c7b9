"""The load that candidates are measured under: streams, or a profile of arrivals."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from thrifty.bench.client import Target
from thrifty.bench.load import LoadPlan, LoadResult, run_load
from thrifty.bench.summary import LatencyObjective, LevelSummary, summarize
from thrifty.bench.workload import PlannedRequest, Workload, read_trace
from thrifty.errors import BenchError
from thrifty.evaluate.statistics import proportion
from thrifty.evaluate.windows import digest_file
from thrifty.http.origin import parse_origin

WARM_UP_S = 1.0
MAX_STREAMS = 1024


@dataclass(frozen=True)
class Load:
    """So many streams, each with one request at a time, or a trace."""

    text: str
    """As it was named."""
    streams: int | None = None
    trace: tuple[PlannedRequest, ...] = ()
    sha256: str = ""
    """Of the trace's file."""

    @property
    def duration_s(self) -> int | None:
        """The seconds of the trace; None for streams, which go on as long as one likes."""
        return math.ceil(self.trace[-1].at_s) if self.trace else None

    def __str__(self) -> str:
        if self.streams is not None:
            return f"{self.streams} stream{'s' if self.streams > 1 else ''}"
        return f"{len(self.trace)} requests in {self.duration_s} s ({Path(self.text).name})"


def parse_load(text: str) -> Load:
    """A number of streams, or a file of JSON lines as `thrifty bench --trace` reads them. Raises
    `BenchError`.
    """
    if text.isdigit():
        streams = int(text)
        if not 1 <= streams <= MAX_STREAMS:
            raise BenchError(f"--load is 1 to {MAX_STREAMS} streams, not {streams}")
        return Load(text, streams)
    path = Path(text).expanduser()
    if not path.is_file():
        raise BenchError(
            f"--load is a number of streams or a file of JSON lines, and {text!r} is neither"
        )
    trace = tuple(read_trace(path))
    if trace[-1].at_s <= 0:
        raise BenchError(f"the trace {path} has no duration: its last at_s is {trace[-1].at_s:g}")
    return Load(str(path.resolve()), None, trace, digest_file(path))


async def put_load(
    urls: Sequence[str], model: str, load: Load, seconds: int, *, chat: bool, seed: int
) -> LoadResult:
    """Load replicas for so many seconds, each with its share; of a trace, its beginning. Raises
    `BenchError`.
    """
    plans = share_load(load, len(urls), seconds)
    found = await asyncio.gather(*(
        run_load(
            Target(parse_origin(url), model, None, chat, is_measurement=True),
            Workload(seed=seed + number), plan,
        )
        for number, (url, plan) in enumerate(zip(urls, plans, strict=True))
    ))  # fmt: skip
    whole = replace(found[0].plan, concurrency=load.streams, trace=load.trace or None)
    return LoadResult(
        whole, [sample for one in found for sample in one.samples],
        max(one.window_start_s for one in found), min(one.window_end_s for one in found),
    )  # fmt: skip


def share_load(load: Load, replicas: int, seconds: int) -> list[LoadPlan]:
    """The part of each replica, for so many seconds."""
    if load.streams is not None:
        each, more = divmod(load.streams, replicas)
        return [
            LoadPlan(seconds, WARM_UP_S, concurrency=each + (number < more))
            for number in range(replicas)
        ]
    # In turn, as a gateway's shortest queue shares requests that arrive one by one.
    begun = [one for one in load.trace if one.at_s <= seconds] or list(load.trace[:1])
    begun += [replace(begun[0], at_s=begun[-1].at_s)] * max(0, replicas - len(begun))
    return [LoadPlan(seconds, 0.0, trace=begun[number::replicas]) for number in range(replicas)]


def count_good(
    result: LoadResult, objective: LatencyObjective | None
) -> tuple[LevelSummary, tuple[float, float, float], float]:
    """The summary, the tokens per second of requests that met the objective with a 95% interval, and
    the share of requests that did. Raises `BenchError` if no request was answered.
    """
    summary = summarize(result, objective)
    speed = summary.output_tokens_per_s
    inside = [
        one for one in result.samples
        if result.window_start_s <= one.started_s < result.window_end_s
    ]  # fmt: skip
    # Where answers take longer than the window, those that began before it say more than none.
    asked = inside if len(inside) >= len(result.samples) / 2 else result.samples
    answered = [one for one in asked if one.error is None]
    if not answered:
        said = next((one.error for one in result.samples if one.error), "none was sent")
        raise BenchError(f"no request was answered: {said}")
    if objective is None:
        return summary, (speed.value, speed.low, speed.high), len(answered) / len(asked)
    met = [one for one in answered if objective.is_met(one)]
    share = proportion(len(met), len(asked))
    tokens = sum(one.output_tokens for one in answered)
    value = sum(one.output_tokens for one in met) / tokens if tokens else 0.0
    low, high = min(share.low, value), max(share.high, value)
    return summary, (speed.value * value, speed.low * low, speed.high * high), share.share
