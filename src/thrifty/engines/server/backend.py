"""What a backend is to this server: jobs of token ids in, token ids out.

Callbacks run on the event loop, so that a stream's bytes are written in the same turn in which
its tokens arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from thrifty.types import Family


class Grammar(msgspec.Struct, frozen=True):
    """A constraint on the answer's text, as EBNF. `effort` is what it costs to compile: how many tokens
    are tried in all its places together.
    """

    text: str
    effort: int = 0


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are chosen, when to stop, and what is told of them. Temperature 0 is greedy.
    `max_tokens` may be 0 where only the prompt's log-probabilities are wanted.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    seeded: bool = False
    """Whether the client named the seed."""
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, and what is added to their logits. Empty where the engine does not honour it."""
    logprobs: bool = False
    top_logprobs: int = 0
    """How many of the likeliest tokens are wanted in the place of each token."""
    prompt_logprobs: bool = False
    """Whether the prompt's tokens are told of like those of the answer."""
    grammar: Grammar | None = None
    salt: str = ""
    """Prompts share cached prefixes only with those of the same salt."""


Ranked = list[tuple[int, float]]
"""Tokens and their log-probabilities, likeliest first."""


class Scores(msgspec.Struct, array_like=True):
    """Log-probabilities of tokens, and the likeliest tokens in the place of each, where wanted."""

    logprobs: list[float]
    top: list[Ranked]


class Output(msgspec.Struct, array_like=True):
    """New tokens of one job. `finish` is empty while it runs, then `stop`, `length` or `tool`."""

    job: int
    token_ids: list[int]
    logprobs: list[float] | None = None
    """The model's own: before temperature, penalties and grammars."""
    finish: str = ""
    cached_tokens: int = 0
    top: list[Ranked] | None = None
    prompt: Scores | None = None
    """With the first tokens: those of the prompt behind its first one."""


class Failure(msgspec.Struct, array_like=True):
    """A job that ended without an answer. `kind` is `grammar`, `min_tokens`,
    `memory`, `logprobs` or `engine`.
    """

    job: int
    kind: str
    message: str


@dataclass(frozen=True)
class Load:
    """How busy a backend is."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    """Share of the KV cache in use, 0 to 1."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Figures that change, beside those of the start: `speculating` (0 or 1),
    `speculation_acceptance` (the share of guessed tokens that were right, of late), and counters of
    the engine's own, since its start.
    """


@dataclass(frozen=True)
class ModelFacts:
    """What requests are checked against, and what `/v1/models` tells."""

    family: Family
    context_length: int
    eos_token_ids: tuple[int, ...] = ()
    embedding_size: int = 0
    facts: dict[str, float] | None = None
    """Figures of the start: seconds to load, bytes of KV cache and so on."""
    smaller_sizes: tuple[int, ...] = ()
    """What embeddings may be cut to, from the smallest."""


@dataclass(frozen=True)
class Candidates:
    """A query and the documents whose relevance to it is asked for."""

    query: str
    documents: list[str]
    """Cut to what fits the model, where that was asked for."""
    ids: list[list[int]]
    """Query and document as one sequence of tokens, for each document."""
    document_at: list[int]
    """Where the document's segment begins in each of them."""


OnOutput = Callable[[Output], None]
OnFailure = Callable[[Failure], None]


class Backend(Protocol):
    """Runs one model."""

    async def start(self) -> ModelFacts:
        """Load the model, and generate something with it. Raises `EngineError`."""
        ...

    def submit(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_output: OnOutput,
        on_failure: OnFailure,
        priority: int = 0,
    ) -> int:
        """Begin a generation; returns its number, which `cancel` takes. One with a `priority` above
        0 may wait for others, where the backend knows of priorities. The callbacks raise nothing.
        """
        ...

    def cancel(self, job: int) -> None:
        """Stop a generation that nobody waits for any more. Its callbacks are not called again."""
        ...

    async def embed(self, inputs: list[list[int]]) -> list[bytes]:
        """One embedding for each input, as little-endian float32."""
        ...

    async def rank(self, candidates: Candidates) -> list[float]:
        """How relevant each document is, as the model's logit. Raises `EngineError`."""
        ...

    def load(self) -> Load:
        """How busy it is."""
        ...

    async def park(self) -> None:
        """Give back memory of processes of its own, because nobody asks."""
        ...

    async def wait_failed(self) -> str:
        """Return, with the reason, once it cannot go on; never while it can."""
        ...

    async def stop(self) -> None:
        """Free everything."""
        ...
