"""The worker process, as the replica's server sees it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import struct
from dataclasses import replace
from typing import Any

from thrifty.engines.openvino.child import Child
from thrifty.engines.openvino.messages import (
    Add,
    Cancel,
    Embed,
    Embedded,
    Fatal,
    Park,
    Parked,
    Ready,
    Step,
    decode_to_server,
)
from thrifty.engines.openvino.scoring import ScoredJob, Scoring
from thrifty.engines.openvino.start_child import WORKER, StartedChild
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.server.backend import (
    Candidates,
    Failure,
    Load,
    ModelFacts,
    OnFailure,
    OnOutput,
    Output,
    Sampling,
)
from thrifty.errors import EngineError
from thrifty.http.process import KILLED_STATUS
from thrifty.types import Family

log = logging.getLogger(__name__)


class OpenVinoBackend:
    """Starts the worker, sends it jobs, hands its tokens to their callbacks. Where log-probabilities
    are wanted that the worker does not give, tokens go by way of `Scoring`.
    """

    def __init__(
        self, settings: Settings, context_length: int, worker: StartedChild | None = None
    ) -> None:
        """`worker` is the worker's process if it was started already."""
        self._settings = settings
        self._context_length = context_length
        self._worker = Child(WORKER, settings, self._receive, self._lost, worker)
        self._scoring = Scoring(settings)
        self._ready: asyncio.Future[Ready]
        self._jobs: dict[int, tuple[OnOutput, OnFailure]] = {}
        self._embeddings: dict[int, asyncio.Future[list[bytes]]] = {}
        self._numbers = itertools.count(1)
        self._load = Load()
        self._parking: asyncio.Future[None] | None = None
        self._failed: asyncio.Future[str]

    async def start(self) -> ModelFacts:
        """Start the worker and wait until it has generated something. Raises `EngineError`."""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        self._failed = loop.create_future()
        await self._worker.start()
        ready = await self._ready
        return ModelFacts(
            family=Family(self._settings.family),
            context_length=self._context_length,
            eos_token_ids=self._settings.eos_token_ids,
            embedding_size=ready.embedding_size,
            smaller_sizes=self._settings.smaller_sizes,
            facts={
                "load_s": ready.load_s,
                "warm_up_s": ready.warm_up_s,
                "kv_cache_bytes": float(ready.kv_bytes),
                "kv_cache_tokens": float(ready.kv_tokens),
            },
        )

    def submit(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_output: OnOutput,
        on_failure: OnFailure,
        priority: int = 0,
    ) -> int:
        """Send a generation to the worker."""
        job = next(self._numbers)
        if self._failed.done():
            reason = f"the engine died: {self._failed.result()}"
            asyncio.get_running_loop().call_soon(on_failure, Failure(job, "engine", reason))
            return job
        if sampling.top_logprobs or sampling.prompt_logprobs:
            on_output, on_failure = self._score(job, prompt, sampling, on_output, on_failure)
        if sampling.max_tokens:
            self._jobs[job] = (on_output, on_failure)
            self._worker.send(Add(job, prompt, sampling, priority))
        elif not sampling.prompt_logprobs:
            nothing = Output(job, [], finish="length")
            asyncio.get_running_loop().call_soon(on_output, nothing)
        return job

    def _score(
        self,
        job: int,
        prompt: list[int],
        sampling: Sampling,
        on_output: OnOutput,
        on_failure: OnFailure,
    ) -> tuple[OnOutput, OnFailure]:
        """Have a job's log-probabilities computed; what its tokens and its failure go to instead."""

        def fail(failure: Failure) -> None:
            self.cancel(job)
            on_failure(failure)

        self._scoring.begin(ScoredJob(job, prompt, sampling, on_output, fail))
        return self._scoring.take, fail

    def cancel(self, job: int) -> None:
        """Tell the worker to stop a generation."""
        self._scoring.cancel(job)
        if self._jobs.pop(job, None) is not None:
            self._worker.send(Cancel(job))

    async def embed(self, inputs: list[list[int]]) -> list[bytes]:
        """Embeddings from the worker, which computes what comes together together. Raises
        `EngineError`.
        """
        return await self._embed(Embed(next(self._numbers), inputs))

    async def rank(self, candidates: Candidates) -> list[float]:
        """Logits from the worker, alike. Raises `EngineError`."""
        message = Embed(next(self._numbers), candidates.ids, candidates.document_at)
        found = b"".join(await self._embed(message))
        return list(struct.unpack(f"<{len(candidates.ids)}f", found))

    async def _embed(self, message: Embed) -> list[bytes]:
        if self._failed.done():
            raise EngineError(f"the engine died: {self._failed.result()}")
        future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._embeddings[message.job] = future
        self._worker.send(message)
        try:
            return await future
        finally:
            self._embeddings.pop(message.job, None)

    def load(self) -> Load:
        """How busy the worker was after its last step."""
        if not self._jobs:
            return replace(self._load, running=0, waiting=0)
        return self._load

    async def park(self) -> None:
        """Have the worker give back memory; returns once it did."""
        if self._failed.done():
            return
        if self._parking is None or self._parking.done():
            self._parking = asyncio.get_running_loop().create_future()
            self._worker.send(Park())
        ends: set[asyncio.Future[Any]] = {self._parking, self._failed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    async def wait_failed(self) -> str:
        """Return once the worker is gone. The server then ends, and its supervisor starts anew."""
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """End the processes."""
        await self._scoring.stop()
        await self._worker.stop()

    def _receive(self, data: bytes) -> None:
        message = decode_to_server(data)
        if isinstance(message, Step):
            self._load = Load(message.running, message.waiting, message.kv_usage, message.facts)
            for output in message.outputs:
                callbacks = self._jobs.get(output.job)
                if callbacks is None:
                    continue
                if output.finish:
                    del self._jobs[output.job]
                callbacks[0](output)
            for failure in message.failures:
                callbacks = self._jobs.pop(failure.job, None)
                if callbacks is not None:
                    callbacks[1](failure)
        elif isinstance(message, Embedded):
            future = self._embeddings.get(message.job)
            if future is not None and not future.done():
                if message.error:
                    future.set_exception(EngineError(message.error))
                else:
                    future.set_result(message.vectors)
        elif isinstance(message, Parked):
            if self._parking is not None and not self._parking.done():
                self._parking.set_result(None)
        elif isinstance(message, Ready):
            self._ready.set_result(message)
        elif isinstance(message, Fatal):
            self._fail(message.message)

    def _lost(self, status: int) -> None:
        if status < 0:
            self._fail(f"the engine's process was killed by signal {-status}", status)
        else:
            self._fail("the engine's process ended", status)

    def _fail(self, reason: str, status: int = 1) -> None:
        """The worker is gone: every job ends with an error, and so does this server."""
        if not self._ready.done():
            error = EngineError(f"the model could not be loaded: {reason}")
            if status < 0:
                error.exit_code = KILLED_STATUS - status
            self._ready.set_exception(error)
            return
        if self._failed.done():
            return
        log.error("the worker is gone (pid %s): %s", os.getpid(), reason)
        jobs, self._jobs = self._jobs, {}
        for job, (_, on_failure) in jobs.items():
            on_failure(Failure(job, "engine", f"the engine died while answering: {reason}"))
        for future in self._embeddings.values():
            if not future.done():
                future.set_exception(EngineError(f"the engine died: {reason}"))
        self._failed.set_result(reason)
