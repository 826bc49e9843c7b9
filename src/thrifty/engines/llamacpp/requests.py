"""Requests to llama.cpp's `/completion`, and what its answers say.

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from thrifty.engines.llamacpp.gbnf import translate
from thrifty.engines.server.backend import Ranked, Sampling
from thrifty.errors import EngineError

PATH = "/completion"
EMBEDDINGS_PATH = "/v1/embeddings"
RERANK_PATH = "/v1/rerank"
LEAST_TEMPERATURE = 1e-5
"""Below it, the likeliest token is taken."""
SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
"""The order of the OpenAI dialect's servers: the temperature before what cuts the tail off."""
CERTAIN = 1e9
"""Added to a logit, it makes the token the only one that can come."""


def make_body(
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    count: int,
    context: int,
    prefix_cache: bool,
    banned: Iterable[int] = (),
    ignore_eos: bool = False,
) -> dict[str, Any]:
    """A request for up to `count` tokens behind `prompt`, streamed. Penalties look at all tokens before,
    of which there are at most `context`.
    """
    greedy = sampling.temperature < LEAST_TEMPERATURE
    body: dict[str, Any] = {
        "prompt": list(prompt),
        "n_predict": count,
        "stream": True,
        "return_tokens": True,
        "return_progress": True,
        "cache_prompt": prefix_cache,
        "samplers": SAMPLERS,
        "temperature": 0.0 if greedy else sampling.temperature,
        "top_k": 0 if greedy else sampling.top_k,
        "top_p": 1.0 if greedy else sampling.top_p,
        "min_p": 0.0 if greedy else sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repeat_last_n": context,
        "seed": sampling.seed,
        "ignore_eos": ignore_eos,
        "logit_bias": [*map(list, sampling.logit_bias), *([token, False] for token in banned)],
        "n_probs": max(sampling.top_logprobs, 1 if sampling.logprobs else 0),
    }
    if sampling.grammar is not None:
        body |= translate(sampling.grammar)
    return body


def make_probe(
    prompt: Sequence[int], *, top: int, prefix_cache: bool, token: int | None = None
) -> dict[str, Any]:
    """A request for the likeliest next tokens, and for the log-probability of `token`.

    llama.cpp tells log-probabilities before any sampling, so that one that is forced has its own.
    """
    return {
        "prompt": list(prompt),
        "n_predict": 1,
        "return_tokens": True,
        "cache_prompt": prefix_cache,
        "samplers": ["temperature"],
        "temperature": 0.0,
        "logit_bias": [] if token is None else [[token, CERTAIN]],
        "n_probs": max(1, top),
    }


def read_embeddings(answer: dict[str, Any], count: int) -> list[bytes]:
    """The vectors in an answer, as little-endian float32. Raises `EngineError`."""
    found = sorted(answer.get("data") or (), key=lambda one: int(one["index"]))
    if len(found) != count:
        raise EngineError(f"llama.cpp gives {len(found)} embeddings for {count} texts")
    return [struct.pack(f"<{len(one['embedding'])}f", *one["embedding"]) for one in found]


def read_logits(answer: dict[str, Any], count: int) -> list[float]:
    """The logits in a ranking, in the documents' order. Raises `EngineError`."""
    found = sorted(answer.get("results") or (), key=lambda one: int(one["index"]))
    if len(found) != count:
        raise EngineError(f"llama.cpp gives {len(found)} results for {count} documents")
    return [float(one["relevance_score"]) for one in found]


def read_scores(event: dict[str, Any]) -> list[tuple[int, float, Ranked]]:
    """The tokens that an event tells of: id, log-probability, and the likeliest in its place."""
    return [
        (
            int(one["id"]),
            float(one["logprob"]),
            [(int(other["id"]), float(other["logprob"])) for other in one["top_logprobs"]],
        )
        for one in event.get("completion_probabilities") or ()
    ]
