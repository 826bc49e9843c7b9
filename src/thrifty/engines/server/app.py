"""The server's endpoints around one backend."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from thrifty.engines.server.backend import Backend, ModelFacts
from thrifty.engines.server.embeddings import check_dimensions, describe_embeddings
from thrifty.engines.server.generation import Generation
from thrifty.engines.server.memory import give_back_memory
from thrifty.engines.server.narrowed import NARROWED
from thrifty.engines.server.prompt import build_prompt
from thrifty.engines.server.request import (
    GenerationRequest,
    check_length,
    encode_input,
    parse_chat,
    parse_completion,
    parse_truncation,
    split_inputs,
)
from thrifty.engines.server.rerank import RerankRequest, parse_rerank, write_ranking
from thrifty.engines.server.tools import ToolPlan, parse_tools
from thrifty.errors import EngineError
from thrifty.http.server import Exchange
from thrifty.openai.bodies import decode_body
from thrifty.openai.errors import NOT_FOUND, SERVER, WireError, bad_request
from thrifty.openai.fields import Endpoint, check_family, check_fields, check_narrowed
from thrifty.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

PARK_PATH = "/park"
"""See `engines.probe`."""
MAX_EMBEDDING_INPUTS = 2048
MAX_INLINE_BYTES = 4096
"""Larger bodies are read, rendered and tokenized in a thread, which costs a request about 0.1 ms.
Tokenizing so much takes about 3 ms, for which all streams of the replica wait."""
LARGE_BYTES = 100_000
"""Larger bodies have a thread of their own: tokenizing 7 MB takes 12 s and more."""
READING_THREADS = 2
BINDING_THREADS = 2
"""For bodies with schemas: one may take seconds to become a grammar."""

_encode = msgspec.json.Encoder().encode
_T = TypeVar("_T")


class ModelServer:
    """Answers requests for one model. `handle` is the HTTP server's handler."""

    def __init__(
        self,
        name: str,
        backend: Backend,
        tokenizer: TextTokenizer,
        *,
        engine: str,
        honours: Collection[str],
    ) -> None:
        self.name = name
        self.backend = backend
        self._tokenizer = tokenizer
        self._engine = engine
        self._honours = honours
        self._facts: ModelFacts | None = None
        self._created = int(time.time())
        self._active = 0
        self._reading = ThreadPoolExecutor(READING_THREADS, "read")
        self._binding = ThreadPoolExecutor(BINDING_THREADS, "bind")
        self._large = ThreadPoolExecutor(1, "large")

    async def start(self) -> ModelFacts:
        """Load the model; `/health` is 503 until this is done."""
        self._facts = await self.backend.start()
        return self._facts

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        path = exchange.path
        if exchange.method == "GET":
            self._handle_get(exchange, path)
            return
        if exchange.method != "POST":
            raise WireError(
                405, f"{exchange.method} is not possible here", code="method_not_allowed"
            )
        if path == PARK_PATH:
            await self.backend.park()
            await asyncio.to_thread(give_back_memory)
            exchange.respond(200, b"{}")
            return
        try:
            endpoint = Endpoint(path)
        except ValueError:
            raise _no_such_path(path) from None
        facts = self._facts
        if facts is None:
            raise WireError(503, "the model is still loading", code="loading", retry_after_s=1)
        self._active += 1
        try:
            await self._answer(exchange, endpoint, facts)
        finally:
            self._active -= 1

    async def _answer(self, exchange: Exchange, endpoint: Endpoint, facts: ModelFacts) -> None:
        read = functools.partial(self._read, exchange.body, endpoint, facts)
        lane = self._choose_lane(exchange.body)
        if lane is None:
            request = read()
        else:
            found = await _run_in(lane, lambda: None if exchange.disconnected else read())
            if found is None:
                return  # The client left while its request waited for a thread.
            request = found
        if isinstance(request, GenerationRequest):
            await Generation(exchange, request, self.backend, self._tokenizer).run()
        elif isinstance(request, _EmbeddingRequest):
            await self._embed(exchange, request)
        elif isinstance(request, RerankRequest):
            await self._rerank(exchange, request)
        else:
            exchange.respond(200, request)

    def _choose_lane(self, body: bytes) -> ThreadPoolExecutor | None:
        """The threads that read a body, so that what takes long holds up only its like; None for
        one that is read at once.
        """
        if len(body) > LARGE_BYTES:
            return self._large
        # Escapes may hide the name of a field.
        if any(word in body for word in (b'"response_format"', b'"tools"', b"\\u")):
            return self._binding
        return self._reading if len(body) > MAX_INLINE_BYTES else None

    def _read(
        self, data: bytes, endpoint: Endpoint, facts: ModelFacts
    ) -> GenerationRequest | _EmbeddingRequest | RerankRequest | bytes:
        """What a body asks for, tokenized; the answer itself to a request for tokens. Raises a 4xx
        that names the fault. Any thread may call it.
        """
        body = decode_body(data)
        check_family(endpoint, facts.family)
        check_fields(body, endpoint, self._honours, self._engine)
        check_narrowed(body, endpoint, NARROWED, self._engine)
        if body.get("model") not in (None, self.name):
            raise WireError(
                404,
                f"The model '{body['model'][:100]}' does not exist; this server has '{self.name}'.",
                type=NOT_FOUND,
                param="model",
                code="model_not_found",
            )
        try:
            if endpoint is Endpoint.EMBEDDINGS:
                return self._read_embedding(body, facts)
            if endpoint is Endpoint.RERANK:
                return parse_rerank(body, self._tokenizer, facts, self.name)
            if endpoint is Endpoint.TOKENIZE:
                return self._tokenize(body, facts)
            parse = parse_chat if endpoint is Endpoint.CHAT else parse_completion
            return parse(body, self._tokenizer, facts)
        except RecursionError:
            raise bad_request("The body is nested too deeply.", code="invalid_json") from None

    def _handle_get(self, exchange: Exchange, path: str) -> None:
        if path == "/health":
            ready = self._facts is not None
            body = {"status": "ok" if ready else "loading"}
            exchange.respond(200 if ready else 503, _encode(body))
        elif path == "/load":
            load = self.backend.load()
            exchange.respond(
                200,
                _encode(
                    {
                        "active_requests": self._active,
                        "running": load.running,
                        "waiting": load.waiting,
                        "kv_usage": load.kv_usage,
                        "facts": {**self._describe_facts(), **load.facts},
                    }
                ),
            )
        elif path == "/v1/models":
            exchange.respond(200, _encode({"object": "list", "data": [self._describe()]}))
        elif path == f"/v1/models/{self.name}":
            exchange.respond(200, _encode(self._describe()))
        else:
            raise _no_such_path(path)

    def _describe_facts(self) -> dict[str, float]:
        facts = self._facts
        if facts is None:
            return {}
        return {"context_length": facts.context_length, **(facts.facts or {})}

    def _describe(self) -> dict[str, Any]:
        length = self._facts.context_length if self._facts else None
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "thrifty",
            "max_model_len": length,
        }

    def _read_embedding(self, body: dict[str, Any], facts: ModelFacts) -> _EmbeddingRequest:
        inputs = split_inputs(body["input"])
        if len(inputs) > MAX_EMBEDDING_INPUTS:
            raise bad_request(
                f"'input' has {len(inputs)} texts; at most {MAX_EMBEDDING_INPUTS} may come at once.",
                "input",
                "invalid_value",
            )
        dimensions = body.get("dimensions")
        check_dimensions(dimensions, facts)
        keep = parse_truncation(body, facts, 0)
        encoded = [
            encode_input(i, self._tokenizer, "input", facts, keep, keep_end=False) for i in inputs
        ]
        for ids in encoded:
            if not ids:
                raise bad_request("'input' must not be empty.", "input", "invalid_value")
            check_length(len(ids), facts, "input")
        return _EmbeddingRequest(
            encoded,
            model=str(body.get("model", self.name)),
            dimensions=dimensions,
            encoding=body.get("encoding_format") or "float",
        )

    async def _embed(self, exchange: Exchange, request: _EmbeddingRequest) -> None:
        try:
            vectors = await self.backend.embed(request.inputs)
        except EngineError as error:
            raise WireError(500, str(error), type=SERVER, code="engine_error") from None
        write = functools.partial(_write_embeddings, request, vectors)
        if sum(map(len, vectors)) <= MAX_INLINE_BYTES:
            exchange.respond(200, write())
        else:
            exchange.respond(200, await _run_in(self._reading, write))

    async def _rerank(self, exchange: Exchange, request: RerankRequest) -> None:
        try:
            logits = await self.backend.rank(request.candidates)
        except EngineError as error:
            raise WireError(500, str(error), type=SERVER, code="engine_error") from None
        exchange.respond(200, write_ranking(request, logits))

    def _tokenize(self, body: dict[str, Any], facts: ModelFacts) -> bytes:
        if (body.get("prompt") is None) == (body.get("messages") is None):
            raise bad_request("Give either 'prompt' or 'messages'.", "prompt", "invalid_value")
        if body.get("messages") is not None:
            plan = parse_tools(body) if body.get("tools") else ToolPlan()
            ids = build_prompt(body, self._tokenizer, plan).ids
        else:
            special = body.get("add_special_tokens") is not False
            ids = self._tokenizer.encode(body["prompt"], add_special_tokens=special)
        answer: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": facts.context_length,
            "tokens": ids,
        }
        if body.get("return_token_strs"):
            answer["token_strs"] = [self._tokenizer.token_text(i) for i in ids]
        return _encode(answer)


@dataclass(frozen=True)
class _EmbeddingRequest:
    """One request for embeddings, ready for the backend."""

    inputs: list[list[int]]
    model: str
    dimensions: int | None
    encoding: str


def _write_embeddings(request: _EmbeddingRequest, vectors: list[bytes]) -> bytes:
    """The answer with these vectors (float32). Each is encoded by itself, because the encoder keeps
    the interpreter lock.
    """
    data = describe_embeddings(vectors, request.dimensions, request.encoding)
    tokens = sum(map(len, request.inputs))
    return _encode(
        {
            "object": "list",
            "data": [msgspec.Raw(_encode(each)) for each in data],
            "model": request.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


async def _run_in(lane: ThreadPoolExecutor, function: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(lane, function)


def _no_such_path(path: str) -> WireError:
    return WireError(404, f"there is nothing at {path}", type=NOT_FOUND, code="unknown_path")
