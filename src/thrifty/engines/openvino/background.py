"""Jobs that may wait for others, and whose prompts are computed a slice at a time.

A step of the engine cannot be broken off, so what comes during one waits for its end. Background
work therefore never makes a step long: while answers run, it adds at most `SLICE_TOKENS` of a prompt
to each step, and none to a step that computes the prompt of somebody who waits for a first token. A
slice is a request of its own that leaves its part of the prompt in the prefix cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from thrifty.engines.openvino.messages import Add
from thrifty.engines.openvino.prefix_cache_model import BLOCK_TOKENS
from thrifty.engines.server.backend import Sampling

SLICE_TOKENS = 32
"""Tokens of background prompts in a step; a multiple of `BLOCK_TOKENS`."""
SLICE_JOB = -2
"""The number of a job that is a slice; nobody waits for its answer."""


class Background:
    """Jobs that have not begun, in their order: plain state, no engine."""

    def __init__(self) -> None:
        self._jobs: deque[Add] = deque()
        self._reached = 0
        """How far slices of the first job's prompt went."""

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def first(self) -> Add | None:
        """The job whose turn is next."""
        return self._jobs[0] if self._jobs else None

    def add(self, job: Add) -> None:
        """A job to begin when there is room."""
        self._jobs.append(job)

    def remove(self, job: int) -> bool:
        """Forget a job; False where it is not here."""
        for index, waiting in enumerate(self._jobs):
            if waiting.job == job:
                del self._jobs[index]
                if index == 0:
                    self._reached = 0
                return True
        return False

    def take(self, match: Callable[[list[int]], int], budget: int) -> tuple[Add, int] | None:
        """What to begin now, and how many tokens it computes, at most `budget`: the first job, or a
        slice of its prompt. `match` tells how many tokens of a prompt are cached.
        """
        if not self._jobs:
            return None
        job = self._jobs[0]
        cached = match(job.prompt)
        rest = len(job.prompt) - cached
        # What slices computed may be given up again where the cache is full: then it begins whole.
        if rest <= budget or cached < self._reached:
            self._jobs.popleft()
            self._reached = 0
            return job, rest
        end = (cached + budget) // BLOCK_TOKENS * BLOCK_TOKENS
        if end <= cached:
            return None
        self._reached = end
        sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
        return Add(SLICE_JOB, job.prompt[:end], sampling), end - cached
