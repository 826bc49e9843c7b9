"""What goes to vLLM and what comes back: `/inference/v1/generate`, token ids in and out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from thrifty.engines.server.backend import Ranked, Sampling, Scores

GENERATE = "/inference/v1/generate"
LEAST_TEMPERATURE = 0.001
"""vLLM raises what is above 0 to 0.01; what is below this is greedy in all but name."""
LEAST_TOP_P = 1e-6
"""vLLM takes none of 0; this leaves the likeliest token alone."""


class LogProb(msgspec.Struct, frozen=True):
    """A token and its log-probability."""

    token_id: int
    logprob: float


class Position(LogProb, frozen=True):
    """A generated token, with the likeliest in its place."""

    top_logprobs: list[LogProb] = []


class _LogProbs(msgspec.Struct, frozen=True):
    content: list[Position] | None = None


class Choice(msgspec.Struct, frozen=True):
    """New tokens of an answer."""

    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _LogProbs | None = None

    @property
    def positions(self) -> list[Position] | None:
        """The tokens' log-probabilities, where they were asked for."""
        return self.logprobs.content if self.logprobs is not None else None


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens_details: _Details | None = None


class _Error(msgspec.Struct, frozen=True):
    message: str = ""
    code: int | None = None


class _PromptLogProb(msgspec.Struct, frozen=True):
    logprob: float


class Chunk(msgspec.Struct, frozen=True):
    """One event of a stream, or a whole answer."""

    choices: list[Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None
    prompt_logprobs: list[dict[int, _PromptLogProb] | None] | None = None

    @property
    def cached_tokens(self) -> int:
        """How many of the prompt's tokens were cached, as far as the chunk says it."""
        details = self.usage.prompt_tokens_details if self.usage is not None else None
        return (details.cached_tokens or 0) if details is not None else 0


_decoder = msgspec.json.Decoder(Chunk)


def decode_chunk(data: bytes) -> Chunk:
    """Raises `msgspec.DecodeError`, a `ValueError`."""
    return _decoder.decode(data)


def encode_request(
    model: str,
    prompt: list[int],
    sampling: Sampling,
    eos_token_ids: tuple[int, ...],
    priority: int,
    *,
    stream: bool = True,
) -> bytes:
    """The body of a request."""
    body: dict[str, Any] = {
        "model": model,
        "token_ids": prompt,
        "sampling_params": _write_sampling(sampling, eos_token_ids),
        "priority": priority,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    if sampling.salt:
        body["cache_salt"] = _make_salt(sampling.salt)
    return msgspec.json.encode(body)


def encode_prompt_request(model: str, prompt: list[int], sampling: Sampling) -> bytes:
    """The body of a request for the log-probabilities of a prompt's tokens."""
    body: dict[str, Any] = {
        "model": model,
        "token_ids": prompt,
        "sampling_params": {
            "max_tokens": 1,
            "temperature": 0,
            "detokenize": False,
            "prompt_logprobs": sampling.top_logprobs,
        },
    }
    if sampling.salt:
        body["cache_salt"] = _make_salt(sampling.salt)
    return msgspec.json.encode(body)


def _make_salt(salt: str) -> str:
    """A salt that vLLM takes: it refuses long ones, and some characters."""
    return hashlib.sha256(salt.encode()).hexdigest()


def _write_sampling(sampling: Sampling, eos_token_ids: tuple[int, ...]) -> dict[str, Any]:
    greedy = sampling.temperature < LEAST_TEMPERATURE
    ends = () if sampling.ignore_eos else eos_token_ids
    given: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens,
        "temperature": 0 if greedy else sampling.temperature,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": list(dict.fromkeys((*sampling.stop_token_ids, *ends))),
        "detokenize": False,
    }
    if not greedy:
        given |= {
            "top_p": max(sampling.top_p, LEAST_TOP_P),
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
        }
        if sampling.seeded:
            # vLLM draws for each seeded request by itself, which slows a step down.
            given["seed"] = sampling.seed
    if sampling.logprobs or sampling.top_logprobs:
        # The token itself takes a place of its own among those that are told.
        given["logprobs"] = sampling.top_logprobs + 1 if sampling.top_logprobs else 0
    if sampling.logit_bias:
        given["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.grammar is not None:
        given["structured_outputs"] = {"grammar": sampling.grammar.text}
    return given


def read_top(positions: list[Position], count: int) -> list[Ranked] | None:
    """The `count` likeliest tokens in the place of each; None for a count of 0."""
    if not count:
        return None
    return [_rank([(o.token_id, o.logprob) for o in p.top_logprobs], count) for p in positions]


def read_prompt_scores(chunk: Chunk, prompt: list[int], count: int) -> Scores:
    """The log-probabilities of a prompt's tokens behind its first one. Raises `ValueError`."""
    found = chunk.prompt_logprobs
    if found is None or len(found) != len(prompt):
        raise ValueError("vLLM gave no log-probabilities of the prompt")
    logprobs, top = [], []
    for token, position in zip(prompt[1:], found[1:], strict=True):
        if position is None or token not in position:
            raise ValueError("vLLM left out log-probabilities of the prompt")
        logprobs.append(position[token].logprob)
        top.append(_rank([(t, p.logprob) for t, p in position.items()], count))
    return Scores(logprobs, top)


def _rank(found: Ranked, count: int) -> Ranked:
    """The `count` likeliest, likeliest first; of equal ones, those that came first."""
    return sorted(found, key=lambda one: -one[1])[:count]


class EventReader:
    """Cuts the bytes of a stream into its events."""

    def __init__(self, on_event: Callable[[bytes], None]) -> None:
        self._on_event = on_event
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take bytes; `on_event` gets the payload of each event that is whole."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                self._on_event(event[6:])
