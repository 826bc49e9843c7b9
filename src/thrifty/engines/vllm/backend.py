"""vLLM's processes, as the replica's server sees them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from thrifty.engines.server.backend import (
    Candidates,
    Failure,
    Load,
    ModelFacts,
    OnFailure,
    OnOutput,
    Output,
    Sampling,
    Scores,
)
from thrifty.engines.vllm.child import Child
from thrifty.engines.vllm.command_line import ADAPTER, MODEL
from thrifty.engines.vllm.metrics import Figures, parse_figures
from thrifty.engines.vllm.wire import (
    GENERATE,
    Choice,
    Chunk,
    EventReader,
    decode_chunk,
    encode_prompt_request,
    encode_request,
    read_prompt_scores,
    read_top,
)
from thrifty.errors import EngineError
from thrifty.http.client import Answer, HttpClient, TransportError
from thrifty.openai.errors import read_message
from thrifty.types import Family

log = logging.getLogger(__name__)

POLL_S = 0.25
"""How often vLLM is asked whether it has started."""
FIGURES_INTERVAL_S = 1.0
"""How often its figures are read while it works. Reading them takes it some milliseconds."""
SMALL_TIMEOUT_S = 10.0
TURN_TIMEOUT_S = 300.0
"""Falling asleep and waking move all weights."""
WARM_UP_TIMEOUT_S = 600.0
"""The first generation may compile."""
_JSON = b"content-type: application/json\r\n"


class Settings(msgspec.Struct, frozen=True):
    """How vLLM is started, as plain values."""

    command: tuple[str, ...]
    """Without the socket."""
    environment: dict[str, str]
    eos_token_ids: tuple[int, ...] = ()
    adapter: bool = False
    """Whether answers are given with the LoRA adapter."""
    sleeps: bool = False
    """Whether it can give back its GPU memory while it is parked."""


@dataclass(frozen=True)
class _Job:
    number: int
    prompt: list[int]
    sampling: Sampling
    priority: int
    on_output: OnOutput
    on_failure: OnFailure


_Tell = Callable[[_Job, Output], None]


class _JobFailed(Exception):
    """vLLM refused a job or gave it up."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class VllmBackend:
    """Starts vLLM, sends it jobs, hands its tokens to their callbacks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._model = ADAPTER if settings.adapter else MODEL
        self._child = Child(settings.command, settings.environment)
        self._client = HttpClient()
        self._numbers = itertools.count(1)
        self._jobs: dict[int, asyncio.Task[None]] = {}
        self._figures = Figures()
        self._watch: asyncio.Task[None] | None = None
        self._asleep = False
        self._turning = asyncio.Lock()
        """Held while it falls asleep or wakes."""

    async def start(self) -> ModelFacts:
        """Start vLLM and wait until it has generated something. Raises `EngineError`."""
        started_s = time.monotonic()
        await self._child.start()
        await self._wait_listening()
        loaded_s = time.monotonic()
        context = await self._read_context()
        await self._warm_up()
        ready_s = time.monotonic()
        await self._read_figures()
        self._watch = asyncio.create_task(self._keep_reading())
        return ModelFacts(
            family=Family.DECODER,
            context_length=context,
            eos_token_ids=self._settings.eos_token_ids,
            facts={
                "load_s": loaded_s - started_s,
                "warm_up_s": ready_s - loaded_s,
                "kv_cache_tokens": float(self._figures.kv_tokens),
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
        """Send a generation to vLLM."""
        job = _Job(next(self._numbers), prompt, sampling, priority, on_output, on_failure)
        self._jobs[job.number] = asyncio.get_running_loop().create_task(self._run(job))
        return job.number

    def cancel(self, job: int) -> None:
        """Cut the connection, which makes vLLM stop a generation."""
        task = self._jobs.pop(job, None)
        if task is not None:
            task.cancel()

    async def embed(self, inputs: list[list[int]]) -> list[bytes]:
        """Refused: only decoders are served. Raises `EngineError`."""
        raise EngineError("this engine serves no embeddings")

    async def rank(self, candidates: Candidates) -> list[float]:
        """Refused: only decoders are served. Raises `EngineError`."""
        raise EngineError("this engine ranks no documents")

    def load(self) -> Load:
        """How busy vLLM is: as many jobs as there are, waiting if it said so a moment ago."""
        figures = self._figures
        waiting = min(figures.waiting, len(self._jobs))
        return Load(len(self._jobs) - waiting, waiting, figures.kv_usage, figures.describe())

    async def park(self) -> None:
        """Have vLLM give back its GPU memory, unless it works; the next job wakes it. Weights go to
        main memory. Without the option `sleep` there is nothing that it could give back.
        """
        if not self._settings.sleeps:
            return
        async with self._turning:
            if self._jobs or self._asleep:
                return
            # Jobs that come from now on wait for the lock, and find it asleep.
            self._asleep = True
            try:
                await self._post("/sleep?level=1")
            except TransportError:
                log.warning("vLLM did not fall asleep", exc_info=True)

    async def _wake(self) -> None:
        async with self._turning:
            if self._asleep:
                await self._post("/wake_up")
                self._asleep = False

    async def _post(self, path: str) -> None:
        status, body = await self._client.fetch_from(
            self._child.origin, "POST", path, timeout_s=TURN_TIMEOUT_S
        )
        if status != 200:
            raise TransportError(f"vLLM answers {status} to {path}: {read_message(body)}")

    async def wait_failed(self) -> str:
        """Return once vLLM is gone. The server then ends, and its supervisor starts anew."""
        return await self._child.wait_ended()

    async def stop(self) -> None:
        """End vLLM's processes."""
        for job in list(self._jobs):
            self.cancel(job)
        if self._watch is not None:
            self._watch.cancel()
        self._client.close()
        await self._child.stop()

    # the start

    async def _wait_listening(self) -> None:
        ended = asyncio.ensure_future(self._child.wait_ended())
        try:
            while not ended.done():
                with contextlib.suppress(TransportError):
                    if (await self._get("/health"))[0] == 200:
                        return
                await asyncio.wait({ended}, timeout=POLL_S)
            raise EngineError(f"the model could not be loaded: {ended.result()}")
        finally:
            ended.cancel()

    async def _read_context(self) -> int:
        _, body = await self._get("/v1/models")
        try:
            return int(msgspec.json.decode(body)["data"][0]["max_model_len"])
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(f"vLLM does not say what it serves: {error!r}") from None

    async def _warm_up(self) -> None:
        sampling = Sampling(max_tokens=2, temperature=0.0, ignore_eos=True)
        try:
            body = encode_request(self._model, [1, 2, 3], sampling, (), 0, stream=False)
            async with asyncio.timeout(WARM_UP_TIMEOUT_S):
                await self._ask_whole(body)
        except TimeoutError:
            raise EngineError(f"vLLM generated nothing within {WARM_UP_TIMEOUT_S:.0f} s") from None
        except (TransportError, _JobFailed, ValueError) as error:
            reason = self._child.describe_end() or str(error)
            raise EngineError(f"vLLM started, and cannot generate: {reason}") from None

    # jobs

    async def _run(self, job: _Job) -> None:
        try:
            if self._asleep or self._turning.locked():
                await self._wake()
            scores = None
            if job.sampling.prompt_logprobs:
                scores = await self._score_prompt(job)
            if job.sampling.max_tokens:
                await self._generate(job, scores)
            else:
                self._tell(job, Output(job.number, [], finish="length", prompt=scores))
        except _JobFailed as error:
            self._fail(job, error.kind, str(error))
        except (TransportError, ValueError) as error:
            reason = self._child.describe_end()
            message = f"the engine died while answering: {reason}" if reason else str(error)
            self._fail(job, "engine", message)
        except Exception as error:
            log.exception("an answer of vLLM cannot be read")
            self._fail(job, "engine", f"vLLM's answer is odd: {error!r}")

    async def _generate(self, job: _Job, scores: Scores | None) -> None:
        answer = await self._open(
            encode_request(
                self._model, job.prompt, job.sampling, self._settings.eos_token_ids, job.priority
            )
        )
        stream = _Stream(job, scores, self._tell)
        try:
            if answer.status != 200:
                raise _describe_refusal(job, await answer.read())
            answer.attach(EventReader(stream.take).feed)
            await answer.done
        finally:
            answer.abort()
        if stream.error is not None:
            raise _JobFailed(_find_kind(job), stream.error)
        if not stream.finished:
            raise _JobFailed("engine", "vLLM ended an answer without saying why")

    async def _score_prompt(self, job: _Job) -> Scores:
        body = encode_prompt_request(self._model, job.prompt, job.sampling)
        chunk = await self._ask_whole(body)
        return read_prompt_scores(chunk, job.prompt, job.sampling.top_logprobs)

    async def _ask_whole(self, body: bytes) -> Chunk:
        answer = await self._open(body)
        data = await answer.read()
        if answer.status != 200:
            raise _JobFailed("engine", read_message(data))
        return decode_chunk(data)

    async def _open(self, body: bytes) -> Answer:
        return await self._client.open(
            self._child.origin, "POST", GENERATE, headers=_JSON, body=body
        )

    def _tell(self, job: _Job, output: Output) -> None:
        if job.number not in self._jobs:
            return  # what was on its way when the job was cancelled
        if output.finish:
            del self._jobs[job.number]
        job.on_output(output)

    def _fail(self, job: _Job, kind: str, message: str) -> None:
        if self._jobs.pop(job.number, None) is not None:
            job.on_failure(Failure(job.number, kind, message))

    # figures

    async def _keep_reading(self) -> None:
        """Read vLLM's figures while it works, and once when it has finished."""
        busy = False
        while True:
            await asyncio.sleep(FIGURES_INTERVAL_S)
            if self._jobs or busy:
                busy = bool(self._jobs)
                with contextlib.suppress(TransportError, ValueError):
                    await self._read_figures()

    async def _read_figures(self) -> None:
        status, body = await self._get("/metrics/")
        if status == 200:
            self._figures = parse_figures(body)

    async def _get(self, path: str) -> tuple[int, bytes]:
        return await self._client.fetch_from(
            self._child.origin, "GET", path, timeout_s=SMALL_TIMEOUT_S
        )


class _Stream:
    """Turns the events of one answer into outputs. The last tokens wait for the counts, which come
    in an event of their own.
    """

    def __init__(self, job: _Job, scores: Scores | None, tell: _Tell) -> None:
        self._job = job
        self._scores = scores
        self._tell = tell
        self._last: Output | None = None
        self.error: str | None = None
        self.finished = False

    def take(self, data: bytes) -> None:
        """Take one event's payload."""
        if data == b"[DONE]":
            self._end(0)
            return
        chunk = decode_chunk(data)
        if chunk.error is not None:
            self.error = chunk.error.message
        for choice in chunk.choices:
            self._take_choice(choice)
        if chunk.usage is not None:
            self._end(chunk.cached_tokens)

    def _take_choice(self, choice: Choice) -> None:
        job, finish = self._job, choice.finish_reason or ""
        if finish not in ("", "stop", "length"):
            self.error = f"vLLM ended an answer early ({finish})"
            return
        positions = choice.positions
        output = Output(
            job.number,
            choice.token_ids or [],
            None if positions is None else [one.logprob for one in positions],
            finish,
            top=None if positions is None else read_top(positions, job.sampling.top_logprobs),
            prompt=self._scores,
        )
        self._scores = None
        if finish:
            self._last = output
        else:
            self._tell(job, output)

    def _end(self, cached_tokens: int) -> None:
        if self._last is not None:
            output, self._last = self._last, None
            output.cached_tokens = cached_tokens
            self.finished = True
            self._tell(self._job, output)


def _find_kind(job: _Job) -> str:
    """What is at fault for a refusal: of what a request says, only a grammar is not checked before
    it gets here.
    """
    return "grammar" if job.sampling.grammar is not None else "engine"


def _describe_refusal(job: _Job, body: bytes) -> _JobFailed:
    return _JobFailed(_find_kind(job), read_message(body))
