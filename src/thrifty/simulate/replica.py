"""One replica as a model of its engine: slots, a prefix cache, prefill in chunks beside decoding.

Engines work in steps: each one computes a token of every answer that is under way, and up to a
chunk of the prompts that have none yet. A step of `n` answers takes `tpot(n)`, and with prompts
beside them as much longer as these take. Steps with prompts are simulated one by one. Steps without
are all alike until a request begins or ends, so they are skipped: an answer's progress is counted in
steps since the replica started, and the answer ends when that count reaches its own end.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

from thrifty.simulate.rates import ReplicaRates

NEVER = float("inf")
NEARLY = 1e-6
"""Tokens that rounding may leave of a prompt or an answer that is done."""


class Job:
    """One request on a replica."""

    __slots__ = ("answer_tokens", "block_tokens", "blocks", "cached_tokens", "first_s", "left",
                 "owner", "prompt_tokens")  # fmt: skip

    def __init__(
        self,
        owner: Any,
        prompt_tokens: int,
        answer_tokens: int,
        blocks: Sequence[int] = (),
        block_tokens: float = 1.0,
    ) -> None:
        self.owner = owner
        """The request that it belongs to; not looked at here."""
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.cached_tokens = 0
        """Tokens of the prompt that the prefix cache had; known once it runs."""
        self.left = 0.0
        """Tokens of the prompt that are still to be computed."""
        self.first_s = 0.0
        """When its first token came; 0 before."""


class _PrefixCache:
    """Which beginnings of prompts are cached. Their ends are evicted first."""

    def __init__(self, tokens: int) -> None:
        self._free = float(tokens)
        self._blocks: OrderedDict[int, float] = OrderedDict()

    def count(self, job: Job) -> int:
        """Tokens of a prompt that are cached. Its last token is always computed."""
        found = 0
        for block in job.blocks:
            if block not in self._blocks:
                break
            found += 1
        return min(int(found * job.block_tokens), job.prompt_tokens - 1)

    def add(self, job: Job) -> None:
        """Keep a prompt that was computed."""
        blocks, size = self._blocks, job.block_tokens
        for block in reversed(job.blocks):
            if block in blocks:
                blocks.move_to_end(block)
            else:
                blocks[block] = size
                self._free -= size
        while self._free < 0:
            self._free += blocks.popitem(last=False)[1]


class SimulatedReplica:
    """A replica; the caller passes the clock in and calls `run` when `next_s` has come."""

    def __init__(self, rates: ReplicaRates, now_s: float) -> None:
        self._rates = rates
        self._tpot = [rates.tpot_at(count) for count in range(rates.slots + 1)]
        self._in_steps = rates.chunk_tokens > 0 and rates.prefill_s > 0
        """Whether prompts are computed in steps with answers, not each by itself."""
        self._cache = _PrefixCache(rates.cache_tokens) if rates.cache_tokens else None
        self._now_s = now_s
        self._number = 0
        self._waiting: deque[Job] = deque()
        self._settling: list[tuple[float, int, Job]] = []
        """Jobs by the time when their constant part of the first token's time is over."""
        self._prefilling: deque[Job] = deque()
        self._step: list[tuple[Job, float]] = []
        """The prompts in the step that is under way, with the tokens of each; empty in steps of
        answers alone."""
        self._step_ends_s = NEVER
        self._decoding: list[tuple[float, int, Job]] = []
        """Jobs by the progress at which they end."""
        self._progress = 0.0
        """Steps since the start; whole between steps."""
        self.next_s = NEVER
        """When something happens here next, if nothing is submitted before."""
        self.busy_s = 0.0
        """Seconds in which it ran requests."""

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._settling) + len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot here."""
        return len(self._waiting)

    def remaining_tokens(self) -> float:
        """Tokens of answers that are still to come."""
        early = [job for _, _, job in self._settling]
        tokens: float = sum(
            job.answer_tokens for job in (*early, *self._prefilling, *self._waiting)
        )
        return tokens + sum(end - self._progress for end, _, _ in self._decoding)

    def submit(self, job: Job, now_s: float) -> None:
        """Take a request."""
        self._advance(now_s)
        if self.running < self._rates.slots:
            self._begin(job)
        else:
            self._waiting.append(job)
        self._plan()

    def run(self, now_s: float) -> tuple[list[Job], list[Job]]:
        """What happens at `now_s`: jobs whose first token came, and jobs that ended. A job with a
        single token is in both.
        """
        self._advance(now_s)
        first: list[Job] = []
        ended: list[Job] = []
        while self._settling and self._settling[0][0] <= now_s:
            job = heapq.heappop(self._settling)[2]
            if self._in_steps:
                self._prefilling.append(job)
            else:
                self._begin_answer(job, first, ended)
        if now_s >= self._step_ends_s:
            self._end_step(first, ended)
        while self._decoding and self._decoding[0][0] <= self._progress + NEARLY:
            ended.append(heapq.heappop(self._decoding)[2])
        while self._waiting and self.running < self._rates.slots:
            self._begin(self._waiting.popleft())
        if self._prefilling and not self._step and self._steps_to_boundary() <= NEARLY:
            self._begin_step()
        self._plan()
        return first, ended

    def _begin(self, job: Job) -> None:
        rates = self._rates
        if self._cache is not None and job.blocks:
            job.cached_tokens = self._cache.count(job)
            if not self._in_steps:
                self._cache.add(job)
        job.left = float(job.prompt_tokens - job.cached_tokens)
        ready_s = self._now_s + rates.fixed_s
        if not self._in_steps:
            ready_s += rates.prefill_s * job.left
        self._number += 1
        heapq.heappush(self._settling, (ready_s, self._number, job))

    def _begin_step(self) -> None:
        """Begin a step with prompts: a token of each answer, and what fits beside them."""
        rates, streams = self._rates, len(self._decoding)
        free = float(max(1, rates.chunk_tokens - streams))
        tokens = 0.0
        for job in self._prefilling:
            part = min(job.left, free - tokens)
            self._step.append((job, part))
            tokens += part
            if tokens >= free:
                break
        step_s = tokens * rates.prefill_s + (self._tpot[streams] if streams else 0.0)
        self._step_ends_s = self._now_s + step_s

    def _end_step(self, first: list[Job], ended: list[Job]) -> None:
        self._progress = round(self._progress) + 1.0
        for job, part in self._step:
            job.left -= part
            if job.left <= NEARLY:
                self._prefilling.popleft()
                self._begin_answer(job, first, ended)
        self._step.clear()
        self._step_ends_s = NEVER

    def _begin_answer(self, job: Job, first: list[Job], ended: list[Job]) -> None:
        job.first_s = self._now_s
        first.append(job)
        if self._in_steps and self._cache is not None:
            self._cache.add(job)
        if job.answer_tokens <= 1:
            ended.append(job)
            return
        self._number += 1
        end = self._progress + job.answer_tokens - 1
        heapq.heappush(self._decoding, (end, self._number, job))

    def _steps_to_boundary(self) -> float:
        """The part of a step of answers that is left until prompts can join."""
        if not self._decoding:
            return 0.0
        part = self._progress - math.floor(self._progress + NEARLY)
        return 0.0 if part <= NEARLY else 1.0 - part

    def _advance(self, now_s: float) -> None:
        passed_s = now_s - self._now_s
        if passed_s > 0:
            if self._decoding and not self._step:
                self._progress += passed_s / self._tpot[len(self._decoding)]
            if self.running:
                self.busy_s += passed_s
        self._now_s = now_s

    def _plan(self) -> None:
        next_s = self._settling[0][0] if self._settling else NEVER
        if self._step:
            next_s = min(next_s, self._step_ends_s)
        elif self._decoding:
            steps = self._decoding[0][0] - self._progress
            if self._prefilling:
                steps = min(steps, self._steps_to_boundary())
            step_s = self._tpot[len(self._decoding)]
            next_s = min(next_s, self._now_s + max(0.0, steps) * step_s)
        elif self._prefilling:
            next_s = self._now_s
        self.next_s = next_s
