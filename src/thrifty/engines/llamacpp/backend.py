"""Generations by llama.cpp: a queue in front of its slots, and one request to it for each."""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import logging
import math
import struct
import time
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from thrifty.engines.known_answers import (
    PAIRS,
    KnownAnswers,
    judge_embeddings,
    judge_logits,
    judge_tokens,
    read_known_answers,
)
from thrifty.engines.llamacpp.process import LlamaProcess, Refused
from thrifty.engines.llamacpp.requests import (
    EMBEDDINGS_PATH,
    PATH,
    RERANK_PATH,
    make_body,
    read_embeddings,
    read_logits,
    read_scores,
)
from thrifty.engines.llamacpp.scoring import Scorer
from thrifty.engines.llamacpp.settings import WorkerSettings
from thrifty.engines.llamacpp.tokens import TokenBytes
from thrifty.engines.server.backend import (
    Candidates,
    Failure,
    Load,
    ModelFacts,
    OnFailure,
    OnOutput,
    Output,
    Ranked,
    Sampling,
)
from thrifty.errors import EngineError
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family

log = logging.getLogger(__name__)

_SEEDS = 2**31
FLOAT_BYTES = 4
EMBEDDED_AT_ONCE = 64
"""Texts in one request to llama.cpp; it batches them further by their length."""
MIN_TOKENS_FAULT = (
    "'min_tokens' cannot be joined with 'tools' or a schema on this engine (llamacpp); remove one of "
    "them."
)
"""An answer with least tokens takes two requests, and a grammar would begin anew in the second."""
GUESSES_WINDOW = 512
"""Steps with guesses that are told of together."""


class _Job:
    """One generation."""

    __slots__ = (
        "cached", "generated", "number", "on_failure", "on_output", "prompt", "sampling", "task",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        prompt: list[int],
        sampling: Sampling,
        on_output: OnOutput,
        on_failure: OnFailure,
    ) -> None:
        self.number = number
        self.prompt = prompt
        self.sampling = sampling
        self.on_output = on_output
        self.on_failure = on_failure
        self.generated: list[int] = []
        self.cached = 0
        self.task: asyncio.Task[None] | None = None


class Guesses:
    """How many of the tokens that were guessed of late were right, as llama.cpp counts them."""

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque(maxlen=GUESSES_WINDOW)

    def note(self, seen: dict[str, Any], timings: dict[str, Any]) -> dict[str, Any]:
        """Count what `timings` of a request says beyond those `seen` before; gives what is seen now."""
        if "draft_n" not in timings:
            return seen
        guessed = int(timings["draft_n"]) - int(seen.get("draft_n", 0))
        right = int(timings["draft_n_accepted"]) - int(seen.get("draft_n_accepted", 0))
        if guessed > 0:
            self._counts.append((guessed, right))
        return timings

    def describe(self) -> dict[str, float]:
        """As a load tells it."""
        guessed = sum(one for one, _ in self._counts)
        right = sum(one for _, one in self._counts)
        return {
            "speculating": 1.0, "speculation_acceptance": right / guessed if guessed else 0.0,
        }  # fmt: skip


class LlamaCppBackend:
    """Implements `thrifty.engines.server.backend.Backend`.

    No more requests go to llama.cpp than it has slots; the others wait here, those with a priority
    above 0 behind all others.
    """

    def __init__(
        self,
        python: Path,
        folder: Path,
        settings: WorkerSettings,
        tokenizer: TextTokenizer,
        *,
        family: Family,
        eos_token_ids: Sequence[int],
        kv_bytes: int,
    ) -> None:
        self._process = LlamaProcess(python, settings)
        self._folder = folder
        self._settings = settings
        self._tokenizer = tokenizer
        self._family = family
        self._eos_token_ids = tuple(eos_token_ids)
        self._kv_bytes = kv_bytes
        self._tokens: TokenBytes
        self._scorer: Scorer
        self._numbers = itertools.count(1)
        self._waiting: list[tuple[bool, int]] = []
        self._jobs: dict[int, _Job] = {}
        self._running: set[int] = set()
        self._failed: asyncio.Future[str]
        self._watch: asyncio.Task[None]
        self._facts: dict[str, float] = {}
        self._embedding = 0
        """Requests for embeddings or rankings that are under way."""
        self._guesses = Guesses() if settings.speculation != "none" else None

    async def start(self) -> ModelFacts:
        """Start llama.cpp, generate a token, and answer what is known. Raises `EngineError`."""
        if self._family is not Family.DECODER:
            return await self._start_encoder()
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        began_s = time.monotonic()
        self._tokens = await loop.run_in_executor(None, TokenBytes, self._tokenizer)
        await self._process.start()
        self._watch = loop.create_task(self._watch_process())
        loaded_s = time.monotonic()
        self._scorer = Scorer(
            self._process,
            vocabulary_size=self._tokenizer.vocabulary_size,
            whole_token=find_whole_token(self._tokenizer),
        )
        await self._check_answers()
        self._facts |= {
            "load_s": loaded_s - began_s,
            "warm_up_s": time.monotonic() - loaded_s,
            "kv_cache_bytes": float(self._kv_bytes),
            "kv_cache_tokens": float(self._settings.slots * self._settings.context),
        }
        return ModelFacts(
            family=self._family,
            context_length=self._settings.context,
            eos_token_ids=self._eos_token_ids,
            facts=self._facts,
        )

    async def _start_encoder(self) -> ModelFacts:
        """Start llama.cpp, and embed or rank what is known. Raises `EngineError`."""
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        began_s = time.monotonic()
        await self._process.start()
        self._watch = loop.create_task(self._watch_process())
        loaded_s = time.monotonic()
        known = read_known_answers(self._folder)
        if known is None or not (known.embeddings or known.logits):
            raise EngineError("the model has no known answers; prepare it anew (thrifty apply)")
        size = await self._check_embeddings(known) if known.embeddings else 0
        if known.logits:
            fault = judge_logits(known.logits, await rank_known(self._process))
            if fault:
                raise EngineError(fault)
        return ModelFacts(
            family=self._family,
            context_length=self._settings.context,
            embedding_size=size,
            facts={"load_s": loaded_s - began_s, "warm_up_s": time.monotonic() - loaded_s},
        )

    async def _check_embeddings(self, known: KnownAnswers) -> int:
        """Reproduce the known embeddings; gives their size. Raises `EngineError`."""
        found = await self.embed([one.prompt for one in known.embeddings])
        size = len(found[0]) // FLOAT_BYTES
        vectors = [struct.unpack(f"<{size}f", one) for one in found]
        fault = judge_embeddings(known.embeddings, vectors)
        if fault:
            raise EngineError(fault)
        return size

    def submit(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_output: OnOutput,
        on_failure: OnFailure,
        priority: int = 0,
    ) -> int:
        """Begin a generation, now or when a slot is free."""
        job = _Job(next(self._numbers), prompt, sampling, on_output, on_failure)
        failure = None
        if self._failed.done():
            failure = Failure(job.number, "engine", f"the engine died: {self._failed.result()}")
        elif sampling.min_tokens and sampling.grammar is not None and not sampling.ignore_eos:
            failure = Failure(job.number, "min_tokens", MIN_TOKENS_FAULT)
        if failure is not None:
            asyncio.get_running_loop().call_soon(on_failure, failure)
            return job.number
        self._jobs[job.number] = job
        heapq.heappush(self._waiting, (priority > 0, job.number))
        self._begin_waiting()
        return job.number

    def cancel(self, job: int) -> None:
        """Stop a generation: llama.cpp frees its slot when the connection is closed."""
        found = self._jobs.pop(job, None)
        if found is not None and found.task is not None:
            found.task.cancel()

    async def embed(self, inputs: list[list[int]]) -> list[bytes]:
        """The embedding of each input, of length 1. Raises `EngineError`."""
        if not self._settings.embeds:
            raise EngineError("this model serves no embeddings")
        if self._failed.done():
            raise EngineError(f"the engine died: {self._failed.result()}")
        found: list[bytes] = []
        self._embedding += 1
        try:
            for place in range(0, len(inputs), EMBEDDED_AT_ONCE):
                part = inputs[place : place + EMBEDDED_AT_ONCE]
                answer = await self._process.ask(EMBEDDINGS_PATH, {"input": part})
                found += read_embeddings(answer, len(part))
        finally:
            self._embedding -= 1
        return found

    async def rank(self, candidates: Candidates) -> list[float]:
        """The logit of each document. llama.cpp takes texts here. Raises `EngineError`."""
        if not self._settings.ranks:
            raise EngineError("this model ranks no documents")
        if self._failed.done():
            raise EngineError(f"the engine died: {self._failed.result()}")
        found: list[float] = []
        self._embedding += 1
        try:
            for place in range(0, len(candidates.documents), EMBEDDED_AT_ONCE):
                part = candidates.documents[place : place + EMBEDDED_AT_ONCE]
                body = {"query": candidates.query, "documents": part}
                found += read_logits(await self._process.ask(RERANK_PATH, body), len(part))
        finally:
            self._embedding -= 1
        return found

    def load(self) -> Load:
        """How busy it is."""
        held = sum(
            len(job.prompt) + len(job.generated)
            for number in self._running
            if (job := self._jobs.get(number)) is not None
        )
        if self._family is not Family.DECODER:
            return Load(self._embedding, 0, 0.0, {})
        room = self._settings.slots * self._settings.context
        waiting = len(self._jobs) - len(self._running & self._jobs.keys())
        return Load(
            len(self._running), waiting, min(1.0, held / room),
            self._guesses.describe() if self._guesses is not None else {},
        )  # fmt: skip

    async def park(self) -> None:
        """There is nothing that the engine could give back and take again."""

    async def wait_failed(self) -> str:
        """Return once llama.cpp is gone. The server then ends, and its supervisor starts anew."""
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """End the generations and the process."""
        for number in list(self._jobs):
            self.cancel(number)
        self._watch.cancel()
        await self._process.stop()

    async def _watch_process(self) -> None:
        reason = await self._process.wait_end()
        log.error("llama.cpp is gone: %s", reason)
        self._failed.set_result(reason)

    def _begin_waiting(self) -> None:
        while self._waiting and len(self._running) < self._settings.slots:
            _, number = heapq.heappop(self._waiting)
            job = self._jobs.get(number)
            if job is None:  # it was cancelled
                continue
            self._running.add(number)
            job.task = asyncio.get_running_loop().create_task(self._run(job))
            # A task that is cancelled before its first step runs no `finally`.
            job.task.add_done_callback(functools.partial(self._release, job))

    def _release(self, job: _Job, _: asyncio.Task[None]) -> None:
        """A generation has ended: its slot goes to the next one."""
        self._jobs.pop(job.number, None)
        self._running.discard(job.number)
        self._begin_waiting()

    async def _run(self, job: _Job) -> None:
        try:
            await self._answer(job)
        except EngineError as error:
            kind = "engine"
            if isinstance(error, Refused) and job.sampling.grammar is not None:
                kind = "grammar"
            job.on_failure(Failure(job.number, kind, str(error)))
        except Exception as error:
            log.exception("an answer of llama.cpp cannot be read")
            job.on_failure(Failure(job.number, "engine", f"llama.cpp's answer is odd: {error!r}"))

    async def _answer(self, job: _Job) -> None:
        sampling = job.sampling
        if sampling.prompt_logprobs:
            scores = await self._scorer.score_prompt(job.prompt, sampling.top_logprobs)
            finish = "" if sampling.max_tokens else "length"
            job.on_output(Output(job.number, [], None, finish, prompt=scores))
        if not sampling.max_tokens:
            if not sampling.prompt_logprobs:
                job.on_output(Output(job.number, [], finish="length"))
            return
        if sampling.min_tokens > 0 and not sampling.ignore_eos:
            ends = {*self._eos_token_ids, *sampling.stop_token_ids}
            if await self._generate(job, sampling.min_tokens, ignore_eos=True, banned=ends):
                return
        await self._generate(job, sampling.max_tokens, ignore_eos=sampling.ignore_eos)

    async def _generate(
        self, job: _Job, until: int, *, ignore_eos: bool, banned: set[int] | None = None
    ) -> bool:
        """Generate until there are `until` tokens; whether that was the end of the answer."""
        done = len(job.generated)
        sampling = job.sampling
        body = make_body(
            [*job.prompt, *job.generated], sampling, count=until - done,
            context=self._settings.context,
            prefix_cache=self._settings.prefix_cache, banned=banned or (), ignore_eos=ignore_eos,
        )  # fmt: skip
        body["seed"] = (sampling.seed + done) % _SEEDS
        body["timings_per_token"] = self._guesses is not None
        seen: dict[str, Any] = {}
        async with aclosing(self._process.stream(PATH, body)) as events:
            async for event in events:
                if "prompt_progress" in event:
                    job.cached = max(job.cached, int(event["prompt_progress"]["cache"]))
                    continue
                if self._guesses is not None:
                    seen = self._guesses.note(seen, event.get("timings") or {})
                if event["stop"]:
                    return await self._end(job, until, event, body)
                if await self._take(job, event, ignore_eos=ignore_eos):
                    return True
                if len(job.generated) == until < sampling.max_tokens:
                    return False
        raise EngineError("llama.cpp broke off its answer")

    async def _take(self, job: _Job, event: dict[str, Any], *, ignore_eos: bool) -> bool:
        """Pass on the tokens of an event; whether the answer ends with them."""
        tokens: list[int] = []
        for last in event["tokens"]:
            tokens += self._tokens.complete(last, event["content"])
        room = job.sampling.max_tokens - len(job.generated)
        tokens = tokens[:room]
        finish = "length" if len(tokens) == room else ""
        if tokens and tokens[-1] in self._eos_token_ids and not ignore_eos:
            finish = "stop"
        await self._tell(job, tokens, finish, read_scores(event))
        return bool(finish)

    async def _end(
        self, job: _Job, until: int, event: dict[str, Any], body: dict[str, Any]
    ) -> bool:
        """What the last event of a request comes to; whether the answer ends with it."""
        missing = until - len(job.generated)
        begins_anew = job.sampling.grammar is not None and bool(job.generated)
        if event["stop_type"] == "limit" and missing > 0 and not begins_anew:
            # The answer is cut off within a character, and its last tokens were not named. A grammar
            # would begin anew, so that they are left out of what it binds.
            begun = [*job.prompt, *job.generated]
            again = await self._process.ask(
                PATH, {**body, "prompt": begun, "n_predict": missing, "stream": False}
            )
            tokens = [int(token) for token in again["tokens"]][:missing]
            finish = "length" if until == job.sampling.max_tokens else ""
            await self._tell(job, tokens, finish, [])
            return bool(finish)
        if event["stop_type"] == "limit" and until < job.sampling.max_tokens:
            return False
        finish = "length" if event["stop_type"] == "limit" else "stop"
        job.on_output(Output(job.number, [], None, finish, job.cached))
        return True

    async def _tell(
        self, job: _Job, tokens: list[int], finish: str, known: list[tuple[int, float, Ranked]]
    ) -> None:
        """Hand `tokens` over, with their log-probabilities where they are wanted."""
        sampling = job.sampling
        logprobs: list[float] | None = None
        top: list[Ranked] | None = None
        if sampling.logprobs or sampling.top_logprobs:
            logprobs, top = [], []
            scores = {token: (logprob, ranked) for token, logprob, ranked in known}
            for place, token in enumerate(tokens):
                found = scores.get(token) if place == len(tokens) - 1 else None
                if found is None:
                    begun = [*job.prompt, *job.generated, *tokens[:place]]
                    found = await self._scorer.score(begun, token, sampling.top_logprobs)
                logprobs.append(min(0.0, found[0]))
                top.append(found[1][: sampling.top_logprobs])
        job.generated += tokens
        cached = min(job.cached, len(job.prompt) - 1)
        job.on_output(Output(job.number, tokens, logprobs, finish, cached, top))

    async def _check_answers(self) -> None:
        """Reproduce the known answers, or at least a token. Raises `EngineError`."""
        known = read_known_answers(self._folder)
        chosen = [
            (await self._scorer.find_next(one.prompt, 1))[0]
            for one in (known.tokens if known else [])
        ]
        if not chosen:
            first = await self._scorer.find_next([self._scorer.whole_token], 1)
            if not math.isfinite(first[0][1]):
                raise EngineError("the model's first token has no finite log-probability")
        fault = judge_tokens(known.tokens, chosen) if known else None
        if fault:
            raise EngineError(fault)


async def rank_known(process: LlamaProcess) -> list[float]:
    """The logits of the known-answer test's pairs of texts."""
    found: list[float] = []
    for query, document in PAIRS:
        body = {"query": query, "documents": [document]}
        found += read_logits(await process.ask(RERANK_PATH, body), 1)
    return found


def find_whole_token(tokenizer: TextTokenizer) -> int:
    """A token that spells a whole character."""
    ids = tokenizer.encode(" a", add_special_tokens=False)
    return ids[-1] if ids else 0
