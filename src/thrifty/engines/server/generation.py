"""One generation request on its way: jobs to the backend, tokens to the client.

Tokens are turned into bytes and written inside the backend's callback. A client that goes away
takes its jobs with it; one that reads too slowly has its chunks kept until it catches up, which is
bounded by the tokens that it may ask for.
"""

from __future__ import annotations

import asyncio
import logging
import time

from thrifty.engines.server.answers import (
    ChunkWriter,
    build_answer,
    encode_usage,
    encode_usage_chunk,
)
from thrifty.engines.server.backend import Backend, Failure, Output
from thrifty.engines.server.choice import Choice
from thrifty.engines.server.request import GenerationRequest
from thrifty.http.server import EVENT_STREAM_HEADERS, Exchange
from thrifty.openai.errors import SERVER, WireError, bad_request, unavailable
from thrifty.openai.events import DONE, encode_error_event
from thrifty.openai.fields import Endpoint
from thrifty.openai.ids import read_response_id
from thrifty.openai.stream_options import pad_events
from thrifty.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

_SEEDS = 2**31


class Generation:
    """Runs one request to its end. Make it, then await `run`."""

    def __init__(
        self,
        exchange: Exchange,
        request: GenerationRequest,
        backend: Backend,
        tokenizer: TextTokenizer,
    ) -> None:
        self._exchange = exchange
        self._request = request
        self._backend = backend
        count = len(request.prompts) * request.candidates
        self._choices = [Choice(index, request, tokenizer) for index in range(count)]
        self._by_job: dict[int, Choice] = {}
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        kind = "chatcmpl" if request.endpoint is Endpoint.CHAT else "cmpl"
        self._id = f"{kind}-{read_response_id(exchange.headers)}"
        self._created = int(time.time())
        self._writers = (
            [ChunkWriter(request, c, self._id, self._created) for c in self._choices]
            if request.stream
            else []
        )

    @property
    def tokens(self) -> int:
        """Tokens generated so far."""
        return sum(choice.tokens for choice in self._choices)

    async def run(self) -> None:
        """Generate and answer. Raises `WireError` while nothing has been sent."""
        self._exchange.on_disconnect = self._give_up
        for choice in self._choices:
            sampling = self._request.sampling
            offset = choice.index % self._request.candidates
            if offset:
                import msgspec

                sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + offset) % _SEEDS)
            prompt = self._request.prompt_of(choice.index)
            choice.job = self._backend.submit(
                prompt, sampling, self._take, self._fail, self._request.priority
            )
            self._by_job[choice.job] = choice
        try:
            await self._ended
        finally:
            self._cancel_jobs()

    def _take(self, output: Output) -> None:
        choice = self._by_job.get(output.job)
        if choice is None or self._ended.done():
            return
        try:
            self._write(choice, output)
        except Exception:
            # The backend's other jobs go on.
            log.exception("an answer cannot be written: %s", self._id)
            self._backend.cancel(output.job)
            self._fail(Failure(output.job, "engine", "the answer cannot be written"))

    def _write(self, choice: Choice, output: Output) -> None:
        text, details = choice.feed(output)
        if self._writers:
            if not self._exchange.started:
                self._exchange.start(200, EVENT_STREAM_HEADERS)
            chunks = self._writers[choice.index].write(text, details, self._count_so_far())
            if self._request.stream_options.obfuscate:
                chunks = pad_events(chunks)
            self._exchange.write(chunks)
        if choice.finish_reason is None:
            return
        del self._by_job[choice.job]
        if not output.finish:
            self._backend.cancel(choice.job)
        if not self._by_job:
            self._finish()

    def _count_so_far(self) -> bytes | None:
        """The token counts that chunks carry now, as JSON; None if they carry none."""
        options = self._request.stream_options
        if options.continuous:
            return encode_usage(self._request, self._choices)
        return b"null" if options.usage else None

    def _finish(self) -> None:
        if self._writers:
            if self._request.stream_options.usage:
                self._exchange.write(
                    encode_usage_chunk(self._request, self._choices, self._id, self._created)
                )
            self._exchange.write(DONE)
            self._exchange.finish()
        else:
            self._exchange.respond(200, build_answer(self._request, self._choices, self._id))
        self._end()

    def _fail(self, failure: Failure) -> None:
        if self._ended.done():
            return
        self._by_job.pop(failure.job, None)
        error = _to_wire_error(failure, self._request)
        if not self._exchange.started:
            self._ended.set_exception(error)
            return
        self._exchange.write(encode_error_event(error))
        self._exchange.finish()
        self._end()

    def _give_up(self) -> None:
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _cancel_jobs(self) -> None:
        for job in self._by_job:
            self._backend.cancel(job)
        self._by_job.clear()


def _to_wire_error(failure: Failure, request: GenerationRequest) -> WireError:
    if failure.kind == "grammar":
        param = "tools" if request.tools.active else "response_format"
        return bad_request(
            f"the schema cannot be enforced: {failure.message}", param, "invalid_schema"
        )
    if failure.kind == "min_tokens":
        return bad_request(failure.message, "min_tokens", "invalid_value")
    if failure.kind == "memory":
        return unavailable(failure.message, "kv_cache_full", retry_after_s=2.0)
    if failure.kind == "logprobs":
        return unavailable(failure.message, "logprobs_unavailable", retry_after_s=10.0)
    return WireError(500, failure.message, type=SERVER, code="engine_error")
