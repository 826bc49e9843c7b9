"""The speed benchmark that `auto` decides by: each candidate served on this machine, in rounds.

Candidates take turns in every round, and each round begins at the other end, so that what the
machine does meanwhile meets all alike. One candidate is served at a time. What a candidate did in a
round is recorded at once: a benchmark that is killed goes on where it was. One that crashes, hangs
or cannot be prepared fails alone. See `engines/choice` for what is decided by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import find_measurement
from thrifty.bench.client import Target
from thrifty.bench.load import LoadPlan, run_load
from thrifty.bench.workload import Lengths, Workload
from thrifty.engines.base import Engine, Served
from thrifty.engines.choice import (
    CHOICE,
    Candidate,
    Choice,
    Tried,
    decide,
    describe_choice,
    describe_load,
    digest_choice,
    is_barred,
    list_candidates,
    read_choice,
)
from thrifty.engines.machine import Machine
from thrifty.engines.registry import find_engine
from thrifty.engines.scheme_choice import CANDIDATE, make_machine_conditions
from thrifty.errors import BenchError, FleetError, Problem, SpecError, ThriftyError
from thrifty.home import Home
from thrifty.http.client import TransportError
from thrifty.http.origin import parse_origin
from thrifty.own_replica import has_ended, only_replica, run_coroutine, run_replica
from thrifty.spec import Spec
from thrifty.spec.expected_load import LoadSpec
from thrifty.types import Family, Format, OnProgress, Progress, ignore_progress

ROUNDS = 3
WINDOW_S = 2.5
"""How long a candidate is measured at a load in a round, where the time suffices."""
LEAST_WINDOW_S = 0.3
BEATEN = 0.7
"""What is slower than the best by more than this after a round is measured no further."""
HANG_S = 300.0
"""A candidate that has not finished a round by then hangs."""
REASON_LENGTH = 300
DEADLY = 2
"""What was measured when so many benchmarks were killed may be why: it is tried no further."""


@dataclass(frozen=True)
class ChoiceRequest:
    """What is to be decided, for which model."""

    version: NamedVersion
    artifact: Artifact
    spec: Spec
    """Its `engine`, `compress`, `load` and `benchmark` count."""


def measure_choice(
    request: ChoiceRequest,
    store: Store,
    home: Home,
    machine: Machine,
    on_progress: OnProgress = ignore_progress,
    *,
    again: bool = False,
    hang_s: float = HANG_S,
) -> Choice:
    """What `auto` takes for a model: measured now, unless it was under the same conditions before.
    `again` forgets what was. Blocks.

    Raises `SpecError` where nothing can serve the model here, and `BenchError` where no candidate
    could be measured.
    """
    spec, artifact = request.spec, request.artifact
    description = artifact.description
    if description.format is Format.OPENVINO or description.family is not Family.DECODER:
        raise BenchError(
            f"{request.version.label} is not a decoder's checkpoint, so it cannot be served in several "
            "ways; name the checkpoint"
        )
    candidates = list_candidates(spec, artifact, machine)
    if not candidates.able:
        reasons = "; ".join(f"{one}: {why}" for one, why in candidates.unable)
        path = "engine.kind" if spec.engine.kind == "auto" else "compress"
        message = (
            f"nothing can serve {request.version.label} here ({reasons or 'no engine loads it'})"
        )
        raise SpecError([Problem(path, message)], request.version.label)
    conditions = describe_choice(spec, machine, candidates.able)
    known = find_measurement(store.read_measurements(artifact.id), CHOICE, conditions)
    if known is not None and not again:
        return read_choice(known.values)
    bench = _Bench(request, store, home, machine, on_progress, hang_s, digest_choice(conditions))
    tried = bench.run(candidates.able, again=again)
    choice = decide(tried, spec)
    if choice is None:
        failed = "; ".join(f"{one.candidate}: {one.failed}" for one in tried if one.failed)
        raise BenchError(
            f"no candidate for {request.version.label} could be measured ({failed}); name an engine "
            "(engine.kind), or set 'benchmark: 0' to take the first by rank"
        )
    store.record_measurement(artifact.id, CHOICE, conditions, choice.to_builtins())
    return choice


class _Bench:
    """Measures the candidates of one choice."""

    def __init__(
        self,
        request: ChoiceRequest,
        store: Store,
        home: Home,
        machine: Machine,
        on_progress: OnProgress,
        hang_s: float,
        session: str,
    ) -> None:
        self._request = request
        self._store = store
        self._home = home
        self._machine = machine
        self._on_progress = on_progress
        self._hang_s = hang_s
        self._session = session
        self._budget_s = request.spec.benchmark
        self._spent_s = 0.0

    def run(self, candidates: tuple[Candidate, ...], *, again: bool) -> list[Tried]:
        """What each did, in their order."""
        loads = self._request.spec.load.levels
        share = self._budget_s / (2 * len(candidates) * len(loads))
        window_s = min(WINDOW_S, max(LEAST_WINDOW_S, share))
        tried = {one: Tried(one) if again else self._read(one) for one in candidates}
        self._spent_s = sum(one.spent_s for one in tried.values())
        if again:
            for one in tried.values():
                self._record(one, 0.0)
        for number in range(ROUNDS):
            left = [one for one in candidates if self._is_in(tried, one, number)]
            if number and len(left) < 2:
                break
            for place, candidate in enumerate(left if number % 2 == 0 else left[::-1]):
                if len(tried[candidate].rounds) > number:
                    continue
                started = any(one.rounds for one in tried.values())
                if started and self._spent_s + window_s * len(loads) > self._budget_s:
                    return self._without_a_lead(tried, number)
                says = f"round {number + 1}: {candidate}"
                self._on_progress(Progress(says, place, len(left), "candidates"))
                tried[candidate] = self._try(tried[candidate], window_s, number)
                self._on_progress(Progress(says, place + 1, len(left), "candidates"))
        return list(tried.values())

    def _is_in(self, tried: Mapping[Candidate, Tried], candidate: Candidate, number: int) -> bool:
        """Whether a candidate takes part in a round: it did not fail, was not beaten before, and may
        be taken.
        """
        mine, spec = tried[candidate], self._request.spec
        if mine.failed is not None or len(mine.rounds) < number:
            return False
        if number == 0:
            return True
        if is_barred(candidate, spec):
            return False
        best = max(one.speed for one in tried.values() if not is_barred(one.candidate, spec))
        return mine.speed >= BEATEN * best

    def _without_a_lead(self, tried: Mapping[Candidate, Tried], number: int) -> list[Tried]:
        """A round that some did not get is left out for all: in it they met other noise."""
        if number == 0:
            return list(tried.values())
        return [replace(one, rounds=one.rounds[:number]) for one in tried.values()]

    def _try(self, tried: Tried, window_s: float, number: int) -> Tried:
        """One round of one candidate."""
        before_s = self._spent_s
        tried = replace(tried, begun=tried.begun + 1)
        self._record(tried, tried.spent_s)
        try:
            found, per_step = self._measure(tried.candidate, window_s, number)
            tried = replace(tried, rounds=(*tried.rounds, found), tokens_per_step=per_step)
        except (ThriftyError, TimeoutError, OSError, RuntimeError) as error:
            text = " ".join(str(error).split())
            text = text or f"it did not finish a round within {self._hang_s:g} s"
            tried = replace(tried, failed=text[:REASON_LENGTH])
        self._record(tried, tried.spent_s + self._spent_s - before_s)
        return replace(tried, spent_s=tried.spent_s + self._spent_s - before_s)

    def _measure(
        self, candidate: Candidate, window_s: float, number: int
    ) -> tuple[dict[str, float], float]:
        request, engine = self._request, find_engine(candidate.engine)
        spec = candidate.put_into(request.spec)
        spec = spec.model_copy(update={"replicas": spec.replicas.model_copy(update={"count": 1})})
        problems = engine.check(spec, request.artifact, self._machine)
        if problems:
            raise SpecError(problems, request.version.label)
        model = (request.version, request.artifact)
        served = engine.prepare(spec, model, self._store, self._machine, self._on_progress)
        with only_replica(self._home):
            return run_coroutine(self._serve(engine, served, window_s, number))

    async def _serve(
        self, engine: Engine, served: Served, window_s: float, number: int
    ) -> tuple[dict[str, float], float]:
        """Tokens per second at each level, and tokens that a step gave where it guessed ahead."""
        async with run_replica(served, engine, self._home, self._store, self._machine) as replica:
            began_s = time.monotonic()
            try:
                async with asyncio.timeout(self._hang_s):
                    url, load = replica.row().url, self._request.spec.load
                    found = await measure_load(url, served.name, load, window_s, seed=number)
            except BenchError:
                if has_ended(replica):
                    raise FleetError(f"it ended under the load: {replica.message}") from None
                raise
            finally:
                self._spent_s += time.monotonic() - began_s
            if has_ended(replica):
                raise FleetError(f"it ended under the load: {replica.message}")
            facts: Mapping[str, float] = {}
            with contextlib.suppress(TransportError):
                facts = (await engine.read_load(url)).facts
            return found, facts.get("speculation_tokens_per_step", 0.0)

    # What was measured, kept with the model

    def _conditions(self, candidate: Candidate) -> dict[str, Any]:
        engine = find_engine(candidate.engine)
        load = describe_load(self._request.spec.load)
        return {
            **make_machine_conditions(engine, self._machine), **load, "loads": load["streams"],
            "scheme": candidate.scheme, "options": dict(candidate.options), "session": self._session,
        }  # fmt: skip

    def _read(self, candidate: Candidate) -> Tried:
        """What a killed benchmark has measured of it. What failed then is tried again."""
        known = self._store.read_measurements(self._request.artifact.id)
        found = find_measurement(known, CANDIDATE, self._conditions(candidate))
        if found is None or found.values["failed"]:
            return Tried(candidate)
        if found.values["begun"] - len(found.values["rounds"]) >= DEADLY:
            return Tried(
                candidate, failed=f"the benchmark ended {DEADLY} times while it was measured"
            )
        return Tried(
            candidate, tuple(found.values["rounds"]),
            tokens_per_step=found.values["tokens_per_step"], spent_s=found.values["spent_s"],
            begun=found.values["begun"],
        )  # fmt: skip

    def _record(self, tried: Tried, seconds: float) -> None:
        values = {
            "tokens_per_s": tried.speeds, "rounds": list(tried.rounds), "failed": tried.failed,
            "tokens_per_step": tried.tokens_per_step, "begun": tried.begun,
            "busy_before": psutil.cpu_percent() / 100, "spent_s": seconds,
        }  # fmt: skip
        self._store.record_measurement(
            self._request.artifact.id, CANDIDATE, self._conditions(tried.candidate), values
        )


async def measure_load(
    url: str, model: str, load: LoadSpec, window_s: float, *, seed: int
) -> dict[str, float]:
    """Tokens per second of a replica at each level of the load, by the number of streams as text.

    What has begun within the window is finished, and counted with the time that it takes: with a
    window shorter than an answer, prompts or answers alone would be measured. Raises `BenchError`.
    """
    target = Target(parse_origin(url), model, None, False, is_measurement=True)
    workload = Workload(
        Lengths("fixed", load.prompt_tokens, 0), Lengths("fixed", load.output_tokens, 0),
        seed=seed, copy_share=load.copying,
    )  # fmt: skip
    found = {}
    for streams in load.levels:
        result = await run_load(target, workload, LoadPlan(window_s, 0.0, concurrency=streams))
        failed = [one.error for one in result.samples if one.error is not None]
        if failed:
            raise BenchError(f"{len(failed)} of {len(result.samples)} requests failed: {failed[0]}")
        took_s = max(one.ended_s for one in result.samples) - result.window_start_s
        found[str(streams)] = sum(one.output_tokens for one in result.samples) / took_s
    return found
