"""The backend of vLLM before an imitation of vLLM's server, in a process behind the guard."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from thrifty.engines.server.backend import Failure, Output, Sampling
from thrifty.engines.vllm.backend import Settings, VllmBackend
from thrifty.errors import EngineError

IMITATION = Path(__file__).with_name("imitation.py")
COMMAND = (sys.executable, str(IMITATION))


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[VllmBackend]:
    backend = VllmBackend(Settings(COMMAND, {}, (2,), **settings))
    try:
        facts = await backend.start()
        assert facts.context_length == 512
        assert facts.facts is not None
        assert facts.facts["kv_cache_tokens"] == 4096
        yield backend
    finally:
        await backend.stop()


class Job:
    """One generation, and what came of it."""

    def __init__(self, backend: VllmBackend, prompt: list[int], **sampling: Any) -> None:
        self.outputs: list[Output] = []
        self.failures: list[Failure] = []
        self.ended = asyncio.Event()
        given = Sampling(**{"max_tokens": 3, "temperature": 0.0, **sampling})
        self.number = backend.submit(prompt, given, self._take, self._fail)

    def _take(self, output: Output) -> None:
        self.outputs.append(output)
        if output.finish:
            self.ended.set()

    def _fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        self.ended.set()

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]


async def wait_for(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


async def read_asked(backend: VllmBackend) -> list[dict[str, Any]]:
    _, body = await backend._get("/asked")
    found: list[dict[str, Any]] = msgspec.json.decode(body)
    return found


def test_tokens_counts_and_errors() -> None:
    async def main() -> None:
        async with running() as backend:
            job = Job(backend, [1, 8, 9])
            await job.ended.wait()
            assert job.tokens == [0, 1, 2]
            last = job.outputs[-1]
            assert (last.finish, last.cached_tokens) == ("length", 7)
            assert not any(output.finish for output in job.outputs[:-1])
            assert backend.load().running == 0
            for first in (2, 3):
                refused = Job(backend, [first])
                await refused.ended.wait()
                (failure,) = refused.failures
                assert (failure.kind, failure.message) == ("engine", "it will not do")
            scored = Job(backend, [1, 8, 9], prompt_logprobs=True, top_logprobs=1, logprobs=True)
            await scored.ended.wait()
            assert scored.failures == []
            assert scored.outputs[0].prompt is not None
            assert scored.outputs[0].prompt.logprobs == [-1.0, -1.0]
            only = Job(backend, [1, 8], max_tokens=0, prompt_logprobs=True)
            await only.ended.wait()
            assert (only.tokens, only.outputs[-1].finish) == ([], "length")
            asked = (await read_asked(backend))[-1]
            assert (asked["model"], asked.get("stream")) == ("model", None)

    asyncio.run(main())


def test_cancelled_job_ends_at_vllm() -> None:
    async def main() -> None:
        async with running(adapter=True) as backend:
            job = Job(backend, [5])
            await wait_for(lambda: len(job.outputs) > 3, "tokens")
            await backend._read_figures()
            load = backend.load()
            assert (load.running, load.kv_usage) == (1, 0.25)
            backend.cancel(job.number)
            assert backend.load().running == 0
            before = len(job.outputs)
            async with asyncio.timeout(30):
                while backend._figures.running:
                    await backend._read_figures()
            assert len(job.outputs) == before
            assert (await read_asked(backend))[-1]["model"] == "adapter"

    asyncio.run(main())


def test_end_of_vllm_is_told_with_its_reason() -> None:
    async def main() -> None:
        async with running() as backend:
            other, job = Job(backend, [5]), Job(backend, [4])
            reason = await backend.wait_failed()
            assert reason == "the end was asked for"
            for one in (job, other):
                await one.ended.wait()
                assert one.failures[0].kind == "engine"

    asyncio.run(main())


def test_start_that_fails_tells_the_root_cause() -> None:
    async def main() -> None:
        backend = VllmBackend(Settings((*COMMAND, "--fail"), {}))
        with pytest.raises(EngineError, match="could not be loaded: no such model"):
            await backend.start()
        await backend.stop()

    asyncio.run(main())


def test_parked_it_sleeps_until_it_is_asked() -> None:
    async def main() -> None:
        async with running(sleeps=True) as backend:
            await backend.park()
            assert (await backend._get("/is_sleeping"))[1] == b'{"is_sleeping": true}'
            jobs = [Job(backend, [1]) for _ in range(3)]
            for job in jobs:
                await job.ended.wait()
                assert job.failures == []
            assert (await backend._get("/is_sleeping"))[1] == b'{"is_sleeping": false}'
            busy = Job(backend, [5])
            await wait_for(lambda: bool(busy.outputs), "a token")
            await backend.park()  # which would cut the answer
            assert (await backend._get("/is_sleeping"))[1] == b'{"is_sleeping": false}'
        async with running() as backend:
            await backend.park()
            assert (await backend._get("/is_sleeping"))[1] == b'{"is_sleeping": false}'

    asyncio.run(main())
