"""The server's endpoints around one backend."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Collection
from typing import Any

import msgspec

from thrifty.engines.server.backend import Backend, ModelFacts
from thrifty.engines.server.generation import Generation
from thrifty.engines.server.request import (
    check_length,
    encode_chat,
    encode_input,
    parse_chat,
    parse_completion,
    split_inputs,
)
from thrifty.engines.server.tools import ToolPlan, parse_tools
from thrifty.errors import EngineError
from thrifty.http.server import Exchange
from thrifty.openai.bodies import decode_body
from thrifty.openai.errors import NOT_FOUND, SERVER, WireError, bad_request
from thrifty.openai.fields import Endpoint, check_fields
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family

log = logging.getLogger(__name__)

MAX_EMBEDDING_INPUTS = 2048

_encode = msgspec.json.Encoder().encode


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
        try:
            endpoint = Endpoint(path)
        except ValueError:
            raise _no_such_path(path) from None
        facts = self._facts
        if facts is None:
            raise WireError(503, "the model is still loading", code="loading", retry_after_s=1)
        body = decode_body(exchange.body)
        check_fields(body, endpoint, self._honours, self._engine)
        if body.get("model") not in (None, self.name):
            raise WireError(
                404,
                f"The model '{body['model']}' does not exist; this server has '{self.name}'.",
                type=NOT_FOUND,
                param="model",
                code="model_not_found",
            )
        self._active += 1
        try:
            if endpoint is Endpoint.EMBEDDINGS:
                await self._embed(exchange, body, facts)
            elif endpoint is Endpoint.TOKENIZE:
                self._tokenize(exchange, body, facts)
            else:
                await self._generate(exchange, body, endpoint, facts)
        finally:
            self._active -= 1

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
                        "facts": (self._facts.facts if self._facts else None) or {},
                    }
                ),
            )
        elif path == "/v1/models":
            exchange.respond(200, _encode({"object": "list", "data": [self._describe()]}))
        elif path == f"/v1/models/{self.name}":
            exchange.respond(200, _encode(self._describe()))
        else:
            raise _no_such_path(path)

    def _describe(self) -> dict[str, Any]:
        length = self._facts.context_length if self._facts else None
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "thrifty",
            "max_model_len": length,
        }

    async def _generate(
        self, exchange: Exchange, body: dict[str, Any], endpoint: Endpoint, facts: ModelFacts
    ) -> None:
        if facts.family is not Family.DECODER:
            raise _wrong_family("an encoder; it answers /v1/embeddings")
        parse = parse_chat if endpoint is Endpoint.CHAT else parse_completion
        try:
            if body.get("response_format") or body.get("tools"):
                # A schema may take a second to become a grammar.
                request = await asyncio.to_thread(parse, body, self._tokenizer, facts)
            else:
                request = parse(body, self._tokenizer, facts)
        except RecursionError:
            raise bad_request("The body is nested too deeply.", code="invalid_json") from None
        await Generation(exchange, request, self.backend, self._tokenizer).run()

    async def _embed(self, exchange: Exchange, body: dict[str, Any], facts: ModelFacts) -> None:
        if facts.family is not Family.ENCODER:
            raise _wrong_family("a decoder; it answers /v1/chat/completions and /v1/completions")
        inputs = split_inputs(body["input"])
        if len(inputs) > MAX_EMBEDDING_INPUTS:
            raise bad_request(
                f"'input' has {len(inputs)} texts; at most {MAX_EMBEDDING_INPUTS} may come at once.",
                "input",
                "invalid_value",
            )
        dimensions = body.get("dimensions")
        if dimensions is not None and dimensions != facts.embedding_size:
            raise bad_request(
                f"this model's embeddings have {facts.embedding_size} dimensions and cannot be cut "
                f"to {dimensions}",
                "dimensions",
                "unsupported_parameter",
            )
        encoded = [encode_input(i, self._tokenizer, "input") for i in inputs]
        for ids in encoded:
            if not ids:
                raise bad_request("'input' must not be empty.", "input", "invalid_value")
            check_length(len(ids), facts, "input")
        try:
            vectors = await self.backend.embed(encoded)
        except EngineError as error:
            raise WireError(500, str(error), type=SERVER, code="engine_error") from None
        as_floats = body.get("encoding_format", "float") != "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _unpack(vector) if as_floats else base64.b64encode(vector).decode(),
            }
            for index, vector in enumerate(vectors)
        ]
        tokens = sum(map(len, encoded))
        exchange.respond(
            200,
            _encode(
                {
                    "object": "list",
                    "data": data,
                    "model": str(body.get("model", self.name)),
                    "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                }
            ),
        )

    def _tokenize(self, exchange: Exchange, body: dict[str, Any], facts: ModelFacts) -> None:
        if (body.get("prompt") is None) == (body.get("messages") is None):
            raise bad_request("Give either 'prompt' or 'messages'.", "prompt", "invalid_value")
        if body.get("messages") is not None:
            plan = parse_tools(body) if body.get("tools") else ToolPlan()
            ids = encode_chat(body, self._tokenizer, plan)
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
        exchange.respond(200, _encode(answer))


def _unpack(vector: bytes) -> list[float]:
    import array

    return array.array("f", vector).tolist()


def _no_such_path(path: str) -> WireError:
    return WireError(404, f"there is nothing at {path}", type=NOT_FOUND, code="unknown_path")


def _wrong_family(what: str) -> WireError:
    return bad_request(f"this model is {what}", "model", "wrong_model_family")
