"""Log-probabilities beyond those of the chosen tokens, as the replica's server sees them.

Prompts and answers go to a process of their own (`scoring_worker.py`), which is started when it is
first needed and ended when it has not been needed for a while: it holds the model a second time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from thrifty.engines.machine import available_memory_bytes
from thrifty.engines.openvino.child import Child
from thrifty.engines.openvino.messages import (
    Cancel,
    Fatal,
    Score,
    Scored,
    ToScorer,
    decode_from_scorer,
)
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.server.backend import (
    Failure,
    OnFailure,
    OnOutput,
    Output,
    Ranked,
    Sampling,
    Scores,
)
from thrifty.units import format_bytes

log = logging.getLogger(__name__)

IDLE_S = 600.0
"""The process is ended when it was not needed for this long."""
PROCESS_BYTES = 250_000_000
"""Memory of the process beyond weights and KV cache."""
WEIGHTS_FACTOR = 1.5
"""Memory for weights over the size of their file, while they are loaded."""


class Scoring:
    """The process and those who wait for it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._jobs: dict[int, ScoredJob] = {}
        self._child: Child | None = None
        self._starting: asyncio.Task[None] | None = None
        self._queue: list[ToScorer] = []
        """Messages that wait until the process is there."""
        self._idle: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    def begin(self, job: ScoredJob) -> None:
        """Take a job on."""
        fault = None if self._child is not None else self._find_fault()
        if fault is not None:
            asyncio.get_running_loop().call_soon(job.fail, "logprobs", fault)
            return
        self._jobs[job.number] = job
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._child is None:
            self._child = child = Child(
                "thrifty.engines.openvino.scoring_worker",
                self._settings,
                lambda data: self._receive(child, data),
                lambda _: self._end(child, "its process ended"),
            )
            self._starting = asyncio.get_running_loop().create_task(self._start(child))
        job.begin(self._send)

    def take(self, output: Output) -> None:
        """New tokens of a job's answer."""
        job = self._jobs.get(output.job)
        if job is not None:
            job.take(output)

    def cancel(self, number: int) -> None:
        """Nobody waits for a job any more."""
        if number in self._jobs:
            self._send(Cancel(number))
            self._forget(number)

    async def stop(self) -> None:
        """End the process."""
        if self._idle is not None:
            self._idle.cancel()
        tasks = {task for task in (self._starting, self._ending) if task is not None}
        if tasks:
            await asyncio.wait(tasks)
        child, self._child = self._child, None
        if child is not None:
            await child.stop()

    def _find_fault(self) -> str | None:
        """Why the model cannot be held a second time; None if it can."""
        weights = (Path(self._settings.folder) / "openvino_model.bin").stat().st_size
        needed = round(WEIGHTS_FACTOR * weights) + PROCESS_BYTES
        free = available_memory_bytes()
        if needed <= free:
            return None
        return (
            "log-probabilities of prompts and of the likeliest tokens need the model in memory a "
            f"second time ({format_bytes(needed)}), and {format_bytes(free)} are free"
        )

    async def _start(self, child: Child) -> None:
        try:
            await child.start()
        except OSError as error:
            self._end(child, f"its process cannot be started: {error}")
            return
        queue, self._queue = self._queue, []
        for message in queue:
            child.send(message)

    def _send(self, message: ToScorer) -> None:
        if self._starting is not None and not self._starting.done():
            self._queue.append(message)
        elif self._child is not None:
            self._child.send(message)

    def _receive(self, child: Child, data: bytes) -> None:
        message = decode_from_scorer(data)
        if isinstance(message, Fatal):
            self._end(child, message.message)
            return
        job = self._jobs.get(message.job)
        if job is None:
            return
        if not isinstance(message, Scored):
            self.cancel(message.job)
            job.fail("engine", message.message)
        elif job.add(message):
            self._forget(message.job)

    def _end(self, child: Child, reason: str) -> None:
        """A process is gone; the next job starts another."""
        if self._child is not child:
            return
        log.error("log-probabilities cannot be computed: %s", reason)
        self._child, self._queue = None, []
        self._ending = asyncio.get_running_loop().create_task(child.stop())
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.fail("engine", f"log-probabilities cannot be computed: {reason}")

    def _forget(self, number: int) -> None:
        # The job itself may have been cancelled by those it reported to.
        self._jobs.pop(number, None)
        if not self._jobs and self._child is not None and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._end_idle)

    def _end_idle(self) -> None:
        self._idle = None
        if not self._jobs and self._child is not None:
            child, self._child = self._child, None
            self._ending = asyncio.get_running_loop().create_task(child.stop())


class ScoredJob:
    """A generation whose tokens are held back until they have their log-probabilities."""

    def __init__(
        self,
        number: int,
        prompt: list[int],
        sampling: Sampling,
        on_output: OnOutput,
        on_failure: OnFailure,
    ) -> None:
        self.number = number
        self._prompt = prompt
        self._top = sampling.top_logprobs
        self._most = len(prompt) + sampling.max_tokens
        self._on_output = on_output
        self._on_failure = on_failure
        self._wants_prompt = sampling.prompt_logprobs
        self._of_prompt: Scores | None = Scores([], []) if sampling.prompt_logprobs else None
        self._prompt_left = len(prompt) - 1 if sampling.prompt_logprobs else 0
        """How many of the prompt's tokens have no log-probabilities yet."""
        self._held: list[int] = []
        self._scores = Scores([], [])
        self._finish = "" if sampling.max_tokens else "length"
        self._cached_tokens = 0
        self._send: Callable[[Score], None]

    def begin(self, send: Callable[[Score], None]) -> None:
        """Have the prompt computed; `send` takes messages to the process."""
        self._send = send
        self._ask(self._prompt)

    def take(self, output: Output) -> None:
        """New tokens of the answer."""
        self._held += output.token_ids
        self._finish = output.finish
        self._cached_tokens = max(self._cached_tokens, output.cached_tokens)
        self._ask(output.token_ids)

    def add(self, scored: Scored) -> bool:
        """The log-probabilities of the next tokens; returns whether these were the last."""
        logprobs, top = scored.logprobs, scored.top
        if self._prompt_left:
            assert self._of_prompt is not None
            count = self._prompt_left
            self._of_prompt.logprobs += logprobs[:count]
            self._of_prompt.top += top[:count]
            self._prompt_left = max(0, count - len(logprobs))
            logprobs, top = logprobs[count:], top[count:]
        self._scores.logprobs += logprobs
        self._scores.top += top
        return self._report()

    def fail(self, kind: str, message: str) -> None:
        """There are none."""
        self._on_failure(Failure(self.number, kind, message))

    def _ask(self, tokens: list[int]) -> None:
        self._send(
            Score(
                self.number, tokens, self._wants_prompt, self._top, self._most, bool(self._finish)
            )
        )

    def _report(self) -> bool:
        """Hand on what is complete; returns whether that was all."""
        count = len(self._scores.logprobs)
        ended = bool(self._finish) and count == len(self._held)
        if self._prompt_left or not (count or ended):
            return False
        tokens, self._held = self._held[:count], self._held[count:]
        scores, self._scores = self._scores, Scores([], [])
        of_prompt, self._of_prompt = self._of_prompt, None
        top: list[Ranked] | None = scores.top if self._top else None
        finish = self._finish if ended else ""
        self._on_output(
            Output(
                self.number, tokens, scores.logprobs, finish, self._cached_tokens, top, of_prompt
            )
        )
        return ended
