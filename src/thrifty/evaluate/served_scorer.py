"""A decoder behind a URL whose server returns log-probabilities of a prompt's tokens.

Such a server returns a few of the likeliest tokens at each position, and the one that follows.
Others are unknown and count as the remaining mass. vLLM gives them by ids (`prompt_logprobs`), and
Thrifty by names, as OpenAI's completions did (`echo` with `logprobs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from thrifty.engines.server.log_probabilities import name_token
from thrifty.errors import EvaluationError
from thrifty.evaluate.scorer import TokenScores, TopTokens
from thrifty.evaluate.served import PROBE, RefusedRequest, ServedUrl, fingerprint
from thrifty.evaluate.windows import TokenArray
from thrifty.text.tokenizer import TextTokenizer

MOST_ALTERNATIVES = 20
"""vLLM's maximum, unless it is configured otherwise (`--max-logprobs`)."""
MOST_ECHOED = 5
"""OpenAI's maximum in a completion."""
PROBE_TOKENS = 16
"""Tokens of the answer by which a model is recognized that tells no log-probabilities."""


class ServedScorer:
    """Queries `/v1/completions` with `prompt_logprobs`, or with `echo` where a server refuses that.
    Requests contain token ids of the reference's tokenizer; the server must use the same tokenizer.
    """

    def __init__(
        self, url: str, tokenizer: TextTokenizer, vocab_size: int, model: str | None = None,
        key_env: str | None = None,
    ) -> None:  # fmt: skip
        self.label = url
        self._served = ServedUrl(url, key_env)
        described = self._served.list_models()
        names = [entry["id"] for entry in described]
        if model is not None and model not in names:
            raise EvaluationError(f"{url} does not serve {model!r}; it has {', '.join(names)}")
        self._model = model or names[0]
        entry = described[names.index(self._model)]
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        # One token more than the scored ones is sent, and one must be generated.
        self.context_length = int(entry.get("max_model_len") or 1 << 20) - 2
        self._echoes = False
        self.identity = f"{self._served.base}#{self._model}@{self._recognize()}"

    def _recognize(self) -> str:
        """What tells another model under the same name: what it says of a text, or after it."""
        tokens = np.array(self.tokenizer.encode(PROBE), np.int64)
        try:
            places = self._read_echo(tokens) if self._echoes else self._read_prompt(tokens)
            return fingerprint([value for told in places for _, value in sorted(told.items())])
        except EvaluationError:
            # It may answer all the same, which is enough for some tasks.
            return fingerprint(list(self.generate(tokens, PROBE_TOKENS)))

    def rank(self, tokens: TokenArray, k: int, rows: Sequence[int]) -> TopTokens:
        """Raises `EvaluationError`: a server reveals too little to be a reference."""
        raise EvaluationError(
            f"{self.label} returns only {MOST_ALTERNATIVES} alternatives per token; a reference "
            "must be a model on this machine"
        )

    def score(self, tokens: TokenArray, ids: TokenArray, rows: Sequence[int] = ()) -> TokenScores:
        """See `Scorer`. Log-probabilities that the server does not return are NaN."""
        places = self._read_echo(tokens) if self._echoes else self._read_prompt(tokens)
        logprobs = np.full(ids.shape, np.nan, np.float32)
        top = np.zeros(len(ids), np.int64)
        for row, told in enumerate(places):
            top[row] = max(told, key=told.__getitem__)
            logprobs[row] = [told.get(int(token), np.nan) for token in ids[row]]
        return TokenScores(logprobs, top)

    def _read_prompt(self, tokens: TokenArray) -> list[dict[int, float]]:
        """For each token but the first, what is told of it and of others in its place."""
        try:
            answer = self._complete(tokens, {"prompt_logprobs": MOST_ALTERNATIVES})
        except RefusedRequest as refusal:
            self._echoes = True
            try:
                return self._read_echo(tokens)
            except RefusedRequest:
                raise refusal from None
        places = answer["choices"][0].get("prompt_logprobs") or answer.get("prompt_logprobs")
        if not places or len(places) != len(tokens):
            raise self._find_fault("prompt_logprobs")
        return [
            {int(token): entry["logprob"] for token, entry in place.items()} for place in places[1:]
        ]

    def _read_echo(self, tokens: TokenArray) -> list[dict[int, float]]:
        """The same from a server that writes the prompt again. Names that several tokens have are
        left out.
        """
        answer = self._complete(tokens, {"echo": True, "logprobs": MOST_ECHOED})
        found = answer["choices"][0].get("logprobs") or {}
        given, others = found.get("token_logprobs") or [], found.get("top_logprobs") or []
        if min(len(given), len(others)) < len(tokens):
            raise self._find_fault("echo with logprobs")
        places = []
        for token, logprob, named in zip(tokens[1:].tolist(), given[1:], others[1:], strict=False):
            told = {self._ids[name]: one for name, one in named.items() if name in self._ids}
            places.append({**told, token: logprob})
        return places

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The tokens by the names that only one of them has."""
        found: dict[str, list[int]] = {}
        for token in range(self.tokenizer.vocabulary_size):
            found.setdefault(name_token(token, self.tokenizer), []).append(token)
        return {name: tokens[0] for name, tokens in found.items() if len(tokens) == 1}

    def _complete(self, tokens: TokenArray, changes: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self._model, "prompt": tokens.tolist(), "max_tokens": 1, "temperature": 0}
        return self._served.ask("POST", "/v1/completions", {**body, **changes})

    def _find_fault(self, asked: str) -> EvaluationError:
        return EvaluationError(
            f"{self.label} does not return log-probabilities of prompts ({asked}), so it cannot be "
            "evaluated; the servers of vLLM and of Thrifty do"
        )

    def generate(self, tokens: TokenArray, most: int) -> Iterator[int]:
        """See `Scorer`. The server's text is tokenized again."""
        body = {
            "model": self._model,
            "prompt": tokens.tolist(),
            "max_tokens": most,
            "temperature": 0,
        }
        text = self._served.ask("POST", "/v1/completions", body)["choices"][0]["text"]
        yield from self.tokenizer.encode(text, add_special_tokens=False)

    def close(self) -> None:
        """Close the connection."""
        self._served.close()
