"""A decoder behind a URL whose server returns log-probabilities of a prompt's tokens, as vLLM does.

Such a server returns a few of the likeliest tokens at each position, and the one that follows.
Others are unknown and count as the remaining mass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from thrifty.errors import EvaluationError
from thrifty.evaluate.scorer import TokenScores, TopTokens
from thrifty.evaluate.served import ServedUrl
from thrifty.evaluate.windows import TokenArray
from thrifty.text.tokenizer import TextTokenizer

MOST_ALTERNATIVES = 20
"""vLLM's maximum, unless it is configured otherwise (`--max-logprobs`)."""


class ServedScorer:
    """Queries `/v1/completions` with `prompt_logprobs`. Requests contain token ids of the
    reference's tokenizer; the server must use the same tokenizer.
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
        self.identity = f"{self._served.base}#{self._model}"
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        # One token more than the scored ones is sent, and one must be generated.
        self.context_length = int(entry.get("max_model_len") or 1 << 20) - 2

    def rank(self, tokens: TokenArray, k: int, rows: Sequence[int]) -> TopTokens:
        """Raises `EvaluationError`: a server reveals too little to be a reference."""
        raise EvaluationError(
            f"{self.label} returns only {MOST_ALTERNATIVES} alternatives per token; a reference "
            "must be a model on this machine"
        )

    def score(self, tokens: TokenArray, ids: TokenArray, rows: Sequence[int] = ()) -> TokenScores:
        """See `Scorer`. Log-probabilities that the server does not return are NaN."""
        body = {
            "model": self._model, "prompt": tokens.tolist(), "max_tokens": 1, "temperature": 0,
            "prompt_logprobs": MOST_ALTERNATIVES,
        }  # fmt: skip
        answer = self._served.ask("POST", "/v1/completions", body)
        places = answer["choices"][0].get("prompt_logprobs") or answer.get("prompt_logprobs")
        if not places or len(places) != len(tokens):
            raise EvaluationError(
                f"{self.label} does not return log-probabilities of prompts (prompt_logprobs), so "
                "it cannot be evaluated; vLLM's server does"
            )
        logprobs = np.full(ids.shape, np.nan, np.float32)
        top = np.zeros(len(ids), np.int64)
        for row, place in enumerate(places[1:]):
            told = {int(token): entry["logprob"] for token, entry in place.items()}
            top[row] = max(told, key=told.__getitem__)
            logprobs[row] = [told.get(int(token), np.nan) for token in ids[row]]
        return TokenScores(logprobs, top)

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
